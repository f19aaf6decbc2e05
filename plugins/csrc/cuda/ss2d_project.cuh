// The first kernel of the 2-D scan: rows of dt, B and C of all directions at the pixels of a map,
//
//   (dt_k, B_k, C_k) = x_proj_weight[k] u
//
// A block multiplies 32 rows with 32 pixels, two lines of a tile; its warps take turns over the
// channels, and their sums are added in the order of the warps.
#ifndef TFANET_SS2D_PROJECT_CUH
#define TFANET_SS2D_PROJECT_CUH

#include "scan_product.cuh"
#include "ss2d_operands.cuh"

namespace tfanet {

// What one lane needs for 16 channels: those from 4 t on of rows g, g + 8, g + 16, g + 24 and of
// pixels 4 g to 4 g + 3.
template <typename T>
struct ProjectedChannels {
  Pack<float, 4> weights[4];
  Pack<T, 4> pixels[4];
};

template <typename T>
__device__ __forceinline__ void project_map(const SS2DOperands<T>& p) {
  constexpr int kWarps = kSS2DThreads / 32, kParts = kMapPixels / kPixelsAtOnce;
  constexpr int kAtOnce = 16;                // channels
  constexpr int kPitch = kPixelsAtOnce + 4;  // of a row of sums
  constexpr int kGroup = kPixelsAtOnce / 8;  // pixels of a lane
  __shared__ float sums[kWarps][kRowsAtOnce][kPitch];

  const SS2DPlan plan = plan_ss2d(p.sizes);
  const int channels = p.sizes.channels, height = p.sizes.height, width = p.sizes.width;
  const int first_row = blockIdx.x % plan.row_blocks * kRowsAtOnce;
  const int block = blockIdx.x / plan.row_blocks, part = block % kParts;
  const int tile = block / kParts % plan.tiles, batch = block / kParts / plan.tiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int all_rows = kSS2DDirections * plan.rows;

  const int line = tile / plan.tiles_x * kMapTile + part * 2 + g / 4;
  const int column = tile % plan.tiles_x * kMapTile + g % 4 * kGroup;
  const long long plane = static_cast<long long>(height) * width;
  const T* const u = p.u + static_cast<long long>(batch) * channels * plane +
                     static_cast<long long>(line) * width + column;
  const int inside = line < height ? width - column : 0;  // pixels of this line from `column` on
  const bool vectors =
      inside >= kGroup && width % kGroup == 0 && elements_past_16_bytes(p.u) % kGroup == 0;
  const bool weight_vectors = channels % 4 == 0 && elements_past_16_bytes(p.x_proj_weight) == 0;

  const auto read = [&](int first, ProjectedChannels<T>& to) {
    const int channel = first + 4 * t;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = first_row + g + 8 * r;
      const float* const from = p.x_proj_weight + static_cast<long long>(row) * channels + channel;
      const int there = row < all_rows ? channels : 0;
      to.weights[r] = weight_vectors && channel < there ? load_vectors<4, false>(from)
                                                        : load_each<4>(from, channel, there);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* const from = u + (channel + i) * plane;
      const int there = channel + i < channels ? inside : 0;
      to.pixels[i] = vectors && there > 0 ? load_vectors<kGroup, false>(from)
                                          : load_each<kGroup>(from, 0, there);
    }
  };

  float products[2][kGroup][4] = {};
  ProjectedChannels<T> next;
  read(warp * kAtOnce, next);
  for (int first = warp * kAtOnce; first < channels; first += kWarps * kAtOnce) {
    const ProjectedChannels<T> own = next;
    read(first + kWarps * kAtOnce, next);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      Factor<4> weights[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        weights[m] = split<4>({own.weights[2 * m][2 * s], own.weights[2 * m + 1][2 * s],
                               own.weights[2 * m][2 * s + 1], own.weights[2 * m + 1][2 * s + 1]});
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const Factor<2> pixels = split<2>({own.pixels[2 * s][j], own.pixels[2 * s + 1][j]});
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<sizeof(T) == 2>(products[m][j], weights[m], pixels);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[warp][16 * m + g + i / 2 * 8][8 * t + i % 2 * kGroup + j] = products[m][j][i];
      }
    }
  }
  device::barrier(1, kSS2DThreads);

  const int own_row = threadIdx.x / 8, pixel = threadIdx.x % 8 * kGroup;
  const int row = first_row + own_row;
  if (row >= all_rows) return;
  const int k = row / plan.rows;
  float* const to = projected_rows(p, plan, batch, k, tile) + row % plan.rows * kMapPixels;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][own_row][pixel + i];
    const int at = part * kPixelsAtOnce + pixel + i;
    to[k % 2 == 0 ? at : at % kMapTile * kMapTile + at / kMapTile] = sum;
  }
}

}  // namespace tfanet

#endif
