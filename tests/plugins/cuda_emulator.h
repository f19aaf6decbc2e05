// The CUDA that the scan kernel uses, on the host: the kernel's own source, compiled by g++, runs
// thread by thread with the semantics of shuffles and barriers. Each thread is a fiber; it runs
// until a shuffle or a barrier makes it wait for others. Which fiber goes next is drawn from a
// seed, so a missing barrier gives different results for different seeds; a collective that not all
// of its threads reach ends the program with a message instead of hanging.
#ifndef TFANET_CUDA_EMULATOR_H
#define TFANET_CUDA_EMULATOR_H

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define threadIdx (emulator::running->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)

struct uint4 {
  unsigned x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

namespace emulator {

struct Dim {
  unsigned x = 0, y = 0, z = 0;
};

// Where threads meet: the last one of `arrived` opens the next generation.
struct Meeting {
  int arrived = 0;
  unsigned generation = 0;
  int expected = 0;
};

// What the lanes of one warp show each other; shuffles and products take turns, so that a fast
// lane's next one does not overwrite what a slow lane has not read.
struct Warp {
  Meeting meeting;
  float shown[2][6][32];
  int paused = 0;  // turns of the scheduler to stay behind the other warps
};

struct Thread {
  Dim index;
  unsigned lane = 0, turn = 0;
  Warp* warp = nullptr;
  const Meeting* waits_at = nullptr;
  unsigned waits_in = 0;
  bool done = false;
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
};

inline Thread* running = nullptr;
inline Dim block_index, block_size;
inline Meeting barriers[16];
inline ucontext_t scheduler;
inline std::function<void()> kernel;
// Whether approximate instructions err as much as their documentation allows.
inline bool hostile = false;
// Whether there are units that multiply matrices in TF32.
inline bool has_tf32 = true;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::exit(3);
}

inline void meet(Meeting& meeting, int expected) {
  if (meeting.arrived > 0 && meeting.expected != expected) fail("one barrier, two thread counts");
  meeting.expected = expected;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  Thread& self = *running;
  self.waits_at = &meeting;
  self.waits_in = meeting.generation;
  swapcontext(&self.context, &scheduler);
}

inline void start_thread() {
  kernel();
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

// Runs `body` for every thread of a block of `size` at `index`.
inline void run_block(Dim index, Dim size, std::mt19937& random,
                      const std::function<void()>& body) {
  constexpr size_t kStack = 128 << 10;
  static std::vector<Thread> threads;
  static std::vector<Warp> warps;
  block_index = index;
  block_size = size;
  kernel = body;
  const size_t count = static_cast<size_t>(size.x) * size.y;
  if (size.x % 32 != 0 || count > 1024) fail("a block that no GPU runs");
  if (threads.size() < count) threads.resize(count);
  warps.assign(count / 32, Warp{});
  for (Meeting& barrier : barriers) barrier = Meeting{};
  std::vector<Thread*> order(count);
  for (size_t i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.index = {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x), 0};
    thread.lane = i % 32;
    thread.turn = 0;
    thread.warp = &warps[i / 32];
    thread.waits_at = nullptr;
    thread.done = false;
    if (!thread.stack) thread.stack.reset(new char[kStack]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    makecontext(&thread.context, start_thread, 0);
    order[i] = &thread;
  }
  for (size_t left = count; left > 0;) {
    std::shuffle(order.begin(), order.begin() + left, random);
    for (Warp& warp : warps) {
      if (warp.paused > 0) {
        --warp.paused;
      } else if (random() % 4 == 0) {
        warp.paused = random() % 16;
      }
    }
    bool progress = false, paused = false;
    for (size_t i = 0; i < left; ++i) {
      Thread& thread = *order[i];
      if (thread.waits_at != nullptr && thread.waits_at->generation == thread.waits_in) continue;
      if (thread.warp->paused > 0) {
        paused = true;
        continue;
      }
      thread.waits_at = nullptr;
      running = &thread;
      swapcontext(&scheduler, &thread.context);
      progress = true;
    }
    if (!progress && !paused) {
      fail("threads wait for each other: a shuffle or barrier was not reached by all");
    }
    size_t kept = 0;
    for (size_t i = 0; i < left; ++i) {
      if (!order[i]->done) order[kept++] = order[i];
    }
    left = kept;
  }
}

// Runs all blocks of a grid of (blocks, 1, 1) in an order drawn from the seed.
inline void run_grid(int64_t blocks, Dim size, int64_t seed, const std::function<void()>& body) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::vector<unsigned> order(blocks);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<unsigned>(i);
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned block : order) run_block({block, 0, 0}, size, random, body);
}

