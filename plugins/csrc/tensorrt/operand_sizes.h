// The tensors of a node, and whether their sizes fit together. Nothing of TensorRT is in it.
#ifndef TFANET_OPERAND_SIZES_H
#define TFANET_OPERAND_SIZES_H

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "../operands.h"

namespace tfanet {

// Whether sizes of a call, by axis, make sense, as far as they are known (others are negative); if
// not, `error` says why.
using SizesFit = bool (*)(const std::int64_t* sizes, char* error, std::size_t room);

// The sizes of a call, gathered from its tensors; negative where no tensor tells.
class OperandSizes {
 public:
  OperandSizes(const operands::Operator& table, SizesFit fit) : table_(&table), fit_(fit) {
    for (std::int64_t& size : sizes_) size = -1;
  }
  // Reads the `rank` sizes of an operand; a negative one is not known. False leaves `error`.
  template <typename SizeOf>
  bool read(const operands::Operand& operand, int rank, SizeOf size_of) {
    if (rank != operand.rank) {
      std::snprintf(error_, sizeof error_, "%s has rank %d, expected %d", operand.name, rank,
                    operand.rank);
      return false;
    }
    for (int i = 0; i < rank; ++i) {
      const int axis = operand.axes[i];
      const std::int64_t size = size_of(i);
      if (size < 0) continue;
      if (sizes_[axis] >= 0 && sizes_[axis] != size) {
        std::snprintf(error_, sizeof error_, "%s is %lld in %s, but %lld in %s", table_->axis[axis],
                      static_cast<long long>(size), operand.name,
                      static_cast<long long>(sizes_[axis]), owner_[axis]);
        return false;
      }
      sizes_[axis] = size;
      owner_[axis] = operand.name;
    }
    return true;
  }
  // Whether the sizes that are known make sense. False leaves `error`.
  bool fit() { return fit_(sizes_, error_, sizeof error_); }
  std::int64_t operator[](int axis) const { return sizes_[axis]; }
  // The name of an axis that is not known, or null.
  const char* unknown() const {
    for (int axis = 0; axis < table_->axes; ++axis) {
      if (sizes_[axis] < 0) return table_->axis[axis];
    }
    return nullptr;
  }
  const char* error() const { return error_; }

 private:
  const operands::Operator* table_;
  SizesFit fit_;
  std::int64_t sizes_[operands::kMaxAxes];
  const char* owner_[operands::kMaxAxes] = {};
  char error_[128] = "";
};

}  // namespace tfanet

#endif
