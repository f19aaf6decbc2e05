"""What a bundle computes beside PyTorch: the gate, and the report with pictures."""
