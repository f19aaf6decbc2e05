// How many threads a single run may have.
#pragma once

#include <cstdint>

namespace tfanet {

inline constexpr int32_t kMaxThreads = 1024;  // many more than help; ONNX Runtime dies of 100,000

// Physical cores that the process may run on: 1 to kMaxThreads.
int32_t allowed_cores();

}  // namespace tfanet
