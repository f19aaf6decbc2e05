// The little of CUDA that GPUs need: devices, memory, streams, events and graphs, through the
// driver's own library. It is loaded when a GPU is asked for, and needs no headers or toolkit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tfanet.h"

namespace tfanet {

// The driver's functions, by the names under which libcuda.so.1 exports them. All of them return 0
// or an error. Contexts, streams, events and graphs are pointers, addresses on a device numbers.
struct CudaDriver {
  using Handle = void*;
  using Address = uint64_t;

  int (*cuInit)(unsigned flags);
  int (*cuDeviceGetCount)(int* count);
  int (*cuDeviceGet)(int* device, int index);
  int (*cuDeviceGetName)(char* name, int size, int device);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  int (*cuDevicePrimaryCtxRetain)(Handle* context, int device);
  int (*cuDevicePrimaryCtxRelease_v2)(int device);
  int (*cuCtxPushCurrent_v2)(Handle context);
  int (*cuCtxPopCurrent_v2)(Handle* context);
  int (*cuMemAlloc_v2)(Address* address, size_t size);
  int (*cuMemFree_v2)(Address address);
  int (*cuMemHostAlloc)(void** memory, size_t size, unsigned flags);
  int (*cuMemFreeHost)(void* memory);
  int (*cuMemcpyAsync)(Address target, Address source, size_t size, Handle stream);
  int (*cuPointerGetAttribute)(void* value, int attribute, Address address);
  int (*cuStreamCreate)(Handle* stream, unsigned flags);
  int (*cuStreamDestroy_v2)(Handle stream);
  int (*cuStreamSynchronize)(Handle stream);
  int (*cuStreamWaitEvent)(Handle stream, Handle event, unsigned flags);
  int (*cuStreamBeginCapture_v2)(Handle stream, int mode);
  int (*cuStreamEndCapture)(Handle stream, Handle* graph);
  int (*cuEventCreate)(Handle* event, unsigned flags);
  int (*cuEventDestroy_v2)(Handle event);
  int (*cuEventRecord)(Handle event, Handle stream);
  int (*cuGraphInstantiateWithFlags)(Handle* executable, Handle graph, unsigned long long flags);
  int (*cuGraphLaunch)(Handle executable, Handle stream);
  int (*cuGraphExecDestroy)(Handle executable);
  int (*cuGraphDestroy)(Handle graph);
  int (*cuGetErrorName)(int error, const char** name);
  int (*cuGetErrorString)(int error, const char** text);
};

// A GPU, and its primary context, which the CUDA runtime in other libraries uses too.
class Device {
 public:
  // Throws MISSING_DEPENDENCY without a driver or GPU, INVALID_ARGUMENT for another index.
  explicit Device(int32_t index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int32_t index() const { return index_; }
  const std::string& name() const { return name_; }
  const std::string& compute() const { return compute_; }  // compute capability, such as "8.9"
  const CudaDriver& driver() const { return driver_; }

  // Throws where a call of the driver failed: OUT_OF_MEMORY, MISSING_DEPENDENCY, or `otherwise`.
  void check(int result, tfanet_status otherwise = TFANET_FAILED) const;

  // Throws INVALID_ARGUMENT where `data` is no memory of this GPU.
  void require_memory(const void* data, const char* what) const;

  // Makes this GPU the calling thread's, and gives the thread its old one back.
  class Current {
   public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Device& device_;
  };

 private:
  CudaDriver driver_{};
  int32_t index_;
  int device_ = 0;
  void* context_ = nullptr;
  std::string name_, compute_;
};

}  // namespace tfanet
