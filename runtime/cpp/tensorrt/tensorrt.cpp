// TensorRT behind engine_library.h, through its public headers alone. Compiled against those of
// TensorRT-RTX, whose interface has the same names, it is the library for that.
//
// The library itself is loaded at run time. TensorRT's interface changes from one major version to
// the next, that of TensorRT-RTX between minor ones too, so no other than the headers' will do.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "engine_library.h"

#define TFANET_TEXT_OF(value) #value
#define TFANET_TEXT(macro) TFANET_TEXT_OF(macro)

namespace tfanet::engines {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr char kFile[] = "libtensorrt_rtx.so." TFANET_TEXT(NV_TENSORRT_MAJOR);
constexpr bool kRtx = true;
#else
constexpr char kFile[] = "libnvinfer.so." TFANET_TEXT(NV_TENSORRT_MAJOR);
constexpr bool kRtx = false;
#endif

// TensorRT's errors, as they are told to the runtime.
class Log final : public nvinfer1::ILogger {
 public:
  Log(Say say, void* user) : say_(say), user_(user) {}

  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) tell(message);
  }

  void tell(const std::string& message) noexcept {
    try {
      const size_t begin = std::min(message.find_first_not_of(" \n\t"), message.size());
      say_(user_, message.substr(begin, message.find('\n', begin) - begin).c_str());
    } catch (const std::bad_alloc&) {
      say_(user_, "out of memory");
    }
  }

 private:
  const Say say_;
  void* const user_;
};

// As ONNX counts types; 0 for one that no graph of ours has at its edge.
int32_t onnx_type(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return 1;
    case nvinfer1::DataType::kINT32:
      return 6;
    case nvinfer1::DataType::kINT64:
      return 7;
    case nvinfer1::DataType::kHALF:
      return 10;
    case nvinfer1::DataType::kBF16:
      return 16;
    default:
      return 0;
  }
}

class TensorRtContext final : public Context {
 public:
  explicit TensorRtContext(nvinfer1::IExecutionContext* context) : context_(context) {}

  bool set_shape(const char* name, const int64_t* shape, int32_t rank) noexcept override {
    nvinfer1::Dims sizes{};
    sizes.nbDims = rank;
    std::copy(shape, shape + rank, sizes.d);
    return context_->setInputShape(name, sizes);
  }
  bool set_address(const char* name, void* address) noexcept override {
    return context_->setTensorAddress(name, address);
  }
  bool enqueue(void* stream) noexcept override {
    return context_->enqueueV3(static_cast<cudaStream_t>(stream));
  }
  void destroy() noexcept override { delete this; }

 private:
  const std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class TensorRtEngine final : public Engine {
 public:
  explicit TensorRtEngine(nvinfer1::ICudaEngine* engine) : engine_(engine) {}

  int32_t tensor_count() noexcept override { return engine_->getNbIOTensors(); }

  bool describe(int32_t index, Tensor* out) noexcept override {
    const char* name = engine_->getIOTensorName(index);
    const nvinfer1::Dims sizes = engine_->getTensorShape(name);
    *out = {};
    out->name = name;
    out->type = onnx_type(engine_->getTensorDataType(name));
    out->input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    if (sizes.nbDims < 1 || sizes.nbDims > kMaxRank) return false;
    out->rank = sizes.nbDims;
    std::copy(sizes.d, sizes.d + sizes.nbDims, out->shape);
    out->lowest_batch = out->highest_batch = sizes.d[0];
    if (out->input && sizes.d[0] < 0) {
      using Selector = nvinfer1::OptProfileSelector;
      out->lowest_batch = engine_->getProfileShape(name, 0, Selector::kMIN).d[0];
      out->highest_batch = engine_->getProfileShape(name, 0, Selector::kMAX).d[0];
    }
    return true;
  }

  Context* make_context() noexcept override {
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext());
    if (context == nullptr) return nullptr;
    Context* made = new (std::nothrow) TensorRtContext(context.get());
    if (made != nullptr) context.release();
    return made;
  }

