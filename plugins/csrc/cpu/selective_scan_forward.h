// The forward pass: vectors hold one step of kLanes channels, whose states stay in registers.
#ifndef TFANET_SELECTIVE_SCAN_FORWARD_H
#define TFANET_SELECTIVE_SCAN_FORWARD_H

#include "selective_scan_kernel.h"
#include "selective_scan_tile.h"

namespace tfanet {
namespace {

// Channels of one batch entry and group that are worked on at once: as many as some vectors hold,
// of which `rows` are there.
struct Block {
  int64_t batch, group, channel;
  int rows;

  // The part of it in vector v.
  template <class S>
  Block vector(int v) const {
    const int first = v * kLanes<S>, left = rows - first;
    return {batch, group, channel + first, left < kLanes<S> ? left : kLanes<S>};
  }
};

template <class T>
TFANET_INLINE const T* at(const void* data, const SequenceStrides& s, const Block& k) {
  return static_cast<const T*>(data) + k.batch * s.batch + k.channel * s.row;
}

// A state and what float32 lost when it added the last steps to it, or a weak decay over thousands
// of steps would cost 1e-6 and more. A loss is given back one step late, which keeps it out of the
// chain of dependent operations from step to step. (No initial values: of kMaxStatesCpu states only
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
      : u(at<T>(a.u, a.u_strides, k)),
        delta(at<T>(a.delta, a.delta_strides, k)),
        z(a.z ? at<T>(a.z, a.z_strides, k) : nullptr),
        B(group_at(a.B, a.B_strides, k)),
        C(group_at(a.C, a.C_strides, k)),
        D(a.D ? weights<S>(a.D, a.weight_dtype, k.channel, 1, k.rows) : Vec<S>{}),
        bias(a.delta_bias ? weights<S>(a.delta_bias, a.weight_dtype, k.channel, 1, k.rows)
                          : Vec<S>{}) {}

