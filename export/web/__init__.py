"""A bundle in the browser: a static page that runs it by onnxruntime-web. Needs no PyTorch."""
