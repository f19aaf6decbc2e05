// The 2-D selective scan, from a feature map to the merged map: the interface of every binding.
//
//   (dt_k, B_k, C_k) = x_proj_weight[k] u, or rows[k]              at every pixel, R + N + N rows
//   delta_k = softplus(dt_weight[k] dt_k + dt_bias[k])
//   y = sum over k of scan(u, delta_k, A_k, B_k, C_k, D_k), along direction k
//
// with `scan` of selective_scan.h and the directions k: rows, columns, rows reversed, columns
// reversed. Two phases, each cut into units that any thread may run in any order; the second one
// starts when the first is through. The result does not depend on who ran which unit.
//
//   kProject  the rows of all directions, computed or given, in the order of scanning, into the
//             workspace
//   kScan     16 channels of one map in all directions: delta, the scan and the sum of directions
//
// The map is read once by each phase and y is written once; delta and what is scanned live in the
// caches, tile by tile. The caller owns all memory: `workspace` bytes hold the projected rows,
// (R + 2N) / E of the size of four maps, and for each of `parts` threads two maps of one vector of
// channels (or, in the first phase, a block of u).
#ifndef TFANET_SS2D_H
#define TFANET_SS2D_H

#include <cstdint>

#include "../operands.h"

namespace tfanet {

struct SS2DArgs {
  std::int64_t batch, channels, height, width, rank, state;  // channels: E, rank: R, state: N
  std::int32_t dtype;  // DType of u and y; weights and state are double for kFloat64, else float
  std::int32_t isa;
  const void* u;              // (batch, E, height, width)
  const void* x_proj_weight;  // (4, R + 2N, E); null where `rows` are given
  const void* rows;           // (batch, 4, R + 2N, height, width) in the weights' type, or null
  const void* dt_weight;      // (4, E, R)
  const void* dt_bias;        // (4, E)
  const void* A;              // (4E, N)
  const void* D;              // (4E)
  void* y;                    // (batch, E, height, width)
  void* workspace;            // aligned to 64 bytes; all arrays are contiguous
};

enum SS2DPhase : std::int32_t { kProject = 0, kScan = 1 };

// Null if the sizes, dtype and pointers make sense, else what is wrong in one static sentence; the
// workspace is not looked at.
const char* check(const SS2DArgs& args);

// Bytes of the workspace for units that run in `parts` threads.
std::int64_t ss2d_workspace(const SS2DArgs& args, std::int64_t parts);

// Number of units of a phase; 0 for an empty map. Rough cost of one in floating-point operations.
std::int64_t ss2d_units(const SS2DArgs& args, SS2DPhase phase);
double ss2d_unit_cost(const SS2DArgs& args, SS2DPhase phase);

// Runs one unit. No two units run at once with the same `part`, which is below `parts`.
void run_ss2d(const SS2DArgs& args, SS2DPhase phase, std::int64_t unit, std::int64_t part);

}  // namespace tfanet

#endif
