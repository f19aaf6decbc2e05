// What runs a graph: a session of ONNX Runtime, or an engine on a GPU.
#pragma once

#include <onnxruntime_c_api.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tfanet {

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

// What a graph must have behind its batch axis.
struct Expected {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};

// A tensor that goes into a run; the memory is the caller's.
struct Feed {
  const char* name;
  ONNXTensorElementDataType type;
  const void* data;
  std::vector<int64_t> shape;
  bool on_device = false;

  size_t bytes() const;
};

// A result of a run.
struct Output {
  const char* name;
  std::vector<int64_t> shape;  // as it is; of one on the device, as it must be
  std::vector<float> data;     // of one in the memory of the process
  float* device = nullptr;     // the caller's memory, for one that stays on the device
};

// Of batches that one run takes.
struct Batches {
  int64_t lowest = 1, highest = 1;
};

class Session {
 public:
  explicit Session(std::string path) : path_(std::move(path)) {}
  virtual ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Throws BAD_BUNDLE where names, types or shapes differ from what is expected.
  void check_interface(const std::vector<Expected>& inputs,
                       const std::vector<Expected>& outputs) const;

  // May run in many threads at a time. `stream` is a CUDA stream of the caller's, or null: what is
  // in it runs before the inputs are read, what comes into it later finds the results. Where one
  // of them is in the memory of the process, and where there is no stream, all are there at the
  // return.
  virtual void run(const std::vector<Feed>& feeds, std::vector<Output>& outputs,
                   void* stream) const = 0;

 protected:
  virtual std::vector<Value> describe(bool inputs) const = 0;

  const std::string path_;  // of the ONNX file
};

// "float32" and so on.
const char* type_name(ONNXTensorElementDataType type);

}  // namespace tfanet
