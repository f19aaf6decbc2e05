// The selective scan on the CPU: the one interface that every binding of the kernel uses.
//
//   delta' = softplus(delta + delta_bias)                 (softplus where delta_softplus is set)
//   h_t[n] = exp(delta'_t A[n]) h_{t-1}[n] + delta'_t B_t[n] u_t,   h_{-1} = 0
//   y_t    = (sum_n C_t[n] h_t[n] + D u_t) * z_t sigmoid(z_t)       (D, z where given)
//
// The caller owns all memory and all threads: a call is cut into units (blocks of channels) that
// any thread may run in any order, and the result does not depend on who ran which. Forward units
// allocate nothing; backward units allocate scratch memory of their own.
#ifndef TFANET_SELECTIVE_SCAN_H
#define TFANET_SELECTIVE_SCAN_H

#include <cstdint>

#include "../operands.h"

namespace tfanet {

// Values are part of the C interface.
enum DType : std::int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Instruction sets; kAutomatic is the best one that this machine has, or the one named by the
// environment variable TFANET_SCAN_ISA ("baseline", "avx2", "avx512") at the first call.
enum Isa : std::int32_t { kAutomatic = 0, kBaseline = 1, kAvx2 = 2, kAvx512 = 3 };

// Strides count elements. The last axis (time) of every sequence is contiguous; A, D and
// delta_bias are contiguous. Batch and row strides may be 0 (an expanded tensor) except in y.
struct SequenceStrides {
  std::int64_t batch, row;
};
struct ProjectionStrides {
  std::int64_t batch, group, state;
};

struct ScanArgs {
  std::int64_t batch, dim, length, state, groups;  // dim is a multiple of groups
  std::int32_t dtype;  // of u, delta, B, C, z, y; the state is double for kFloat64, else float
  std::int32_t weight_dtype;  // of A, D, delta_bias
  std::int32_t delta_softplus;
  std::int32_t isa;
  const void* u;           // (batch, dim, length)
  const void* delta;       // (batch, dim, length)
  const void* A;           // (dim, state)
  const void* B;           // (batch, groups, state, length)
  const void* C;           // (batch, groups, state, length)
  const void* D;           // (dim) or null
  const void* z;           // (batch, dim, length) or null
  const void* delta_bias;  // (dim) or null
  void* y;                 // (batch, dim, length)
  SequenceStrides u_strides, delta_strides, z_strides, y_strides;
  ProjectionStrides B_strides, C_strides;
};

// What the backward pass writes. Gradients of sequences are contiguous and have the dtype of the
// sequences. The others are sums over units: each unit writes its part, in the type of the state,
// and the caller adds the parts over the leading axis (and dA, dD, ddelta_bias over the batch).
struct ScanGradients {
  const void* dy;           // (batch, dim, length), contiguous
  void* du;                 // (batch, dim, length)
  void* ddelta;             // (batch, dim, length)
  void* dz;                 // (batch, dim, length), null where z is
  void* dA_parts;           // (batch, dim, state)
  void* dB_parts;           // (slabs, batch, groups, state, length)
  void* dC_parts;           // (slabs, batch, groups, state, length)
  void* dD_parts;           // (batch, dim), null where D is
  void* ddelta_bias_parts;  // (batch, dim), null where delta_bias is
};

// Fills all strides for contiguous arrays.
void set_contiguous(ScanArgs& args);

// Null if the sizes, dtypes and pointers make sense, else what is wrong in one static sentence.
const char* check(const ScanArgs& args);

// Number of units of a forward pass; 0 for an empty batch, dim or length.
std::int64_t forward_units(const ScanArgs& args);

// Rough cost of one unit in floating-point operations, for the caller's choice of threads.
double forward_unit_cost(const ScanArgs& args);

// Runs the units [begin, end). `args` must have passed `check`.
void run_forward(const ScanArgs& args, std::int64_t begin, std::int64_t end);

// Leading size of dB_parts and dC_parts.
std::int64_t backward_slabs(const ScanArgs& args);

// The backward pass recomputes the states from the inputs; args.y is not read or written.
std::int64_t backward_units(const ScanArgs& args);
double backward_unit_cost(const ScanArgs& args);
void run_backward(const ScanArgs& args, const ScanGradients& grads, std::int64_t begin,
                  std::int64_t end);

// Name of the instruction set that `isa` resolves to on this machine, or null where the machine
// does not have it.
const char* isa_name(std::int32_t isa);

}  // namespace tfanet

#endif
