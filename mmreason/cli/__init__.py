"""The `mmreason` command: light and lazy."""
