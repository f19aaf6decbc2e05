// A warp's matrix product in float32: sums (16 x 8) += left (16 x 8) right (8 x 8).
//
// With g = lane / 4 and t = lane % 4, a lane holds left (g, t), (g + 8, t), (g, t + 4), (g + 8,
// t + 4), right (t, g), (t + 4, g) and sums (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1):
// the layout of mma.m16n8k8, which multiplies in TF32, 11 bits. Each factor is therefore split into
// two such numbers, and three products give 21 bits. Compute capability 7.5, which has no TF32,
// passes the factors around the warp: slow there, and exact.
#ifndef TFANET_SCAN_PRODUCT_CUH
#define TFANET_SCAN_PRODUCT_CUH

#include "scan_types.cuh"

namespace tfanet {

// Values of one lane: high + low, where `low` is what TF32 leaves over.
template <int kValues>
struct Factor {
  float high[kValues], low[kValues];
};

__device__ __forceinline__ void multiply_by_shuffles(float (&sums)[4], const float (&left)[4],
                                                     const float (&right)[2]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int upper = k / 4;
    const float a = device::shuffle(left[2 * upper], 4 * g + k % 4);
    const float a8 = device::shuffle(left[2 * upper + 1], 4 * g + k % 4);
    const float b = device::shuffle(right[upper], 8 * t + k % 4);
    const float b1 = device::shuffle(right[upper], 8 * t + 4 + k % 4);
    sums[0] = fmaf(a, b, sums[0]);
    sums[1] = fmaf(a, b1, sums[1]);
    sums[2] = fmaf(a8, b, sums[2]);
    sums[3] = fmaf(a8, b1, sums[3]);
  }
}

}  // namespace tfanet

#ifndef TFANET_SCAN_EMULATION
namespace tfanet::device {

#if __CUDA_ARCH__ >= 800
constexpr bool kHasTF32 = true;

__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const float (&left)[4],
                                              const float (&right)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(left[0])), "r"(__float_as_uint(left[1])), "r"(__float_as_uint(left[2])),
        "r"(__float_as_uint(left[3])), "r"(__float_as_uint(right[0])),
        "r"(__float_as_uint(right[1])));
}
#else
constexpr bool kHasTF32 = false;

__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const float (&left)[4],
                                              const float (&right)[2]) {
  multiply_by_shuffles(sums, left, right);
}
#endif

}  // namespace tfanet::device
#endif

namespace tfanet {

// The 19 upper bits of x after `half` is added to its bits.
__device__ __forceinline__ float cut_to_tf32(float x, unsigned half) {
  return __uint_as_float((__float_as_uint(x) + half) & 0xffffe000u);
}

template <int kValues>
__device__ __forceinline__ Factor<kValues> split(const float (&values)[kValues]) {
  Factor<kValues> factor;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    // By hand: the instruction that rounds is four on some machines. Infinity and NaN stay.
    factor.high[i] = device::kHasTF32 ? cut_to_tf32(values[i], 0u) : values[i];
    factor.low[i] = device::kHasTF32 ? cut_to_tf32(values[i] - factor.high[i], 0x1000u) : 0.0f;
  }
  return factor;
}

// kShort: all of `right` fits TF32 (it was two bytes wide), so that its `low` is zero. The smallest
// products go first.
template <bool kShort = false>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const Factor<4>& left,
                                             const Factor<2>& right) {
  if (device::kHasTF32) {
    if (!kShort) device::multiply_tf32(sums, left.high, right.low);
    device::multiply_tf32(sums, left.low, right.high);
  }
  device::multiply_tf32(sums, left.high, right.high);
}

}  // namespace tfanet

#endif
