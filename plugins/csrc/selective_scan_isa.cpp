// The kernel for one instruction set: compiled several times, each time with other machine flags
// and another TFANET_KERNEL, the name of the table that it defines.
#include "selective_scan_backward.h"
#include "selective_scan_forward.h"

namespace tfanet {
namespace {

void forward(const ScanArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case kFloat64:
      return forward_units_of<double>(args, begin, end);
    case kFloat16:
      return forward_units_of<Half>(args, begin, end);
    case kBFloat16:
      return forward_units_of<BFloat>(args, begin, end);
    default:
      return forward_units_of<float>(args, begin, end);
  }
}

void backward(const ScanArgs& args, const ScanGradients& grads, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case kFloat64:
      return backward_units_of<double>(args, grads, begin, end);
    case kFloat16:
      return backward_units_of<Half>(args, grads, begin, end);
    case kBFloat16:
      return backward_units_of<BFloat>(args, grads, begin, end);
    default:
      return backward_units_of<float>(args, grads, begin, end);
  }
}

}  // namespace

const Kernel TFANET_KERNEL = {forward, backward};

}  // namespace tfanet
