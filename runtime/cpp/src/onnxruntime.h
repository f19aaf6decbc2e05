// ONNX Runtime, loaded when it is needed, and its sessions. Only its C interface is used.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "cuda_driver.h"
#include "session.h"

namespace tfanet {

// Frees what ONNX Runtime made with the function that it names for it.
template <typename T>
using OrtPointer = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

// Errors come back as statuses; a library does not print them too.
inline constexpr OrtLoggingLevel kOrtLogLevel = ORT_LOGGING_LEVEL_FATAL;

// Without this, ONNX Runtime from 1.29 on reports to its makers over the network; only a variable
// of the environment stops it, and it is read when the library is loaded. One that the user has set
// stands. Other threads must not read the environment meanwhile: this is called before any of ours.
void keep_onnxruntime_quiet();

class OnnxRuntime {
 public:
  // `path` may be null: then $TFANET_ONNXRUNTIME, or the library's usual names. Throws
  // MISSING_DEPENDENCY.
  explicit OnnxRuntime(const char* path);

  // Throws FAILED or OUT_OF_MEMORY, with the first line of the message.
  void check(OrtStatus* status) const;

  // Throws MISSING_DEPENDENCY where this build has no such execution provider.
  void require_provider(const char* provider) const;
  bool has_provider(const char* provider) const;

  const OrtApi& api() const { return *api_; }
  const OrtEnv& environment() const { return *environment_; }
  const OrtMemoryInfo& memory() const { return *memory_; }
  const std::string& version() const { return version_; }

 private:
  const OrtApi* api_ = nullptr;
  std::string version_;
  OrtPointer<OrtEnv> environment_{nullptr, nullptr};
  OrtPointer<OrtMemoryInfo> memory_{nullptr, nullptr};
};

// How a session runs.
struct OnnxChoice {
  const char* provider = nullptr;        // such as "CUDAExecutionProvider"; null: the CPU
  std::shared_ptr<const Device> device;  // of the provider
  std::string op_library;                // empty: none
  int32_t threads = 0;                   // 0: all cores that the process may use
  bool as_floats = false;                // Q/DQ nodes as they stand, no integer layers
};

// Makes the operators of a library known to ONNX Runtime, which does that when the first session
// with them is made, and fails now and then where two are made at the same time.
void note_operators(const std::shared_ptr<const OnnxRuntime>& onnxruntime,
                    const std::string& op_library);

class OnnxSession final : public Session {
 public:
  // Throws BAD_BUNDLE or MISSING_DEPENDENCY.
  OnnxSession(std::shared_ptr<const OnnxRuntime> onnxruntime, const FileBytes& file,
              const OnnxChoice& choice);

  void run(const std::vector<Feed>& feeds, std::vector<Output>& outputs,
           void* stream) const override;

 private:
  std::vector<Value> describe(bool inputs) const override;
  void append_providers(OrtSessionOptions* options, const char* provider);
  [[noreturn]] void refuse_provider(const char* provider, const std::string& message) const;
  OrtPointer<OrtValue> wrap(const void* data, size_t bytes, const std::vector<int64_t>& shape,
                            ONNXTensorElementDataType type, bool on_device) const;

  std::shared_ptr<const OnnxRuntime> onnxruntime_;
  std::shared_ptr<const Device> device_;
  OrtPointer<OrtMemoryInfo> device_memory_{nullptr, nullptr};
  OrtPointer<OrtSession> session_{nullptr, nullptr};
};

}  // namespace tfanet
