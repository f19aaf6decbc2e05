// What TensorRT brings to a plugin, for programs that drive libtfanet_trt.so through its two
// exported functions and TensorRT's public interfaces alone. Each includes it once.
#ifndef TFANET_TENSORRT_STAGE_H
#define TFANET_TENSORRT_STAGE_H

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace nvinfer1;

namespace {

int checks = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    ++checks;                                                             \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::printf("last line of the logger: %s\n", logger.last.c_str());  \
      std::exit(1);                                                       \
    }                                                                     \
  } while (false)

// --- What TensorRT would bring: a logger, and expressions of sizes -------------------------------

struct Logger final : ILogger {
  int errors = 0;
  std::string last;
  void log(Severity severity, const char* text) noexcept override {
    if (severity == Severity::kERROR) ++errors;
    last = text;
  }
} logger;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

// A size: a constant, or the value of a symbol that is not known yet.
struct Size final : IDimensionExpr, private apiv::VDimensionExpr {
  std::int64_t value;
  bool constant;
  Size(std::int64_t v, bool c) : value(v), constant(c) { mImpl = this; }
  ~Size() noexcept override = default;

 private:
  bool isConstant() const override { return constant; }
  std::int64_t getConstantValue() const override { return constant ? value : INT64_MIN; }
  bool isSizeTensor() const override { return false; }
};

struct Builder final : IExprBuilder, private apiv::VExprBuilder {
  std::vector<std::unique_ptr<Size>> made;
  Builder() { mImpl = this; }
  ~Builder() noexcept override = default;
  const Size* make(std::int64_t value, bool constant) {
    made.push_back(std::make_unique<Size>(value, constant));
    return made.back().get();
  }

 private:
  const IDimensionExpr* constant(std::int64_t value) override { return make(value, true); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&,
                                  const IDimensionExpr&) override {
    return nullptr;
  }
  const IDimensionExpr* declareSizeTensor(std::int32_t, const IDimensionExpr&,
                                          const IDimensionExpr&) override {
    return nullptr;
  }
};

struct Resources final : IPluginResourceContext {
  IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

PluginTensorDesc tensor(const Dims& dims, DataType type) {
  PluginTensorDesc desc{};
  desc.dims = dims;
  desc.type = type;
  desc.format = TensorFormat::kLINEAR;
  desc.scale = 1;
  return desc;
}

// --- The library ---------------------------------------------------------------------------------

std::string operator_name;
IPluginCreatorV3One* creator = nullptr;

template <typename Function>
Function symbol(void* library, const char* name) {
  void* const address = dlsym(library, name);
  CHECK(address != nullptr);
  return reinterpret_cast<Function>(address);
}

void open_library(const char* path, const char* name) {
  operator_name = name;
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) logger.last = dlerror();
  CHECK(library != nullptr);
  symbol<void (*)(ILoggerFinder*)>(library, "setLoggerFinder")(&finder);
  std::int32_t count = -7;
  const auto creators =
      symbol<IPluginCreatorInterface* const* (*)(std::int32_t&)>(library, "getCreators")(count);
  CHECK(count == 2 && creators != nullptr);
  for (int i = 0; i < count; ++i) {
    CHECK(creators[i] != nullptr);
    const InterfaceInfo info = creators[i]->getInterfaceInfo();
    CHECK(std::string(info.kind) == "PLUGIN CREATOR_V3ONE" && info.major == 1);
    auto* const found = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (operator_name == found->getPluginName()) creator = found;
  }
  CHECK(creator != nullptr);
}

// A plugin and its three capabilities.
struct Plugin {
  std::unique_ptr<IPluginV3> whole;
  IPluginV3OneCore* core = nullptr;
  IPluginV3OneBuild* build = nullptr;
  IPluginV3OneRuntime* runtime = nullptr;

