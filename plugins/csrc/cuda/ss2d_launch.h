// Sizes, workspace and grids of the 2-D scan on the GPU: shared by the kernels and the C++
// libraries, and proved equal to tfanet.plugins.kernels.geometry.plan_ss2d by a test. Needs no
// header.
#ifndef TFANET_SS2D_LAUNCH_H
#define TFANET_SS2D_LAUNCH_H

#include "scan_launch.h"

namespace tfanet {

constexpr int kSS2DDirections = 4;  // kDirections of ../operands.h
constexpr int kSS2DThreads = 256;   // of every block
constexpr int kMapTile = 16;        // pixels of a tile along both axes; steps of a segment
constexpr int kMapPixels = kMapTile * kMapTile;
constexpr int kMapChannels = 16;   // of a block that scans
constexpr int kRowsAtOnce = 32;    // projected rows of a block that projects
constexpr int kPixelsAtOnce = 32;  // its pixels: two lines of a tile
constexpr int kCarryChannels = 8;  // of a block that carries states along
constexpr int kCarryParts = kSS2DThreads / kCarryChannels;

struct SS2DSizes {
  int batch, channels, height, width, rank, states;
};

// The four kernels run in this order, each in (grid, 1, 1) blocks of (kSS2DThreads, 1, 1).
enum SS2DKernel { kProjectMap, kScanSegments, kCarryStates, kScanMap, kSS2DKernels };

// Blocks that a multiprocessor must hold: 2 leave 128 registers to a thread, 4 leave 64.
TFANET_HOST_DEVICE constexpr int ss2d_blocks(SS2DKernel kernel) {
  return kernel == kCarryStates ? 4 : 2;
}

// Floats in the workspace, each array at a multiple of 16 bytes:
//   projected (batch, 4, tiles, R + 2N, 256)  rows of dt, B and C; a tile's pixels in the order in
//                                             which the direction's forward one scans them
//   sums      (batch, 4, segments, channels)  of delta over the 16 steps of a segment
//   states    (batch, 4, N, segments, channels)  at the end of a segment that starts from zero;
//                                             then the state that it really starts from
// The map has fewer than 2^31 pixels in whole tiles. A segment is the part of a line (of a column)
// in one tile; those of one direction are numbered in the order of scanning, and channels padded
// to 16.
struct SS2DPlan {
  int tiles_x, tiles_y, tiles, segments, rows, row_blocks, channel_blocks, padded_channels;
  long long sums_at, states_at, floats;
  long long grid[kSS2DKernels];
};

TFANET_HOST_DEVICE constexpr SS2DPlan plan_ss2d(const SS2DSizes& s) {
  SS2DPlan p{};
  p.tiles_x = (s.width + kMapTile - 1) / kMapTile;
  p.tiles_y = (s.height + kMapTile - 1) / kMapTile;
  p.rows = s.rank + 2 * s.states;
  p.channel_blocks = (s.channels + kMapChannels - 1) / kMapChannels;
  p.padded_channels = p.channel_blocks * kMapChannels;
  p.tiles = p.tiles_x * p.tiles_y;
  const int along_rows = s.height * p.tiles_x;
  const int along_columns = s.width * p.tiles_y;
  p.segments = along_rows > along_columns ? along_rows : along_columns;
  p.row_blocks = (kSS2DDirections * p.rows + kRowsAtOnce - 1) / kRowsAtOnce;
  const long long scans = static_cast<long long>(s.batch) * kSS2DDirections;
  p.sums_at = scans * p.tiles * p.rows * kMapPixels;
  p.states_at = p.sums_at + scans * p.segments * p.padded_channels;
  p.floats = p.states_at + scans * s.states * p.segments * p.padded_channels;
  p.grid[kProjectMap] =
      static_cast<long long>(s.batch) * p.tiles * (kMapPixels / kPixelsAtOnce) * p.row_blocks;
  p.grid[kScanSegments] = p.grid[kScanMap] =
      static_cast<long long>(s.batch) * p.tiles * p.channel_blocks;
  p.grid[kCarryStates] = scans * s.states * (p.padded_channels / kCarryChannels);
  return p;
}

}  // namespace tfanet

#endif
