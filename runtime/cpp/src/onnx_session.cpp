#include <algorithm>
#include <mutex>

#include "cores.h"
#include "error.h"
#include "onnxruntime.h"

namespace tfanet {
namespace {

constexpr char kCuda[] = "CUDAExecutionProvider", kTensorRt[] = "TensorrtExecutionProvider";

bool tells_of_gpu(const std::string& message) {
  return contains(message, "CUDA failure") || contains(message, "CUDNN failure") ||
         contains(message, "CUBLAS failure");
}

}  // namespace

void note_operators(const std::shared_ptr<const OnnxRuntime>& onnxruntime,
                    const std::string& op_library) {
  // An ONNX file with one node: y = Identity(x).
  constexpr char kGraph[] =
      "\x08\x08:/"
      "\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01gZ\x0b\n\x01x\x12\x06\n\x04\x08\x01\x12\x00"
      "b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00"
      "B\x04\n\x00\x10\x11";
  FileBytes file{op_library, nullptr, sizeof kGraph - 1};
  file.data.reset(new unsigned char[file.size]);
  std::copy_n(kGraph, file.size, file.data.get());
  static std::mutex mutex;  // what it protects is ONNX Runtime's, and the whole process's
  const std::lock_guard<std::mutex> lock(mutex);
  const OnnxSession session(onnxruntime, file, {nullptr, nullptr, op_library, 1});
}

OnnxSession::OnnxSession(std::shared_ptr<const OnnxRuntime> onnxruntime, const FileBytes& file,
                         const OnnxChoice& choice)
    : Session(file.path), onnxruntime_(std::move(onnxruntime)), device_(choice.device) {
  const OrtApi& api = onnxruntime_->api();
  const auto check = [&](OrtStatus* status) { onnxruntime_->check(status); };
  OrtSessionOptions* made = nullptr;
  check(api.CreateSessionOptions(&made));
  const OrtPointer<OrtSessionOptions> options(made, api.ReleaseSessionOptions);
  check(api.SetSessionLogSeverityLevel(made, kOrtLogLevel));
  // Where ONNX Runtime chooses the number itself, it also ties each thread to a core, which may be
  // one that this process is kept from.
  check(api.SetIntraOpNumThreads(made, choice.threads > 0 ? choice.threads : allowed_cores()));
  const auto as_floats = [&] {
    check(api.AddSessionConfigEntry(made, "session.disable_quant_qdq", "1"));
  };
  if (choice.as_floats) as_floats();
  if (device_ != nullptr) append_providers(made, choice.provider);
  if (!choice.op_library.empty()) {
    try {
      check(api.RegisterCustomOpsLibrary_V2(made, choice.op_library.c_str()));
    } catch (const Error& error) {
      fail(TFANET_MISSING_DEPENDENCY, choice.op_library, " does not load in onnxruntime ",
           onnxruntime_->version(), " (", error.what(),
           "): build it with `make native`, or open with op_library \"none\"");
    }
  }
  OrtSession* session = nullptr;
  const auto create = [&] {
    check(api.CreateSessionFromArray(&onnxruntime_->environment(), file.data.get(), file.size, made,
                                     &session));
  };
  try {
    try {
      create();
    } catch (const Error& error) {
      if (!contains(error.what(), "float8")) throw;
      // ONNX Runtime fuses FP8 Q/DQ nodes as if they were INT8, and then refuses its own graph. As
      // they stand it computes them.
      as_floats();
      create();
    }
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.status == TFANET_OUT_OF_MEMORY) throw;
    if (device_ != nullptr && tells_of_gpu(message)) refuse_provider(choice.provider, message);
    for (const char* name : {"SelectiveScan", "SS2DScan", "SS2D"}) {
      const std::string operator_name = std::string("tfanet:") + name;
      if (!contains(message, operator_name.c_str()) || !contains(message, "not a registered")) {
        continue;
      }
      fail(TFANET_MISSING_DEPENDENCY, path_, " holds the operator tfanet::", name,
           " without a function body, and no operator library is loaded: build it with `make "
           "native`, or export the model with --function sequential");
    }
    fail(TFANET_BAD_BUNDLE, path_, " cannot be loaded: ", message);
  }
  session_ = {session, api.ReleaseSession};
}

void OnnxSession::refuse_provider(const char* provider, const std::string& message) const {
  fail(TFANET_MISSING_DEPENDENCY, "onnxruntime's ", provider, " does not start on GPU ",
       device_->index(), " (", message, "): see nvidia-smi, and whether CUDA and cuDNN are of the ",
       "versions that this onnxruntime wants");
}

// The provider, and behind it what runs the nodes that it does not take.
void OnnxSession::append_providers(OrtSessionOptions* options, const char* provider) {
  const OrtApi& api = onnxruntime_->api();
  const auto check = [&](OrtStatus* status) { onnxruntime_->check(status); };
  const std::string index = std::to_string(device_->index());
  const char *const keys[] = {"device_id"}, *const values[] = {index.c_str()};
  OrtMemoryInfo* memory = nullptr;
  check(api.CreateMemoryInfo("Cuda", OrtDeviceAllocator, device_->index(), OrtMemTypeDefault,
                             &memory));
  device_memory_ = {memory, api.ReleaseMemoryInfo};
  // Where our library has no fused 2-D scan for the provider, its parts run there.
  check(api.AddSessionConfigEntry(options, "tfanet.ss2d_as_parts", provider));
  const std::string_view name = provider;
  try {
    if (name == kTensorRt) {
      OrtTensorRTProviderOptionsV2* made = nullptr;
      check(api.CreateTensorRTProviderOptions(&made));
      const OrtPointer<OrtTensorRTProviderOptionsV2> owner(made,
                                                           api.ReleaseTensorRTProviderOptions);
      check(api.UpdateTensorRTProviderOptions(made, keys, values, 1));
      check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, made));
    } else if (name != kCuda) {
      check(api.SessionOptionsAppendExecutionProvider(options, "NvTensorRtRtx", keys, values, 1));
    }
    if (name == kCuda || onnxruntime_->has_provider(kCuda)) {
      OrtCUDAProviderOptionsV2* made = nullptr;
      check(api.CreateCUDAProviderOptions(&made));
      const OrtPointer<OrtCUDAProviderOptionsV2> owner(made, api.ReleaseCUDAProviderOptions);
      check(api.UpdateCUDAProviderOptions(made, keys, values, 1));
      check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, made));
    }
  } catch (const Error& error) {
    if (error.status == TFANET_OUT_OF_MEMORY) throw;
    refuse_provider(provider, error.what());
  }
}

