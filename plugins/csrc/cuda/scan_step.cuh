// The arithmetic of one step of a scan, shared by the scan along rows and the one over maps.
#ifndef TFANET_SCAN_STEP_CUH
#define TFANET_SCAN_STEP_CUH

#include "scan_types.cuh"

namespace tfanet {

constexpr float kLog2E = 1.4426950408889634f;

// log(1 + e^x) within 4e-7 relative for every x, from log(1 + w) = 2 artanh(w / (2 + w)) with
// w = e^-|x|; artanh(s) = s + s^3 P(s^2), P fitted on [0, 1/9] to 2e-8.
__device__ __forceinline__ float softplus_of(float x) {
  const float w = device::exp2_fast(fabsf(x) * -kLog2E);
  const float s = w * device::reciprocal(2.0f + w);
  const float q = s * s;
  float p = fmaf(q, 0.13433774f, 0.14116978f);
  p = fmaf(q, p, 0.20003835f);
  p = fmaf(q, p, 0.3333332f);
  return fmaf(2.0f, fmaf(p * q, s, s), fmaxf(x, 0.0f));
}

// A step h -> decay h + add, or several, one after the other. Where kMinusOne, `decay` holds the
// decay less 1: a weak decay is then not rounded to the nearest float below 1, an error that a long
// memory adds up (14400 steps of e^-0.0002: 1e-6 instead of 1e-5).
template <bool kMinusOne>
struct Step {
  float decay, add;

  __device__ __forceinline__ float operator()(float h) const {
    const float rest = fmaf(decay, h, add);
    return kMinusOne ? h + rest : rest;
  }
  // This step after `before`, which becomes both.
  __device__ __forceinline__ void append_to(Step& before) const {
    before.add = (*this)(before.add);
    before.decay =
        kMinusOne ? fmaf(decay, before.decay, decay) + before.decay : decay * before.decay;
  }
};

// 2^x, or 2^x - 1 where kMinusOne: near 0 by a polynomial, fitted to 1e-7 relative.
template <bool kMinusOne>
__device__ __forceinline__ float decay_of(float x) {
  const float whole = device::exp2_fast(x);
  if (!kMinusOne) return whole;
  float p = fmaf(x, 1.3365767e-3f, 9.6452400e-3f);
  p = fmaf(x, p, 5.5503939e-2f);
  p = fmaf(x, p, 0.24022555f);
  p = fmaf(x, p, 0.69314718f);
  return fabsf(x) < 0.375f ? x * p : whole - 1.0f;
}

}  // namespace tfanet

#endif
