"""Parts of `data_builders.corpus`."""
