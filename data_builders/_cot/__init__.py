"""Parts of `data_builders.cot`."""
