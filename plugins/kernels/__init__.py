"""The kernels by address, without PyTorch: the CPU's through ctypes, the GPU's through NVRTC."""
