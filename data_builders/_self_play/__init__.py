"""Parts of `data_builders.self_play`."""
