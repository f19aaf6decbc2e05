// The 2-D selective scan on the GPU, for nvcc and NVRTC alike: from a map to the merged map.
//
//   (dt_k, B_k, C_k) = x_proj_weight[k] u                at every pixel       (ss2d_project.cuh)
//   delta_k = softplus(dt_weight[k] dt_k + dt_bias[k])
//   y = sum over k of scan(u, delta_k, A_k, B_k, C_k, D_k), along direction k
//
// with directions k: rows, columns, rows reversed, columns reversed. The map is cut into tiles of
// 16 x 16 pixels, so that every direction's sequence is cut into segments of 16 steps or less, and
// a block that holds a tile of 16 channels in shared memory has segments of all four directions:
//
//   project_map    the rows of dt, B and C, in the order of scanning, tile by tile
//   scan_segments  of every segment the sum of delta and the state at its end, started from zero
//   carry_states   along the segments of a sequence: the state that each really starts from
//   scan_map       the segments once more, from there, and the sum of directions
//
// Nothing of the size of four maps passes the memory: delta, what is scanned and the four results
// live in registers and in the tile. All sums have one order: no atomics, the same bits every run.
//
// What must move is u read and y written, 2 maps (and the weights). What moves, in maps of float32:
// u read by every 32 of the 4 (R + 2N) rows of the projection, side by side, and twice more; y
// written; the rows, 4 (R + 2N) / E, written once and read twice by every 16 channels, mostly from
// the second-level cache; and 4 (N + 1) / 16 of sums and states written and read, N of the N + 1
// written and read again. With E = 256, R = 8, N = 1: 5 + 0.5 + 1.5 = 7, of which a second-level
// cache larger than a map (the flagship's has 15 MB) keeps half from the memory; cross-scan,
// projections, scan and cross-merge by themselves move 34.
//
// Arithmetic is the bound, not the memory: compiled for sm_90, a step of a channel in one direction
// costs 42 instructions in scan_segments and 51 in scan_map (R = 8, N = 1; 11 more for every
// further 8 of R), with project_map 106 in all, where an H200 issues 33e12 a second: 47 us for the
// flagship's first stage, of 7 us that a copy of 2 maps takes and 24 us that 7 maps do. Delta is
// computed twice, since keeping it would be a four-fold copy; its product with the rows of dt runs
// on the matrix units (scan_product.cuh), which leave each lane with 8 consecutive steps of 2
// channels, so that a segment needs one exchange between two lanes. Two blocks of a multiprocessor
// have 128 registers a thread: no spills on 8.0 to 9.0, up to 128 bytes of scan_map's on 10.0 and
// 12.0.
#ifndef TFANET_SS2D_SCAN_CUH
#define TFANET_SS2D_SCAN_CUH

#include "scan_product.cuh"
#include "ss2d_operands.cuh"

