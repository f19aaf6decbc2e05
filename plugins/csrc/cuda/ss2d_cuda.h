// The 2-D selective scan on the GPU, for C++ libraries: no CUDA header is needed to call it, and
// nothing of a framework (PyTorch, TensorRT, ONNX Runtime) is in it.
#ifndef TFANET_SS2D_CUDA_H
#define TFANET_SS2D_CUDA_H

#include "selective_scan_cuda.h"

namespace tfanet {

// One call, see ss2d.h for the equation. Tensors are contiguous and on the stream's device.
// Computed and accumulated in float32, and rounded once, to `io`.
struct SS2DCall {
  const void* u;                                           // (batch, channels, height, width), io
  const float* x_proj_weight;                              // (4, rank + 2 states, channels)
  const float* dt_weight;                                  // (4, channels, rank)
  const float* dt_bias;                                    // (4, channels)
  const float* A;                                          // (4 channels, states)
  const float* D;                                          // (4 channels)
  void* y;                                                 // (batch, channels, height, width), io
  void* workspace;                                         // ss2d_workspace bytes, aligned to 16
  long long batch, channels, height, width, rank, states;  // states (N) is 1 to 64
  ScanType io;
};

// nullptr if the sizes and type of a call make sense, else a sentence that says what is wrong
// (static storage: nothing to free); pointers are not looked at.
const char* check_ss2d_sizes(const SS2DCall& call) noexcept;

// The sizes as the kernels take them, for sizes that make sense.
struct SS2DSizes;
SS2DSizes ss2d_sizes(const SS2DCall& call) noexcept;

// Bytes of the workspace for sizes that make sense; 0 for an empty map.
long long ss2d_workspace(const SS2DCall& call) noexcept;

// Enqueues the call on `stream` and does not wait. Returns nullptr, or a sentence that says what is
// wrong; then nothing that writes y was enqueued. From many threads at a time.
const char* launch_ss2d(const SS2DCall& call, cudaStream_t stream) noexcept;

}  // namespace tfanet

#endif
