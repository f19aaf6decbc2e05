// Checks, units and the choice of the instruction set.
#include "selective_scan.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "selective_scan_kernel.h"

namespace tfanet {
namespace {

struct Choice {
  const char* name;
  const Kernel* kernel;  // null where this machine can't run it
};

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know it in all versions.
bool has_half_precision() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Choice find(std::int32_t isa) {
  switch (isa) {
    case kBaseline:
      return {"baseline", &kernel_baseline};
#if defined(__x86_64__)
    case kAvx2:
      return {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                              has_half_precision()
                          ? &kernel_avx2
                          : nullptr};
    case kAvx512:
      return {"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("avx512vl")
                            ? &kernel_avx512
                            : nullptr};
#endif
    default:
      return {nullptr, nullptr};
  }
}

// What each value of Isa stands for here. Asked once: CPUID stops a virtual machine for
// microseconds, and every unit asks for its kernel.
struct Choices {
  Choice of[kAvx512 + 1];

  // kAutomatic is the one that the environment names, else the best; none where this machine lacks
  // the former.
  Choices() : of{} {
    const char* wanted = std::getenv("TFANET_SCAN_ISA");
    for (std::int32_t isa = kBaseline; isa <= kAvx512; ++isa) {
      of[isa] = find(isa);
      const bool asked_for = !wanted || (of[isa].name && !std::strcmp(wanted, of[isa].name));
      if (of[isa].kernel && asked_for) of[kAutomatic] = of[isa];
    }
  }
};

Choice resolve(std::int32_t isa) {
  static const Choices choices;
  return isa >= kAutomatic && isa <= kAvx512 ? choices.of[isa] : Choice{};
}

std::int64_t blocks(const ScanArgs& args, std::int64_t channels_of_block) {
  if (args.batch == 0 || args.dim == 0 || args.length == 0) return 0;
  const std::int64_t channels = args.dim / args.groups;
  return (channels + channels_of_block - 1) / channels_of_block;
}

double unit_cost(const ScanArgs& args, std::int64_t channels) {
  return (40.0 + 25.0 * static_cast<double>(args.state)) *
         static_cast<double>(args.length * channels);
}

bool known(std::int32_t dtype) { return dtype >= kFloat32 && dtype <= kBFloat16; }

}  // namespace

bool countable(std::initializer_list<std::int64_t> sizes) {
  std::int64_t bytes = 8;
  for (const std::int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, size > 1 ? size : 1, &bytes)) return false;
  }
  return true;
}

const Kernel* kernel_of(std::int32_t isa) { return resolve(isa).kernel; }

void set_contiguous(ScanArgs& args) {
  const SequenceStrides sequence = {args.dim * args.length, args.length};
  const ProjectionStrides projection = {args.groups * args.state * args.length,
                                        args.state * args.length, args.length};
  args.u_strides = args.delta_strides = args.z_strides = args.y_strides = sequence;
  args.B_strides = args.C_strides = projection;
}

const char* check(const ScanArgs& args) {
  if (args.batch < 0 || args.dim < 0 || args.length < 0) return "a size is negative";
  if (args.state < 1 || args.state > kMaxStatesCpu) return kWrongStates;
  if (args.groups < 1 || args.dim % args.groups != 0) return "dim must be a multiple of G";
  if (!countable({args.batch, args.dim, args.length, args.state})) return "the sizes are too large";
  if (!known(args.dtype) || !known(args.weight_dtype)) return "unknown dtype";
  if (!kernel_of(args.isa)) return kNoSuchIsa;
  const bool empty = args.batch == 0 || args.dim == 0 || args.length == 0;
  if (!empty && !(args.u && args.delta && args.A && args.B && args.C)) {
    return "u, delta, A, B and C must not be null";
  }
  return nullptr;
}

std::int64_t forward_units(const ScanArgs& args) {
  return args.batch * args.groups * blocks(args, kUnitChannels);
}
double forward_unit_cost(const ScanArgs& args) { return unit_cost(args, kUnitChannels); }

void run_forward(const ScanArgs& args, std::int64_t begin, std::int64_t end) {
  kernel_of(args.isa)->forward(args, begin, end);
}

std::int64_t backward_slabs(const ScanArgs& args) { return blocks(args, kSlabChannels); }
std::int64_t backward_units(const ScanArgs& args) {
  return args.batch * args.groups * backward_slabs(args);
}
double backward_unit_cost(const ScanArgs& args) { return 3 * unit_cost(args, kSlabChannels); }

void run_backward(const ScanArgs& args, const ScanGradients& grads, std::int64_t begin,
                  std::int64_t end) {
  kernel_of(args.isa)->backward(args, grads, begin, end);
}

const char* isa_name(std::int32_t isa) {
  const Choice found = resolve(isa);
  return found.kernel ? found.name : nullptr;
}

}  // namespace tfanet
