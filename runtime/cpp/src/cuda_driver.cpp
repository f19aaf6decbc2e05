#include "cuda_driver.h"

#include <dlfcn.h>

#include "error.h"

namespace tfanet {
namespace {

// Of cuda.h, where they are enumerated.
constexpr int kOutOfMemory = 2, kStubLibrary = 34, kNoDevice = 100, kDriverMismatch = 803;
constexpr int kMajor = 75, kMinor = 76;       // attributes of a device: its compute capability
constexpr int kMemoryType = 2, kOrdinal = 9;  // attributes of an address
constexpr unsigned kDeviceMemory = 2;

CudaDriver load() {
  // Never unloaded: other libraries of the process may have it.
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(TFANET_MISSING_DEPENDENCY, "the CUDA driver cannot be loaded (", ::dlerror(),
         "): install an NVIDIA driver");
  }
  CudaDriver driver{};
  const auto find = [&](auto& function, const char* name) {
    void* symbol = ::dlsym(library, name);
    if (symbol == nullptr) {
      fail(TFANET_MISSING_DEPENDENCY, "the CUDA driver here has no ", name,
           ": install an NVIDIA driver for CUDA 12 or newer");
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
#define TFANET_FIND(name) find(driver.name, #name)
  TFANET_FIND(cuInit);
  TFANET_FIND(cuDeviceGetCount);
  TFANET_FIND(cuDeviceGet);
  TFANET_FIND(cuDeviceGetName);
  TFANET_FIND(cuDeviceGetAttribute);
  TFANET_FIND(cuDevicePrimaryCtxRetain);
  TFANET_FIND(cuDevicePrimaryCtxRelease_v2);
  TFANET_FIND(cuCtxPushCurrent_v2);
  TFANET_FIND(cuCtxPopCurrent_v2);
  TFANET_FIND(cuMemAlloc_v2);
  TFANET_FIND(cuMemFree_v2);
  TFANET_FIND(cuMemHostAlloc);
  TFANET_FIND(cuMemFreeHost);
  TFANET_FIND(cuMemcpyAsync);
  TFANET_FIND(cuPointerGetAttribute);
  TFANET_FIND(cuStreamCreate);
  TFANET_FIND(cuStreamDestroy_v2);
  TFANET_FIND(cuStreamSynchronize);
  TFANET_FIND(cuStreamWaitEvent);
  TFANET_FIND(cuStreamBeginCapture_v2);
  TFANET_FIND(cuStreamEndCapture);
  TFANET_FIND(cuEventCreate);
  TFANET_FIND(cuEventDestroy_v2);
  TFANET_FIND(cuEventRecord);
  TFANET_FIND(cuGraphInstantiateWithFlags);
  TFANET_FIND(cuGraphLaunch);
  TFANET_FIND(cuGraphExecDestroy);
  TFANET_FIND(cuGraphDestroy);
  TFANET_FIND(cuGetErrorName);
  TFANET_FIND(cuGetErrorString);
#undef TFANET_FIND
  return driver;
}

}  // namespace

Device::Device(int32_t index) : driver_(load()), index_(index) {
  const auto open = [&](int result) { check(result, TFANET_MISSING_DEPENDENCY); };
  open(driver_.cuInit(0));
  int count = 0;
  open(driver_.cuDeviceGetCount(&count));
  if (count == 0) open(kNoDevice);
  if (index < 0 || index >= count) {
    fail(TFANET_INVALID_ARGUMENT, "device is ", index, ": this machine has GPUs 0 to ", count - 1);
  }
  open(driver_.cuDeviceGet(&device_, index));
  char name[256] = "";
  open(driver_.cuDeviceGetName(name, sizeof name, device_));
  name_ = name;
  int major = 0, minor = 0;
  open(driver_.cuDeviceGetAttribute(&major, kMajor, device_));
  open(driver_.cuDeviceGetAttribute(&minor, kMinor, device_));
  compute_ = join(major, ".", minor);
  open(driver_.cuDevicePrimaryCtxRetain(&context_, device_));
}

Device::~Device() { driver_.cuDevicePrimaryCtxRelease_v2(device_); }

void Device::check(int result, tfanet_status otherwise) const {
  if (result == 0) return;
  const char *name = nullptr, *text = nullptr;
  driver_.cuGetErrorName(result, &name);
  driver_.cuGetErrorString(result, &text);
  tfanet_status status = otherwise;
  const char* advice = "see nvidia-smi for the state of the GPU";
  if (result == kOutOfMemory) {
    status = TFANET_OUT_OF_MEMORY;
    advice = "use a smaller batch or another GPU";
  } else if (result == kNoDevice) {
    status = TFANET_MISSING_DEPENDENCY;
    advice = "use a machine with an NVIDIA GPU";
  } else if (result == kStubLibrary || result == kDriverMismatch) {
    status = TFANET_MISSING_DEPENDENCY;
    advice = "install an NVIDIA driver";
  }
  fail(status, text != nullptr ? text : "an unknown error of CUDA", " (",
       name != nullptr ? name : std::to_string(result).c_str(), "): ", advice);
}

void Device::require_memory(const void* data, const char* what) const {
  const Current current(*this);
  const auto address = reinterpret_cast<CudaDriver::Address>(data);
  unsigned type = 0;
  int ordinal = -1;
  const bool known = driver_.cuPointerGetAttribute(&type, kMemoryType, address) == 0 &&
                     driver_.cuPointerGetAttribute(&ordinal, kOrdinal, address) == 0;
  if (!known || type != kDeviceMemory || ordinal != index_) {
    fail(TFANET_INVALID_ARGUMENT, what, " is not in the memory of GPU ", index_,
         ": allocate it there, or set its memory to TFANET_HOST");
  }
}

Device::Current::Current(const Device& device) : device_(device) {
  device.check(device.driver_.cuCtxPushCurrent_v2(device.context_));
}

Device::Current::~Current() {
  void* context = nullptr;
  device_.driver_.cuCtxPopCurrent_v2(&context);
}

}  // namespace tfanet
