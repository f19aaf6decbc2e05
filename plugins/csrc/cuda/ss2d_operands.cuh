// What the kernels of the 2-D scan are given, and where they find things in the workspace.
#ifndef TFANET_SS2D_OPERANDS_CUH
#define TFANET_SS2D_OPERANDS_CUH

#include "scan_step.cuh"
#include "ss2d_launch.h"

namespace tfanet {

// Everything is contiguous; the weights' sizes are those of ss2d.h.
template <typename T>
struct SS2DOperands {
  const T* u;                  // (batch, E, H, W)
  const float* x_proj_weight;  // (4, R + 2N, E)
  const float* dt_weight;      // (4, E, R)
  const float* dt_bias;        // (4, E)
  const float* A;              // (4E, N)
  const float* D;              // (4E)
  T* y;                        // (batch, E, H, W)
  float* workspace;            // plan_ss2d(sizes).floats, from a 16-byte boundary on
  SS2DSizes sizes;
};

// Row 0 of a tile's projected rows, kMapPixels apart.
template <typename T>
__device__ __forceinline__ float* projected_rows(const SS2DOperands<T>& p, const SS2DPlan& plan,
                                                 int batch, int k, int tile) {
  return p.workspace + (static_cast<long long>(batch * kSS2DDirections + k) * plan.tiles + tile) *
                           plan.rows * kMapPixels;
}

// The sums of delta of a direction's segments, channels next to each other.
template <typename T>
__device__ __forceinline__ float* segment_sums(const SS2DOperands<T>& p, const SS2DPlan& plan,
                                               int batch, int k) {
  return p.workspace + plan.sums_at +
         static_cast<long long>(batch * kSS2DDirections + k) * plan.segments * plan.padded_channels;
}

// The same of state n.
template <typename T>
__device__ __forceinline__ float* segment_states(const SS2DOperands<T>& p, const SS2DPlan& plan,
                                                 int batch, int k, int n) {
  return p.workspace + plan.states_at +
         (static_cast<long long>(batch * kSS2DDirections + k) * p.sizes.states + n) *
             plan.segments * plan.padded_channels;
}

}  // namespace tfanet

#endif
