// The backward pass: states are recomputed from one kept at the start of every tile.
//
// With g = dy * silu(z), a_t = exp(delta'_t A) and H_t the gradient of h_t (per channel and n):
//
//   H_t       = C_t g_t + a_{t+1} H_{t+1}
//   dC_t      = sum_channels g_t h_t              dB_t = sum_channels H_t delta'_t u_t
//   du_t      = D g_t + sum_n H_t delta'_t B_t    dD   = sum_t g_t u_t
//   ddelta'_t = sum_n H_t (A a_t h_{t-1} + B_t u_t)
//   dA        = sum_t H_t a_t h_{t-1} delta'_t    dz_t = dy_t (sum_n C_t h_t + D u_t) silu'(z_t)
#ifndef TFANET_SELECTIVE_SCAN_BACKWARD_H
#define TFANET_SELECTIVE_SCAN_BACKWARD_H

#include <stdlib.h>

#include "selective_scan_forward.h"

namespace tfanet {
namespace {

// Scratch memory of some units, taken as a whole and given back at the end.
template <class S>
class Scratch {
 public:
  explicit Scratch(int64_t vectors)
      : memory_(static_cast<Vec<S>*>(aligned_alloc(64, (vectors * kVectorBytes + 63) / 64 * 64))) {
    if (!memory_) abort();
  }
  ~Scratch() { free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Vec<S>* data() const { return memory_; }

 private:
  Vec<S>* memory_;
};

// Adds the sum over lanes of every step to `to`, or writes it where `fresh`.
template <class S>
inline void add_lane_sums(const Columns<S>& columns, int steps, bool fresh, S* to) {
  Rows<S> rows;
  to_rows(columns, steps, rows);
  S sums[kTile];
  for (int t = 0; t < steps; t += kLanes<S>) {
    Vec<S> sum = load<S>(&rows.value[0][t]);
    for (int r = 1; r < kLanes<S>; ++r) sum += load<S>(&rows.value[r][t]);
    store<S>(sums + t, sum);
  }
  for (int t = 0; t < steps; ++t) to[t] = fresh ? sums[t] : to[t] + sums[t];
}

template <class S>
inline void write_lanes(Vec<S> values, int rows, int64_t step, S* to) {
  for (int r = 0; r < rows; ++r) to[r * step] = values[r];
}

// One block of a slab; `fresh` where it is the slab's first and so starts its sums.
template <class T>
void backward_block(const ScanArgs& a, const ScanGradients& grads, const Block& k, int64_t slab,
                    bool fresh, Vec<State<T>>* kept) {
  typedef State<T> S;
  const Operands<T> in(a, k);
  const int64_t row = k.batch * a.dim + k.channel, sequence = row * a.length;
  const int64_t tiles = (a.length + kTile - 1) / kTile;
  const int64_t parts = ((slab * a.batch + k.batch) * a.groups + k.group) * a.state * a.length;
  S* dB = static_cast<S*>(grads.dB_parts) + parts;
  S* dC = static_cast<S*>(grads.dC_parts) + parts;

  Vec<S> decay[kMaxStatesCpu], carry[kMaxStatesCpu], dA[kMaxStatesCpu];
  for (int64_t n = 0; n < a.state; ++n) {
    decay[n] = decay_weights<S>(a, k, n);
    carry[n] = dA[n] = Vec<S>{};
  }
  Columns<S> u, x, delta, e, h, sums;
  S B_buffer[kTile], C_buffer[kTile];
  const Softplus<S> softplus;
  const Sigmoid<S> sigmoid;
  const ExpMinus1<S> exp_minus_1;
  const auto read_inputs = [&](int64_t start, int steps) {
    read_tile<T>(in.u + start, a.u_strides.row, k.rows, steps, u);
    read_tile<T>(in.delta + start, a.delta_strides.row, k.rows, steps, x);
    for (int t = 0; t < steps; ++t) {
      x.value[t] += in.bias;
      delta.value[t] = a.delta_softplus ? softplus(x.value[t]) : x.value[t];
    }
  };

  // kept[tile * state + n]: the state before the tile's first step.
  for (int64_t n = 0; n < a.state; ++n) kept[n] = Vec<S>{};
  for (int64_t tile = 0; tile + 1 < tiles; ++tile) {
    const int64_t start = tile * kTile;
    read_inputs(start, kTile);
    for (int64_t n = 0; n < a.state; ++n) {
      const S* B = read_row<T>(in.B + n * a.B_strides.state + start, kTile, B_buffer);
      Compensated<S> state = {kept[tile * a.state + n], Vec<S>{}, Vec<S>{}};
      for (int t = 0; t < kTile; ++t) {
        const Vec<S> d = delta.value[t];
        state.advance(exp_minus_1(d * decay[n]), d * u.value[t] * B[t]);
      }
      kept[(tile + 1) * a.state + n] = state.state;
    }
  }

  Columns<S> g, z, dy, out, du, ddelta;
  Vec<S> dD{}, dbias{};
  for (int64_t tile = tiles - 1; tile >= 0; --tile) {
    const int64_t start = tile * kTile;
    const int steps = static_cast<int>(a.length - start < kTile ? a.length - start : kTile);
    read_inputs(start, steps);
    read_tile<T>(static_cast<const T*>(grads.dy) + sequence + start, a.length, k.rows, steps, dy);
    if (in.z) read_tile<T>(in.z + start, a.z_strides.row, k.rows, steps, z);
    for (int t = 0; t < steps; ++t) {
      g.value[t] = dy.value[t];
      if (in.z) g.value[t] *= z.value[t] * sigmoid(z.value[t]);
      out.value[t] = in.D * u.value[t];
      du.value[t] = in.D * g.value[t];
      ddelta.value[t] = Vec<S>{};
      dD += g.value[t] * u.value[t];
    }
    for (int64_t n = 0; n < a.state; ++n) {
      const S* B = read_row<T>(in.B + n * a.B_strides.state + start, steps, B_buffer);
      const S* C = read_row<T>(in.C + n * a.C_strides.state + start, steps, C_buffer);
      const Vec<S> A = decay[n] * (1 / kExpScale<S>), first = kept[tile * a.state + n];
      Compensated<S> state = {first, Vec<S>{}, Vec<S>{}};
      for (int t = 0; t < steps; ++t) {
        e.value[t] = exp_minus_1(delta.value[t] * decay[n]);
        state.advance(e.value[t], delta.value[t] * u.value[t] * B[t]);
        h.value[t] = state.state;
        out.value[t] += state.state * C[t];
        sums.value[t] = g.value[t] * state.state;
      }
      add_lane_sums<S>(sums, steps, fresh, dC + n * a.length + start);
      Vec<S> dh = carry[n];
      for (int t = steps - 1; t >= 0; --t) {
        dh += g.value[t] * C[t];
        const Vec<S> held = dh + dh * e.value[t];
        const Vec<S> decayed = held * (t ? h.value[t - 1] : first);
        dA[n] += decayed * delta.value[t];
        ddelta.value[t] += decayed * A + dh * u.value[t] * B[t];
        du.value[t] += dh * delta.value[t] * B[t];
        sums.value[t] = dh * delta.value[t] * u.value[t];
        dh = held;
      }
      add_lane_sums<S>(sums, steps, fresh, dB + n * a.length + start);
      carry[n] = dh;
    }
    for (int t = 0; t < steps; ++t) {
      if (a.delta_softplus) ddelta.value[t] *= sigmoid(x.value[t]);
      dbias += ddelta.value[t];
      if (in.z) {
        const Vec<S> gate = sigmoid(z.value[t]);
        out.value[t] *= dy.value[t] * gate * (z.value[t] * (S(1) - gate) + S(1));
      }
    }
    write_tile<T>(du, k.rows, steps, false, static_cast<T*>(grads.du) + sequence + start, a.length);
    write_tile<T>(ddelta, k.rows, steps, false, static_cast<T*>(grads.ddelta) + sequence + start,
                  a.length);
    if (in.z) {
      write_tile<T>(out, k.rows, steps, false, static_cast<T*>(grads.dz) + sequence + start,
                    a.length);
    }
  }
  for (int64_t n = 0; n < a.state; ++n) {
    write_lanes<S>(dA[n], k.rows, a.state, static_cast<S*>(grads.dA_parts) + row * a.state + n);
  }
  if (a.D) write_lanes<S>(dD, k.rows, 1, static_cast<S*>(grads.dD_parts) + row);
  if (a.delta_bias) {
    write_lanes<S>(dbias, k.rows, 1, static_cast<S*>(grads.ddelta_bias_parts) + row);
  }
}

template <class T>
void backward_units_of(const ScanArgs& a, const ScanGradients& grads, int64_t begin, int64_t end) {
  typedef State<T> S;
  const int64_t channels = a.dim / a.groups;
  const int64_t slabs = (channels + kSlabChannels - 1) / kSlabChannels;
  const FlushSubnormals flush;
  const Scratch<S> kept((a.length + kTile - 1) / kTile * a.state);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / slabs, slab = unit % slabs, first = slab * kSlabChannels;
    const int64_t last = first + kSlabChannels < channels ? first + kSlabChannels : channels;
    Block block;
    block.batch = pair / a.groups;
    block.group = pair % a.groups;
    for (int64_t c = first; c < last; c += kLanes<S>) {
      block.channel = block.group * channels + c;
      block.rows = static_cast<int>(last - c < kLanes<S> ? last - c : kLanes<S>);
      backward_block<T>(a, grads, block, slab, c == first, kept.data());
    }
  }
}

}  // namespace
}  // namespace tfanet

#endif
