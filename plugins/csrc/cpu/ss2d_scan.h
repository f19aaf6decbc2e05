// The second phase of a 2-D scan. A vector holds one pixel of kLanes channels, so that a direction
// is nothing but an order of visiting pixels.
#ifndef TFANET_SS2D_SCAN_H
#define TFANET_SS2D_SCAN_H

#include "selective_scan_forward.h"
#include "ss2d_layout.h"

namespace tfanet {
namespace {

static_assert(kTile == kSS2DTile, "a tile of the scan is a tile of the projected rows");

// Steps whose delta is in registers at once, and how many at the end are too few for that.
constexpr int kDeltaSteps = kVectorBytes == 64 ? 16 : 8;
constexpr int kFewSteps = 4;

// What a unit works on: one vector of channels of one map.
template <class T>
struct ChannelMaps {
  typedef State<T> S;
  const SS2DArgs& a;
  const SS2DLayout layout;
  int64_t batch, channel;
  int rows;  // channels that are there
  Vec<S>*u, *y, *dt_weight;

  int64_t weight_row(int64_t k) const { return k * a.channels + channel; }
  // One weight per channel, `step` apart; absent channels repeat the last.
  Vec<S> per_channel(const void* values, int64_t first, int64_t step) const {
    const S* from = static_cast<const S*>(values) + first;
    if (step == 1 && rows == kLanes<S>) return load<S>(from);
    Vec<S> result{};
    for (int c = 0; c < kLanes<S>; ++c) result[c] = from[(c < rows ? c : rows - 1) * step];
    return result;
  }
  // (R, kLanes) from rows of R.
  void read_dt_weight(int64_t k) const {
    const S* from = static_cast<const S*>(a.dt_weight) + weight_row(k) * a.rank;
    for (int64_t r = 0; r < a.rank; r += kLanes<S>) {
      const int64_t left = a.rank - r;
      if (rows == kLanes<S> && left >= kLanes<S>) {
        load_transposed<S>(from + r, a.rank, dt_weight + r);
      } else {
        read_edge<S>(from + r, a.rank, rows, static_cast<int>(left < kLanes<S> ? left : kLanes<S>),
                     dt_weight + r);
      }
    }
  }
};

// delta[t] = bias + sum_r weight[r] dt[r][t] for kSteps steps from `t` on, dt in blocks of steps;
// asks for what lies `next` further, the same of the next tile.
template <int kSteps, class S>
TFANET_INLINE void multiply_steps_of_delta(const Vec<S>* weight, int64_t rank, const S* dt,
                                           Vec<S> bias, int t, int64_t next, Columns<S>& delta) {
  Vec<S> sums[kSteps];
  for (int i = 0; i < kSteps; ++i) sums[i] = bias;
  const S* from = dt + t / kSS2DBlock * rank * kSS2DBlock + t % kSS2DBlock;
  for (int64_t r = 0; r < rank; ++r, from += kSS2DBlock) {
    const Vec<S> w = weight[r];
    __builtin_prefetch(from + next);
    for (int i = 0; i < kSteps; ++i) sums[i] += w * splat<S>(from[i]);
  }
  for (int i = 0; i < kSteps; ++i) delta.value[t + i] = sums[i];
}

template <class S>
inline void multiply_delta(const Vec<S>* weight, int64_t rank, const S* dt, Vec<S> bias, int steps,
                           int64_t next, Columns<S>& delta) {
  int t = 0;
  for (; steps - t > kFewSteps; t += kDeltaSteps) {
    multiply_steps_of_delta<kDeltaSteps, S>(weight, rank, dt, bias, t, next, delta);
  }
  if (t < steps) multiply_steps_of_delta<kFewSteps, S>(weight, rank, dt, bias, t, next, delta);
}

// Where in the map the pixels of a tile of columns lie; asks for them. They go to the second cache:
// pixels below each other may share a few sets of the first one.
template <class T>
inline void find_column_pixels(const ChannelMaps<T>& m, int64_t start, int32_t* pixel) {
  const SS2DArgs& a = m.a;
  int64_t line = start % a.height, column = start / a.height;
  for (int t = 0; t < kTile; ++t) {
    const int64_t at = line * a.width + column;
    pixel[t] = static_cast<int32_t>(at);
    __builtin_prefetch(m.u + at, 0, 2);
    __builtin_prefetch(m.y + at, 1, 2);
    if (++line == a.height) line = 0, ++column;
  }
}

// One direction: adds its result to the map `y`, or for the first one, rows, begins that map.
// Rows are read from the caller's map as they are scanned; rows reversed, the last one, are written
// to the caller's.
template <class T, int k>
void scan_direction(const ChannelMaps<T>& m, bool past_cache) {
  typedef State<T> S;
  constexpr bool kColumns = k % 2 == 1, kReversed = k >= 2, kFirst = k == 0, kLast = k == 2;
  const SS2DArgs& a = m.a;
  const SS2DLayout& layout = m.layout;
  const Vec<S> bias = m.per_channel(a.dt_bias, m.weight_row(k), 1);
  Vec<S> skip{};
  if constexpr (kFirst) {
    for (int i = 0; i < kDirections; ++i) skip += m.per_channel(a.D, m.weight_row(i), 1);
  }
  m.read_dt_weight(k);
  Compensated<S> states[kMaxStatesCpu];
  Vec<S> decay[kMaxStatesCpu];
  for (int64_t n = 0; n < a.state; ++n) {
    states[n] = Compensated<S>();
    decay[n] = m.per_channel(a.A, m.weight_row(k) * a.state + n, a.state) * kExpScale<S>;
  }
  const S* projected = reinterpret_cast<const S*>(layout.projected(a, m.batch, k));
  const int64_t plane = (m.batch * a.channels + m.channel) * layout.pixels;
  Columns<S> delta;
  int32_t pixels[2][kTile];  // of this tile of columns and the next one
  if constexpr (kColumns) {
    find_column_pixels<T>(m, kReversed ? (layout.tiles - 1) * kTile : 0, pixels[0]);
  }

  for (int64_t i = 0; i < layout.tiles; ++i) {
    const int64_t tile = kReversed ? layout.tiles - 1 - i : i, start = tile * kTile;
    const int steps =
        static_cast<int>(layout.pixels - start < kTile ? layout.pixels - start : kTile);
    const S* rows = projected + tile * layout.rows * kTile;
    if constexpr (kFirst) {
      read_tile<T>(static_cast<const T*>(a.u) + plane + start, layout.pixels, m.rows, steps,
                   *reinterpret_cast<Columns<S>*>(m.u + start));
    }
    multiply_delta<S>(m.dt_weight, a.rank, rows, bias, steps,
                      (kReversed ? -1 : 1) * layout.rows * kTile, delta);
    const int64_t ahead = kReversed ? start - kTile : start + kTile;
    const auto input = [&](int t) TFANET_INLINED {
      if constexpr (kFirst) {
        prefetch_line<T>(static_cast<const T*>(a.u) + plane + ahead, layout.pixels, t);
      }
      if (!kColumns && t % (64 / kVectorBytes) == 0) {
        __builtin_prefetch(m.u + ahead + t, kFirst);
        __builtin_prefetch(m.y + ahead + t, 1);
      }
      return delta.value[t];
    };
    discretise<S>(steps, true, input, delta);

    const int32_t* pixel = pixels[i % 2];
    if constexpr (kColumns) {
      if (i + 1 < layout.tiles) find_column_pixels<T>(m, ahead, pixels[(i + 1) % 2]);
    }
    for (int64_t n = 0; n < a.state; ++n) {
      const ExpMinus1<S> exp_minus_1;
      const S* B = rows + (a.rank + n) * kTile;
      const S* C = rows + (a.rank + a.state + n) * kTile;
      Compensated<S> h = states[n];
      const Vec<S> A = decay[n];
      // Scans as many steps as `e` has room for, s steps in.
      const auto scan = [&](auto& e, int s) TFANET_INLINED {
        constexpr int kSteps = static_cast<int>(sizeof(e) / sizeof(e[0]));
        const auto step = [&](int i) { return kReversed ? steps - 1 - s - i : s + i; };
        for (int j = 0; j < kSteps; ++j) e[j] = delta.value[step(j)] * A;
        exp_minus_1(e);
        for (int j = 0; j < kSteps; ++j) {
          const int t = step(j);
          const int64_t at = kColumns ? pixel[t] : start + t;
          const Vec<S> u = m.u[at];
          h.advance(e[j], delta.value[t] * u * B[t]);
          m.y[at] = h.state * C[t] + (kFirst && n == 0 ? skip * u : m.y[at]);
        }
      };
      Vec<S> group[kAbreast<S>], one[1];
      int s = 0;
      for (; s + kAbreast<S> <= steps; s += kAbreast<S>) scan(group, s);
      for (; s < steps; ++s) scan(one, s);
      states[n] = h;
    }
    if constexpr (kLast) {
      write_tile<T>(*reinterpret_cast<const Columns<S>*>(m.y + start), m.rows, steps, past_cache,
                    static_cast<T*>(a.y) + plane + start, layout.pixels);
    }
  }
}

// One unit: kSS2DChannels channels of one map.
template <class T>
void scan_unit(const SS2DArgs& a, int64_t unit, int64_t part) {
  typedef State<T> S;
  const SS2DLayout layout(a);
  const int64_t blocks = (a.channels + kSS2DChannels - 1) / kSS2DChannels;
  const int64_t first = unit % blocks * kSS2DChannels;
  const int64_t last = first + kSS2DChannels < a.channels ? first + kSS2DChannels : a.channels;
  const int64_t row_bytes = layout.pixels * static_cast<int64_t>(sizeof(T));
  const bool past_cache = a.batch * a.channels * row_bytes > kStreamBytes && row_bytes % 64 == 0 &&
                          reinterpret_cast<uintptr_t>(a.y) % 64 == 0;
  Vec<S>* scratch = reinterpret_cast<Vec<S>*>(layout.scratch(a, part));
  const int64_t map = layout.tiles * kTile;
  for (int64_t channel = first; channel < last; channel += kLanes<S>) {
    const int rows = static_cast<int>(last - channel < kLanes<S> ? last - channel : kLanes<S>);
    const ChannelMaps<T> maps = {a,    layout,  unit / blocks, channel,
                                 rows, scratch, scratch + map, scratch + 2 * map};
    scan_direction<T, 0>(maps, past_cache);
    scan_direction<T, 1>(maps, past_cache);
    scan_direction<T, 3>(maps, past_cache);
    scan_direction<T, 2>(maps, past_cache);
  }
  if (past_cache) end_streaming();
}

}  // namespace
}  // namespace tfanet

#endif
