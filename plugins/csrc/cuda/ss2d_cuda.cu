// launch_ss2d: checks a call, chooses the kernels and enqueues them.
#include "scan_call.h"
#include "ss2d_cuda.h"
#include "ss2d_project.cuh"
#include "ss2d_scan.cuh"

namespace tfanet {
namespace {

constexpr long long kMaxBlocks = (1LL << 31) - 1;
constexpr long long kMaxChannels = 1LL << 20;

template <typename T>
__global__ void __launch_bounds__(kMapThreads, map_blocks(kProjectMap))
    project_kernel(const MapOperands<T> operands) {
  project_map(operands);
}
template <typename T, int kStates>
__global__ void __launch_bounds__(kMapThreads, map_blocks(kScanSegments))
    segments_kernel(const MapOperands<T> operands) {
  scan_segments<kStates>(operands);
}
template <typename T>
__global__ void __launch_bounds__(kMapThreads, map_blocks(kCarryStates))
    carry_kernel(const MapOperands<T> operands) {
  carry_states(operands);
}
template <typename T, int kStates>
__global__ void __launch_bounds__(kMapThreads, map_blocks(kScanMap))
    merge_kernel(const MapOperands<T> operands) {
  scan_map<kStates>(operands);
}

bool is_empty(const SS2DCall& call) {
  return call.batch == 0 || call.channels == 0 || call.height == 0 || call.width == 0;
}

// Of sizes that make sense.
MapSizes sizes_of(const SS2DCall& call) {
  return {static_cast<int>(call.batch),  static_cast<int>(call.channels),
          static_cast<int>(call.height), static_cast<int>(call.width),
          static_cast<int>(call.rank),   static_cast<int>(call.states)};
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
  MapOperands<T> operands{};
  operands.u = static_cast<const T*>(call.u);
  operands.x_proj_weight = call.x_proj_weight;
  operands.dt_weight = call.dt_weight;
  operands.dt_bias = call.dt_bias;
  operands.A = call.A;
  operands.D = call.D;
  operands.y = static_cast<T*>(call.y);
  operands.workspace = static_cast<float*>(call.workspace);
  operands.sizes = sizes_of(call);
  void* arguments[] = {&operands};
  using Kernel = void (*)(const MapOperands<T>);
  const bool one = call.states == 1;
  const Kernel kernels[kMapKernels] = {
      project_kernel<T>, one ? segments_kernel<T, 1> : segments_kernel<T, 0>, carry_kernel<T>,
      one ? merge_kernel<T, 1> : merge_kernel<T, 0>};
  const MapPlan plan = plan_map(operands.sizes);
  for (int i = 0; i < kMapKernels; ++i) {
    const cudaError_t status = cudaLaunchKernel(reinterpret_cast<const void*>(kernels[i]),
                                                dim3(static_cast<unsigned>(plan.grid[i])),
                                                dim3(kMapThreads), arguments, 0, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

const char* check_ss2d_sizes(const SS2DCall& call) noexcept {
  if (!known(call.io)) return "an element type is not float32, float16 or bfloat16";
  if (call.batch < 0 || call.channels < 0 || call.height < 0 || call.width < 0) {
    return "a size is negative";
  }
  if (call.states < 1 || call.states > kMaxScanStates) return "N is not from 1 to 64 (on the GPU)";
  if (call.rank < 1 || call.rank > kMaxChannels) return "R is not from 1 to 2^20";
  if (call.channels > kMaxChannels) return "E is above 2^20";
  constexpr const char* kTooLarge = "u is too large for one call; split the batch";
  for (const long long size : {call.batch, call.height, call.width}) {
    if (size > kMaxBlocks) return kTooLarge;
  }
  if (is_empty(call)) return nullptr;
  const long long across = (call.width + kMapTile - 1) / kMapTile;
  const long long down = (call.height + kMapTile - 1) / kMapTile;
  if (across > kMaxBlocks / kMapPixels / down) return kTooLarge;
  // Blocks of a map are fewer than 2^23 tiles x 2^18 or 2^31 x 2^17, so that this does not
  // overflow.
  MapSizes one = sizes_of(call);
  one.batch = 1;
  const MapPlan plan = plan_map(one);
  for (const long long blocks : plan.grid) {
    if (blocks > kMaxBlocks / call.batch) return kTooLarge;
  }
  return nullptr;
}

long long ss2d_workspace(const SS2DCall& call) noexcept {
  return is_empty(call) ? 0 : plan_map(sizes_of(call)).floats * 4;
}

const char* launch_ss2d(const SS2DCall& call, cudaStream_t stream) noexcept {
  if (const char* wrong = check_ss2d_sizes(call)) return wrong;
  if (is_empty(call)) return nullptr;
  if (const char* wrong = check_operands(call)) return wrong;
  return explain_launch(call.io == ScanType::kFloat32   ? launch<float>(call, stream)
                        : call.io == ScanType::kFloat16 ? launch<Half>(call, stream)
                                                        : launch<BFloat16>(call, stream));
}

}  // namespace tfanet
