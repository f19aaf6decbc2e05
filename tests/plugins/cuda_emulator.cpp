// Runs the scan kernel in the emulator. Standard input holds calls, one after the other: the
// numbers of struct Call, all int64, then the operands that are there, in the order of enum
// Operand. Standard output gets the y of each.
#define TFANET_SCAN_EMULATION "cuda_emulator.h"

#include <cstdint>

#include "selective_scan.cuh"

namespace {

enum Operand { kU, kDelta, kA, kB, kC, kD, kZ, kBias, kY, kOperands };

struct Call {
  int64_t batch, dim, length, groups, states, io, narrow_weights, softplus;
  int64_t has_D, has_z, has_bias;
  int64_t lanes, rows;  // of a block
  int64_t known_states, hostile, order;
  int64_t offset[kOperands];  // elements from a 16-byte boundary
};

template <typename T, int kStates, bool kGate>
void run(const Call& call, const tfanet::ScanOperands<T>& operands) {
  emulator::run_grid((call.batch * call.dim + call.rows - 1) / call.rows,
                     {static_cast<unsigned>(call.lanes), static_cast<unsigned>(call.rows), 1},
                     call.order, [&] { tfanet::selective_scan<T, kStates, kGate>(operands); });
}

template <typename T>
int answer(const Call& call) {
  const size_t sequence = call.batch * call.dim * call.length;
  const size_t shared = call.batch * call.groups * call.states * call.length;
  const size_t counts[kOperands] = {sequence,
                                    sequence,
                                    static_cast<size_t>(call.dim * call.states),
                                    shared,
                                    shared,
                                    static_cast<size_t>(call.dim),
                                    sequence,
                                    static_cast<size_t>(call.dim),
                                    sequence};
  unsigned char* data[kOperands] = {};
  std::vector<emulator::Buffer> held;
  for (int i = 0; i < kOperands; ++i) {
    if ((i == kD && !call.has_D) || (i == kZ && !call.has_z) || (i == kBias && !call.has_bias)) {
      continue;
    }
    const bool weight = i == kA || i == kD || i == kBias;
    const size_t element = weight && !call.narrow_weights ? sizeof(float) : sizeof(T);
    held.emplace_back(counts[i] * element, call.offset[i] * element);
    data[i] = held.back().data;
    if (i != kY && !emulator::read_all(data[i], counts[i] * element)) return 2;
  }
  tfanet::ScanOperands<T> operands{};
  operands.u = reinterpret_cast<const T*>(data[kU]);
  operands.delta = reinterpret_cast<const T*>(data[kDelta]);
  operands.A = data[kA];
  operands.B = reinterpret_cast<const T*>(data[kB]);
  operands.C = reinterpret_cast<const T*>(data[kC]);
  operands.D = data[kD];
  operands.delta_bias = data[kBias];
  operands.z = reinterpret_cast<const T*>(data[kZ]);
  operands.y = reinterpret_cast<T*>(data[kY]);
  operands.batch = static_cast<int>(call.batch);
  operands.dim = static_cast<int>(call.dim);
  operands.length = static_cast<int>(call.length);
  operands.groups = static_cast<int>(call.groups);
  operands.states = static_cast<int>(call.states);
  operands.narrow_weights = call.narrow_weights != 0;
  operands.softplus = call.softplus != 0;
  emulator::hostile = call.hostile != 0;
  if (call.known_states && call.states == 1) {
    call.has_z ? run<T, 1, true>(call, operands) : run<T, 1, false>(call, operands);
  } else {
    call.has_z ? run<T, 0, true>(call, operands) : run<T, 0, false>(call, operands);
  }
  return std::fwrite(data[kY], sizeof(T), sequence, stdout) == sequence ? 0 : 2;
}

}  // namespace

int main() {
  return emulator::serve<Call>(
      [](const Call& call, auto type) { return answer<decltype(type)>(call); });
}