namespace tfanet {

constexpr int kRun = 8;  // steps of a lane; two neighbours share a segment

// A tile of 16 channels in shared memory. The pitches let 32 lanes read pixels of a row and of a
// column from different banks (but for a few).
constexpr int kLinePitch = kMapTile + 2;
constexpr int kChannelPitch = kMapTile * kLinePitch + 2;
using MapTile = float[kMapChannels][kChannelPitch];

// What a block works on, and this lane's place in it: channels g and g + 8, and steps 8 half to
// 8 half + 7 of `segment`, which is a line or, in column directions, a column.
struct TilePlace {
  int batch, tile_x, tile_y, tile, first_channel;
  int g, t, half, segment;
};

__device__ __forceinline__ TilePlace place_in_tile(const SS2DPlan& plan) {
  TilePlace place;
  const int block = blockIdx.x / plan.channel_blocks;
  place.first_channel = blockIdx.x % plan.channel_blocks * kMapChannels;
  place.tile = block % plan.tiles;
  place.batch = block / plan.tiles;
  place.tile_x = place.tile % plan.tiles_x;
  place.tile_y = place.tile / plan.tiles_x;
  const int lane = threadIdx.x % 32;
  place.g = lane / 4;
  place.t = lane % 4;
  place.half = place.t % 2;
  place.segment = threadIdx.x / 32 * 2 + place.t / 2;
  return place;
}

// Calls visit(channel, thread's place in the tile, its place in u and y) for each channel that is
// there, if this thread's pixel is.
template <typename T, typename Visit>
__device__ __forceinline__ void for_each_channel(const SS2DOperands<T>& p, const TilePlace& place,
                                                 Visit visit) {
  const int line = threadIdx.x / kMapTile, column = threadIdx.x % kMapTile;
  const int y = place.tile_y * kMapTile + line, x = place.tile_x * kMapTile + column;
  const bool inside = y < p.sizes.height && x < p.sizes.width;
  const long long plane = static_cast<long long>(p.sizes.height) * p.sizes.width;
  const long long at = (place.batch * p.sizes.channels + place.first_channel) * plane +
                       static_cast<long long>(y) * p.sizes.width + x;
#pragma unroll
  for (int c = 0; c < kMapChannels; ++c) {
    visit(c, line * kLinePitch + column, at + c * plane,
          inside && place.first_channel + c < p.sizes.channels);
  }
}

// delta of this lane's steps in direction k; zero from step `steps` of the segment on, where there
// is no pixel.
template <typename T>
__device__ __forceinline__ void compute_delta(const SS2DOperands<T>& p, const TilePlace& place,
                                              int k, const float* rows, int steps,
                                              float (&delta)[2][kRun]) {
  const int rank = p.sizes.rank, last = p.sizes.channels - 1;
  float bias[2];
  const float* weights[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int wanted = place.first_channel + place.g + 8 * c;
    const int row = k * p.sizes.channels + (wanted < last ? wanted : last);
    weights[c] = p.dt_weight + static_cast<long long>(row) * rank + 2 * place.t;
    bias[c] = p.dt_bias[row];
  }
  // The product's columns 8 j + g are steps 4 g + j of the warp's 32.
  const float* dt = rows + threadIdx.x / 32 * 32 + 4 * place.g + 2 * place.t * kMapPixels;
  float products[4][4] = {};
  for (int left = rank - 2 * place.t; left > -2 * place.t; left -= 8) {
    Pack<float, 2> weight[2];
    Pack<float, 4> own[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) weight[c] = load_each<2>(weights[c], 0, left);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      own[i] = i < left ? load_vectors<4, false>(dt + i * kMapPixels) : Pack<float, 4>{};
      weights[i] += 8;
    }
    dt += 8 * kMapPixels;
    const Factor<4> factor = split<4>({weight[0][0], weight[1][0], weight[0][1], weight[1][1]});
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      multiply_add(products[j], factor, split<2>({own[0][j], own[1][j]}));
    }
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      delta[c][i] = softplus_of(products[i % 4][2 * c + i / 4] + bias[c]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const float there = kRun * place.half + i < steps ? 1.0f : 0.0f;
    delta[0][i] *= there;
    delta[1][i] *= there;
  }
}

