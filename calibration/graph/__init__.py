"""ONNX graphs as quantisation sees them: reading, layouts, and which layers become INT8."""