 private:
  static const T* group_at(const void* data, const ProjectionStrides& s, const Block& k) {
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

// Vectors of channels that are scanned side by side, so that one's chain of dependent operations
// hides the other's. A wide vector has a unit for itself.
constexpr int kSideBySide = kVectorBytes == 64 ? 1 : 2;

// delta[t] = softplus(input(t)) for the steps of a tile, or what `input` gives; it may ask memory,
// too, for what is needed next. (Such functions are inlined always, or GCC takes one that only
// prefetches for one without effect, and leaves out the call.)
template <class S, class Input>
TFANET_INLINE void discretise(int steps, bool with_softplus, const Input& input,
                              Columns<S>& delta) {
  const Softplus<S> softplus;
  for (int t = 0; t < steps; t += kAbreast<S>) {
    Vec<S> group[kAbreast<S>];
    for (int i = 0; i < kAbreast<S>; ++i) group[i] = input(t + i);
    if (with_softplus) softplus(group);
    for (int i = 0; i < kAbreast<S>; ++i) delta.value[t + i] = group[i];
  }
}

// What one vector of channels holds of a tile.
template <class S>
struct Tile {
  Columns<S> u, delta, out;
};

// Advances V states by kSteps steps from t on.
template <int kSteps, bool kFirst, class S, int V>
TFANET_INLINE void scan_steps(const ExpMinus1<S>& exp_minus_1, const Vec<S> (&A)[V],
                              const Vec<S> (&D)[V], const S* B, const S* C, int t,
                              Compensated<S> (&h)[V], Tile<S>* tiles) {
  Vec<S> e[kSteps * V];
  for (int i = 0; i < kSteps * V; ++i) e[i] = tiles[i % V].delta.value[t + i / V] * A[i % V];
  exp_minus_1(e);
  for (int i = 0; i < kSteps; ++i) {
    const Vec<S> b = splat<S>(B[t + i]), c = splat<S>(C[t + i]);
    for (int v = 0; v < V; ++v) {
      Tile<S>& tile = tiles[v];
      const Vec<S> u = tile.u.value[t + i];
      h[v].advance(e[i * V + v], tile.delta.value[t + i] * u * b);
      tile.out.value[t + i] = h[v].state * c + (kFirst ? D[v] * u : tile.out.value[t + i]);
    }
  }
}

// The same for all steps of a tile, for the first of N states or another.
template <bool kFirst, class S, int V, class Ask>
TFANET_INLINE void scan_tile(const Vec<S> (&A)[V], const Vec<S> (&D)[V], const S* B, const S* C,
                             int steps, Compensated<S>* states, Tile<S>* tiles, const Ask& ask) {
  constexpr int kSteps = kAbreast<S> > V ? kAbreast<S> / V : 1;
  const ExpMinus1<S> exp_minus_1;
  Compensated<S> h[V];
  for (int v = 0; v < V; ++v) h[v] = states[v];
  int t = 0;
  for (; t + kSteps <= steps; t += kSteps) {
    for (int i = 0; i < kSteps; ++i) ask(t + i);
    scan_steps<kSteps, kFirst>(exp_minus_1, A, D, B, C, t, h, tiles);
  }
  for (; t < steps; ++t) scan_steps<1, kFirst>(exp_minus_1, A, D, B, C, t, h, tiles);
  for (t -= t % kSteps; t < kTile; ++t) ask(t);
  for (int v = 0; v < V; ++v) states[v] = h[v];
}

// Scans the V vectors of channels of a block; `next` is the one whose turn it is afterwards.
template <class T, int V>
void forward_block(const ScanArgs& a, const Block& block, const Block& next, bool past_cache) {
  typedef State<T> S;
  constexpr int kShare = kTile / V;  // of a tile's steps, for what belongs to one vector
  const Operands<T> in(a, block.vector<S>(0));
  T* y = const_cast<T*>(at<T>(a.y, a.y_strides, block));
  Vec<S> D[V], bias[V];
  Compensated<S> states[kMaxStatesCpu][V];
  Vec<S> decay[kMaxStatesCpu][V];
  int rows[V];
  for (int v = 0; v < V; ++v) {
    const Block k = block.vector<S>(v);
    const Operands<T> part(a, k);
    rows[v] = k.rows, D[v] = part.D, bias[v] = part.bias;
    for (int64_t n = 0; n < a.state; ++n) {
      states[n][v] = Compensated<S>();
      decay[n][v] = decay_weights<S>(a, k, n);
    }
  }
  const auto rows_of = [](auto* from, int64_t stride, int v) {
    return from + v * kLanes<S> * stride;
  };
  Tile<S> tiles[V];
  S B_buffer[kTile], C_buffer[kTile];

  for (int64_t start = 0; start < a.length; start += kTile) {
    const int steps = static_cast<int>(a.length - start < kTile ? a.length - start : kTile);
    const bool last = start + kTile >= a.length;
    const T* next_u = last ? at<T>(a.u, a.u_strides, next) : in.u + start + kTile;
    const T* next_delta = last ? at<T>(a.delta, a.delta_strides, next) : in.delta + start + kTile;
    for (int v = 0; v < V; ++v) {
      Tile<S>& tile = tiles[v];
      T* to = rows_of(y + start, a.y_strides.row, v);
      read_tile<T>(rows_of(in.u + start, a.u_strides.row, v), a.u_strides.row, rows[v], steps,
                   tile.u);
      read_tile<T>(rows_of(in.delta + start, a.delta_strides.row, v), a.delta_strides.row, rows[v],
                   steps, tile.delta);
      const auto input = [&](int t) TFANET_INLINED {
        if (!past_cache) prefetch_line<T, true>(to, a.y_strides.row, t);
        return tile.delta.value[t] + bias[v];
      };
      discretise<S>(steps, a.delta_softplus, input, tile.delta);
    }
    for (int64_t n = 0; n < a.state; ++n) {
      const S* B = read_row<T>(in.B + n * a.B_strides.state + start, steps, B_buffer);
      const S* C = read_row<T>(in.C + n * a.C_strides.state + start, steps, C_buffer);
      if (n == 0) {
        scan_tile<true>(decay[n], D, B, C, steps, states[n], tiles, [&](int t) TFANET_INLINED {
          const int v = t / kShare, line = t % kShare;
          prefetch_line<T>(rows_of(next_u, a.u_strides.row, v), a.u_strides.row, line);
          prefetch_line<T>(rows_of(next_delta, a.delta_strides.row, v), a.delta_strides.row, line);
        });
      } else {
        scan_tile<false>(decay[n], D, B, C, steps, states[n], tiles, [](int) {});
      }
    }
    for (int v = 0; v < V; ++v) {
      if (in.z) {
        gate_tile<T>(rows_of(in.z + start, a.z_strides.row, v), a.z_strides.row, rows[v], steps,
                     tiles[v].out);
      }
      write_tile<T>(tiles[v].out, rows[v], steps, past_cache,
                    rows_of(y + start, a.y_strides.row, v), a.y_strides.row);
    }
  }
}

template <class T>
void forward_units_of(const ScanArgs& a, int64_t begin, int64_t end) {
  typedef State<T> S;
  constexpr int64_t kChannels = kSideBySide * kLanes<S>;
  static_assert(kUnitChannels % kChannels == 0, "a unit consists of whole blocks");
  if (begin >= end) return;
  const int64_t channels = a.dim / a.groups;
  const int64_t units = (channels + kUnitChannels - 1) / kUnitChannels;
  const int64_t blocks = (channels + kChannels - 1) / kChannels;
  const auto first_of = [&](int64_t unit) {
    return unit / units * blocks + unit % units * (kUnitChannels / kChannels);
  };
  const auto block_at = [&](int64_t index) {
    const int64_t pair = index / blocks, first = index % blocks * kChannels,
                  left = channels - first;
    return Block{pair / a.groups, pair % a.groups, pair % a.groups * channels + first,
                 static_cast<int>(left < kChannels ? left : kChannels)};
  };
  const bool past_cache = streams<T>(a);
  const FlushSubnormals flush;
  const int64_t last = first_of(end) - 1;
  for (int64_t index = first_of(begin); index <= last; ++index) {
    const Block block = block_at(index), next = block_at(index < last ? index + 1 : index);
    if (block.rows > kLanes<S>) {
      forward_block<T, kSideBySide>(a, block, next, past_cache);
    } else {
      forward_block<T, 1>(a, block, next, past_cache);
    }
  }
  if (past_cache) end_streaming();
}

}  // namespace
}  // namespace tfanet

#endif
