// launch_ss2d on the processor, for conformance tests where there is no GPU: the plugin is linked
// with this in place of the launcher, its tensors and its workspace are in ordinary memory, and the
// kernels run in the emulator.
#define TFANET_SCAN_EMULATION "cuda_emulator.h"

#include "ss2d_cuda.h"
#include "ss2d_project.cuh"
#include "ss2d_scan.cuh"

namespace {

template <typename T>
void run(const tfanet::SS2DCall& call) {
  const tfanet::SS2DOperands<T> operands{static_cast<const T*>(call.u),
                                         call.x_proj_weight,
                                         call.dt_weight,
                                         call.dt_bias,
                                         call.A,
                                         call.D,
                                         static_cast<T*>(call.y),
                                         static_cast<float*>(call.workspace),
                                         tfanet::ss2d_sizes(call)};
  const tfanet::SS2DPlan plan = tfanet::plan_ss2d(operands.sizes);
  void (*const kernels[tfanet::kSS2DKernels])(const tfanet::SS2DOperands<T>&) = {
      tfanet::project_map<T>, tfanet::scan_segments<0, T>, tfanet::carry_states<T>,
      tfanet::scan_map<0, T>};
  for (int i = 0; i < tfanet::kSS2DKernels; ++i) {
    emulator::run_grid(plan.grid[i], {tfanet::kSS2DThreads, 1, 1}, i,
                       [&] { kernels[i](operands); });
  }
}

}  // namespace

const char* tfanet::launch_ss2d(const SS2DCall& call, cudaStream_t stream) noexcept {
  if (stream != nullptr) return "the processor has no streams";
  if (const char* wrong = check_ss2d_sizes(call)) return wrong;
  if (call.workspace == nullptr) return "the workspace is missing";
  call.io == ScanType::kFloat32   ? run<float>(call)
  : call.io == ScanType::kFloat16 ? run<Half>(call)
                                  : run<BFloat16>(call);
  return nullptr;
}
