// One source, compiled for the baseline and for AVX2; the CPU decides. Only loops that GCC
// vectorises by itself are written this way, and both give the same bits: nothing is contracted.
// With TFANET_PORTABLE nothing is written for one kind of CPU, here and elsewhere: for tests.
#pragma once

#define TFANET_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && !defined(TFANET_PORTABLE)
#define TFANET_AVX2 __attribute__((target("avx2")))

namespace tfanet {
inline bool has_avx2() {
  static const bool known = __builtin_cpu_supports("avx2");
  return known;
}
}  // namespace tfanet

// Defines `name`, which runs the inline function `body` with the same parameters.
#define TFANET_DISPATCH(name, body, parameters, arguments)    \
  TFANET_AVX2 void name##_avx2 parameters { body arguments; } \
  void name##_baseline parameters { body arguments; }         \
  void name parameters { has_avx2() ? name##_avx2 arguments : name##_baseline arguments; }
#else
#define TFANET_DISPATCH(name, body, parameters, arguments) \
  void name parameters { body arguments; }
#endif
