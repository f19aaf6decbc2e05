// The selective scan on the GPU, for nvcc and NVRTC alike.
//
//   delta' = softplus(delta + delta_bias)               (softplus where `softplus` is set)
//   h_t[n] = exp(delta'_t A[n]) h_{t-1}[n] + delta'_t B_t[n] u_t,   h_{-1} = 0
//   y_t    = (sum_n C_t[n] h_t[n] + D u_t) * z_t sigmoid(z_t)       (D, z where given)
//
// One row (batch, channel) is walked by `lanes` threads in tiles of lanes x kItems steps; a block
// holds `rows` rows, which never wait for each other. In a tile each thread composes its own steps
// h -> a h + b, threads exchange the compositions (shuffles in a warp, shared memory between
// warps), and each thread then replays its steps from the right state. All sums have one order:
// no atomics, the same bits every run. Nothing is divided by a decay, so nothing overflows.
//
// Why a row is not cut into parts that run at the same time: u, delta, z and y pass the memory
// once, which is all the traffic there must be. Cutting along time needs the carries first, so that
// u and delta are read twice (20 instead of 12 bytes a step in float32), or blocks that wait for
// each other. And the rows are enough: the flagship's calls have 1024 to 8192 of them, which is 31
// warps or more on each of 132 multiprocessors with 32 bytes a thread under way: 32 KB where 4.8
// TB/s and 0.65 us need 24 KB. B and C are shared by the rows of a group and come from the caches;
// the rows of a block are neighbours, so most of that comes from the first level.
//
// Compiled for sm_90, an element costs 78 instructions in float32 and 48 in two bytes (N = 1): what
// an H200 can issue at 1.98 GHz, 33e12 a second, is 5.1 and 4.2 TB/s of traffic, of which 70 % of a
// copy needs 3. By this count memory is the bound; at N = 16, 400 instructions, arithmetic is.
//
// Tiles start at the 16-byte boundary below the row of u, `lead` steps before it, so that u, delta,
// z and y are read in vectors in every row even where the length is odd.
#ifndef TFANET_SELECTIVE_SCAN_CUH
#define TFANET_SELECTIVE_SCAN_CUH

#include "scan_launch.h"
#include "scan_step.cuh"

