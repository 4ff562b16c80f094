"""Parts of `data_builders.visual_instruct`."""
