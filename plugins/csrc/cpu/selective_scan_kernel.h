// What the driver needs from the kernel of one instruction set.
#ifndef TFANET_SELECTIVE_SCAN_KERNEL_H
#define TFANET_SELECTIVE_SCAN_KERNEL_H

#include <initializer_list>

#include "selective_scan.h"
#include "ss2d.h"

namespace tfanet {

// Channels of one forward unit and of one backward unit (a slab); multiples of every vector width.
constexpr std::int64_t kUnitChannels = 16;
constexpr std::int64_t kSlabChannels = 64;

// Whether so many values, none of the sizes negative, can be counted in bytes.
bool countable(std::initializer_list<std::int64_t> sizes);

struct Kernel {
  void (*forward)(const ScanArgs& args, std::int64_t begin, std::int64_t end);
  void (*backward)(const ScanArgs& args, const ScanGradients& grads, std::int64_t begin,
                   std::int64_t end);
  void (*ss2d_project)(const SS2DArgs& args, std::int64_t unit, std::int64_t part);
  void (*ss2d_scan)(const SS2DArgs& args, std::int64_t unit, std::int64_t part);
};

extern const Kernel kernel_baseline;
extern const Kernel kernel_avx2;
extern const Kernel kernel_avx512;

// The table of an instruction set, null where this machine lacks it.
const Kernel* kernel_of(std::int32_t isa);
static_assert(kMaxStatesCpu == 256, "kWrongStates says so");
constexpr const char* kWrongStates = "N (columns of A) must be from 1 to 256";
constexpr const char* kNoSuchIsa =
    "this machine lacks the instruction set asked for (by isa or the environment's "
    "TFANET_SCAN_ISA; known: baseline, avx2, avx512)";

}  // namespace tfanet

#endif
