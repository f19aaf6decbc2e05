// Tiles: kLanes rows (channels) by kTile steps, read from and written to the caller's arrays in any
// of the four types, and transposed so that one vector holds one step of kLanes channels.
#ifndef TFANET_SELECTIVE_SCAN_TILE_H
#define TFANET_SELECTIVE_SCAN_TILE_H

#include "selective_scan.h"
#include "selective_scan_math.h"

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
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | magnitude << 13);
  if (magnitude >= 0x0400u) return bits_to_float(sign | (magnitude + 0x1c000u) << 13);
  return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * 0x1p-24f));
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
  constexpr int32_t same = sizeof(S) == sizeof(double) ? kFloat64 : kFloat32;
  if (dtype == same && step == 1 && rows == kLanes<S>) {
    return load<S>(static_cast<const S*>(values) + first);
  }
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

// kLanes steps of kLanes rows, `rows` and `steps` of them present: what is absent reads as zero.
template <class T>
inline void read_edge(const T* from, int64_t stride, int rows, int steps, Vec<State<T>>* columns) {
  typedef State<T> S;
  alignas(64) S copy[kLanes<S>][kLanes<S>] = {};
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < steps; ++t) copy[r][t] = widen(from[r * stride + t]);
  }
  load_transposed<S>(copy[0], kLanes<S>, columns);
}

// Reads `rows` rows of `steps` steps, and zeros up to the next multiple of kLanes steps.
template <class T>
inline void read_tile(const T* from, int64_t stride, int rows, int steps,
                      Columns<State<T>>& columns) {
  typedef State<T> S;
  constexpr int square = kLanes<S>;
  if constexpr (sizeof(T) == sizeof(S)) {
    if (rows == square && steps == kTile) {  // what nearly all tiles are, without a question inside
      for (int t = 0; t < kTile; t += square) {
        load_transposed<S>(from + t, stride, columns.value + t);
      }
      return;
    }
    if (rows == square && steps >= square) {  // the last square reads some steps a second time
      for (int t = 0; t + square <= steps; t += square) {
        load_transposed<S>(from + t, stride, columns.value + t);
      }
      load_transposed<S>(from + steps - square, stride, columns.value + steps - square);
      for (int t = steps; t % square; ++t) columns.value[t] = Vec<S>{};
      return;
    }
  }
  for (int t = 0; t < steps; t += square) {
    if (rows < square || steps - t < square) {
      read_edge<T>(from + t, stride, rows, steps - t < square ? steps - t : square,
                   columns.value + t);
    } else if constexpr (sizeof(T) == sizeof(S)) {
      load_transposed<S>(from + t, stride, columns.value + t);
    } else {
      read_edge<T>(from + t, stride, square, square, columns.value + t);
    }
  }
}

// Asks for one of the lines of a tile; for all of them with t from 0 to kTile. (Those that end in
// the tile: the first step of a row that is not aligned shares a line with what was read before
// it.)
template <class T, bool kWrite = false>
TFANET_INLINE void prefetch_line(const T* from, int64_t stride, int t) {
  constexpr int rows = kLanes<State<T>>, in_line = 64 / static_cast<int>(sizeof(T));
  const int last = t / rows * in_line + in_line - 1;
  if (last < kTile) __builtin_prefetch(from + t % rows * stride + last, kWrite);
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
    store_transposed<false, S>(columns.value + t, &rows.value[0][t], kTile);
  }
}

template <class T>
inline void write_edge(const Vec<State<T>>* columns, int rows, int steps, T* to, int64_t stride) {
  typedef State<T> S;
  alignas(64) S copy[kLanes<S>][kLanes<S>];
  store_transposed<false, S>(columns, copy[0], kLanes<S>);
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < steps; ++t) narrow(copy[r][t], to[r * stride + t]);
  }
}

// Writes `rows` rows of `steps` steps; past the caches, if told so, what fills whole vectors.
template <class T>
inline void write_tile(const Columns<State<T>>& columns, int rows, int steps, bool past_cache,
                       T* to, int64_t stride) {
  typedef State<T> S;
  constexpr int square = kLanes<S>;
  if constexpr (sizeof(T) == sizeof(S)) {
    if (rows == square && steps == kTile && past_cache) {
      for (int t = 0; t < kTile; t += square) {
        store_transposed<true, S>(columns.value + t, to + t, stride);
      }
      return;
    }
    if (rows == square && steps >= square && !past_cache) {  // as reading does
      for (int t = 0; t + square <= steps; t += square) {
        store_transposed<false, S>(columns.value + t, to + t, stride);
      }
      const int last = steps - square;
      store_transposed<false, S>(columns.value + last, to + last, stride);
      return;
    }
  }
  for (int t = 0; t < steps; t += square) {
    const Vec<S>* from = columns.value + t;
    if (rows < square || steps - t < square) {
      write_edge<T>(from, rows, steps - t < square ? steps - t : square, to + t, stride);
    } else if constexpr (sizeof(T) != sizeof(S)) {
      write_edge<T>(from, square, square, to + t, stride);
    } else if (past_cache) {
      store_transposed<true, S>(from, to + t, stride);
    } else {
      store_transposed<false, S>(from, to + t, stride);
    }
  }
}

// out := out z sigmoid(z)
template <class T>
inline void gate_tile(const T* z, int64_t stride, int rows, int steps, Columns<State<T>>& out) {
  typedef State<T> S;
  Columns<S> gate;
  read_tile<T>(z, stride, rows, steps, gate);
  const Sigmoid<S> sigmoid;
  for (int t = 0; t < steps; ++t) out.value[t] *= gate.value[t] * sigmoid(gate.value[t]);
}

}  // namespace
}  // namespace tfanet

#endif
