// The first phase of a 2-D scan: a matrix product of all directions' rows with 64 pixels of u.
#ifndef TFANET_SS2D_PROJECT_H
#define TFANET_SS2D_PROJECT_H

#include "selective_scan_tile.h"
#include "ss2d_layout.h"

namespace tfanet {
namespace {

// Sums of so many products are rounded by themselves, which keeps both digits and caches.
constexpr int64_t kProductChannels = 256;
// A block of sums in registers: kSumRows rows by kSumVectors vectors of pixels.
constexpr int kSumRows = 6;
constexpr int kSumVectors = kVectorBytes == 64 ? 4 : 2;

// sums (kRows rows of kTile) += weights (kRows rows, `stride` apart) times u (channels rows of
// kTile), for one block of pixels.
template <class S, int kRows>
TFANET_INLINE void multiply_block(const S* weights, int64_t stride, const S* u, int64_t channels,
                                  S* sums) {
  Vec<S> block[kRows][kSumVectors] = {};
  for (int64_t e = 0; e < channels; ++e) {
    Vec<S> pixels[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) pixels[v] = load<S>(u + e * kTile + v * kLanes<S>);
    for (int r = 0; r < kRows; ++r) {
      const Vec<S> weight = splat<S>(weights[r * stride + e]);
      for (int v = 0; v < kSumVectors; ++v) block[r][v] += weight * pixels[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kSumVectors; ++v) {
      S* to = sums + r * kTile + v * kLanes<S>;
      store<S>(to, load<S>(to) + block[r][v]);
    }
  }
}

template <class S, int kRows = kSumRows>
inline void multiply_rows(const S* weights, int64_t stride, const S* u, int64_t channels,
                          int64_t rows, S* sums) {
  if constexpr (kRows > 0) {
    if (rows < kRows) return multiply_rows<S, kRows - 1>(weights, stride, u, channels, rows, sums);
    for (int p = 0; p < kTile; p += kSumVectors * kLanes<S>) {
      multiply_block<S, kRows>(weights, stride, u + p, channels, sums + p);
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
  S* columns = sums + kProjectRows * kTile;
  memset(sums, 0, sizeof(S) * kProjectRows * kTile);
  const T* u = static_cast<const T*>(a.u) + batch * a.channels * layout.pixels + start;
  const S* weights = static_cast<const S*>(a.x_proj_weight) + first * a.channels;
  for (int64_t e = 0; e < a.channels; e += kProductChannels) {
    const int64_t count = a.channels - e < kProductChannels ? a.channels - e : kProductChannels;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = u + (e + i) * layout.pixels;
      S* to = columns + i * kTile;
      for (int t = 0; t < steps; ++t) to[t] = widen(from[t]);
      for (int t = steps; t < kTile; ++t) to[t] = 0;
    }
    for (int64_t r = 0; r < rows; r += kSumRows) {
      multiply_rows<S>(weights + r * a.channels + e, a.channels, columns, count, rows - r,
                       sums + r * kTile);
    }
  }

  // Pixel (i, j) is step j H + i of the columns.
  int64_t place[kTile];
  for (int t = 0; t < steps; ++t) {
    const int64_t pixel = start + t, step = pixel % a.width * a.height + pixel / a.width;
    place[t] = step / kTile * layout.rows * kTile + step % kTile;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t k = (first + r) / layout.rows, row = (first + r) % layout.rows;
    S* to = reinterpret_cast<S*>(layout.projected(a, batch, k)) + row * kTile;
    const S* from = sums + r * kTile;
    if (k % 2 == 0) {
      memcpy(to + tile * layout.rows * kTile, from, sizeof(S) * kTile);
    } else {
      for (int t = 0; t < steps; ++t) to[place[t]] = from[t];
    }
  }
}

}  // namespace
}  // namespace tfanet

#endif
