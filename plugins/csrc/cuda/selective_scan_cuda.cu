// launch_selective_scan: checks a call, chooses the kernel and its geometry, and enqueues it.
#include <cuda_runtime_api.h>

#include "scan_call.h"
#include "selective_scan.cuh"

namespace tfanet {
namespace {

// N = 1 is compiled for itself: it is what vision models use, and bound by memory. Other N are
// bound by arithmetic, which a loop over states does not change.
template <typename T, int kStates, bool kGate>
__global__ void __launch_bounds__(kMaxScanLanes, scan_blocks(kStates, kGate))
    scan_kernel(const ScanOperands<T> operands) {
  selective_scan<T, kStates, kGate>(operands);
}

const char* check(const ScanCall& call) {
  // Positions in a row are 32-bit, and run past its end by at most one tile.
  constexpr long long kMaxSize = (1LL << 31) - (1LL << 17);
  if (!known(call.io) || !known(call.weight))
    return "an element type is not float32, float16 or bfloat16";
  if (call.weight != ScanType::kFloat32 && call.weight != call.io) {
    return "A, D and delta_bias must be float32 or of the type of u";
  }
  if (call.batch < 0 || call.dim < 0 || call.length < 0) return "a size is negative";
  if (call.groups < 1 || call.dim % call.groups != 0) return "the groups of B do not divide dim";
  if (call.states < 1 || call.states > kMaxScanStates) return "N is not from 1 to 64 (on the GPU)";
  if (call.batch > kMaxSize || call.dim > kMaxSize || call.length > kMaxSize ||
      call.batch * call.dim > kMaxSize) {
    return "batch x dim or length is above 2^31 - 2^17";
  }
  if (call.batch == 0 || call.dim == 0 || call.length == 0) return nullptr;
  if (call.u == nullptr || call.delta == nullptr || call.A == nullptr || call.B == nullptr ||
      call.C == nullptr || call.y == nullptr) {
    return "an operand is missing";
  }
  for (const void* address :
       {call.u, call.delta, call.B, call.C, call.z, static_cast<const void*>(call.y)}) {
    if (misaligned(address, bytes_of(call.io)))
      return "an operand is not aligned to its element type";
  }
  for (const void* address : {call.A, call.D, call.delta_bias}) {
    if (misaligned(address, bytes_of(call.weight)))
      return "a weight is not aligned to its element type";
  }
  return nullptr;
}

template <typename T>
cudaError_t launch(const ScanCall& call, const ScanLaunch& geometry, cudaStream_t stream) {
  ScanOperands<T> operands{};
  operands.u = static_cast<const T*>(call.u);
  operands.delta = static_cast<const T*>(call.delta);
  operands.A = call.A;
  operands.B = static_cast<const T*>(call.B);
  operands.C = static_cast<const T*>(call.C);
  operands.D = call.D;
  operands.delta_bias = call.delta_bias;
  operands.z = static_cast<const T*>(call.z);
  operands.y = static_cast<T*>(call.y);
  operands.batch = static_cast<int>(call.batch);
  operands.dim = static_cast<int>(call.dim);
  operands.length = static_cast<int>(call.length);
  operands.groups = static_cast<int>(call.groups);
  operands.states = static_cast<int>(call.states);
  operands.narrow_weights = call.weight != ScanType::kFloat32;
  operands.softplus = call.softplus;
  void* arguments[] = {&operands};
  const bool gate = call.z != nullptr;
  const auto kernel = call.states == 1
                          ? (gate ? scan_kernel<T, 1, true> : scan_kernel<T, 1, false>)
                          : (gate ? scan_kernel<T, 0, true> : scan_kernel<T, 0, false>);
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                          dim3(static_cast<unsigned>(geometry.grid)),
                          dim3(geometry.lanes, geometry.rows), arguments, 0, stream);
}

}  // namespace

const char* launch_selective_scan(const ScanCall& call, cudaStream_t stream) noexcept {
  if (const char* wrong = check(call)) return wrong;
  if (call.batch == 0 || call.dim == 0 || call.length == 0) return nullptr;
  const ScanLaunch geometry = scan_launch(call.batch * call.dim, call.length, bytes_of(call.io),
                                          static_cast<int>(call.states));
  const cudaError_t status = call.io == ScanType::kFloat32 ? launch<float>(call, geometry, stream)
                             : call.io == ScanType::kFloat16
                                 ? launch<Half>(call, geometry, stream)
                                 : launch<BFloat16>(call, geometry, stream);
  return explain_launch(status);
}

}  // namespace tfanet
