// Vectors of one instruction set, and the mathematics of the scan on them.
//
// Included once by each translation unit that compiles the kernel for an instruction set, so
// everything has internal linkage: no function built for a newer machine may reach an older one.
#ifndef TFANET_SELECTIVE_SCAN_SIMD_H
#define TFANET_SELECTIVE_SCAN_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TFANET_INLINE inline __attribute__((always_inline))

namespace tfanet {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class S>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class S>
using Vec = typename Vector<S>::type;
template <class S>
using Bits = typename Vector<S>::bits;
template <class S>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(S));

template <class S>
TFANET_INLINE Vec<S> splat(S value) {
  return value - Vec<S>{};  // folds to a broadcast, the sign of zero included
}

template <class S>
TFANET_INLINE Vec<S> load(const S* from) {
  Vec<S> value;
  memcpy(&value, from, sizeof(value));
  return value;
}

template <class S>
TFANET_INLINE void store(S* to, Vec<S> value) {
  memcpy(to, &value, sizeof(value));
}

// Largest and smallest; a NaN in `x` stays.
template <class S>
TFANET_INLINE Vec<S> at_least(Vec<S> x, S bound) {
  const Vec<S> low = splat<S>(bound);
  return low > x ? low : x;
}
template <class S>
TFANET_INLINE Vec<S> at_most(Vec<S> x, S bound) {
  const Vec<S> high = splat<S>(bound);
  return high < x ? high : x;
}
#if defined(__AVX512F__)
template <>
TFANET_INLINE Vec<float> at_least<float>(Vec<float> x, float bound) {
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x);
}
template <>
TFANET_INLINE Vec<float> at_most<float>(Vec<float> x, float bound) {
  return (Vec<float>)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x);
}
#elif defined(__AVX2__)
template <>
TFANET_INLINE Vec<float> at_least<float>(Vec<float> x, float bound) {
  return (Vec<float>)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
}
template <>
TFANET_INLINE Vec<float> at_most<float>(Vec<float> x, float bound) {
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
}
#endif

// Within each 128-bit part: the elements of a and b by turns, from the low and the high half.
// (Index arrays: both compilers turn them into one unpack instruction.)
template <class S>
TFANET_INLINE void interleave(Vec<S> a, Vec<S> b, Vec<S>& low, Vec<S>& high) {
  constexpr int n = kLanes<S>, part = 16 / static_cast<int>(sizeof(S));
  Bits<S> low_index{}, high_index{};
  for (int i = 0; i < n; ++i) {
    const int first = i / part * part + i % part / 2 + (i % 2) * n;
    low_index[i] = first;
    high_index[i] = first + part / 2;
  }
#if defined(__clang__)
  for (int i = 0; i < n; ++i) {
    low[i] = low_index[i] < n ? a[low_index[i]] : b[low_index[i] - n];
    high[i] = high_index[i] < n ? a[high_index[i]] : b[high_index[i] - n];
  }
#else
  low = __builtin_shuffle(a, b, low_index);
  high = __builtin_shuffle(a, b, high_index);
#endif
}

// Transposes squares of 16 bytes: v[i] of part q holds element i of a square before, column i
// after.
template <class S>
TFANET_INLINE void transpose_parts(Vec<S>* v) {
  if constexpr (sizeof(S) == 4) {
    Vec<S> s0, s1, s2, s3;
    interleave<S>(v[0], v[2], s0, s1);
    interleave<S>(v[1], v[3], s2, s3);
    interleave<S>(s0, s2, v[0], v[1]);
    interleave<S>(s1, s3, v[2], v[3]);
  } else {
    interleave<S>(v[0], v[1], v[0], v[1]);
  }
}

// The 16 bytes at `rows`, and at the rows part, 2 part, ... further down, side by side.
template <class S>
TFANET_INLINE Vec<S> gather_parts(const S* rows, int64_t stride) {
  constexpr int part = 16 / static_cast<int>(sizeof(S));
  const auto quad = [&](int q) { return reinterpret_cast<const float*>(rows + q * part * stride); };
#if defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(quad(0)));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(quad(1)), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(quad(2)), 2);
  return (Vec<S>)_mm512_insertf32x4(v, _mm_loadu_ps(quad(3)), 3);
#elif defined(__AVX2__)
  return (Vec<S>)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(quad(0))),
                                      _mm_loadu_ps(quad(1)), 1);
#else
  return load<S>(reinterpret_cast<const S*>(quad(0)));
#endif
}

// The inverse of gather_parts.
template <class S>
TFANET_INLINE void scatter_parts(Vec<S> value, S* rows, int64_t stride) {
  constexpr int part = 16 / static_cast<int>(sizeof(S));
  const auto quad = [&](int q) { return reinterpret_cast<float*>(rows + q * part * stride); };
#if defined(__AVX512F__)
  const __m512 v = (__m512)value;
  _mm_storeu_ps(quad(0), _mm512_castps512_ps128(v));
  _mm_storeu_ps(quad(1), _mm512_extractf32x4_ps(v, 1));
  _mm_storeu_ps(quad(2), _mm512_extractf32x4_ps(v, 2));
  _mm_storeu_ps(quad(3), _mm512_extractf32x4_ps(v, 3));
#elif defined(__AVX2__)
  const __m256 v = (__m256)value;
  _mm_storeu_ps(quad(0), _mm256_castps256_ps128(v));
  _mm_storeu_ps(quad(1), _mm256_extractf128_ps(v, 1));
#else
  store<S>(reinterpret_cast<S*>(quad(0)), value);
#endif
}

