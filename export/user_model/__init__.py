"""A user's own selective-scan model to one ONNX file, compared with PyTorch."""
