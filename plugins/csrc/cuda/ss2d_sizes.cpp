// Sizes of the 2-D scan on the GPU, checked. Nothing of CUDA is in it.
#include <initializer_list>

#include "../operands.h"
#include "ss2d_cuda.h"
#include "ss2d_launch.h"

namespace tfanet {
namespace {

constexpr long long kMaxBlocks = (1LL << 31) - 1;
// The sources that NVRTC compiles include nothing from outside their folder.
static_assert(kMaxScanStates == kMaxStatesCuda && kSS2DDirections == kDirections);
static_assert(kMaxStatesCuda == 64 && kMaxChannelsCuda == 1 << 20, "the messages below say so");

bool is_empty(const SS2DCall& call) {
  return call.batch == 0 || call.channels == 0 || call.height == 0 || call.width == 0;
}

}  // namespace

SS2DSizes ss2d_sizes(const SS2DCall& call) noexcept {
  return {static_cast<int>(call.batch),  static_cast<int>(call.channels),
          static_cast<int>(call.height), static_cast<int>(call.width),
          static_cast<int>(call.rank),   static_cast<int>(call.states)};
}

const char* check_ss2d_sizes(const SS2DCall& call) noexcept {
  if (call.io < ScanType::kFloat32 || call.io > ScanType::kBFloat16)
    return "an element type is not float32, float16 or bfloat16";
  if (call.batch < 0 || call.channels < 0 || call.height < 0 || call.width < 0) {
    return "a size is negative";
  }
  if (call.states < 1 || call.states > kMaxScanStates) return "N is not from 1 to 64 (on the GPU)";
  if (call.rank < 1 || call.rank > kMaxChannelsCuda) return "R is not from 1 to 2^20";
  if (call.channels > kMaxChannelsCuda) return "E is above 2^20";
  constexpr const char* kTooLarge = "u is too large for one call; split the batch";
  for (const long long size : {call.batch, call.height, call.width}) {
    if (size > kMaxBlocks) return kTooLarge;
  }
  if (is_empty(call)) return nullptr;
  const long long across = (call.width + kMapTile - 1) / kMapTile;
  const long long down = (call.height + kMapTile - 1) / kMapTile;
  if (across > kMaxBlocks / kMapPixels / down) return kTooLarge;
  // Blocks of a map are fewer than 2^23 tiles x 2^18 or 2^31 x 2^17, so that this does not
  // overflow.
  SS2DSizes one = ss2d_sizes(call);
  one.batch = 1;
  const SS2DPlan plan = plan_ss2d(one);
  for (const long long blocks : plan.grid) {
    if (blocks > kMaxBlocks / call.batch) return kTooLarge;
  }
  return nullptr;
}

long long ss2d_workspace(const SS2DCall& call) noexcept {
  return is_empty(call) ? 0 : plan_ss2d(ss2d_sizes(call)).floats * 4;
}

}  // namespace tfanet