// This lane's steps in direction k, the reversed one of its axis where kReversed. kMerge: from the
// states that the segments start from; adds the results to y. Otherwise writes the segments' sums
// of delta and states.
template <int kStates, bool kMerge, bool kReversed, typename T>
__device__ __forceinline__ void scan_direction(const SS2DOperands<T>& p, const SS2DPlan& plan,
                                               const TilePlace& place, int k,
                                               const float* const (&u)[2], int apart,
                                               float (&y)[2][kRun]) {
  const int states = kStates > 0 ? kStates : p.sizes.states;
  const bool columns = k % 2 != 0;
  const int lines = columns ? p.sizes.width : p.sizes.height;
  const int length = columns ? p.sizes.height : p.sizes.width;
  const int line = (columns ? place.tile_x : place.tile_y) * kMapTile + place.segment;
  const int tile_along = columns ? place.tile_y : place.tile_x;
  const int tiles_along = columns ? plan.tiles_y : plan.tiles_x;
  const bool exists = line < lines;
  const bool starts = (place.half == 0) != kReversed;  // this lane has the segment's first steps
  const float* const rows = projected_rows(p, plan, place.batch, k, place.tile);
  const float* const own_rows = rows + place.segment * kMapTile + place.half * kRun;
  const long long segment = static_cast<long long>(exists ? line : 0) * tiles_along + tile_along;
  const long long at = segment * plan.padded_channels + place.first_channel + place.g;
  const int last = p.sizes.channels - 1;

  float delta[2][kRun], sum[2], other_sum[2];
  compute_delta(p, place, k, rows, exists ? length - tile_along * kMapTile : 0, delta);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    sum[c] = 0.0f;
#pragma unroll
    for (int i = 0; i < kRun; ++i) sum[c] += delta[c][i];
    other_sum[c] = device::shuffle_xor(sum[c], 1);
    if (!kMerge && exists && starts) {
      segment_sums(p, plan, place.batch, k)[at + 8 * c] = sum[c] + other_sum[c];
    }
  }

  for (int n = 0; n < states; ++n) {
    float* const state = segment_states(p, plan, place.batch, k, n) + at;
    const Pack<float, kRun> B =
        load_vectors<kRun, false>(own_rows + (p.sizes.rank + n) * kMapPixels);
    Pack<float, kRun> C;
    if (kMerge) {
      C = load_vectors<kRun, false>(own_rows + (p.sizes.rank + states + n) * kMapPixels);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int wanted = place.first_channel + place.g + 8 * c;
      const long long channel =
          static_cast<long long>(k) * p.sizes.channels + (wanted < last ? wanted : last);
      const float rate = p.A[channel * states + n] * kLog2E;
      float h = kMerge ? state[8 * c] : 0.0f;
      float decay[kRun], add[kRun], end = kMerge && starts ? h : 0.0f;
#pragma unroll
      for (int s = 0; s < kRun; ++s) {
        const int i = kReversed ? kRun - 1 - s : s;
        decay[i] = device::exp2_fast(delta[c][i] * rate);
        add[i] = delta[c][i] * u[c][i * apart] * B[i];
        end = fmaf(decay[i], end, add[i]);
      }
      const float before = device::shuffle_xor(end, 1);
      if (kMerge) {
        if (!starts) h = before;
#pragma unroll
        for (int s = 0; s < kRun; ++s) {
          const int i = kReversed ? kRun - 1 - s : s;
          h = fmaf(decay[i], h, add[i]);
          y[c][i] = fmaf(C[i], h, y[c][i]);
        }
      } else if (exists && !starts) {
        state[8 * c] = fmaf(device::exp2_fast(sum[c] * rate), before, end);
      }
    }
  }
}

// Both directions of an axis: rows and rows reversed (0, 2) or columns and columns reversed (1, 3).
// y, where kMerge: set to their sum for rows, increased by it for columns.
template <int kStates, bool kMerge, typename T>
__device__ __forceinline__ void scan_axis(const SS2DOperands<T>& p, const SS2DPlan& plan,
                                          const TilePlace& place, int axis, const MapTile& u_tile,
                                          MapTile& y_tile) {
  const int along = axis == 0 ? 1 : kLinePitch, across = axis == 0 ? kLinePitch : 1;
  const int first = place.segment * across + place.half * kRun * along;
  const float* const u[2] = {&u_tile[place.g][first], &u_tile[place.g + 8][first]};
  float y[2][kRun] = {};
  scan_direction<kStates, kMerge, false>(p, plan, place, axis, u, along, y);
  scan_direction<kStates, kMerge, true>(p, plan, place, axis + 2, u, along, y);
  if constexpr (kMerge) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        float& to = y_tile[place.g + 8 * c][first + i * along];
        to = axis == 0 ? y[c][i] : to + y[c][i];
      }
    }
  }
}

// kStates: N where it is known, 0 where p.sizes.states holds it.
template <int kStates, bool kMerge, typename T>
__device__ __forceinline__ void scan_tile(const SS2DOperands<T>& p, const SS2DPlan& plan,
                                          const TilePlace& place, MapTile& u_tile,
                                          MapTile& y_tile) {
  for_each_channel(p, place, [&](int c, int in_tile, long long at, bool inside) {
    u_tile[c][in_tile] = inside ? decode(bits_of(device::load_one(p.u + at)), T{}) : 0.0f;
  });
  device::barrier(1, kSS2DThreads);
  scan_axis<kStates, kMerge>(p, plan, place, 0, u_tile, y_tile);
  if (kMerge) device::barrier(1, kSS2DThreads);
  scan_axis<kStates, kMerge>(p, plan, place, 1, u_tile, y_tile);
}

