// The tensors of a tfanet::SelectiveScan node. Nothing of TensorRT is in it.
#ifndef TFANET_SCAN_OPERANDS_H
#define TFANET_SCAN_OPERANDS_H

#include "operand_sizes.h"

namespace tfanet {

enum ScanAxis : int { kBatch, kDim, kLength, kGroups, kStates, kScanAxes };
constexpr std::int64_t kMaxStates = 64;

inline bool scan_fits(const std::int64_t* sizes, char* error, std::size_t room) {
  const std::int64_t dim = sizes[kDim], groups = sizes[kGroups], states = sizes[kStates];
  if (groups == 0 || (groups > 0 && dim >= 0 && dim % groups != 0)) {
    std::snprintf(error, room, "dim %lld is not a multiple of G %lld", static_cast<long long>(dim),
                  static_cast<long long>(groups));
    return false;
  }
  if (states == 0 || states > kMaxStates) {
    std::snprintf(error, room, "N is %lld, this library has 1 to %lld",
                  static_cast<long long>(states), static_cast<long long>(kMaxStates));
    return false;
  }
  return true;
}

constexpr Axes kAxes = {kScanAxes, {"batch", "dim", "L", "G", "N"}, scan_fits};

// Weights hold one value for each channel, in the type of A.
constexpr int kScanOperands = 8, kRequiredOperands = 5;
constexpr Operand kOperands[kScanOperands] = {
    {"u", false, 3, {kBatch, kDim, kLength}},
    {"delta", false, 3, {kBatch, kDim, kLength}},
    {"A", true, 2, {kDim, kStates}},
    {"B", false, 4, {kBatch, kGroups, kStates, kLength}},
    {"C", false, 4, {kBatch, kGroups, kStates, kLength}},
    {"D", true, 1, {kDim}},
    {"delta_bias", true, 1, {kDim}},
    {"z", false, 3, {kBatch, kDim, kLength}},
};

// Which operands a node has. Bit i of `optional` stands for operand kRequiredOperands + i: the
// inputs of a plugin have no gaps, so their number alone does not tell D from delta_bias.
class ScanInputs {
 public:
  static constexpr int kAllOptional = 7;

  explicit ScanInputs(int optional) {
    for (int i = 0; i < kScanOperands; ++i) {
      const bool given = i < kRequiredOperands || (optional >> (i - kRequiredOperands) & 1) != 0;
      place_[i] = given ? count_ : -1;
      if (given) operand_[count_++] = i;
    }
  }
  int count() const { return count_; }
  // What input `i` is.
  const Operand& operator[](int i) const { return kOperands[operand_[i]]; }
  // The input that is operand `i` of kOperands, or -1.
  int place(int i) const { return place_[i]; }

 private:
  int count_ = 0;
  int operand_[kScanOperands] = {};
  int place_[kScanOperands] = {};
};

}  // namespace tfanet

#endif
