// ONNX Runtime as it would be with providers for a GPU: the real library, which is named by
// TFANET_STANDIN_ONNXRUNTIME, with the memory of the stand-in for CUDA for the process's own.
//
// TFANET_STANDIN_PROVIDERS are the providers that it claims to have, with a space behind each.
// Those which it is told to append are written to TFANET_STANDIN_LOG. One named "broken" there does
// not start.

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

const OrtApi* real;
OrtApi changed;
char provider_names[4][64];
char* providers[4];

void log(const std::string& line) {
  if (const char* path = std::getenv("TFANET_STANDIN_LOG")) {
    std::FILE* file = std::fopen(path, "a");
    std::fprintf(file, "%s\n", line.c_str());
    std::fclose(file);
  }
}

OrtStatus* ORT_API_CALL available(char*** out, int* count) noexcept {
  const char* text = std::getenv("TFANET_STANDIN_PROVIDERS");
  *count = 0;
  for (const char* end; text != nullptr && (end = std::strchr(text, ' ')); text = end + 1) {
    const auto size = static_cast<size_t>(end - text);
    providers[*count] = provider_names[*count];
    std::memcpy(provider_names[*count], text, size);
    provider_names[(*count)++][size] = '\0';
  }
  *out = providers;
  return nullptr;
}
OrtStatus* ORT_API_CALL release_available(char**, int) noexcept { return nullptr; }

template <typename Options>
OrtStatus* ORT_API_CALL create(Options** out) noexcept {
  *out = reinterpret_cast<Options*>(new std::string);
  return nullptr;
}
template <typename Options>
void ORT_API_CALL release(Options* options) noexcept {
  delete reinterpret_cast<std::string*>(options);
}
template <typename Options>
OrtStatus* ORT_API_CALL update(Options* options, const char* const* keys, const char* const* values,
                               size_t count) noexcept {
  for (size_t i = 0; i < count; ++i) {
    *reinterpret_cast<std::string*>(options) += std::string(" ") + keys[i] + "=" + values[i];
  }
  return nullptr;
}
OrtStatus* append(const std::string& line) {
  log(line);
  if (std::getenv("TFANET_STANDIN_BROKEN") == nullptr) return nullptr;
  return real->CreateStatus(ORT_FAIL, "libcudnn.so.9: cannot open shared object file\nand more");
}
OrtStatus* ORT_API_CALL append_cuda(OrtSessionOptions*,
                                    const OrtCUDAProviderOptionsV2* options) noexcept {
  return append("CUDA" + *reinterpret_cast<const std::string*>(options));
}
OrtStatus* ORT_API_CALL append_tensorrt(OrtSessionOptions*,
                                        const OrtTensorRTProviderOptionsV2* options) noexcept {
  return append("TensorRT" + *reinterpret_cast<const std::string*>(options));
}
OrtStatus* ORT_API_CALL append_named(OrtSessionOptions*, const char* name, const char* const* keys,
                                     const char* const* values, size_t count) noexcept {
  return append(name + (count == 1 ? std::string(" ") + keys[0] + "=" + values[0] : ""));
}
OrtStatus* ORT_API_CALL entry(OrtSessionOptions* options, const char* key,
                              const char* value) noexcept {
  log(std::string(key) + "=" + value);
  return real->AddSessionConfigEntry(options, key, value);
}
OrtStatus* ORT_API_CALL memory_info(const char* name, OrtAllocatorType type, int id,
                                    OrtMemType kind, OrtMemoryInfo** out) noexcept {
  log(std::string("memory ") + name + " " + std::to_string(id));
  return real->CreateMemoryInfo("Cpu", type, 0, kind, out);
}

const OrtApi* ORT_API_CALL get_api(uint32_t) noexcept { return &changed; }
OrtApiBase base;

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() {
  void* library = ::dlopen(std::getenv("TFANET_STANDIN_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
  const auto open = reinterpret_cast<const OrtApiBase* (*)()>(::dlsym(library, "OrtGetApiBase"));
  real = open()->GetApi(20);
  // What is newer than version 20 is not called.
  std::memcpy(&changed, real, offsetof(OrtApi, CreateLoraAdapter));
  changed.GetAvailableProviders = available;
  changed.ReleaseAvailableProviders = release_available;
  changed.CreateCUDAProviderOptions = create<OrtCUDAProviderOptionsV2>;
  changed.ReleaseCUDAProviderOptions = release<OrtCUDAProviderOptionsV2>;
  changed.UpdateCUDAProviderOptions = update<OrtCUDAProviderOptionsV2>;
  changed.SessionOptionsAppendExecutionProvider_CUDA_V2 = append_cuda;
  changed.CreateTensorRTProviderOptions = create<OrtTensorRTProviderOptionsV2>;
  changed.ReleaseTensorRTProviderOptions = release<OrtTensorRTProviderOptionsV2>;
  changed.UpdateTensorRTProviderOptions = update<OrtTensorRTProviderOptionsV2>;
  changed.SessionOptionsAppendExecutionProvider_TensorRT_V2 = append_tensorrt;
  changed.SessionOptionsAppendExecutionProvider = append_named;
  changed.AddSessionConfigEntry = entry;
  changed.CreateMemoryInfo = memory_info;
  base = {get_api, open()->GetVersionString};
  return &base;
}
