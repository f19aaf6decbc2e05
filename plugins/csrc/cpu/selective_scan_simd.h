// Vectors of one instruction set.
//
// Included once by each translation unit that compiles the kernel for an instruction set, so
// everything has internal linkage: no function built for a newer machine may reach an older one.
#ifndef TFANET_SELECTIVE_SCAN_SIMD_H
#define TFANET_SELECTIVE_SCAN_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
// GCC 12 takes its own header's undefined vectors for a mistake (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define TFANET_INLINED __attribute__((always_inline))
#define TFANET_INLINE inline TFANET_INLINED

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
typedef Vec<float> float_parts;
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

// The larger and the smaller of a bound and x; a NaN in x stays.
TFANET_INLINE Vec<float> largest(Vec<float> bound, Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)bound, (__m256)x);
#elif defined(__SSE__)
  return (Vec<float>)_mm_max_ps((__m128)bound, (__m128)x);
#elif defined(__aarch64__)
  return (Vec<float>)vmaxq_f32((float32x4_t)bound, (float32x4_t)x);
#else
  return bound > x ? bound : x;
#endif
}
TFANET_INLINE Vec<float> smallest(Vec<float> bound, Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps((__m256)bound, (__m256)x);
#elif defined(__SSE__)
  return (Vec<float>)_mm_min_ps((__m128)bound, (__m128)x);
#elif defined(__aarch64__)
  return (Vec<float>)vminq_f32((float32x4_t)bound, (float32x4_t)x);
#else
  return bound < x ? bound : x;
#endif
}

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

// Transposes the 128-bit parts of as many vectors as a vector has parts.
TFANET_INLINE void transpose_across(float_parts* v) {
#if defined(__AVX512F__)
  const __m512 a = _mm512_shuffle_f32x4((__m512)v[0], v[1], 0x44),
               b = _mm512_shuffle_f32x4((__m512)v[0], v[1], 0xee);
  const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x44),
               d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
#elif defined(__AVX2__)
  const __m256 a = v[0];
  v[0] = _mm256_permute2f128_ps(a, v[1], 0x20);
  v[1] = _mm256_permute2f128_ps(a, v[1], 0x31);
#else
  (void)v;
#endif
}

// Transposes a square of kLanes vectors.
template <class S>
TFANET_INLINE void transpose(Vec<S>* v) {
  constexpr int part = 16 / static_cast<int>(sizeof(S)), parts = kVectorBytes / 16;
  Vec<S> w[kLanes<S>];
  for (int i = 0; i < part; ++i) {
    float_parts across[parts];
    for (int q = 0; q < parts; ++q) across[q] = (float_parts)v[i + q * part];
    transpose_across(across);
    for (int q = 0; q < parts; ++q) w[i + q * part] = (Vec<S>)across[q];
  }
  for (int q = 0; q < kLanes<S>; q += part) transpose_parts<S>(w + q);
  for (int i = 0; i < kLanes<S>; ++i) v[i] = w[i];
}

// columns[t] = lanes r -> rows[r * stride + t], for kLanes steps and kLanes rows.
template <class S>
TFANET_INLINE void load_transposed(const S* rows, int64_t stride, Vec<S>* columns) {
  Vec<S> v[kLanes<S>];
  for (int i = 0; i < kLanes<S>; ++i) v[i] = load<S>(rows + i * stride);
  transpose<S>(v);
  for (int i = 0; i < kLanes<S>; ++i) columns[i] = v[i];
}

// Writes past the caches, where the machine can; `to` is aligned to the vector. What it writes is
// seen by other threads after `end_streaming`.
template <class S>
TFANET_INLINE void stream(S* to, Vec<S> value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(reinterpret_cast<float*>(to), (__m512)value);
#elif defined(__AVX2__)
  _mm256_stream_ps(reinterpret_cast<float*>(to), (__m256)value);
#else
  store<S>(to, value);
#endif
}
TFANET_INLINE void end_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Takes subnormal numbers as zero while it lives: they cost some processors a hundred cycles each,
// and a state that fades out would go through them.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#else
 public:
  FlushSubnormals() {}
  ~FlushSubnormals() {}
#endif
};

// The inverse: rows[r * stride + t] = lane r of columns[t].
template <bool kStream, class S>
TFANET_INLINE void store_transposed(const Vec<S>* columns, S* rows, int64_t stride) {
  Vec<S> v[kLanes<S>];
  for (int i = 0; i < kLanes<S>; ++i) v[i] = columns[i];
  transpose<S>(v);
  for (int i = 0; i < kLanes<S>; ++i) {
    if constexpr (kStream) {
      stream<S>(rows + i * stride, v[i]);
    } else {
      store<S>(rows + i * stride, v[i]);
    }
  }
}

// A constant that stays in a register through a loop; with 16 registers there is no room for that.
template <class S>
TFANET_INLINE Vec<S> constant(S value) {
  Vec<S> v = splat<S>(value);
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
  return v;
}

}  // namespace
}  // namespace tfanet

#endif
