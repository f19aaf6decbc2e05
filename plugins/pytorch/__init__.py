"""The operators in PyTorch: torch.ops.tfanet, their derivatives, and their definitions."""
