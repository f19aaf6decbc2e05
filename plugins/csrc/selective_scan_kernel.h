// What the driver needs from the kernel of one instruction set.
#ifndef TFANET_SELECTIVE_SCAN_KERNEL_H
#define TFANET_SELECTIVE_SCAN_KERNEL_H

#include "selective_scan.h"

namespace tfanet {

// Channels of one forward unit and of one backward unit (a slab); multiples of every vector width.
constexpr std::int64_t kUnitChannels = 16;
constexpr std::int64_t kSlabChannels = 64;

struct Kernel {
  void (*forward)(const ScanArgs& args, std::int64_t begin, std::int64_t end);
  void (*backward)(const ScanArgs& args, const ScanGradients& grads, std::int64_t begin,
                   std::int64_t end);
};

extern const Kernel kernel_baseline;
extern const Kernel kernel_avx2;
extern const Kernel kernel_avx512;

}  // namespace tfanet

#endif
