"""InstAlign in PyTorch, a reconstruction: phrases and instances aligned; see `network`."""
