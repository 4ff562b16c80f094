"""Parts of `data_builders.tool_use`."""
