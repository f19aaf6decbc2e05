#include "onnxruntime.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <string_view>

#include "error.h"
#include "libraries.h"

namespace tfanet {
namespace {

constexpr uint32_t kApiVersion = 20;  // the oldest ONNX Runtime that has all that is called here

std::string first_line(const char* message) {
  const std::string text = message;
  const size_t begin = std::min(text.find_first_not_of(" \n\t"), text.size());
  return text.substr(begin, text.find('\n', begin) - begin);
}

bool tells_of_memory(const std::string& message) {
  return contains(message, "bad_alloc") || contains(message, "bad allocation") ||
         contains(message, "Failed to allocate memory") || contains(message, "out of memory");
}

const OrtApiBase* load(const char* path) {
  if (path == nullptr) path = setting("TFANET_ONNXRUNTIME");
  std::vector<std::string> names = {"libonnxruntime.so.1", "libonnxruntime.so"};
  if (path != nullptr && *path != '\0') names = {path};
  std::string cause;
  for (const std::string& name : names) {
    // Never unloaded: it leaves threads behind that would run into nothing.
    void* library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* entry = library != nullptr ? ::dlsym(library, "OrtGetApiBase") : nullptr;
    if (entry != nullptr) return reinterpret_cast<const OrtApiBase* (*)()>(entry)();
    const char* error = ::dlerror();
    cause = error != nullptr ? error : name + " is another library";
  }
  fail(TFANET_MISSING_DEPENDENCY, "ONNX Runtime cannot be loaded (", cause,
       "): install it, or name its library in options.onnxruntime or in TFANET_ONNXRUNTIME");
}

}  // namespace

void keep_onnxruntime_quiet() {
  static std::once_flag once;
  std::call_once(once, [] { ::setenv("ORT_DISABLE_TELEMETRY", "1", 0); });
}

OnnxRuntime::OnnxRuntime(const char* path) {
  const OrtApiBase* base = load(path);
  version_ = base->GetVersionString();
  int major = 0, minor = 0;
  // GetApi itself writes to the terminal where it refuses.
  const bool read = std::sscanf(version_.c_str(), "%d.%d", &major, &minor) == 2;
  const bool old = !read || (major == 1 && minor < static_cast<int>(kApiVersion));
  api_ = old ? nullptr : base->GetApi(kApiVersion);
  if (api_ == nullptr) {
    fail(TFANET_MISSING_DEPENDENCY, "ONNX Runtime here is version ", version_,
         ": install 1.20 or newer");
  }
  OrtEnv* environment = nullptr;
  check(api_->CreateEnv(kOrtLogLevel, "tfanet", &environment));
  environment_ = {environment, api_->ReleaseEnv};
  OrtMemoryInfo* memory = nullptr;
  check(api_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  memory_ = {memory, api_->ReleaseMemoryInfo};
}

void OnnxRuntime::check(OrtStatus* status) const {
  if (status == nullptr) return;
  const OrtPointer<OrtStatus> owner(status, api_->ReleaseStatus);
  const std::string message = first_line(api_->GetErrorMessage(status));
  if (tells_of_memory(message)) throw Error(TFANET_OUT_OF_MEMORY, kNoMemory);
  throw Error(TFANET_FAILED, message);
}

bool OnnxRuntime::has_provider(const char* provider) const {
  char** names = nullptr;
  int count = 0;
  check(api_->GetAvailableProviders(&names, &count));
  const bool found = std::any_of(
      names, names + count, [&](const char* name) { return std::string_view(name) == provider; });
  check(api_->ReleaseAvailableProviders(names, count));
  return found;
}

void OnnxRuntime::require_provider(const char* provider) const {
  if (has_provider(provider)) return;
  fail(TFANET_MISSING_DEPENDENCY, "onnxruntime ", version_, " here has no ", provider,
       ": name the library of a build that has it, such as that of pip's onnxruntime-gpu, in "
       "options.onnxruntime or in TFANET_ONNXRUNTIME");
}

}  // namespace tfanet
