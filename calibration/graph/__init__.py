"""A bundle's two graphs as they are quantised: prepared, indexed, their layers, and their runs."""
