// The selective scan on the GPU, for C++ libraries: no CUDA header is needed to call it, and
// nothing of a framework (PyTorch, TensorRT, ONNX Runtime) is in it.
#ifndef TFANET_SELECTIVE_SCAN_CUDA_H
#define TFANET_SELECTIVE_SCAN_CUDA_H

struct CUstream_st;
typedef CUstream_st* cudaStream_t;

namespace tfanet {

enum class ScanType : int { kFloat32, kFloat16, kBFloat16 };

// One call. Tensors are contiguous and on the stream's device; D, z and delta_bias may be null.
//
//   delta' = softplus(delta + delta_bias)               (softplus where `softplus` is set)
//   h_t[n] = exp(delta'_t A[n]) h_{t-1}[n] + delta'_t B_t[n] u_t,   h_{-1} = 0
//   y_t    = (sum_n C_t[n] h_t[n] + D u_t) * z_t sigmoid(z_t)       (D, z where given)
//
// computed and accumulated in float32, and rounded once, to `io`.
struct ScanCall {
  const void* u;                                 // (batch, dim, length), io
  const void* delta;                             // (batch, dim, length), io
  const void* A;                                 // (dim, states), weight
  const void* B;                                 // (batch, groups, states, length), io
  const void* C;                                 // (batch, groups, states, length), io
  const void* D;                                 // (dim), weight, or null
  const void* z;                                 // (batch, dim, length), io, or null
  const void* delta_bias;                        // (dim), weight, or null
  void* y;                                       // (batch, dim, length), io
  long long batch, dim, length, groups, states;  // groups divides dim; states is 1 to 64
  ScanType io;
  ScanType weight;  // float32, or the same as io
  bool softplus;
};

// Enqueues the call on `stream` and does not wait. Returns nullptr, or a sentence that says what is
// wrong (static storage: nothing to free); then nothing was enqueued. From many threads at a time.
const char* launch_selective_scan(const ScanCall& call, cudaStream_t stream) noexcept;

}  // namespace tfanet

#endif
