// The tensors of a tfanet::SelectiveScan node. Nothing of TensorRT is in it.
#ifndef TFANET_SCAN_OPERANDS_H
#define TFANET_SCAN_OPERANDS_H

#include "operand_sizes.h"

namespace tfanet {

inline bool scan_fits(const std::int64_t* sizes, char* error, std::size_t room) {
  using namespace operands::selective_scan;
  const std::int64_t dim = sizes[kDim], groups = sizes[kGroups], states = sizes[kStates];
  if (groups == 0 || (groups > 0 && dim >= 0 && dim % groups != 0)) {
    std::snprintf(error, room, "dim %lld is not a multiple of G %lld", static_cast<long long>(dim),
                  static_cast<long long>(groups));
    return false;
  }
  if (states == 0 || states > kMaxStatesCuda) {
    std::snprintf(error, room, "N is %lld, this library has 1 to %d",
                  static_cast<long long>(states), kMaxStatesCuda);
    return false;
  }
  return true;
}

// Which operands a node has. Bit i of `optional` stands for the optional operand i: the
// inputs of a plugin have no gaps, so their number alone does not tell D from delta_bias.
class ScanInputs {
 public:
  static constexpr const operands::Operator& kTable = operands::selective_scan::kOperator;
  static constexpr int kAllOptional = (1 << (kTable.inputs - kTable.required)) - 1;

  explicit ScanInputs(int optional) {
    for (int i = 0; i < kTable.inputs; ++i) {
      const bool given = i < kTable.required || (optional >> (i - kTable.required) & 1) != 0;
      place_[i] = given ? count_ : -1;
      if (given) operand_[count_++] = i;
    }
  }
  int count() const { return count_; }
  // What input `i` is.
  const operands::Operand& operator[](int i) const { return kTable.input[operand_[i]]; }
  // The input that is operand `i` of the table, or -1.
  int place(int i) const { return place_[i]; }

 private:
  int count_ = 0;
  int operand_[operands::kMaxInputs] = {};
  int place_[operands::kMaxInputs] = {};
};

}  // namespace tfanet

#endif
