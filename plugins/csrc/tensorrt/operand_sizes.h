// The tensors of a node, and whether their sizes fit together. Nothing of TensorRT is in it.
#ifndef TFANET_OPERAND_SIZES_H
#define TFANET_OPERAND_SIZES_H

#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace tfanet {

constexpr int kMaxAxes = 9;

// Axes are numbers; equal axes are equal sizes.
struct Operand {
  const char* name;
  bool weight;
  int rank;
  int axes[4];
};

// The axes of an operator, and whether sizes make sense, as far as they are known (others are
// negative); if not, `error` says why.
struct Axes {
  int count;
  const char* names[kMaxAxes];
  bool (*fit)(const std::int64_t* sizes, char* error, std::size_t room);
};

// The sizes of a call, gathered from its tensors; negative where no tensor tells.
class OperandSizes {
 public:
  explicit OperandSizes(const Axes& axes) : axes_(&axes) {
    for (std::int64_t& size : sizes_) size = -1;
  }
  // Reads the `rank` sizes of an operand; a negative one is not known. False leaves `error`.
  template <typename SizeOf>
  bool read(const Operand& operand, int rank, SizeOf size_of) {
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
        std::snprintf(error_, sizeof error_, "%s is %lld in %s, but %lld in %s", axes_->names[axis],
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
  bool fit() { return axes_->fit(sizes_, error_, sizeof error_); }
  std::int64_t operator[](int axis) const { return sizes_[axis]; }
  // The name of an axis that is not known, or null.
  const char* unknown() const {
    for (int axis = 0; axis < axes_->count; ++axis) {
      if (sizes_[axis] < 0) return axes_->names[axis];
    }
    return nullptr;
  }
  const char* error() const { return error_; }

 private:
  const Axes* axes_;
  std::int64_t sizes_[kMaxAxes];
  const char* owner_[kMaxAxes] = {};
  char error_[128] = "";
};

}  // namespace tfanet

#endif
