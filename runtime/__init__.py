"""Run a bundle without PyTorch: NumPy, Pillow, tokenizers and ONNX Runtime."""
