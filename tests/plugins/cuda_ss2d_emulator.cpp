// Runs the kernels of the 2-D scan in the emulator. Standard input holds calls, one after the
// other: the numbers of struct Call, all int64, then the operands in the order of enum Operand.
// Standard output gets the y of each.
#define TFANET_SCAN_EMULATION "cuda_emulator.h"

#include "ss2d_project.cuh"
#include "ss2d_scan.cuh"

namespace {

enum Operand { kU, kXProjWeight, kDtWeight, kDtBias, kA, kD, kY, kWorkspace, kOperands };

struct Call {
  int64_t batch, channels, height, width, rank, states, io;
  int64_t known_states, has_tf32, hostile, order;
  int64_t offset[kY + 1];  // elements from a 16-byte boundary
};

template <typename T, int kStates>
void run(const Call& call, const tfanet::SS2DOperands<T>& operands) {
  const tfanet::SS2DPlan plan = tfanet::plan_ss2d(operands.sizes);
  const auto all_blocks = [&](tfanet::SS2DKernel kernel,
                              void (*body)(const tfanet::SS2DOperands<T>&)) {
    emulator::run_grid(plan.grid[kernel], {tfanet::kSS2DThreads, 1, 1}, call.order,
                       [&] { body(operands); });
  };
  all_blocks(tfanet::kProjectMap, tfanet::project_map<T>);
  all_blocks(tfanet::kScanSegments, tfanet::scan_segments<kStates, T>);
  all_blocks(tfanet::kCarryStates, tfanet::carry_states<T>);
  all_blocks(tfanet::kScanMap, tfanet::scan_map<kStates, T>);
}

template <typename T>
int answer(const Call& call) {
  tfanet::SS2DOperands<T> operands{};
  operands.sizes = {static_cast<int>(call.batch),  static_cast<int>(call.channels),
                    static_cast<int>(call.height), static_cast<int>(call.width),
                    static_cast<int>(call.rank),   static_cast<int>(call.states)};
  const size_t directions = tfanet::kSS2DDirections, channels = call.channels;
  const size_t map = call.batch * channels * call.height * call.width;
  const size_t counts[kOperands] = {map,
                                    directions * (call.rank + 2 * call.states) * channels,
                                    directions * channels * call.rank,
                                    directions * channels,
                                    directions * channels * call.states,
                                    directions * channels,
                                    map,
                                    static_cast<size_t>(tfanet::plan_ss2d(operands.sizes).floats)};
  unsigned char* data[kOperands] = {};
  std::vector<emulator::Buffer> held;
  for (int i = 0; i < kOperands; ++i) {
    const size_t element = i == kU || i == kY ? sizeof(T) : sizeof(float);
    held.emplace_back(counts[i] * element, i == kWorkspace ? 0 : call.offset[i] * element);
    data[i] = held.back().data;
    if (i < kY && !emulator::read_all(data[i], counts[i] * element)) return 2;
  }
  operands.u = reinterpret_cast<const T*>(data[kU]);
  operands.x_proj_weight = reinterpret_cast<const float*>(data[kXProjWeight]);
  operands.dt_weight = reinterpret_cast<const float*>(data[kDtWeight]);
  operands.dt_bias = reinterpret_cast<const float*>(data[kDtBias]);
  operands.A = reinterpret_cast<const float*>(data[kA]);
  operands.D = reinterpret_cast<const float*>(data[kD]);
  operands.y = reinterpret_cast<T*>(data[kY]);
  operands.workspace = reinterpret_cast<float*>(data[kWorkspace]);
  emulator::hostile = call.hostile != 0;
  emulator::has_tf32 = call.has_tf32 != 0;
  call.known_states&& call.states == 1 ? run<T, 1>(call, operands) : run<T, 0>(call, operands);
  return std::fwrite(data[kY], sizeof(T), map, stdout) == map ? 0 : 2;
}

}  // namespace

int main() {
  return emulator::serve<Call>(
      [](const Call& call, auto type) { return answer<decltype(type)>(call); });
}