  explicit Plugin(IPluginV3* created) : whole(created) {
    CHECK(whole != nullptr);
    CHECK(std::string(whole->getInterfaceInfo().kind) == "PLUGIN");
    const auto capability = [&](PluginCapabilityType type, const char* kind) {
      IPluginCapability* const found = whole->getCapabilityInterface(type);
      CHECK(found != nullptr && std::string(found->getInterfaceInfo().kind) == kind);
      return found;
    };
    core = static_cast<IPluginV3OneCore*>(
        capability(PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE"));
    build = static_cast<IPluginV3OneBuild*>(
        capability(PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD"));
    runtime = static_cast<IPluginV3OneRuntime*>(
        capability(PluginCapabilityType::kRUNTIME, "PLUGIN_V3ONE_RUNTIME"));
  }
};

IPluginV3* create(std::vector<PluginField> fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("a node", &collection, phase);
}

// What is done must fail, and say why in one line that holds `words`.
void fails(const char* words, const std::function<bool()>& succeeds) {
  const int before = logger.errors;
  CHECK(!succeeds());
  CHECK(logger.errors == before + 1);
  CHECK(logger.last.find("tfanet::" + operator_name + ": ") == 0 &&
        logger.last.find('\n') == std::string::npos);
  if (logger.last.find(words) == std::string::npos) std::printf("expected: %s\n", words);
  CHECK(logger.last.find(words) != std::string::npos);
}

DynamicPluginTensorDesc dynamic(const PluginTensorDesc& desc) {
  return {desc, desc.dims, desc.dims, desc.dims};
}

std::mt19937 random_engine(20261121);
std::int64_t between(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random_engine);
}

// --- Memory --------------------------------------------------------------------------------------

#ifdef TFANET_ON_GPU
void cuda(cudaError_t status) {
  if (status != cudaSuccess) logger.last = cudaGetErrorString(status);
  CHECK(status == cudaSuccess);
}
struct Memory {
  void* data = nullptr;
  explicit Memory(std::size_t bytes) { cuda(cudaMalloc(&data, bytes)); }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
  void put(const char* from, std::size_t bytes) {
    cuda(cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice));
  }
  void take(char* to, std::size_t bytes) {
    cuda(cudaMemcpy(to, data, bytes, cudaMemcpyDeviceToHost));
  }
};
#else
struct Memory {
  std::vector<char> bytes_;
  void* data;
  explicit Memory(std::size_t bytes) : bytes_(bytes), data(bytes_.data()) {}
  Memory(const Memory&) = delete;
  void put(const char* from, std::size_t bytes) { std::memcpy(data, from, bytes); }
  void take(char* to, std::size_t bytes) { std::memcpy(to, data, bytes); }
};
#endif

std::size_t bytes_of(const PluginTensorDesc& desc) {
  std::size_t bytes = desc.type == DataType::kFLOAT ? 4 : 2;
  for (int i = 0; i < desc.dims.nbDims; ++i) bytes *= static_cast<std::size_t>(desc.dims.d[i]);
  return bytes;
}

// Runs a plugin on operands that `in` holds one behind the other, and adds its one result to `out`.
// `list` describes the inputs, and then the output.
template <class Plugin, class List>
void run_case(Plugin& plugin, const List& list, void* workspace, std::istream& in,
              std::ostream& out) {
  const auto inputs = list.size() - 1;
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<const void*> pointers;
  for (const PluginTensorDesc& desc : list) {
    const std::size_t bytes = bytes_of(desc);
    memory.push_back(std::make_unique<Memory>(bytes));
    if (memory.size() > inputs) break;
    std::vector<char> buffer(bytes);
    CHECK(static_cast<bool>(in.read(buffer.data(), static_cast<std::streamsize>(bytes))));
    memory.back()->put(buffer.data(), bytes);
    pointers.push_back(memory.back()->data);
  }
  void* const outputs[] = {memory.back()->data};
  CHECK(plugin.runtime->enqueue(list.data(), list.data() + inputs, pointers.data(), outputs,
                                workspace, nullptr) == 0);
  std::vector<char> y(bytes_of(list.back()));
  memory.back()->take(y.data(), y.size());
  out.write(y.data(), static_cast<std::streamsize>(y.size()));
}

}  // namespace

#endif
