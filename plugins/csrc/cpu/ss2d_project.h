// The first phase of a 2-D scan: a matrix product of all directions' rows with 64 pixels of u, or
// rows that are there already; and their way into the order of scanning.
#ifndef TFANET_SS2D_PROJECT_H
#define TFANET_SS2D_PROJECT_H

#include "selective_scan_tile.h"
#include "ss2d_layout.h"

namespace tfanet {
namespace {

// A block of sums in registers: kSumRows rows by kSumVectors vectors of pixels.
constexpr int kSumRows = 6;
constexpr int kSumVectors = kVectorBytes == 64 ? 4 : 2;

// sums (kRows rows of kTile) += weights (kRows rows, `stride` apart) times u (channels rows of
// kTile), for one block of kVectors vectors of pixels.
template <class S, int kRows, int kVectors>
TFANET_INLINE void multiply_block(const S* weights, int64_t stride, const S* u, int64_t channels,
                                  S* sums) {
  Vec<S> block[kRows][kVectors] = {};
  for (int64_t e = 0; e < channels; ++e) {
    Vec<S> pixels[kVectors];
    for (int v = 0; v < kVectors; ++v) pixels[v] = load<S>(u + e * kTile + v * kLanes<S>);
    for (int r = 0; r < kRows; ++r) {
      const Vec<S> weight = splat<S>(weights[r * stride + e]);
      for (int v = 0; v < kVectors; ++v) block[r][v] += weight * pixels[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      S* to = sums + r * kTile + v * kLanes<S>;
      store<S>(to, load<S>(to) + block[r][v]);
    }
  }
}

// The same for as many of the kTile pixels as `steps` needs.
template <class S, int kRows, int kVectors = kSumVectors>
inline void multiply_steps(const S* weights, int64_t stride, const S* u, int64_t channels,
                           int steps, S* sums) {
  constexpr int kBlock = kVectors * kLanes<S>;
  if constexpr (kVectors > 0) {
    for (; steps > kBlock - kLanes<S>; steps -= kBlock, u += kBlock, sums += kBlock) {
      multiply_block<S, kRows, kVectors>(weights, stride, u, channels, sums);
    }
    if (steps > 0) {
      multiply_steps<S, kRows, kVectors - 1>(weights, stride, u, channels, steps, sums);
    }
  }
}

// The same for as many of kRows rows as there are.
template <class S, int kRows = kSumRows>
inline void multiply_rows(const S* weights, int64_t stride, const S* u, int64_t channels,
                          int64_t rows, int steps, S* sums) {
  if constexpr (kRows > 0) {
    if (rows < kRows) {
      return multiply_rows<S, kRows - 1>(weights, stride, u, channels, rows, steps, sums);
    }
    multiply_steps<S, kRows>(weights, stride, u, channels, steps, sums);
  }
}

// sums (rows of kTile) = `rows` rows of all directions', from `first` on, times `steps` pixels of u
// from `start` on. `columns` is room for kProjectChannels channels of u.
template <class T>
void multiply_tile(const SS2DArgs& a, int64_t batch, int64_t first, int64_t rows, int64_t start,
                   int steps, State<T>* sums, State<T>* columns) {
  typedef State<T> S;
  const int64_t pixels = a.height * a.width;
  memset(sums, 0, sizeof(S) * kProjectRows * kTile);
  const T* u = static_cast<const T*>(a.u) + batch * a.channels * pixels + start;
  const S* weights = static_cast<const S*>(a.x_proj_weight) + first * a.channels;
  for (int64_t e = 0; e < a.channels; e += kProjectChannels) {
    const int64_t count = a.channels - e < kProjectChannels ? a.channels - e : kProjectChannels;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = u + (e + i) * pixels;
      S* to = columns + i * kTile;
      for (int t = 0; t < steps; ++t) to[t] = widen(from[t]);
      for (int t = steps; t < kTile; ++t) to[t] = 0;
    }
    for (int64_t r = 0; r < rows; r += kSumRows) {
      multiply_rows<S>(weights + r * a.channels + e, a.channels, columns, count, rows - r, steps,
                       sums + r * kTile);
    }
  }
}

// One unit: some rows of all directions' at the 64 pixels of a tile.
template <class T>
void project_unit(const SS2DArgs& a, int64_t unit, int64_t part) {
  typedef State<T> S;
  const SS2DLayout layout(a);
  const int64_t all_rows = kDirections * layout.rows;
  const int64_t chunks = (all_rows + kProjectRows - 1) / kProjectRows;
  const int64_t chunk = unit % chunks, tile = unit / chunks % layout.tiles;
  const int64_t batch = unit / chunks / layout.tiles, start = tile * kTile;
  const int64_t first = chunk * kProjectRows;
  const int64_t rows = all_rows - first < kProjectRows ? all_rows - first : kProjectRows;
  const int steps = static_cast<int>(layout.pixels - start < kTile ? layout.pixels - start : kTile);

  S* sums = reinterpret_cast<S*>(layout.scratch(a, part));
  if (a.rows) {
    const S* from =
        static_cast<const S*>(a.rows) + (batch * all_rows + first) * layout.pixels + start;
    for (int64_t r = 0; r < rows; ++r) {
      memcpy(sums + r * kTile, from + r * layout.pixels, sizeof(S) * static_cast<size_t>(steps));
    }
  } else {
    multiply_tile<T>(a, batch, first, rows, start, steps, sums, sums + kProjectRows * kTile);
  }

  // Pixel (i, j) is step j H + i of the columns: places of row 0 of dt, and of B and C.
  int64_t dt_place[kTile], place[kTile];
  for (int t = 0; t < steps; ++t) {
    const int64_t pixel = start + t, step = pixel % a.width * a.height + pixel / a.width;
    const int64_t at = step / kTile * layout.rows * kTile, in_tile = step % kTile;
    dt_place[t] = at + in_tile / kSS2DBlock * a.rank * kSS2DBlock + in_tile % kSS2DBlock;
    place[t] = at + in_tile;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t k = (first + r) / layout.rows, row = (first + r) % layout.rows;
    const bool is_dt = row < a.rank;
    S* to =
        reinterpret_cast<S*>(layout.projected(a, batch, k)) + row * (is_dt ? kSS2DBlock : kTile);
    const S* from = sums + r * kTile;
    if (k % 2 == 1) {
      const int64_t* places = is_dt ? dt_place : place;
      for (int t = 0; t < steps; ++t) to[places[t]] = from[t];
    } else {
      to += tile * layout.rows * kTile;
      const int64_t apart = (is_dt ? a.rank : 1) * kSS2DBlock;
      for (int64_t t = 0; t < kTile; t += kSS2DBlock) {
        memcpy(to + t / kSS2DBlock * apart, from + t, sizeof(S) * kSS2DBlock);
      }
    }
  }
}

}  // namespace
}  // namespace tfanet

#endif