namespace tfanet {

// Everything is contiguous; A, D and delta_bias are T where narrow_weights, else float.
template <typename T>
struct ScanOperands {
  const T* u;              // (batch, dim, length)
  const T* delta;          // (batch, dim, length)
  const void* A;           // (dim, states)
  const T* B;              // (batch, groups, states, length)
  const T* C;              // (batch, groups, states, length)
  const void* D;           // (dim) or null
  const void* delta_bias;  // (dim) or null
  const T* z;              // (batch, dim, length), read where kGate
  T* y;                    // (batch, dim, length)
  int batch, dim, length, groups, states;
  bool narrow_weights, softplus;
};

template <typename T>
__device__ __forceinline__ float weight_at(const ScanOperands<T>& p, const void* weights,
                                           long long i) {
  return p.narrow_weights ? decode(bits_of(static_cast<const T*>(weights)[i]), T{})
                          : static_cast<const float*>(weights)[i];
}

// kStates: N where it is known, 0 where p.states holds it. kGate: whether there is z.
template <typename T, int kStates, bool kGate>
__device__ __forceinline__ void selective_scan(const ScanOperands<T>& p) {
  constexpr int kItems = scan_items(sizeof(T), kStates);
  constexpr int kWarps = kMaxScanLanes / 32;
  // What it costs is hidden behind the memory where N = 1, and below the rounding of shorter types.
  constexpr bool kMinusOne = sizeof(T) == 4 && kStates == 1;
  using Steps = Step<kMinusOne>;
  // Both have two turns, so that one barrier per state is enough: what is read in one turn is
  // written again only after the next barrier but one.
  __shared__ Steps totals[2][kWarps];
  __shared__ float carries[2][kMaxScanRows][kStates > 0 ? kStates : kMaxScanStates];

  // There are fewer rows than 2^31, and a block at the end has at most seven too many.
  const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
  const unsigned dim = p.dim;
  if (row >= p.batch * dim) return;
  const int states = kStates > 0 ? kStates : p.states;
  const int length = p.length;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int slot = threadIdx.y * warps;  // first of this row's totals
  const unsigned channel = row % dim;
  const unsigned group = row / dim * p.groups + channel / (dim / p.groups);

  // Where this row starts in u, delta, z and y, and its states' rows in B and C.
  const long long start = static_cast<long long>(row) * length;
  const long long shared = static_cast<long long>(group) * states * length;
  const long long rates = static_cast<long long>(channel) * states;
  const float D = p.D != nullptr ? weight_at(p, p.D, channel) : 0.0f;
  const float own_rate = kStates == 1 ? weight_at(p, p.A, rates) * kLog2E : 0.0f;
  const float bias = p.delta_bias != nullptr ? weight_at(p, p.delta_bias, channel) : 0.0f;

  const int lead = elements_past_16_bytes(p.u + start);
  const bool aligned = elements_past_16_bytes(p.delta + start) == lead &&
                       elements_past_16_bytes(p.y + start) == lead &&
                       (!kGate || elements_past_16_bytes(p.z + start) == lead);
  const bool shared_aligned = elements_past_16_bytes(p.B + shared) == lead &&
                              elements_past_16_bytes(p.C + shared) == lead &&
                              (states == 1 || length * sizeof(T) % 16 == 0);
  const int span = blockDim.x * kItems;
  int t = static_cast<int>(threadIdx.x) * kItems - lead;

  // What is read in vectors is on its way while something else is computed: u and delta while the
  // tile before is, B while the state before is, C while threads exchange their steps.
  Pack<T, kItems> next_u, next_delta, next_B;
  bool inside = t >= 0 && t + kItems <= length;
  if (inside && aligned) {
    next_u = load_vectors<kItems, true>(p.u + start + t);
    next_delta = load_vectors<kItems, true>(p.delta + start + t);
  }
  long long at = start + t, shared_at = shared + t;
  int turn = 0;
  for (int tile = 0; tile * span - lead < length; ++tile) {
    const bool vectors = inside && aligned;
    const bool shared_vectors = inside && shared_aligned;
    if (!vectors) {
      next_u = load_each<kItems>(p.u + at, t, length);
      next_delta = load_each<kItems>(p.delta + at, t, length);
    }
    float dt[kItems], x[kItems], y[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const float raw = next_delta[i] + bias;
      dt[i] = p.softplus ? softplus_of(raw) : raw;
    }
    if (shared_vectors) next_B = load_vectors<kItems, false>(p.B + shared_at);
    if (!inside) {  // outside the row: a step that does nothing
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (t + i < 0 || t + i >= length) dt[i] = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      x[i] = dt[i] * next_u[i];
      y[i] = 0.0f;
    }
    const Pack<T, kItems> own_u = next_u;
    inside = t + span + kItems <= length;
    if (inside && aligned) {
      next_u = load_vectors<kItems, true>(p.u + at + span);
      next_delta = load_vectors<kItems, true>(p.delta + at + span);
    }
    Pack<T, kItems> gate;
    if (kGate && vectors) gate = load_vectors<kItems, true>(p.z + at);

    for (int n = 0; n < states; ++n, turn ^= 1) {
      const float rate = kStates == 1 ? own_rate : weight_at(p, p.A, rates + n) * kLog2E;
      const long long state_at = shared_at + static_cast<long long>(n) * length;
      if (!shared_vectors) next_B = load_each<kItems>(p.B + state_at, t, length);
      float decay[kItems], add[kItems];
      Steps own{kMinusOne ? 0.0f : 1.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        decay[i] = decay_of<kMinusOne>(dt[i] * rate);
        add[i] = (kStates == 1 ? dt[i] * own_u[i] : x[i]) * next_B[i];
        Steps{decay[i], add[i]}.append_to(own);
      }
      const Pack<T, kItems> Cn = shared_vectors ? load_vectors<kItems, false>(p.C + state_at)
                                                : load_each<kItems>(p.C + state_at, t, length);
      if (n + 1 < states && shared_vectors) {
        next_B = load_vectors<kItems, false>(p.B + state_at + length);
      }
      Steps upto = own;  // of all lanes of the warp up to this one
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        device::compose_up<kMinusOne>(upto.decay, upto.add, distance);
      }
      const Steps before{device::shuffle_up(upto.decay, 1), device::shuffle_up(upto.add, 1)};
      if (lane == 31) totals[turn][slot + warp] = upto;
      if (warps > 1) {
        device::barrier(1 + threadIdx.y, blockDim.x);
      } else {
        device::warp_barrier();
      }
      float h = tile == 0 ? 0.0f : carries[tile % 2][threadIdx.y][n];
#pragma unroll 1
      for (int w = 0; w < warp; ++w) h = totals[turn][slot + w](h);
      if (lane == 31 && warp == warps - 1) carries[(tile + 1) % 2][threadIdx.y][n] = upto(h);
      if (lane > 0) h = before(h);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        h = Steps{decay[i], add[i]}(h);
        y[i] = fmaf(Cn[i], h, y[i]);
      }
    }

#pragma unroll
    for (int i = 0; i < kItems; ++i) y[i] = fmaf(D, own_u[i], y[i]);
    if (kGate) {
      if (!vectors) gate = load_each<kItems>(p.z + at, t, length);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const float zi = gate[i];
        y[i] *= zi * device::reciprocal(1.0f + device::exp2_fast(zi * -kLog2E));
      }
    }
    store<kItems>(p.y + at, t, length, vectors, y);
    t += span;
    at += span;
    shared_at += span;
  }
}

}  // namespace tfanet

#endif
