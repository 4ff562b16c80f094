"""Parts of `data_builders.shapes`."""
