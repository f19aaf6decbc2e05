// What launch_selective_scan and launch_ss2d have in common: checks of a call, and the words for
// one that could not be launched.
#ifndef TFANET_SCAN_CALL_H
#define TFANET_SCAN_CALL_H

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>

#include "selective_scan_cuda.h"

namespace tfanet {

inline int bytes_of(ScanType type) { return type == ScanType::kFloat32 ? 4 : 2; }

inline bool known(ScanType type) {
  return type == ScanType::kFloat32 || type == ScanType::kFloat16 || type == ScanType::kBFloat16;
}

inline bool misaligned(const void* address, int bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes != 0;
}

// nullptr for success, else a sentence in static storage.
inline const char* explain_launch(cudaError_t status) {
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // it is reported here, and must not be met by the next call
  thread_local char text[256];
  std::snprintf(text, sizeof text, "the kernel could not be launched: %s (%s)",
                cudaGetErrorString(status), cudaGetErrorName(status));
  return text;
}

}  // namespace tfanet

#endif
