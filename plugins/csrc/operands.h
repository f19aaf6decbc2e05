// The operators SelectiveScan, SS2D and SS2DScan: their operands, in one table, from which all of
// C++ that names operands takes them. plugins/operands.py says the same to Python, and
// tests/plugins/test_operands.py compares the two. Needs no header.
#ifndef TFANET_OPERANDS_H
#define TFANET_OPERANDS_H

namespace tfanet {

constexpr int kDirections = 4;  // of a 2-D scan: rows, columns, rows reversed, columns reversed
// N is from 1 to these: in the CPU kernels, and in the CUDA kernels.
constexpr int kMaxStatesCpu = 256;
constexpr int kMaxStatesCuda = 64;
// Of a 2-D scan in the CUDA kernels: E and R are from 1 to this.
constexpr int kMaxChannelsCuda = 1 << 20;

namespace operands {

constexpr const char* kDomain = "tfanet";
constexpr int kVersion = 1;

constexpr int kMaxInputs = 8, kMaxRank = 4, kMaxAxes = 9, kMaxTypes = 6;

enum class Element { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Axes are numbers: of the same number, of whatever operand, they have the same size. A weight may
// be of another type than u; all that are not weights are of u's type.
struct Operand {
  const char* name;
  bool weight, optional;
  int rank;
  int axes[kMaxRank];
};

// Element types of u and of the weights.
struct Types {
  Element sequence, weight;
};

// The result y has the type and the axes of u, input 0. Optional inputs come last.
struct Operator {
  const char* op_type;
  int inputs, required;
  Operand input[kMaxInputs];
  int axes;
  const char* axis[kMaxAxes];
  // What there is a kernel for: in libtfanet_ort.so on the CPU, and in CUDA.
  int cpu, cuda;
  Types cpu_types[kMaxTypes], cuda_types[kMaxTypes];
};

// Whether there is a CUDA kernel for u, and weights, of these types.
constexpr bool in_cuda(const Operator& op, Element sequence, Element weight) {
  for (int i = 0; i < op.cuda; ++i) {
    if (op.cuda_types[i].sequence == sequence && op.cuda_types[i].weight == weight) return true;
  }
  return false;
}

namespace selective_scan {

enum Input : int { kU, kDelta, kA, kB, kC, kD, kDeltaBias, kZ, kInputs };
enum Axis : int { kBatch, kDim, kLength, kGroups, kStates, kAxes };

constexpr Operator kOperator = {"SelectiveScan",
                                kInputs,
                                kD,
                                {{"u", false, false, 3, {kBatch, kDim, kLength}},
                                 {"delta", false, false, 3, {kBatch, kDim, kLength}},
                                 {"A", true, false, 2, {kDim, kStates}},
                                 {"B", false, false, 4, {kBatch, kGroups, kStates, kLength}},
                                 {"C", false, false, 4, {kBatch, kGroups, kStates, kLength}},
                                 {"D", true, true, 1, {kDim}},
                                 {"delta_bias", true, true, 1, {kDim}},
                                 {"z", false, true, 3, {kBatch, kDim, kLength}}},
                                kAxes,
                                {"batch", "dim", "L", "G", "N"},
                                6,
                                5,
                                {{Element::kFloat32, Element::kFloat32},
                                 {Element::kFloat64, Element::kFloat64},
                                 {Element::kFloat16, Element::kFloat32},
                                 {Element::kFloat16, Element::kFloat16},
                                 {Element::kBFloat16, Element::kFloat32},
                                 {Element::kBFloat16, Element::kBFloat16}},
                                {{Element::kFloat32, Element::kFloat32},
                                 {Element::kFloat16, Element::kFloat32},
                                 {Element::kFloat16, Element::kFloat16},
                                 {Element::kBFloat16, Element::kFloat32},
                                 {Element::kBFloat16, Element::kBFloat16}}};

}  // namespace selective_scan

namespace ss2d {

// kRows is R + 2N, or 4(R + 2N) in SS2DScan, whose input kProjection is `rows`.
enum Input : int { kU, kProjection, kDtWeight, kDtBias, kA, kD, kInputs };
enum Axis : int { kBatch, kE, kH, kW, kRows, kR, kKE, kN, kK, kAxes };

constexpr Operator kWhole = {"SS2D",
                             kInputs,
                             kInputs,
                             {{"u", false, false, 4, {kBatch, kE, kH, kW}},
                              {"x_proj_weight", true, false, 3, {kK, kRows, kE}},
                              {"dt_weight", true, false, 3, {kK, kE, kR}},
                              {"dt_bias", true, false, 2, {kK, kE}},
                              {"A", true, false, 2, {kKE, kN}},
                              {"D", true, false, 1, {kKE}}},
                             kAxes,
                             {"batch", "E", "H", "W", "R + 2N", "R", "4E", "N", "K"},
                             4,
                             3,
                             {{Element::kFloat32, Element::kFloat32},
                              {Element::kFloat64, Element::kFloat64},
                              {Element::kFloat16, Element::kFloat32},
                              {Element::kBFloat16, Element::kFloat32}},
                             {{Element::kFloat32, Element::kFloat32},
                              {Element::kFloat16, Element::kFloat32},
                              {Element::kBFloat16, Element::kFloat32}}};

// SS2D behind its projection, whose result, for all directions, is the input `rows`.
constexpr Operator kScanOnly = {"SS2DScan",
                                kInputs,
                                kInputs,
                                {{"u", false, false, 4, {kBatch, kE, kH, kW}},
                                 {"rows", true, false, 4, {kBatch, kRows, kH, kW}},
                                 {"dt_weight", true, false, 2, {kKE, kR}},
                                 {"dt_bias", true, false, 1, {kKE}},
                                 {"A", true, false, 2, {kKE, kN}},
                                 {"D", true, false, 1, {kKE}}},
                                kK,
                                {"batch", "E", "H", "W", "4(R + 2N)", "R", "4E", "N"},
                                4,
                                0,
                                {{Element::kFloat32, Element::kFloat32},
                                 {Element::kFloat64, Element::kFloat64},
                                 {Element::kFloat16, Element::kFloat32},
                                 {Element::kBFloat16, Element::kFloat32}},
                                {}};

// The size of an axis that follows from others; negative where it does not, or where the others are
// not known (negative).
template <class Size>
constexpr long long derived_size(const Operator& op, int axis, const Size* sizes) {
  if (axis == kK) return kDirections;
  if (axis == kKE && sizes[kE] >= 0) return kDirections * sizes[kE];
  if (axis == kRows && sizes[kR] >= 0 && sizes[kN] >= 0) {
    const long long rows = sizes[kR] + 2 * sizes[kN];
    return op.axes == kAxes ? rows : kDirections * rows;
  }
  return -1;
}

}  // namespace ss2d
}  // namespace operands
}  // namespace tfanet

#endif
