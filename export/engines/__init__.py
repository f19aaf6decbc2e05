"""Engine files for TensorRT and TensorRT-RTX: typed graphs, building, adding, refitting."""
