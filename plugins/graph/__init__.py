"""The operators in ONNX: schemas, bodies in standard operators, rewriting of their nodes."""
