// The selective-scan kernel for the CPU: the one interface that every host (PyTorch through the C
// interface in selective_scan_c.cpp, ONNX Runtime through its custom operator) drives.
//
//   delta' = softplus(delta + delta_bias)        (softplus only if delta_softplus)
//   h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,   h_{-1} = 0
//   y_t = sum_n C_t h_t + D u_t,                 y *= z sigmoid(z)
//
// The work is cut into independent units. Any thread may run any range of units; the result does not
// depend on who runs what. The kernel allocates nothing in the forward pass and throws nothing.
#pragma once

#include <cstdint>

namespace tfanet {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Instruction sets, from the least to the most capable. kGeneric is SSE2 or NEON.
enum class Isa : int32_t { kGeneric = 0, kAvx2 = 1, kAvx512 = 2 };

// Shapes and contiguous row-major operands. Null marks an absent optional operand.
struct ScanArgs {
  int64_t batch = 0;
  int64_t dim = 0;     // channels; a multiple of groups
  int64_t length = 0;  // L
  int64_t groups = 1;  // G: channel c reads B and C of group c / (dim / G)
  int64_t state = 1;   // N
  DType dtype = DType::kFloat32;  // of u, delta, B, C, z and y
  bool delta_softplus = false;
  const void* u = nullptr;           // (batch, dim, L)
  const void* delta = nullptr;       // (batch, dim, L)
  const void* A = nullptr;           // (dim, N); weights are float64 with kFloat64, else float32
  const void* B = nullptr;           // (batch, G, N, L)
  const void* C = nullptr;           // (batch, G, N, L)
  const void* D = nullptr;           // (dim), optional, a weight
  const void* z = nullptr;           // (batch, dim, L), optional
  const void* delta_bias = nullptr;  // (dim), optional, a weight
  void* y = nullptr;                 // (batch, dim, L)
};

// Gradients, all in the type of the weights (float64 with kFloat64, else float32), which is also
// the type of dy. Those of the weights are per batch entry, so that units never share an element;
// the caller sums them over the batch. Only float32 and float64 operands have gradients here.
struct ScanGrads {
  const void* dy = nullptr;     // (batch, dim, L)
  void* du = nullptr;           // (batch, dim, L)
  void* ddelta = nullptr;       // (batch, dim, L)
  void* dA = nullptr;           // (batch, dim, N)
  void* dB = nullptr;           // (batch, G, N, L)
  void* dC = nullptr;           // (batch, G, N, L)
  void* dD = nullptr;           // (batch, dim), null if D is
  void* dz = nullptr;           // (batch, dim, L), null if z is
  void* ddelta_bias = nullptr;  // (batch, dim), null if delta_bias is
};

// The largest N; the state of a unit lives on the stack.
constexpr int64_t kMaxState = 64;

// The best instruction set of this machine, or less where TFANET_ISA=generic|avx2|avx512 asks for it.
Isa best_isa();

// Why the arguments cannot be used, or null.
const char* check(const ScanArgs& args);

int64_t forward_units(const ScanArgs& args, Isa isa);
void forward(const ScanArgs& args, Isa isa, int64_t begin, int64_t end);

// One unit per batch entry and group. Allocates scratch memory per call: about 100 kB times N.
int64_t backward_units(const ScanArgs& args);
void backward(const ScanArgs& args, const ScanGrads& grads, Isa isa, int64_t begin, int64_t end);

// A rough count of operations, for a host that decides how many threads a call is worth.
inline double cost(const ScanArgs& args) {
  return static_cast<double>(args.batch) * static_cast<double>(args.dim) *
         static_cast<double>(args.length) * (4.0 + 2.0 * static_cast<double>(args.state));
}

}  // namespace tfanet
