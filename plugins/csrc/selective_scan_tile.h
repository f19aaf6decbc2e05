// Tiles: kLanes rows (channels) by kTile steps, read from and written to the caller's arrays in any
// of the four types, and transposed so that one vector holds one step of kLanes channels.
#ifndef TFANET_SELECTIVE_SCAN_TILE_H
#define TFANET_SELECTIVE_SCAN_TILE_H

#include "selective_scan.h"
#include "selective_scan_simd.h"

namespace tfanet {
namespace {

constexpr int kTile = 64;  // steps; a multiple of every kLanes

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#elif defined(__aarch64__)
  __fp16 half;
  memcpy(&half, &x, sizeof(half));
  return half;
#else
  // Exponents shift from 5 to 8 bits by a product with 2^112, which also normalises subnormals.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  if ((x.bits & 0x7c00u) == 0x7c00u) return bits_to_float(sign | magnitude | 0x7f800000u);
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude) * 0x1p112f));
#endif
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, BFloat& to) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x == x ? rounded : (bits >> 16) | 0x40u);
}
inline void narrow(float x, Half& to) {
#if defined(__F16C__)
  to.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  const __fp16 half = static_cast<__fp16>(x);
  memcpy(&to, &half, sizeof(half));
#else
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // 2^16 and above, infinity, NaN
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 leaves the rounded bits low
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
#endif
}

// The type of the state for sequences of type T.
template <class T>
struct StateOf {
  typedef float type;
};
template <>
struct StateOf<double> {
  typedef double type;
};
template <class T>
using State = typename StateOf<T>::type;

template <class S>
inline S weight(const void* values, int32_t dtype, int64_t index) {
  switch (dtype) {
    case kFloat64:
      return static_cast<S>(static_cast<const double*>(values)[index]);
    case kFloat16:
      return static_cast<S>(widen(static_cast<const Half*>(values)[index]));
    case kBFloat16:
      return static_cast<S>(widen(static_cast<const BFloat*>(values)[index]));
    default:
      return static_cast<S>(static_cast<const float*>(values)[index]);
  }
}

// One weight per channel of a tile; absent rows repeat the last.
template <class S>
inline Vec<S> weights(const void* values, int32_t dtype, int64_t first, int64_t step, int rows) {
  Vec<S> result{};
  for (int i = 0; i < kLanes<S>; ++i) {
    result[i] = weight<S>(values, dtype, first + (i < rows ? i : rows - 1) * step);
  }
  return result;
}

template <class S>
struct Rows {
  alignas(64) S value[kLanes<S>][kTile];
};
template <class S>
struct Columns {
  Vec<S> value[kTile];
};

// Reads `rows` rows of `steps` steps; absent rows and steps are zero.
template <class T>
inline void read_tile(const T* from, int64_t stride, int rows, int steps,
                      Columns<State<T>>& columns) {
  typedef State<T> S;
  const S* source;
  Rows<S> copy;
  if constexpr (sizeof(T) == sizeof(S)) {
    if (rows == kLanes<S> && steps == kTile) {
      for (int t = 0; t < kTile; t += kLanes<S>) {
        load_transposed<S>(from + t, stride, columns.value + t);
      }
      return;
    }
  }
  for (int r = 0; r < kLanes<S>; ++r) {
    const int valid = r < rows ? steps : 0;
    const T* row = from + r * stride;
    for (int t = 0; t < valid; ++t) copy.value[r][t] = widen(row[t]);
    for (int t = valid; t < kTile; ++t) copy.value[r][t] = 0;
  }
  source = &copy.value[0][0];
  for (int t = 0; t < steps; t += kLanes<S>) {
    load_transposed<S>(source + t, kTile, columns.value + t);
  }
}

// The steps of one row of B or C in the type of the state.
template <class T>
inline const State<T>* read_row(const T* from, int steps, State<T>* buffer) {
  if constexpr (sizeof(T) == sizeof(State<T>)) {
    return from;
  } else {
    for (int t = 0; t < steps; ++t) buffer[t] = widen(from[t]);
    return buffer;
  }
}

template <class S>
inline void to_rows(const Columns<S>& columns, int steps, Rows<S>& rows) {
  for (int t = 0; t < steps; t += kLanes<S>) {
    store_transposed<S>(columns.value + t, &rows.value[0][t], kTile);
  }
}

template <class T>
inline void write_row(const State<T>* from, int steps, T* to) {
  int t = 0;
  if constexpr (sizeof(T) == sizeof(State<T>)) {
    for (; t + kLanes<T> <= steps; t += kLanes<T>) store<T>(to + t, load<T>(from + t));
  }
  for (; t < steps; ++t) narrow(from[t], to[t]);
}

template <class T>
inline void write_tile(const Columns<State<T>>& columns, int rows, int steps, T* to,
                       int64_t stride) {
  Rows<State<T>> copy;
  to_rows(columns, steps, copy);
  for (int r = 0; r < rows; ++r) write_row<T>(copy.value[r], steps, to + r * stride);
}

}  // namespace
}  // namespace tfanet

#endif
