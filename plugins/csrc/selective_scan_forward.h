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

// A state and what float32 lost when it added the last steps to it, or a weak decay over thousands
// of steps would cost 1e-6 and more. A loss is given back one step late, which keeps it out of the
// chain of dependent operations from step to step. (No initial values: of kMaxState states only
// those that there are should be touched.)
template <class S>
struct Compensated {
  Vec<S> state, lost, lost_before;

  // state := (1 + e) state + b
  TFANET_INLINE void advance(Vec<S> e, Vec<S> b) {
    const Vec<S> change = e * state + (b + lost_before);
    const Vec<S> next = state + change;
    lost_before = lost;
    lost = change - (next - state);
    state = next;
  }
};

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

// Results larger than this are written past the caches, which hold nothing of them for long.
constexpr int64_t kStreamBytes = 8 << 20;

template <class T>
bool streams(const ScanArgs& a) {
  const auto bytes = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)); };
  return bytes(a.batch * a.dim * a.length) > kStreamBytes && bytes(a.y_strides.row) % 64 == 0 &&
         bytes(a.y_strides.batch) % 64 == 0 && reinterpret_cast<uintptr_t>(a.y) % 64 == 0;
}

template <class T>
void forward_block(const ScanArgs& a, const Block& k, bool past_cache) {
  typedef State<T> S;
  const Operands<T> in(a, k);
  T* y = static_cast<T*>(a.y) + k.batch * a.y_strides.batch + k.channel * a.y_strides.row;

  Compensated<S> states[kMaxState];
  Vec<S> decay[kMaxState];
  for (int64_t n = 0; n < a.state; ++n) {
    states[n] = Compensated<S>();
    decay[n] = decay_weights<S>(a, k, n);
  }
  Columns<S> u, delta, out;
  S B_buffer[kTile], C_buffer[kTile];

  for (int64_t start = 0; start < a.length; start += kTile) {
    const int steps = static_cast<int>(a.length - start < kTile ? a.length - start : kTile);
    read_tile<T>(in.u + start, a.u_strides.row, k.rows, steps, u);
    read_tile<T>(in.delta + start, a.delta_strides.row, k.rows, steps, delta);
    const Softplus<S> softplus;
    for (int t = 0; t < steps; ++t) {
      prefetch_line<T>(in.u + start + kTile, a.u_strides.row, t);
      prefetch_line<T>(in.delta + start + kTile, a.delta_strides.row, t);
      const Vec<S> x = delta.value[t] + in.bias;
      delta.value[t] = a.delta_softplus ? softplus(x) : x;
    }
    for (int64_t n = 0; n < a.state; ++n) {
      const ExpMinus1<S> exp_minus_1;
      const S* B = read_row<T>(in.B + n * a.B_strides.state + start, steps, B_buffer);
      const S* C = read_row<T>(in.C + n * a.C_strides.state + start, steps, C_buffer);
      Compensated<S> h = states[n];
      const Vec<S> A = decay[n];
      for (int t = 0; t < steps; ++t) {
        const Vec<S> d = delta.value[t];
        h.advance(exp_minus_1(d * A), d * u.value[t] * B[t]);
        out.value[t] = h.state * C[t] + (n ? out.value[t] : in.D * u.value[t]);
      }
      states[n] = h;
    }
    if (in.z) gate_tile<T>(in.z + start, a.z_strides.row, k.rows, steps, out);
    write_tile<T>(out, k.rows, steps, past_cache, y + start, a.y_strides.row);
  }
}

template <class T>
void forward_units_of(const ScanArgs& a, int64_t begin, int64_t end) {
  const int64_t channels = a.dim / a.groups;
  const int64_t units = (channels + kUnitChannels - 1) / kUnitChannels;
  const bool past_cache = streams<T>(a);
  const FlushSubnormals flush;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / units, first = unit % units * kUnitChannels;
    const int64_t last = first + kUnitChannels < channels ? first + kUnitChannels : channels;
    Block block;
    block.batch = pair / a.groups;
    block.group = pair % a.groups;
    for (int64_t c = first; c < last; c += kLanes<State<T>>) {
      block.channel = block.group * channels + c;
      block.rows = static_cast<int>(last - c < kLanes<State<T>> ? last - c : kLanes<State<T>>);
      forward_block<T>(a, block, past_cache);
    }
  }
  if (past_cache) end_streaming();
}

}  // namespace
}  // namespace tfanet

#endif
