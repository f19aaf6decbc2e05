// The kernel for one instruction set: compiled several times, each time with other machine flags
// and another TFANET_KERNEL, the name of the table that it defines.
#include "selective_scan_backward.h"
#include "selective_scan_forward.h"
#include "ss2d_project.h"
#include "ss2d_scan.h"

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

void ss2d_project(const SS2DArgs& args, int64_t unit, int64_t part) {
  switch (args.dtype) {
    case kFloat64:
      return project_unit<double>(args, unit, part);
    case kFloat16:
      return project_unit<Half>(args, unit, part);
    case kBFloat16:
      return project_unit<BFloat>(args, unit, part);
    default:
      return project_unit<float>(args, unit, part);
  }
}

void ss2d_scan(const SS2DArgs& args, int64_t unit, int64_t part) {
  const FlushSubnormals flush;
  switch (args.dtype) {
    case kFloat64:
      return scan_unit<double>(args, unit, part);
    case kFloat16:
      return scan_unit<Half>(args, unit, part);
    case kBFloat16:
      return scan_unit<BFloat>(args, unit, part);
    default:
      return scan_unit<float>(args, unit, part);
  }
}

}  // namespace

const Kernel TFANET_KERNEL = {forward, backward, ss2d_project, ss2d_scan};

}  // namespace tfanet
