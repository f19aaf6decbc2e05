// launch_ss2d: checks a call, chooses the kernels and enqueues them.
#include "scan_call.h"
#include "ss2d_cuda.h"
#include "ss2d_project.cuh"
#include "ss2d_scan.cuh"

namespace tfanet {
namespace {

template <typename T>
__global__ void __launch_bounds__(kSS2DThreads, ss2d_blocks(kProjectMap))
    project_kernel(const SS2DOperands<T> operands) {
  project_map(operands);
}
template <typename T, int kStates>
__global__ void __launch_bounds__(kSS2DThreads, ss2d_blocks(kScanSegments))
    segments_kernel(const SS2DOperands<T> operands) {
  scan_segments<kStates>(operands);
}
template <typename T>
__global__ void __launch_bounds__(kSS2DThreads, ss2d_blocks(kCarryStates))
    carry_kernel(const SS2DOperands<T> operands) {
  carry_states(operands);
}
template <typename T, int kStates>
__global__ void __launch_bounds__(kSS2DThreads, ss2d_blocks(kScanMap))
    merge_kernel(const SS2DOperands<T> operands) {
  scan_map<kStates>(operands);
}

const char* check_operands(const SS2DCall& call) {
  for (const void* address : {call.u, static_cast<const void*>(call.y)}) {
    if (address == nullptr) return "an operand is missing";
    if (misaligned(address, bytes_of(call.io))) return "a map is not aligned to its element type";
  }
  for (const float* address : {call.x_proj_weight, call.dt_weight, call.dt_bias, call.A, call.D}) {
    if (address == nullptr) return "an operand is missing";
    if (misaligned(address, 4)) return "a weight is not aligned to its element type";
  }
  if (call.workspace == nullptr || misaligned(call.workspace, 16)) {
    return "the workspace is missing or not aligned to 16 bytes";
  }
  return nullptr;
}

template <typename T>
cudaError_t launch(const SS2DCall& call, cudaStream_t stream) {
  SS2DOperands<T> operands{};
  operands.u = static_cast<const T*>(call.u);
  operands.x_proj_weight = call.x_proj_weight;
  operands.dt_weight = call.dt_weight;
  operands.dt_bias = call.dt_bias;
  operands.A = call.A;
  operands.D = call.D;
  operands.y = static_cast<T*>(call.y);
  operands.workspace = static_cast<float*>(call.workspace);
  operands.sizes = ss2d_sizes(call);
  void* arguments[] = {&operands};
  using Kernel = void (*)(const SS2DOperands<T>);
  const bool one = call.states == 1;
  const Kernel kernels[kSS2DKernels] = {
      project_kernel<T>, one ? segments_kernel<T, 1> : segments_kernel<T, 0>, carry_kernel<T>,
      one ? merge_kernel<T, 1> : merge_kernel<T, 0>};
  const SS2DPlan plan = plan_ss2d(operands.sizes);
  for (int i = 0; i < kSS2DKernels; ++i) {
    const cudaError_t status = cudaLaunchKernel(reinterpret_cast<const void*>(kernels[i]),
                                                dim3(static_cast<unsigned>(plan.grid[i])),
                                                dim3(kSS2DThreads), arguments, 0, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

const char* launch_ss2d(const SS2DCall& call, cudaStream_t stream) noexcept {
  if (const char* wrong = check_ss2d_sizes(call)) return wrong;
  if (ss2d_workspace(call) == 0) return nullptr;  // an empty map
  if (const char* wrong = check_operands(call)) return wrong;
  return explain_launch(call.io == ScanType::kFloat32   ? launch<float>(call, stream)
                        : call.io == ScanType::kFloat16 ? launch<Half>(call, stream)
                                                        : launch<BFloat16>(call, stream));
}

}  // namespace tfanet
