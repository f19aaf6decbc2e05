// The forward pass: vectors hold one step of kLanes channels, whose states stay in registers.
#ifndef TFANET_SELECTIVE_SCAN_FORWARD_H
#define TFANET_SELECTIVE_SCAN_FORWARD_H

#include "selective_scan_kernel.h"
#include "selective_scan_tile.h"

namespace tfanet {
namespace {

// kLanes channels (`rows` of them present) of one batch entry and group.
struct Block {
  int64_t batch, group, channel;
  int rows;
};

// A state in two parts: what float32 loses when it adds a small step to a large state is kept in
// `low`, or a weak decay over thousands of steps would cost 1e-6 and more.
template <class S>
struct Pair {
  Vec<S> high, low;
};

// h := (1 + e) h + b
template <class S>
TFANET_INLINE void advance(Pair<S>& h, Vec<S> e, Vec<S> b) {
  const Vec<S> change = e * h.high + (e * h.low + (h.low + b));
  const Vec<S> high = h.high + change;
  h.low = change - (high - h.high);
  h.high = high;
}

template <class T>
struct Operands {
  typedef State<T> S;
  const T *u, *delta, *z, *B, *C;
  Vec<S> D, bias;

  Operands(const ScanArgs& a, const Block& k)
      : u(at(a.u, a.u_strides, k)),
        delta(at(a.delta, a.delta_strides, k)),
        z(a.z ? at(a.z, a.z_strides, k) : nullptr),
        B(at(a.B, a.B_strides, k)),
        C(at(a.C, a.C_strides, k)),
        D(a.D ? weights<S>(a.D, a.weight_dtype, k.channel, 1, k.rows) : Vec<S>{}),
        bias(a.delta_bias ? weights<S>(a.delta_bias, a.weight_dtype, k.channel, 1, k.rows)
                          : Vec<S>{}) {}

 private:
  static const T* at(const void* data, const SequenceStrides& s, const Block& k) {
    return static_cast<const T*>(data) + k.batch * s.batch + k.channel * s.row;
  }
  static const T* at(const void* data, const ProjectionStrides& s, const Block& k) {
    return static_cast<const T*>(data) + k.batch * s.batch + k.group * s.group;
  }
};

// A of state n, in the scale that exp_minus_1 takes.
template <class S>
TFANET_INLINE Vec<S> decay_weights(const ScanArgs& a, const Block& k, int64_t n) {
  return weights<S>(a.A, a.weight_dtype, k.channel * a.state + n, a.state, k.rows) * kExpScale<S>;
}

template <class T>
void forward_block(const ScanArgs& a, const Block& k) {
  typedef State<T> S;
  const Operands<T> in(a, k);
  T* y = static_cast<T*>(a.y) + k.batch * a.y_strides.batch + k.channel * a.y_strides.row;

  Pair<S> states[kMaxState];
  Vec<S> decay[kMaxState];
  for (int64_t n = 0; n < a.state; ++n) {
    states[n] = Pair<S>{};
    decay[n] = decay_weights<S>(a, k, n);
  }
  Columns<S> u, delta, out;
  Rows<S> rows;
  S B_buffer[kTile], C_buffer[kTile], z_buffer[kTile] = {};

  for (int64_t start = 0; start < a.length; start += kTile) {
    const int steps = static_cast<int>(a.length - start < kTile ? a.length - start : kTile);
    read_tile<T>(in.u + start, a.u_strides.row, k.rows, steps, u);
    read_tile<T>(in.delta + start, a.delta_strides.row, k.rows, steps, delta);
    for (int t = 0; t < steps; ++t) {
      const Vec<S> x = delta.value[t] + in.bias;
      const Vec<S> d = a.delta_softplus ? softplus<S>(x) : x;
      out.value[t] = in.D * u.value[t];
      delta.value[t] = d;
      u.value[t] *= d;
    }
    for (int64_t n = 0; n < a.state; ++n) {
      const S* B = read_row<T>(in.B + n * a.B_strides.state + start, steps, B_buffer);
      const S* C = read_row<T>(in.C + n * a.C_strides.state + start, steps, C_buffer);
      Pair<S> h = states[n];
      const Vec<S> A = decay[n];
      for (int t = 0; t < steps; ++t) {
        advance<S>(h, exp_minus_1(delta.value[t] * A), u.value[t] * B[t]);
        out.value[t] += h.high * C[t];
      }
      states[n] = h;
    }
    to_rows<S>(out, steps, rows);
    for (int r = 0; r < k.rows; ++r) {
      S* row = rows.value[r];
      if (in.z) {
        const T* z = in.z + r * a.z_strides.row + start;
        for (int t = 0; t < steps; ++t) z_buffer[t] = widen(z[t]);
        for (int t = 0; t < steps; t += kLanes<S>) {
          const Vec<S> gate = load<S>(z_buffer + t);
          store<S>(row + t, load<S>(row + t) * gate * sigmoid<S>(gate));
        }
      }
      write_row<T>(row, steps, y + r * a.y_strides.row + start);
    }
  }
}

template <class T>
void forward_units_of(const ScanArgs& a, int64_t begin, int64_t end) {
  const int64_t channels = a.dim / a.groups;
  const int64_t units = (channels + kUnitChannels - 1) / kUnitChannels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / units, first = unit % units * kUnitChannels;
    const int64_t last = first + kUnitChannels < channels ? first + kUnitChannels : channels;
    Block block;
    block.batch = pair / a.groups;
    block.group = pair % a.groups;
    for (int64_t c = first; c < last; c += kLanes<State<T>>) {
      block.channel = block.group * channels + c;
      block.rows = static_cast<int>(last - c < kLanes<State<T>> ? last - c : kLanes<State<T>>);
      forward_block<T>(a, block);
    }
  }
}

}  // namespace
}  // namespace tfanet

#endif