std::vector<Value> OnnxSession::describe(bool inputs) const {
  const OrtApi& api = onnxruntime_->api();
  const OrtSession* session = session_.get();
  OrtAllocator* allocator = nullptr;
  onnxruntime_->check(api.GetAllocatorWithDefaultOptions(&allocator));
  size_t count = 0;
  onnxruntime_->check(inputs ? api.SessionGetInputCount(session, &count)
                             : api.SessionGetOutputCount(session, &count));
  std::vector<Value> values(count);
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    onnxruntime_->check(inputs ? api.SessionGetInputName(session, i, allocator, &name)
                               : api.SessionGetOutputName(session, i, allocator, &name));
    values[i].name = name;
    onnxruntime_->check(api.AllocatorFree(allocator, name));
    OrtTypeInfo* info = nullptr;
    onnxruntime_->check(inputs ? api.SessionGetInputTypeInfo(session, i, &info)
                               : api.SessionGetOutputTypeInfo(session, i, &info));
    const OrtPointer<OrtTypeInfo> owner(info, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    onnxruntime_->check(api.CastTypeInfoToTensorInfo(info, &tensor));
    if (tensor == nullptr) continue;
    onnxruntime_->check(api.GetTensorElementType(tensor, &values[i].type));
    size_t rank = 0;
    onnxruntime_->check(api.GetDimensionsCount(tensor, &rank));
    std::vector<int64_t> sizes(rank);
    std::vector<const char*> names(rank);
    onnxruntime_->check(api.GetDimensions(tensor, sizes.data(), rank));
    onnxruntime_->check(api.GetSymbolicDimensions(tensor, names.data(), rank));
    values[i].shape.emplace(rank);
    for (size_t axis = 0; axis < rank; ++axis) {
      (*values[i].shape)[axis] = {sizes[axis], names[axis] != nullptr ? names[axis] : ""};
    }
  }
  return values;
}

OrtPointer<OrtValue> OnnxSession::wrap(const void* data, size_t bytes,
                                       const std::vector<int64_t>& shape,
                                       ONNXTensorElementDataType type, bool on_device) const {
  const OrtMemoryInfo* memory = on_device ? device_memory_.get() : &onnxruntime_->memory();
  OrtValue* value = nullptr;
  // ONNX Runtime takes a pointer to changeable memory and does not change that of inputs.
  onnxruntime_->check(onnxruntime_->api().CreateTensorWithDataAsOrtValue(
      memory, const_cast<void*>(data), bytes, shape.data(), shape.size(), type, &value));
  return {value, onnxruntime_->api().ReleaseValue};
}

void OnnxSession::run(const std::vector<Feed>& feeds, std::vector<Output>& outputs,
                      void* stream) const {
  const OrtApi& api = onnxruntime_->api();
  std::vector<OrtPointer<OrtValue>> owners;
  std::vector<const char*> names, result_names;
  std::vector<const OrtValue*> values;
  owners.reserve(feeds.size() + outputs.size());
  for (const Feed& feed : feeds) {
    owners.push_back(wrap(feed.data, feed.bytes(), feed.shape, feed.type, feed.on_device));
    values.push_back(owners.back().get());
    names.push_back(feed.name);
  }
  std::vector<OrtValue*> results;
  for (const Output& output : outputs) {
    result_names.push_back(output.name);
    if (output.device == nullptr) {
      results.push_back(nullptr);
      continue;
    }
    const Feed room{output.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, output.device, output.shape};
    owners.push_back(wrap(room.data, room.bytes(), room.shape, room.type, true));
    results.push_back(owners.back().get());
  }
  if (stream != nullptr) {
    // A session has a stream of its own, which is waited for at the end of a run.
    const Device::Current current(*device_);
    device_->check(device_->driver().cuStreamSynchronize(stream));
  }
  onnxruntime_->check(api.Run(session_.get(), nullptr, names.data(), values.data(), values.size(),
                              result_names.data(), results.size(), results.data()));
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].device == nullptr) owners.emplace_back(results[i], api.ReleaseValue);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].device != nullptr) continue;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    onnxruntime_->check(api.GetTensorTypeAndShape(results[i], &info));
    const OrtPointer<OrtTensorTypeAndShapeInfo> owner(info, api.ReleaseTensorTypeAndShapeInfo);
    size_t rank = 0, count = 0;
    onnxruntime_->check(api.GetDimensionsCount(info, &rank));
    outputs[i].shape.resize(rank);
    onnxruntime_->check(api.GetDimensions(info, outputs[i].shape.data(), rank));
    onnxruntime_->check(api.GetTensorShapeElementCount(info, &count));
    void* data = nullptr;
    onnxruntime_->check(api.GetTensorMutableData(results[i], &data));
    const auto* begin = static_cast<const float*>(data);
    outputs[i].data.assign(begin, begin + count);
  }
}

}  // namespace tfanet