  // TensorRT-RTX may compile kernels while it launches, which no capture survives.
  bool may_be_captured() noexcept override { return !kRtx; }
  void destroy() noexcept override { delete this; }

 private:
  const std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

// TensorRT's exported functions.
struct Functions {
  decltype(&createInferRuntime_INTERNAL) create_runtime = nullptr;
  decltype(&getPluginRegistry) plugin_registry = nullptr;
  decltype(&getInferLibMajorVersion) versions[4] = {};

  // False: the reason has been said.
  bool load(const char* file, Log& log) {
    // Never unloaded: it leaves threads and handlers behind.
    void* library = ::dlopen(file != nullptr ? file : kFile, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      log.tell(::dlerror());
      return false;
    }
    const auto find = [&](auto& function, const char* name) {
      void* symbol = ::dlsym(library, name);
      if (symbol == nullptr) log.tell(::dlerror());
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
      return symbol != nullptr;
    };
    return find(create_runtime, "createInferRuntime_INTERNAL") &&
           find(plugin_registry, "getPluginRegistry") &&
           find(versions[0], "getInferLibMajorVersion") &&
           find(versions[1], "getInferLibMinorVersion") &&
           find(versions[2], "getInferLibPatchVersion") &&
           find(versions[3], "getInferLibBuildVersion");
  }
};

class TensorRt final : public Library {
 public:
  TensorRt(Say say, void* user) : log_(say, user) {}

  // False: the reason has been said.
  bool open(const char* file) {
    if (!functions_.load(file, log_)) return false;
    for (const auto part : functions_.versions) {
      version_ += (version_.empty() ? "" : ".") + std::to_string(part());
    }
    const bool other_minor = functions_.versions[1]() != NV_TENSORRT_MINOR;
    if (functions_.versions[0]() != NV_TENSORRT_MAJOR || (kRtx && other_minor)) {
      log_.tell("it is version " + version_ +
                ", this backend was built with the headers of version " +
                std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR));
      return false;
    }
    void* made = functions_.create_runtime(&log_, NV_TENSORRT_VERSION);
    // Where CUDA does not start, TensorRT 11.4 answers with an offset from null in place of null.
    constexpr uintptr_t kFirstPage = 4096;
    if (reinterpret_cast<uintptr_t>(made) < kFirstPage) return false;
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(made));
    return true;
  }

  const char* version() noexcept override { return version_.c_str(); }

  bool load_plugins(const char* path) noexcept override {
    nvinfer1::IPluginRegistry* registry = functions_.plugin_registry();
    if (registry == nullptr) return false;
    if (registry->loadLibrary(path) != nullptr) return true;
    return registry->getCreator("SelectiveScan", "1", "tfanet") != nullptr;  // loaded earlier
  }

  Engine* load(const void* plan, size_t size, bool host_code) noexcept override {
    runtime_->setEngineHostCodeAllowed(host_code);
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime_->deserializeCudaEngine(plan, size));
    if (engine == nullptr) return nullptr;
    Engine* made = new (std::nothrow) TensorRtEngine(engine.get());
    if (made != nullptr) engine.release();
    return made;
  }

  void destroy() noexcept override { delete this; }

 private:
  Log log_;
  Functions functions_;
  std::string version_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace
}  // namespace tfanet::engines

extern "C" __attribute__((visibility("default"))) tfanet::engines::Library*
tfanet_open_engine_library(uint32_t interface, const char* file, tfanet::engines::Say say,
                           void* user) noexcept {
  if (interface != tfanet::engines::kInterface) {
    say(user, "this backend belongs to another version of libtfanet_runtime.so");
    return nullptr;
  }
  try {
    auto made = std::make_unique<tfanet::engines::TensorRt>(say, user);
    return made->open(file) ? made.release() : nullptr;
  } catch (const std::bad_alloc&) {
    say(user, "out of memory");
    return nullptr;
  }
}
