"""CrossVLT in PyTorch: Swin and BERT that exchange in every stage; see `network`."""
