// Element types of the scan, the few instructions of the GPU that it uses by name, and access to
// rows in 16-byte vectors. No CUDA header is included, so that NVRTC needs none. Values stay packed
// in 32-bit words until they are used: a prefetched half costs half a register.
//
// The tests compile the kernel for the host: TFANET_SCAN_EMULATION names a header with
// implementations of namespace `device` and of the CUDA keywords.
#ifndef TFANET_SCAN_TYPES_CUH
#define TFANET_SCAN_TYPES_CUH

namespace tfanet {

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

}  // namespace tfanet

#ifdef TFANET_SCAN_EMULATION
#include TFANET_SCAN_EMULATION
#else

namespace tfanet::device {

// 2^x within 2 units of the last place, subnormals as zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x within 1 unit of the last place, 0 for infinity.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float shuffle_up(float x, int distance) {
  return __shfl_up_sync(0xffffffffu, x, distance);
}

// The value of the lane whose number differs in the bits of `mask`, and that of lane `from`.
__device__ __forceinline__ float shuffle_xor(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
__device__ __forceinline__ float shuffle(float x, int from) {
  return __shfl_sync(0xffffffffu, x, from);
}

// The step h -> decay h + add of this lane after that of the lane `distance` below it, if there is
// one; where kMinusOne, `decay` holds the decay less 1. By hand, because the shuffle itself says
// whether there is such a lane.
template <bool kMinusOne>
__device__ __forceinline__ void compose_up(float& decay, float& add, int distance) {
  if constexpr (kMinusOne) {
    asm volatile(
        "{\n\t"
        ".reg .pred there;\n\t"
        ".reg .f32 below_decay, below_add;\n\t"
        "shfl.sync.up.b32 below_decay|there, %0, %2, 0, 0xffffffff;\n\t"
        "shfl.sync.up.b32 below_add, %1, %2, 0, 0xffffffff;\n\t"
        "@there fma.rn.f32 %1, %0, below_add, %1;\n\t"
        "@there add.rn.f32 %1, %1, below_add;\n\t"
        "@there fma.rn.f32 %0, %0, below_decay, %0;\n\t"
        "@there add.rn.f32 %0, %0, below_decay;\n\t"
        "}"
        : "+f"(decay), "+f"(add)
        : "r"(distance));
  } else {
    asm volatile(
        "{\n\t"
        ".reg .pred there;\n\t"
        ".reg .f32 below_decay, below_add;\n\t"
        "shfl.sync.up.b32 below_decay|there, %0, %2, 0, 0xffffffff;\n\t"
        "shfl.sync.up.b32 below_add, %1, %2, 0, 0xffffffff;\n\t"
        "@there fma.rn.f32 %1, %0, below_add, %1;\n\t"
        "@there mul.rn.f32 %0, %0, below_decay;\n\t"
        "}"
        : "+f"(decay), "+f"(add)
        : "r"(distance));
  }
}

// Waits for the `threads` threads (a multiple of 32) that meet at barrier `id`, from 1 to 15.
__device__ __forceinline__ void barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

// 16 bytes that no other thread reads; 16 or 8 bytes that several do.
__device__ __forceinline__ uint4 load_once(const void* from) {
  return __ldcs(static_cast<const uint4*>(from));
}
__device__ __forceinline__ uint4 load_shared(const void* from) {
  return __ldg(static_cast<const uint4*>(from));
}
__device__ __forceinline__ uint2 load_shared_half(const void* from) {
  return __ldg(static_cast<const uint2*>(from));
}
template <typename T>
__device__ __forceinline__ T load_one(const T* from) {
  return *from;
}
// By an intrinsic: an assignment may be split into the stores that a neighbouring branch has, too.
__device__ __forceinline__ void store_vector(void* to, uint4 value) {
  __stwb(static_cast<uint4*>(to), value);
}

__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

#if __CUDA_ARCH__ >= 800
#define TFANET_SCAN_PACKS_PAIRS
// `low` in bits 0 to 15, `high` in bits 16 to 31.
__device__ __forceinline__ unsigned pack_pair(float low, float high, Half) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ unsigned pack_pair(float low, float high, BFloat16) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#endif

}  // namespace tfanet::device

#endif

