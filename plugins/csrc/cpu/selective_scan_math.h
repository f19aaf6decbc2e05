// The functions of the scan on vectors. Included as selective_scan_simd.h is.
#ifndef TFANET_SELECTIVE_SCAN_MATH_H
#define TFANET_SELECTIVE_SCAN_MATH_H

#include "selective_scan_simd.h"

namespace tfanet {
namespace {

// Vectors that go through a function side by side. Each is a chain of dependent operations; with 16
// registers a core sees too little of what follows to overlap such chains by itself, and constants
// come from memory, once for all of them.
template <class S>
constexpr int kAbreast = kVectorBytes == 64 || sizeof(S) == sizeof(double) ? 1 : 4;

// The functions below are objects that hold their constants; make one before a loop. In float32
// they are polynomials, in float64 the mathematical library does the work. They replace K vectors
// by their results, or give that of one.
//
// Exponents are in units of kExpScale, which the caller multiplies into weights beforehand.
template <class S>
constexpr S kExpScale = 1;
template <>
constexpr float kExpScale<float> = 1.44269504088896341f;  // 1 / ln 2

template <class F, class V>
TFANET_INLINE V of_one(const F& function, V x) {
  V group[1] = {x};
  function(group);
  return group[0];
}

template <int K, class F>
TFANET_INLINE void for_each_lane(Vec<double> (&x)[K], const F& function) {
  for (int i = 0; i < K; ++i) {
    for (int lane = 0; lane < kLanes<double>; ++lane) x[i][lane] = function(x[i][lane]);
  }
}

// p := p x + c for each coefficient in turn.
template <class V, int K, class... Coefficients>
TFANET_INLINE void horner(V (&p)[K], const V (&x)[K], const Coefficients&... coefficients) {
  const auto step = [&](const V& c) {
    for (int i = 0; i < K; ++i) p[i] = p[i] * x[i] + c;
  };
  (step(coefficients), ...);
}

// exp(x) - 1: precise where x is small, so that a weak decay keeps its strength over many steps.
template <class S>
struct ExpMinus1;

// 2^t - 1 = s p + (s - 1), where s is a power of two and p = 2^f - 1 with |f| <= 1/2: minimax for
// its relative error, 1.1e-8.
template <>
struct ExpMinus1<float> {
  typedef Vec<float> V;
  const V low = constant(-126.0f), high = constant(127.0f);
  const V magic = constant(12582912.0f);  // 1.5 * 2^23: leaves the rounded number in the low bits
  const V one = constant(1.0f);
  const V c1 = constant(6.9314718793e-01f), c2 = constant(2.4022649795e-01f);
  const V c3 = constant(5.5503574336e-02f), c4 = constant(9.6182374929e-03f);
  const V c5 = constant(1.3390735482e-03f), c6 = constant(1.5403513043e-04f);

  template <int K>
  TFANET_INLINE void operator()(V (&t)[K]) const {
    V shifted[K], f[K], p[K];
    for (int i = 0; i < K; ++i) {
      t[i] = smallest(high, largest(low, t[i]));
      shifted[i] = t[i] + magic;
      f[i] = t[i] - (shifted[i] - magic);
      p[i] = c6;
    }
    horner(p, f, c5, c4, c3, c2, c1);
    for (int i = 0; i < K; ++i) {
      const V s = (V)(((Bits<float>)shifted[i] << 23) + (Bits<float>)one);
      t[i] = s * (p[i] * f[i]) + (s - one);
    }
  }
  TFANET_INLINE V operator()(V t) const { return of_one(*this, t); }
};

template <>
struct ExpMinus1<double> {
  template <int K>
  TFANET_INLINE void operator()(Vec<double> (&x)[K]) const {
    for_each_lane(x, [](double v) { return expm1(v); });
  }
  TFANET_INLINE Vec<double> operator()(Vec<double> x) const { return of_one(*this, x); }
};

// exp(-|x|), x in natural units.
template <class S>
struct ExpMinusMagnitude;

// 2^f on [-1/2, 1/2]: minimax for its relative error, 7.5e-8.
template <>
struct ExpMinusMagnitude<float> {
  typedef Vec<float> V;
  const V scale = constant(-kExpScale<float>), low = constant(-126.0f);
  const V magic = constant(12582912.0f);
  const V c0 = constant(1.0000000717e+00f), c1 = constant(6.9314696706e-01f);
  const V c2 = constant(2.4022119724e-01f), c3 = constant(5.5507132739e-02f);
  const V c4 = constant(9.6755413276e-03f), c5 = constant(1.3276471870e-03f);

  template <int K>
  TFANET_INLINE void operator()(V (&x)[K]) const {
    V shifted[K], f[K], p[K];
    for (int i = 0; i < K; ++i) {
      const V t = largest(low, (V)((Bits<float>)x[i] & INT32_MAX) * scale);
      shifted[i] = t + magic;
      f[i] = t - (shifted[i] - magic);
      p[i] = c5;
    }
    horner(p, f, c4, c3, c2, c1, c0);
    for (int i = 0; i < K; ++i) {
      x[i] = (V)((Bits<float>)p[i] + ((Bits<float>)shifted[i] << 23));
    }
  }
  TFANET_INLINE V operator()(V x) const { return of_one(*this, x); }
};

template <>
struct ExpMinusMagnitude<double> {
  template <int K>
  TFANET_INLINE void operator()(Vec<double> (&x)[K]) const {
    for_each_lane(x, [](double v) { return exp(-fabs(v)); });
  }
  TFANET_INLINE Vec<double> operator()(Vec<double> x) const { return of_one(*this, x); }
};

// log(1 + exp(x)); above 20 that is x to float32's precision, and by definition in float64.
template <class S>
struct Softplus;

// max(x, 0) + log(1 + e), e = exp(-|x|): minimax for the relative error on [0, 1], 1.9e-7.
template <>
struct Softplus<float> {
  typedef Vec<float> V;
  const ExpMinusMagnitude<float> exponential{};
  const V zero = constant(0.0f);
  const V c1 = constant(9.9999980567e-01f), c2 = constant(-4.9997405397e-01f);
  const V c3 = constant(3.3275479786e-01f), c4 = constant(-2.4495462906e-01f);
  const V c5 = constant(1.7745241684e-01f), c6 = constant(-1.0768171640e-01f);
  const V c7 = constant(4.4089634091e-02f), c8 = constant(-8.5392091670e-03f);

  template <int K>
  TFANET_INLINE void operator()(V (&x)[K]) const {
    V e[K], q[K];
    for (int i = 0; i < K; ++i) e[i] = x[i];
    exponential(e);
    for (int i = 0; i < K; ++i) q[i] = c8;
    horner(q, e, c7, c6, c5, c4, c3, c2, c1);
    for (int i = 0; i < K; ++i) x[i] = q[i] * e[i] + largest(zero, x[i]);
  }
  TFANET_INLINE V operator()(V x) const { return of_one(*this, x); }
};

template <>
struct Softplus<double> {
  template <int K>
  TFANET_INLINE void operator()(Vec<double> (&x)[K]) const {
    for_each_lane(x, [](double v) { return v > 20 ? v : log1p(exp(v)); });
  }
  TFANET_INLINE Vec<double> operator()(Vec<double> x) const { return of_one(*this, x); }
};

template <class S>
struct Sigmoid {
  const ExpMinusMagnitude<S> exponential{};

  TFANET_INLINE Vec<S> operator()(Vec<S> x) const {
    const Vec<S> e = exponential(x);
    return (x > S(0) ? splat<S>(1) : e) / (e + S(1));
  }
};

}  // namespace
}  // namespace tfanet

#endif
