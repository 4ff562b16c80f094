"""Parts of `data_builders.preferences`."""