namespace tfanet {

__device__ __forceinline__ unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ unsigned bits_of(Half x) { return x.bits; }
__device__ __forceinline__ unsigned bits_of(BFloat16 x) { return x.bits; }

__device__ __forceinline__ float decode(unsigned bits, float) { return __uint_as_float(bits); }
__device__ __forceinline__ float decode(unsigned bits, BFloat16) {
  return __uint_as_float(bits << 16);
}
__device__ __forceinline__ float decode(unsigned bits, Half) {
  return device::half_to_float(static_cast<unsigned short>(bits));
}

__device__ __forceinline__ unsigned encode(float value, float) { return __float_as_uint(value); }
__device__ __forceinline__ unsigned encode(float value, BFloat16) {
  const unsigned bits = __float_as_uint(value);
  // To nearest, ties to even; a NaN keeps its sign and must not carry into infinity.
  if (value != value) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
__device__ __forceinline__ unsigned encode(float value, Half) {
  return device::float_to_half(value);
}

__device__ __forceinline__ void put(float* to, unsigned bits) { *to = __uint_as_float(bits); }
__device__ __forceinline__ void put(Half* to, unsigned bits) {
  to->bits = static_cast<unsigned short>(bits);
}
__device__ __forceinline__ void put(BFloat16* to, unsigned bits) {
  to->bits = static_cast<unsigned short>(bits);
}

// kItems consecutive elements of one row.
template <typename T, int kItems>
struct Pack {
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  unsigned words[kItems / kPerWord];

  __device__ __forceinline__ float operator[](int i) const {
    const unsigned word = words[i / kPerWord];
    if (kPerWord == 1) return decode(word, T{});
    return decode(i % kPerWord != 0 ? word >> 16 : word & 0xffffu, T{});
  }
  // Elements are set in ascending order.
  __device__ __forceinline__ void set(int i, unsigned bits) {
    unsigned& word = words[i / kPerWord];
    word = i % kPerWord == 0 ? bits : word | bits << 16;
  }
};

template <typename T, int kItems>
__device__ __forceinline__ Pack<T, kItems> encode_all(const float (&values)[kItems]) {
  Pack<T, kItems> pack;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
#ifdef TFANET_SCAN_PACKS_PAIRS
    if constexpr (sizeof(T) == 2) {
      if (i % 2 == 0) pack.words[i / 2] = device::pack_pair(values[i], values[i + 1], T{});
      continue;
    }
#endif
    pack.set(i, encode(values[i], T{}));
  }
  return pack;
}

template <typename T>
__device__ __forceinline__ int elements_past_16_bytes(const T* address) {
  return static_cast<int>(reinterpret_cast<unsigned long long>(address) % 16 / sizeof(T));
}

// kItems elements from a 16-byte boundary on, or 8 bytes of them from an 8-byte one. kOnce marks
// data that no other thread reads.
template <int kItems, bool kOnce, typename T>
__device__ __forceinline__ Pack<T, kItems> load_vectors(const T* from) {
  constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));
  Pack<T, kItems> pack;
  if constexpr (2 * kItems == kPerVector) {
    const uint2 vector = device::load_shared_half(from);
    pack.words[0] = vector.x;
    pack.words[1] = vector.y;
  }
#pragma unroll
  for (int v = 0; v < kItems / kPerVector; ++v) {
    const T* const at = from + v * kPerVector;
    const uint4 vector = kOnce ? device::load_once(at) : device::load_shared(at);
    pack.words[4 * v] = vector.x;
    pack.words[4 * v + 1] = vector.y;
    pack.words[4 * v + 2] = vector.z;
    pack.words[4 * v + 3] = vector.w;
  }
  return pack;
}

// Elements [t, t + kItems) of a row, the first of which is at `from`, one by one; those outside
// [0, length) are zero and not read.
template <int kItems, typename T>
__device__ __forceinline__ Pack<T, kItems> load_each(const T* from, int t, int length) {
  Pack<T, kItems> pack;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const bool inside = t + i >= 0 && t + i < length;
    pack.set(i, inside ? bits_of(device::load_one(from + i)) : 0u);
  }
  return pack;
}

// Writes elements [t, t + kItems) of a row, the first of which is at `to`, as far as they are in
// [0, length): in vectors where `vectors`.
template <int kItems, typename T>
__device__ __forceinline__ void store(T* to, int t, int length, bool vectors,
                                      const float (&values)[kItems]) {
  constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));
  if (vectors) {
    const Pack<T, kItems> pack = encode_all<T>(values);
#pragma unroll
    for (int v = 0; v < kItems / kPerVector; ++v) {
      device::store_vector(to + v * kPerVector,
                           make_uint4(pack.words[4 * v], pack.words[4 * v + 1],
                                      pack.words[4 * v + 2], pack.words[4 * v + 3]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (t + i >= 0 && t + i < length) put(to + i, encode(values[i], T{}));
    }
  }
}

}  // namespace tfanet

#endif
