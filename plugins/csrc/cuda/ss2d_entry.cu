// The four kernels of the 2-D scan for one kind of call, compiled by NVRTC: the element type and N
// (0 for any) are macros. All take the same parameters.
#include "ss2d_project.cuh"
#include "ss2d_scan.cuh"

#if !defined(TFANET_IO) || !defined(TFANET_STATES)
#error "define TFANET_IO and TFANET_STATES"
#endif

#define TFANET_SS2D_KERNEL(kernel, name, function)                                                \
  extern "C" __global__ void __launch_bounds__(tfanet::kSS2DThreads, tfanet::ss2d_blocks(kernel)) \
      name(const TFANET_IO* u, const float* x_proj_weight, const float* dt_weight,                \
           const float* dt_bias, const float* A, const float* D, TFANET_IO* y, float* workspace,  \
           int batch, int channels, int height, int width, int rank, int states) {                \
    tfanet::function(                                                                             \
        tfanet::SS2DOperands<TFANET_IO>{u,                                                        \
                                        x_proj_weight,                                            \
                                        dt_weight,                                                \
                                        dt_bias,                                                  \
                                        A,                                                        \
                                        D,                                                        \
                                        y,                                                        \
                                        workspace,                                                \
                                        {batch, channels, height, width, rank, states}});         \
  }

TFANET_SS2D_KERNEL(tfanet::kProjectMap, tfanet_ss2d_project, project_map)
TFANET_SS2D_KERNEL(tfanet::kScanSegments, tfanet_ss2d_segments, scan_segments<TFANET_STATES>)
TFANET_SS2D_KERNEL(tfanet::kCarryStates, tfanet_ss2d_carry, carry_states)
TFANET_SS2D_KERNEL(tfanet::kScanMap, tfanet_ss2d_merge, scan_map<TFANET_STATES>)
