// Checks, sizes and units of the 2-D scan.
#include "ss2d.h"

#include "selective_scan_kernel.h"
#include "ss2d_layout.h"

namespace tfanet {
namespace {

bool is_empty(const SS2DArgs& a) {
  return a.batch == 0 || a.channels == 0 || a.height == 0 || a.width == 0;
}

}  // namespace

const char* check(const SS2DArgs& a) {
  if (a.batch < 0 || a.channels < 0 || a.height < 0 || a.width < 0) return "a size is negative";
  if (a.width > 0 && a.height > INT32_MAX / a.width) return "H W must be below 2^31";
  if (a.state < 1 || a.state > kMaxStatesCpu) return kWrongStates;
  if (a.rank < 1) return "R (columns of dt_weight) must be 1 or more";
  if (!countable({a.batch, a.channels, a.height, a.width, a.state}))
    return "the sizes are too large";
  if (!countable({a.batch, a.rank, a.height, a.width, a.state})) return "the sizes are too large";
  if (a.dtype < kFloat32 || a.dtype > kBFloat16) return "unknown dtype";
  if (!kernel_of(a.isa)) return kNoSuchIsa;
  if (is_empty(a)) return nullptr;
  if (!(a.u && a.dt_weight && a.dt_bias && a.A && a.D && a.y)) {
    return "u, dt_weight, dt_bias, A, D and y must not be null";
  }
  if (!a.x_proj_weight == !a.rows) return "one of x_proj_weight and rows must be null";
  return nullptr;
}

std::int64_t ss2d_workspace(const SS2DArgs& a, std::int64_t parts) {
  const SS2DLayout layout(a);
  return is_empty(a) ? 0 : layout.projected_bytes + parts * layout.part_bytes;
}

std::int64_t ss2d_units(const SS2DArgs& a, SS2DPhase phase) {
  if (is_empty(a)) return 0;
  const SS2DLayout layout(a);
  const std::int64_t chunks = (kDirections * layout.rows + kProjectRows - 1) / kProjectRows;
  return a.batch * (phase == kProject ? layout.tiles * chunks
                                      : (a.channels + kSS2DChannels - 1) / kSS2DChannels);
}

double ss2d_unit_cost(const SS2DArgs& a, SS2DPhase phase) {
  const SS2DLayout layout(a);
  const auto channels = static_cast<double>(a.channels);
  if (phase == kProject) return (a.rows ? 2.0 : 2.0 * channels) * kSS2DTile * kProjectRows;
  const double step = 40 + 2 * static_cast<double>(a.rank) + 25 * static_cast<double>(a.state);
  return step * static_cast<double>(kDirections * layout.pixels * kSS2DChannels);
}

void run_ss2d(const SS2DArgs& a, SS2DPhase phase, std::int64_t unit, std::int64_t part) {
  const Kernel& kernel = *kernel_of(a.isa);
  (phase == kProject ? kernel.ss2d_project : kernel.ss2d_scan)(a, unit, part);
}

}  // namespace tfanet