// columns[t] = lanes r -> rows[r * stride + t], for kLanes steps and kLanes rows.
template <class S>
TFANET_INLINE void load_transposed(const S* rows, int64_t stride, Vec<S>* columns) {
  constexpr int part = 16 / static_cast<int>(sizeof(S));
  for (int j = 0; j < kLanes<S>; j += part) {
    Vec<S> v[part];
    for (int i = 0; i < part; ++i) v[i] = gather_parts<S>(rows + i * stride + j, stride);
    transpose_parts<S>(v);
    for (int i = 0; i < part; ++i) columns[j + i] = v[i];
  }
}

// The inverse: rows[r * stride + t] = lane r of columns[t].
template <class S>
TFANET_INLINE void store_transposed(const Vec<S>* columns, S* rows, int64_t stride) {
  constexpr int part = 16 / static_cast<int>(sizeof(S));
  for (int j = 0; j < kLanes<S>; j += part) {
    Vec<S> v[part];
    for (int i = 0; i < part; ++i) v[i] = columns[j + i];
    transpose_parts<S>(v);
    for (int i = 0; i < part; ++i) scatter_parts<S>(v[i], rows + i * stride + j, stride);
  }
}

// Exponentials take x / ln 2 in float32 (the scale is folded into A) and x in float64, where the
// mathematical library does the work.
template <class S>
constexpr S kExpScale = 1;
template <>
constexpr float kExpScale<float> = 1.44269504088896341f;

// 2^t = s (1 + p) with s a power of two; exact at t = 0. Coefficients: minimax for the relative
// error of 2^f - 1 on [-1/2, 1/2], 1.1e-8.
TFANET_INLINE void exp2_parts(Vec<float> t, Vec<float>& s, Vec<float>& p) {
  const Vec<float> magic = splat(12582912.0f);  // 1.5 * 2^23: rounds to an integer, in the low bits
  t = at_most<float>(at_least<float>(t, -126.0f), 127.0f);
  const Vec<float> shifted = t + magic;
  const Vec<float> f = t - (shifted - magic);
  Vec<float> q = splat(1.5403513043e-04f);
  q = q * f + 1.3390735482e-03f;
  q = q * f + 9.6182374929e-03f;
  q = q * f + 5.5503574336e-02f;
  q = q * f + 2.4022649795e-01f;
  q = q * f + 6.9314718793e-01f;
  p = q * f;
  s = (Vec<float>)(((Bits<float>)shifted << 23) + 0x3f800000);
}

// exp(x) - 1, x in the scale of kExpScale; precise where x is small, so that a weak decay over
// many steps keeps its strength.
TFANET_INLINE Vec<float> exp_minus_1(Vec<float> t) {
  Vec<float> s, p;
  exp2_parts(t, s, p);
  return s * p + (s - 1.0f);
}
TFANET_INLINE Vec<float> exp_natural(Vec<float> x) {
  Vec<float> s, p;
  exp2_parts(x * kExpScale<float>, s, p);
  return s * p + s;
}
TFANET_INLINE Vec<double> exp_minus_1(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = expm1(x[i]);
  return x;
}
TFANET_INLINE Vec<double> exp_natural(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exp(x[i]);
  return x;
}

// log(1 + e) for e in [0, 1]; minimax for the relative error, 3e-8.
TFANET_INLINE Vec<float> log_1_plus(Vec<float> e) {
  Vec<float> q = splat(5.2326947506e-03f);
  q = q * e - 2.9505240839e-02f;
  q = q * e + 7.8225955422e-02f;
  q = q * e - 1.3663246112e-01f;
  q = q * e + 1.9106006919e-01f;
  q = q * e - 2.4842982257e-01f;
  q = q * e + 3.3319096814e-01f;
  q = q * e - 4.9999493141e-01f;
  q = q * e + 9.9999996988e-01f;
  return q * e;
}
TFANET_INLINE Vec<double> log_1_plus(Vec<double> e) {
  for (int i = 0; i < kLanes<double>; ++i) e[i] = log1p(e[i]);
  return e;
}

template <class S>
TFANET_INLINE Vec<S> minus_magnitude(Vec<S> x) {
  return x > S(0) ? -x : x;
}
template <>
TFANET_INLINE Vec<float> minus_magnitude<float>(Vec<float> x) {
  return (Vec<float>)((Bits<float>)x | INT32_MIN);
}

// log(1 + exp(x)); above 20 that is x to float32's precision, and by definition in float64.
template <class S>
TFANET_INLINE Vec<S> softplus(Vec<S> x) {
  const Vec<S> value = at_least<S>(x, 0) + log_1_plus(exp_natural(minus_magnitude<S>(x)));
  if constexpr (sizeof(S) == 8) return x > S(20) ? x : value;
  return value;
}

template <class S>
TFANET_INLINE Vec<S> sigmoid(Vec<S> x) {
  const Vec<S> e = exp_natural(minus_magnitude<S>(x));
  return (x > S(0) ? splat<S>(1) : e) / (e + S(1));
}

}  // namespace
}  // namespace tfanet

#endif
