// ONNX Runtime, loaded when it is needed, and its sessions. Only its C interface is used.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"

namespace tfanet {

// Frees what ONNX Runtime made with the function that it names for it.
template <typename T>
using OrtPointer = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

class OnnxRuntime {
 public:
  // `path` may be null: then $TFANET_ONNXRUNTIME, or the library's usual names. Throws
  // MISSING_DEPENDENCY.
  explicit OnnxRuntime(const char* path);

  // Throws FAILED or OUT_OF_MEMORY, with the first line of the message.
  void check(OrtStatus* status) const;

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

// An axis of a graph's input or output: a size, a name, or neither.
struct Axis {
  int64_t size = -1;
  std::string name;
};

struct Value {
  std::string name;
  std::optional<std::vector<Axis>> shape;  // none: it is no tensor
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

// What a graph must have behind its batch axis. -1: any size.
struct Expected {
  const char* name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};

// A tensor that goes into a run; the memory is the caller's.
struct Feed {
  const char* name;
  ONNXTensorElementDataType type;
  const void* data;
  std::vector<int64_t> shape;
};

struct Result {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

class Session {
 public:
  // `threads` 0: all cores. `op_library` empty: none. Throws BAD_BUNDLE or MISSING_DEPENDENCY.
  Session(const OnnxRuntime& onnxruntime, const FileBytes& file, const std::string& op_library,
          int32_t threads);

  // Throws BAD_BUNDLE where names, types or shapes differ from what is expected.
  void check_interface(const std::vector<Expected>& inputs,
                       const std::vector<Expected>& outputs) const;

  // May run in many threads at a time. The results are those of `outputs`, in their order.
  std::vector<Result> run(const std::vector<Feed>& feeds,
                          const std::vector<const char*>& outputs) const;

 private:
  std::vector<Value> describe(bool inputs) const;

  const OnnxRuntime& onnxruntime_;
  std::string path_;
  OrtPointer<OrtSession> session_{nullptr, nullptr};
};

}  // namespace tfanet