inline bool read_all(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

// Answers the calls on the standard input until it ends or one fails; `answer(call, T())` writes y
// in the type T that `call.io` stands for.
template <class Call, class Answer>
int serve(Answer answer) {
  for (Call call; read_all(&call, sizeof call);) {
    const int status = call.io == 0   ? answer(call, float())
                       : call.io == 1 ? answer(call, tfanet::Half())
                                      : answer(call, tfanet::BFloat16());
    if (status != 0) return status;
  }
  return 0;
}

// Memory of exactly `bytes` from `offset` bytes past a 16-byte boundary on: a sanitizer sees what
// is touched outside. The skipped bytes, and y before it is written, are NaN in every type.
struct Buffer {
  std::unique_ptr<unsigned char, void (*)(void*)> memory{nullptr, std::free};
  unsigned char* data = nullptr;
  Buffer(size_t bytes, size_t offset) {
    memory.reset(static_cast<unsigned char*>(std::malloc(bytes + offset)));
    std::memset(memory.get(), 0xff, bytes + offset);
    data = memory.get() + offset;
  }
};

// An error of at most `units` of the last place, the same for the same value.
inline float perturbed(float x, float units) {
  if (!hostile || !std::isfinite(x)) return x;
  const unsigned hash = __float_as_uint(x) * 2654435761u >> 16;
  return x * (1.0f + units * 0x1p-23f * (static_cast<float>(hash) / 32767.5f - 1.0f));
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace emulator

namespace tfanet {
inline void multiply_by_shuffles(float (&sums)[4], const float (&left)[4], const float (&right)[2]);
}
namespace tfanet::device {

inline float exp2_fast(float x) {
  return emulator::flushed(emulator::perturbed(std::exp2(emulator::flushed(x)), 2.0f));
}
inline float reciprocal(float x) {
  return emulator::flushed(emulator::perturbed(1.0f / emulator::flushed(x), 1.0f));
}

// Shows a lane's values to its warp, and returns those of all lanes.
template <int kCount>
const float (&show(const float (&values)[kCount]))[6][32] {
  emulator::Thread& self = *emulator::running;
  auto& shown = self.warp->shown[self.turn ^= 1];
  for (int i = 0; i < kCount; ++i) shown[i][self.lane] = values[i];
  emulator::meet(self.warp->meeting, 32);
  return shown;
}

inline void exchange(float& a, float& b, int distance, bool& there) {
  const emulator::Thread& self = *emulator::running;
  const auto& shown = show<2>({a, b});
  there = self.lane >= static_cast<unsigned>(distance);
  if (!there) return;  // a lane with nothing below it reads its own value
  a = shown[0][self.lane - distance];
  b = shown[1][self.lane - distance];
}
inline float shuffle_up(float x, int distance) {
  float unused = 0.0f;
  bool there;
  exchange(x, unused, distance, there);
  return x;
}
inline float shuffle(float x, int from) { return show<1>({x})[0][from]; }
inline float shuffle_xor(float x, int mask) {
  return shuffle(x, static_cast<int>(emulator::running->lane) ^ mask);
}
template <bool kMinusOne>
void compose_up(float& decay, float& add, int distance) {
  float below_decay = decay, below_add = add;
  bool there;
  exchange(below_decay, below_add, distance, there);
  if (!there) return;
  add = std::fma(decay, below_add, add);
  if (kMinusOne) {
    add += below_add;
    decay = std::fma(decay, below_decay, decay) + below_decay;
  } else {
    decay *= below_decay;
  }
}

// The matrix units, or what stands in for them; see scan_product.cuh for who holds what.
inline bool& kHasTF32 = emulator::has_tf32;

// A template, so that programs without products need not have them. Products are exact; the units
// cut what does not fit the sum instead of rounding it.
template <int kSums>
void multiply_tf32(float (&sums)[kSums], const float (&left)[4], const float (&right)[2]) {
  if (!kHasTF32) return multiply_by_shuffles(sums, left, right);
  const auto& shown = show<6>({left[0], left[1], left[2], left[3], right[0], right[1]});
  for (const float x : {left[0], left[1], left[2], left[3], right[0], right[1]}) {
    if (std::isfinite(x) && (__float_as_uint(x) & 0x1fffu) != 0) emulator::fail("not a TF32");
  }
  const int g = static_cast<int>(emulator::running->lane) / 4;
  const int t = static_cast<int>(emulator::running->lane) % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 8; ++k) {
      sum += static_cast<double>(shown[k / 4 * 2 + lower][4 * g + k % 4]) *
             shown[4 + k / 4][4 * column + k % 4];
    }
    sums[i] = static_cast<float>(sum);
    if (emulator::hostile && std::fabs(static_cast<double>(sums[i])) > std::fabs(sum)) {
      sums[i] = std::nextafter(sums[i], 0.0f);
    }
  }
}

inline void barrier(int id, int threads) {
  if (id < 1 || id > 15 || threads % 32 != 0) emulator::fail("a barrier that no GPU has");
  emulator::meet(emulator::barriers[id], threads);
}
inline void warp_barrier() { emulator::meet(emulator::running->warp->meeting, 32); }

inline uint4 load_vector(const void* from) {
  if (reinterpret_cast<size_t>(from) % 16 != 0) emulator::fail("a vector load that is not aligned");
  uint4 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline uint2 load_shared_half(const void* from) {
  if (reinterpret_cast<size_t>(from) % 8 != 0) emulator::fail("a vector load that is not aligned");
  uint2 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline uint4 load_once(const void* from) { return load_vector(from); }
inline uint4 load_shared(const void* from) { return load_vector(from); }
inline void store_vector(void* to, uint4 value) {
  if (reinterpret_cast<size_t>(to) % 16 != 0) emulator::fail("a vector store that is not aligned");
  std::memcpy(to, &value, sizeof value);
}
template <typename T>
T load_one(const T* from) {
  return *from;
}

inline float half_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof x);
  return static_cast<float>(x);
}
inline unsigned short float_to_half(float value) {
  const auto x = static_cast<_Float16>(value);
  unsigned short bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

}  // namespace tfanet::device

#endif