template <int kStates, typename T>
__device__ __forceinline__ void scan_segments(const SS2DOperands<T>& p) {
  __shared__ MapTile u_tile;
  const SS2DPlan plan = plan_ss2d(p.sizes);
  scan_tile<kStates, false>(p, plan, place_in_tile(plan), u_tile, u_tile);
}

template <int kStates, typename T>
__device__ __forceinline__ void scan_map(const SS2DOperands<T>& p) {
  __shared__ MapTile u_tile, y_tile;
  __shared__ float skip[kMapChannels];  // the sum of D
  const SS2DPlan plan = plan_ss2d(p.sizes);
  const TilePlace place = place_in_tile(plan);
  const int channel = place.first_channel + threadIdx.x, channels = p.sizes.channels;
  if (threadIdx.x < kMapChannels && channel < channels) {
    skip[threadIdx.x] = (p.D[channel] + p.D[channels + channel]) +
                        (p.D[2 * channels + channel] + p.D[3 * channels + channel]);
  }
  scan_tile<kStates, true>(p, plan, place, u_tile, y_tile);
  device::barrier(1, kSS2DThreads);
  for_each_channel(p, place, [&](int c, int in_tile, long long at, bool inside) {
    if (inside) {
      put(p.y + at, encode(fmaf(skip[c], u_tile[c][in_tile], y_tile[c][in_tile]), T{}));
    }
  });
}

// A part of one channel's segments in one direction, in the order of scanning.
struct SegmentRun {
  const float* sums;
  float* states;
  float rate;
  int pitch, begin, end, last;  // `last` segment of the direction where it is reversed, else -1

  // Calls visit(step, state) with the step that a segment is, its decay less 1, and the place of
  // its state.
  template <typename Visit>
  __device__ __forceinline__ void walk(Visit visit) const {
    constexpr int kAtOnce = 4;  // segments whose values are on their way at a time
    for (int first = begin; first < end; first += kAtOnce) {
      float sum[kAtOnce], add[kAtOnce];
      long long at[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int order = first + i < end ? first + i : end - 1;
        at[i] = static_cast<long long>(last < 0 ? order : last - order) * pitch;
        sum[i] = sums[at[i]];
        add[i] = states[at[i]];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < end) visit({decay_of<true>(sum[i] * rate), add[i]}, states + at[i]);
      }
    }
  }
};

// One state of 8 channels along all segments of a direction: 32 parts of the sequence are composed
// side by side, and walked once more from the right states. A decay is kept less 1, see Step.
template <typename T>
__device__ __forceinline__ void carry_states(const SS2DOperands<T>& p) {
  using Steps = Step<true>;
  __shared__ Steps totals[kCarryParts][kCarryChannels];
  const SS2DPlan plan = plan_ss2d(p.sizes);
  const int blocks = plan.padded_channels / kCarryChannels, states = p.sizes.states;
  const int own = threadIdx.x % kCarryChannels, part = threadIdx.x / kCarryChannels;
  const int channel = blockIdx.x % blocks * kCarryChannels + own;
  const int n = blockIdx.x / blocks % states, scan = blockIdx.x / blocks / states;
  const int k = scan % kSS2DDirections, batch = scan / kSS2DDirections;

  const int last = p.sizes.channels - 1;
  const long long weight_row =
      static_cast<long long>(k) * p.sizes.channels + (channel < last ? channel : last);
  const int count = k % 2 != 0 ? p.sizes.width * plan.tiles_y : p.sizes.height * plan.tiles_x;
  const int per_part = (count + kCarryParts - 1) / kCarryParts, begin = part * per_part;
  const SegmentRun run{segment_sums(p, plan, batch, k) + channel,
                       segment_states(p, plan, batch, k, n) + channel,
                       p.A[weight_row * states + n] * kLog2E,
                       plan.padded_channels,
                       begin,
                       begin + per_part < count ? begin + per_part : count,
                       k >= 2 ? count - 1 : -1};
  Steps total{0.0f, 0.0f};
  run.walk([&](const Steps& step, float*) { step.append_to(total); });
  totals[part][own] = total;
  device::barrier(1, kSS2DThreads);
  float h = 0.0f;
  for (int before = 0; before < part; ++before) h = totals[before][own](h);
  run.walk([&](const Steps& step, float* state) {
    *state = h;
    h = step(h);
  });
}

}  // namespace tfanet

#endif
