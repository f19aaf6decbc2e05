// The tensors of a tfanet::SelectiveScan node, and whether their sizes fit together. Nothing of
// TensorRT is in it.
#ifndef TFANET_SCAN_OPERANDS_H
#define TFANET_SCAN_OPERANDS_H

#include <cstdint>
#include <cstdio>

namespace tfanet {

enum ScanAxis : int { kBatch, kDim, kLength, kGroups, kStates, kScanAxes };
constexpr const char* kAxisNames[kScanAxes] = {"batch", "dim", "L", "G", "N"};
constexpr std::int64_t kMaxStates = 64;

struct ScanOperand {
  const char* name;
  bool weight;  // one value for each channel, in the type of A
  int rank;
  ScanAxis axes[4];
};

constexpr int kScanOperands = 8, kRequiredOperands = 5;
constexpr ScanOperand kOperands[kScanOperands] = {
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
  const ScanOperand& operator[](int i) const { return kOperands[operand_[i]]; }
  // The input that is operand `i` of kOperands, or -1.
  int place(int i) const { return place_[i]; }

 private:
  int count_ = 0;
  int operand_[kScanOperands] = {};
  int place_[kScanOperands] = {};
};

// The five sizes of a call, gathered from its tensors; negative where no tensor tells.
class ScanSizes {
 public:
  // Reads the `rank` sizes of an operand; a negative one is not known. False leaves `error`.
  template <typename SizeOf>
  bool read(const ScanOperand& operand, int rank, SizeOf size_of) {
    if (rank != operand.rank) {
      std::snprintf(error_, sizeof error_, "%s has rank %d, expected %d", operand.name, rank,
                    operand.rank);
      return false;
    }
    for (int i = 0; i < rank; ++i) {
      const ScanAxis axis = operand.axes[i];
      const std::int64_t size = size_of(i);
      if (size < 0) continue;
      if (sizes_[axis] >= 0 && sizes_[axis] != size) {
        std::snprintf(error_, sizeof error_, "%s is %lld in %s, but %lld in %s", kAxisNames[axis],
                      static_cast<long long>(size), operand.name,
                      static_cast<long long>(sizes_[axis]), owner_[axis]);
        return false;
      }
      sizes_[axis] = size;
      owner_[axis] = operand.name;
    }
    return true;
  }
  // Whether the sizes that are known make a scan. False leaves `error`.
  bool fit() {
    const std::int64_t dim = sizes_[kDim], groups = sizes_[kGroups], states = sizes_[kStates];
    if (groups == 0 || (groups > 0 && dim >= 0 && dim % groups != 0)) {
      std::snprintf(error_, sizeof error_, "dim %lld is not a multiple of G %lld",
                    static_cast<long long>(dim), static_cast<long long>(groups));
      return false;
    }
    if (states == 0 || states > kMaxStates) {
      std::snprintf(error_, sizeof error_, "N is %lld, this library has 1 to %lld",
                    static_cast<long long>(states), static_cast<long long>(kMaxStates));
      return false;
    }
    return true;
  }
  std::int64_t operator[](ScanAxis axis) const { return sizes_[axis]; }
  bool empty() const { return sizes_[kBatch] == 0 || sizes_[kDim] == 0 || sizes_[kLength] == 0; }
  const char* error() const { return error_; }

 private:
  std::int64_t sizes_[kScanAxes] = {-1, -1, -1, -1, -1};
  const char* owner_[kScanAxes] = {};
  char error_[128] = "";
};

}  // namespace tfanet

#endif
