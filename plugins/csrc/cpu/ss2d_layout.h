// Where things lie in the workspace of a 2-D scan.
#ifndef TFANET_SS2D_LAYOUT_H
#define TFANET_SS2D_LAYOUT_H

#include "selective_scan.h"
#include "ss2d.h"

namespace tfanet {

// Steps of a tile; pixels of a unit of the first phase. Channels of a unit of the second.
constexpr std::int64_t kSS2DTile = 64;
constexpr std::int64_t kSS2DChannels = 16;
constexpr std::int64_t kSS2DBlock = 16;  // steps whose rows of dt lie together
// Rows of a unit of the first phase, so that a small map has work for all threads.
constexpr std::int64_t kProjectRows = 96;
// Channels of u that it multiplies at once; sums of so many products are rounded by themselves,
// which keeps both digits and caches.
constexpr std::int64_t kProjectChannels = 256;
constexpr std::int64_t kWidestVector = 64;  // bytes

struct SS2DLayout {
  std::int64_t pixels, tiles;    // of a map
  std::int64_t rows;             // of a direction: R + 2N
  std::int64_t state_bytes;      // of a number of the state
  std::int64_t direction_bytes;  // projected rows of one direction of one map
  std::int64_t part_bytes;       // scratch of one thread
  std::int64_t projected_bytes;  // of all maps

  explicit SS2DLayout(const SS2DArgs& a)
      : pixels(a.height * a.width),
        tiles((pixels + kSS2DTile - 1) / kSS2DTile),
        rows(a.rank + 2 * a.state),
        state_bytes(a.dtype == kFloat64 ? 8 : 4),
        direction_bytes(tiles * rows * kSS2DTile * state_bytes) {
    const std::int64_t columns = (kProjectChannels + kProjectRows) * kSS2DTile * state_bytes;
    const std::int64_t maps = (2 * tiles * kSS2DTile + a.rank + kSS2DChannels) * kWidestVector;
    part_bytes = columns > maps ? columns : maps;
    projected_bytes = a.batch * kDirections * direction_bytes;
  }

  // Rows of direction k, in tiles of 64 steps along that direction (reversed directions lie as
  // their forward ones do, and are read from the end). In a tile, rows of dt come first, in blocks
  // of kSS2DBlock steps of all of them, as delta's product reads them; then B and C, row by row.
  char* projected(const SS2DArgs& a, std::int64_t batch, std::int64_t k) const {
    return static_cast<char*>(a.workspace) + (batch * kDirections + k) * direction_bytes;
  }
  char* scratch(const SS2DArgs& a, std::int64_t part) const {
    return static_cast<char*>(a.workspace) + projected_bytes + part * part_bytes;
  }
};

}  // namespace tfanet

#endif
