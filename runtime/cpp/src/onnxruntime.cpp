#include "onnxruntime.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>

#include "error.h"

namespace tfanet {
namespace {

constexpr uint32_t kApiVersion = 20;  // the oldest ONNX Runtime that has all that is called here
// Errors come back as statuses; a library does not print them too.
constexpr OrtLoggingLevel kLogLevel = ORT_LOGGING_LEVEL_FATAL;

std::string first_line(const char* message) {
  const std::string text = message;
  const size_t begin = std::min(text.find_first_not_of(" \n\t"), text.size());
  return text.substr(begin, text.find('\n', begin) - begin);
}

bool contains(const std::string& text, const char* part) { return text.find(part) != text.npos; }

bool tells_of_memory(const std::string& message) {
  return contains(message, "bad_alloc") || contains(message, "bad allocation") ||
         contains(message, "Failed to allocate memory") || contains(message, "out of memory");
}

const OrtApiBase* load(const char* path) {
  if (path == nullptr) path = std::getenv("TFANET_ONNXRUNTIME");
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

// A shape as Python prints it.
std::string shape_text(const std::optional<std::vector<Axis>>& shape) {
  if (!shape) return "None";
  Json axes = Json::array();
  for (const Axis& axis : *shape) {
    axes.push_back(axis.size >= 0 ? Json(axis.size) : axis.name.empty() ? Json() : Json(axis.name));
  }
  return repr(axes);
}

std::string expected_text(const std::vector<int64_t>& shape) {
  Json axes = {"batch"};
  for (const int64_t size : shape) axes.push_back(size >= 0 ? Json(size) : Json());
  return repr(axes);
}

bool fits(const std::vector<Axis>& actual, const std::vector<int64_t>& expected) {
  if (actual.size() != expected.size() + 1) return false;
  for (size_t i = 0; i < actual.size(); ++i) {
    const int64_t size = i == 0 ? 1 : expected[i - 1];
    if (actual[i].size >= 0 && size >= 0 && actual[i].size != size) return false;
  }
  return true;
}

const char* type_name(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return "float64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "int32";
    default:
      return "another type";
  }
}

size_t bytes_of(const Feed& feed) {
  size_t count = feed.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? sizeof(int64_t) : sizeof(float);
  for (const int64_t size : feed.shape) count *= static_cast<size_t>(size);
  return count;
}

}  // namespace

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
  check(api_->CreateEnv(kLogLevel, "tfanet", &environment));
  environment_ = {environment, api_->ReleaseEnv};
  OrtMemoryInfo* memory = nullptr;
  check(api_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  memory_ = {memory, api_->ReleaseMemoryInfo};
}

void OnnxRuntime::check(OrtStatus* status) const {
  if (status == nullptr) return;
  const OrtPointer<OrtStatus> owner(status, api_->ReleaseStatus);
  const std::string message = first_line(api_->GetErrorMessage(status));
  throw Error(tells_of_memory(message) ? TFANET_OUT_OF_MEMORY : TFANET_FAILED, message);
}

Session::Session(const OnnxRuntime& onnxruntime, const FileBytes& file,
                 const std::string& op_library, int32_t threads)
    : onnxruntime_(onnxruntime), path_(file.path) {
  const OrtApi& api = onnxruntime.api();
  OrtSessionOptions* made = nullptr;
  onnxruntime.check(api.CreateSessionOptions(&made));
  const OrtPointer<OrtSessionOptions> options(made, api.ReleaseSessionOptions);
  onnxruntime.check(api.SetSessionLogSeverityLevel(made, kLogLevel));
  if (threads > 0) onnxruntime.check(api.SetIntraOpNumThreads(made, threads));
  if (!op_library.empty()) {
    try {
      onnxruntime.check(api.RegisterCustomOpsLibrary_V2(made, op_library.c_str()));
    } catch (const Error& error) {
      fail(TFANET_MISSING_DEPENDENCY, op_library, " does not load in onnxruntime ",
           onnxruntime.version(), " (", error.what(),
           "): build it with `make native`, or open with op_library \"none\"");
    }
  }
  OrtSession* session = nullptr;
  const auto create = [&] {
    onnxruntime.check(api.CreateSessionFromArray(&onnxruntime.environment(), file.data.get(),
                                                 file.size, made, &session));
  };
  try {
    try {
      create();
    } catch (const Error& error) {
      if (!contains(error.what(), "float8")) throw;
      // ONNX Runtime fuses FP8 Q/DQ nodes as if they were INT8, and then refuses its own graph. As
      // they stand it computes them.
      onnxruntime.check(api.AddSessionConfigEntry(made, "session.disable_quant_qdq", "1"));
      create();
    }
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.status == TFANET_OUT_OF_MEMORY) throw;
    for (const char* name : {"SelectiveScan", "SS2D"}) {
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

std::vector<Value> Session::describe(bool inputs) const {
  const OrtApi& api = onnxruntime_.api();
  const OrtSession* session = session_.get();
  OrtAllocator* allocator = nullptr;
  onnxruntime_.check(api.GetAllocatorWithDefaultOptions(&allocator));
  size_t count = 0;
  onnxruntime_.check(inputs ? api.SessionGetInputCount(session, &count)
                            : api.SessionGetOutputCount(session, &count));
  std::vector<Value> values(count);
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    onnxruntime_.check(inputs ? api.SessionGetInputName(session, i, allocator, &name)
                              : api.SessionGetOutputName(session, i, allocator, &name));
    values[i].name = name;
    onnxruntime_.check(api.AllocatorFree(allocator, name));
    OrtTypeInfo* info = nullptr;
    onnxruntime_.check(inputs ? api.SessionGetInputTypeInfo(session, i, &info)
                              : api.SessionGetOutputTypeInfo(session, i, &info));
    const OrtPointer<OrtTypeInfo> owner(info, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    onnxruntime_.check(api.CastTypeInfoToTensorInfo(info, &tensor));
    if (tensor == nullptr) continue;
    onnxruntime_.check(api.GetTensorElementType(tensor, &values[i].type));
    size_t rank = 0;
    onnxruntime_.check(api.GetDimensionsCount(tensor, &rank));
    std::vector<int64_t> sizes(rank);
    std::vector<const char*> names(rank);
    onnxruntime_.check(api.GetDimensions(tensor, sizes.data(), rank));
    onnxruntime_.check(api.GetSymbolicDimensions(tensor, names.data(), rank));
    values[i].shape.emplace(rank);
    for (size_t axis = 0; axis < rank; ++axis) {
      (*values[i].shape)[axis] = {sizes[axis], names[axis] != nullptr ? names[axis] : ""};
    }
  }
  return values;
}

void Session::check_interface(const std::vector<Expected>& inputs,
                              const std::vector<Expected>& outputs) const {
  for (const bool input : {true, false}) {
    std::map<std::string, Value> found;
    for (Value& value : describe(input)) found[value.name] = std::move(value);
    for (const Expected& expected : input ? inputs : outputs) {
      const auto at = found.find(expected.name);
      const Value value = at != found.end() ? at->second : Value();
      if (!value.shape || !fits(*value.shape, expected.shape)) {
        fail(TFANET_BAD_BUNDLE, path_, ": '", expected.name, "' has shape ",
             shape_text(value.shape), ", expected ", expected_text(expected.shape),
             " by the manifest: export the model again");
      }
      if (value.type != expected.type) {
        fail(TFANET_BAD_BUNDLE, path_, ": '", expected.name, "' holds ", type_name(value.type),
             ", expected ", type_name(expected.type), ": export the model again");
      }
      found.erase(at);
    }
    if (!found.empty()) {
      fail(TFANET_BAD_BUNDLE, path_, " has the unknown value '", found.begin()->first,
           "': export again");
    }
  }
}

std::vector<Result> Session::run(const std::vector<Feed>& feeds,
                                 const std::vector<const char*>& outputs) const {
  const OrtApi& api = onnxruntime_.api();
  std::vector<OrtPointer<OrtValue>> owners;
  std::vector<const char*> names;
  std::vector<const OrtValue*> values;
  const auto own = [&](OrtValue* value) { owners.emplace_back(value, api.ReleaseValue); };
  owners.reserve(feeds.size() + outputs.size());
  for (const Feed& feed : feeds) {
    OrtValue* value = nullptr;
    // ONNX Runtime takes a pointer to changeable memory and does not change it.
    onnxruntime_.check(api.CreateTensorWithDataAsOrtValue(
        &onnxruntime_.memory(), const_cast<void*>(feed.data), bytes_of(feed), feed.shape.data(),
        feed.shape.size(), feed.type, &value));
    own(value);
    values.push_back(value);
    names.push_back(feed.name);
  }
  std::vector<OrtValue*> made(outputs.size(), nullptr);
  onnxruntime_.check(api.Run(session_.get(), nullptr, names.data(), values.data(), values.size(),
                             outputs.data(), outputs.size(), made.data()));
  for (OrtValue* value : made) own(value);
  std::vector<Result> results(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    onnxruntime_.check(api.GetTensorTypeAndShape(made[i], &info));
    const OrtPointer<OrtTensorTypeAndShapeInfo> owner(info, api.ReleaseTensorTypeAndShapeInfo);
    size_t rank = 0, count = 0;
    onnxruntime_.check(api.GetDimensionsCount(info, &rank));
    results[i].shape.resize(rank);
    onnxruntime_.check(api.GetDimensions(info, results[i].shape.data(), rank));
    onnxruntime_.check(api.GetTensorShapeElementCount(info, &count));
    void* data = nullptr;
    onnxruntime_.check(api.GetTensorMutableData(made[i], &data));
    const auto* begin = static_cast<const float*>(data);
    results[i].data.assign(begin, begin + count);
  }
  return results;
}

}  // namespace tfanet
