"""Parts of `data_builders.teacher`."""
