"""The networks in PyTorch: a folder for each family, found through `tfanet.model.family`."""
