// What tests use of the stand-in for libcuda.so.1, beside functions of CUDA itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <utility>

struct StandinCounts {
  size_t blocks, handles, contexts;  // held: memory, streams and such, contexts of this thread
  int retained;                      // primary contexts
  size_t captures, launches;         // of CUDA graphs
};

extern "C" {
void standin_push(void* stream, void (*work)(void*), void* argument);
void standin_fail(const char* function, int error);  // from now on; 0: no longer
void standin_limit(size_t bytes);                    // of all memory
StandinCounts standin_counts();

int cuCtxPushCurrent_v2(void* context);
int cuCtxPopCurrent_v2(void** context);
int cuDevicePrimaryCtxRetain(void** context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuMemAlloc_v2(uint64_t* address, size_t size);
int cuMemFree_v2(uint64_t address);
int cuStreamCreate(void** stream, unsigned flags);
int cuStreamDestroy_v2(void* stream);
int cuStreamSynchronize(void* stream);
int cuMemHostAlloc(void** memory, size_t size, unsigned flags);
int cuMemFreeHost(void* memory);
}
