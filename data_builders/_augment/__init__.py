"""Parts of `data_builders.augment`."""
