"""ASDA in PyTorch: adaptive selection with CLIP; see `network`."""
