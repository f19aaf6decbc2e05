// libtfanet_trt.so: the ONNX node tfanet::SelectiveScan as a TensorRT plugin (IPluginV3), for
// trtexec --dynamicPlugins, IPluginRegistry::loadLibrary and programs without Python.
//
// The node carries plugin_namespace = "tfanet", plugin_version = "1", delta_softplus and
// optional_inputs (tfanet.plugins.tensorrt_plugin.plugin_graph writes them). Tensors are linear:
// sequences float32, float16 or bfloat16, weights (A, D, delta_bias) float32 or the same type. The
// state is float32. No function throws or aborts; what is wrong goes to TensorRT's logger.
#include <NvInferRuntime.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

#include "scan_operands.h"
#include "selective_scan_cuda.h"

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace tfanet {
namespace {

constexpr const char* kName = "SelectiveScan";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "tfanet";
constexpr const char* kSoftplusField = "delta_softplus";
constexpr const char* kOptionalField = "optional_inputs";
constexpr int kFail = -1;

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// One line to TensorRT's logger, or to stderr where TensorRT gave none. Returns kFail.
__attribute__((format(printf, 1, 2))) int fail(const char* format, ...) noexcept {
  char line[256] = "tfanet::SelectiveScan: ";
  const std::size_t start = std::strlen(line);
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(line + start, sizeof line - start, format, values);
  va_end(values);
  nvinfer1::ILogger* logger = nullptr;
  if (nvinfer1::ILoggerFinder* const finder = logger_finder.load()) {
    try {
      logger = finder->findLogger();
    } catch (...) {  // the one callback that may throw
    }
  }
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
  return kFail;
}

bool scan_type(DataType type, ScanType& result) noexcept {
  switch (type) {
    case DataType::kFLOAT:
      result = ScanType::kFloat32;
      return true;
    case DataType::kHALF:
      result = ScanType::kFloat16;
      return true;
    case DataType::kBF16:
      result = ScanType::kBFloat16;
      return true;
    default:
      return false;
  }
}

struct Settings {
  std::int32_t softplus = 0;
  std::int32_t optional = -1;  // see ScanInputs
};

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(const Settings& settings) : settings_(settings), inputs_(settings.optional) {
    std::snprintf(summary_, sizeof summary_, "%s=%d,%s=%d", kSoftplusField, settings.softplus,
                  kOptionalField, settings.optional);
  }

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    fail("no capability of type %d", static_cast<int>(type));
    return nullptr;
  }
  nvinfer1::IPluginV3* clone() noexcept override {
    auto* const copy = new (std::nothrow) Plugin(settings_);
    if (copy == nullptr) fail("out of memory");
    return copy;
  }

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuild
  std::int32_t getNbOutputs() const noexcept override { return 1; }

  std::int32_t getOutputDataTypes(DataType* output_types, std::int32_t outputs,
                                  const DataType* input_types,
                                  std::int32_t inputs) const noexcept override {
    if (output_types == nullptr || input_types == nullptr) return fail("null array of types");
    if (!counts_fit(inputs, outputs)) return kFail;
    for (int i = 0; i < inputs; ++i) {
      if (!type_fits(i, [&](int j) { return input_types[j]; })) {
        return fail(
            "%s has type %d: sequences are float32, float16 or bfloat16, all the same; weights are "
            "float32 or that type",
            inputs_[i].name, static_cast<int>(input_types[i]));
      }
    }
    output_types[0] = input_types[0];
    return 0;
  }

  // y has u's shape. Where another input knows a size that u leaves open, y takes it from there.
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs*, std::int32_t shape_inputs,
                               nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                               nvinfer1::IExprBuilder&) noexcept override {
    if (inputs == nullptr || outputs == nullptr) return fail("null array of shapes");
    if (!counts_fit(input_count, output_count)) return kFail;
    if (shape_inputs != 0) return fail("%d shape inputs given, there are none", shape_inputs);
    const nvinfer1::IDimensionExpr* known[kScanAxes] = {};
    ScanSizes sizes;
    for (int i = 0; i < input_count; ++i) {
      const auto size_of = [&](int axis) -> std::int64_t {
        const nvinfer1::IDimensionExpr* const size = inputs[i].d[axis];
        if (size == nullptr || !size->isConstant()) return -1;
        known[inputs_[i].axes[axis]] = size;
        return size->getConstantValue();
      };
      if (!sizes.read(inputs_[i], inputs[i].nbDims, size_of)) return fail("%s", sizes.error());
    }
    if (!sizes.fit()) return fail("%s", sizes.error());
    outputs[0].nbDims = kOperands[0].rank;
    for (int i = 0; i < outputs[0].nbDims; ++i) {
      const nvinfer1::IDimensionExpr* const size = known[kOperands[0].axes[i]];
      outputs[0].d[i] = size != nullptr ? size : inputs[0].d[i];
    }
    return 0;
  }

  bool supportsFormatCombination(std::int32_t position,
                                 const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t inputs, std::int32_t outputs) noexcept override {
    if (tensors == nullptr || !counts_fit(inputs, outputs)) return false;
    if (position < 0 || position >= inputs + outputs) return false;
    if (tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    const auto type_of = [&](int i) { return tensors[i].desc.type; };
    if (position == inputs) return type_of(position) == type_of(0);
    return type_fits(position, type_of);
  }

  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                               std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept override {
    if (inputs == nullptr || outputs == nullptr) return fail("null array of tensors");
    if (!counts_fit(input_count, output_count)) return kFail;
    ScanSizes sizes;
    // Bounds are sizes of a profile each; Dims of rank 0 there say that none was set.
    const auto bounds_fit = [&](nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::* bound) {
      if ((inputs[0].*bound).nbDims <= 0) return true;
      return read(sizes, [&](int i) -> const nvinfer1::Dims& { return inputs[i].*bound; });
    };
    const bool fits =
        read(sizes, [&](int i) -> const nvinfer1::Dims& { return inputs[i].desc.dims; }) &&
        bounds_fit(&nvinfer1::DynamicPluginTensorDesc::min) &&
        bounds_fit(&nvinfer1::DynamicPluginTensorDesc::opt) &&
        bounds_fit(&nvinfer1::DynamicPluginTensorDesc::max);
    return fits ? 0 : fail("%s", sizes.error());
  }

  const char* getTimingCacheID() noexcept override { return summary_; }
  const char* getMetadataString() noexcept override { return summary_; }

  // IPluginV3OneRuntime
  std::int32_t setTactic(std::int32_t tactic) noexcept override {
    return tactic == 0 ? 0 : fail("tactic %d is unknown, there is one: 0", tactic);
  }

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs,
                             std::int32_t output_count) noexcept override {
    if (inputs == nullptr || outputs == nullptr) return fail("null array of tensors");
    if (!counts_fit(input_count, output_count)) return kFail;
    ScanSizes sizes;
    return read_call(sizes, inputs, outputs) ? 0 : kFail;
  }

  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs,
                       const nvinfer1::PluginTensorDesc* outputs, const void* const* input_data,
                       void* const* output_data, void*, cudaStream_t stream) noexcept override {
    if (inputs == nullptr || outputs == nullptr || input_data == nullptr ||
        output_data == nullptr) {
      return fail("null array of tensors");
    }
    ScanSizes sizes;
    if (!read_call(sizes, inputs, outputs)) return kFail;
    if (sizes.empty()) return 0;
    ScanCall call{};
    const auto data = [&](int operand) -> const void* {
      const int place = inputs_.place(operand);
      return place < 0 ? nullptr : input_data[place];
    };
    call.u = data(0);
    call.delta = data(1);
    call.A = data(2);
    call.B = data(3);
    call.C = data(4);
    call.D = data(5);
    call.delta_bias = data(6);
    call.z = data(7);
    call.y = output_data[0];
    call.batch = sizes[kBatch];
    call.dim = sizes[kDim];
    call.length = sizes[kLength];
    call.groups = sizes[kGroups];
    call.states = sizes[kStates];
    call.softplus = settings_.softplus != 0;
    for (int i = 0; i < inputs_.count(); ++i) {
      if (input_data[i] == nullptr) return fail("%s has no memory", inputs_[i].name);
    }
    if (call.y == nullptr) return fail("y has no memory");
    if (!scan_type(inputs[0].type, call.io) || !scan_type(inputs[2].type, call.weight)) {
      return fail("types %d and %d are not supported", static_cast<int>(inputs[0].type),
                  static_cast<int>(inputs[2].type));
    }
    const char* const wrong = launch_selective_scan(call, stream);
    return wrong == nullptr ? 0 : fail("%s", wrong);
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_[0] = {kSoftplusField, &settings_.softplus, PluginFieldType::kINT32, 1};
    fields_[1] = {kOptionalField, &settings_.optional, PluginFieldType::kINT32, 1};
    collection_ = {2, fields_};
    return &collection_;
  }

 private:
  bool counts_fit(std::int32_t inputs, std::int32_t outputs) const noexcept {
    if (inputs == inputs_.count() && outputs == 1) return true;
    fail("%d inputs and %d outputs, but %s = %d means %d inputs and 1 output", inputs, outputs,
         kOptionalField, settings_.optional, inputs_.count());
    return false;
  }

  // Whether input `i` may have its type, given those before it.
  template <typename TypeOf>
  bool type_fits(int i, TypeOf type_of) const noexcept {
    ScanType known;
    if (i == 0) return scan_type(type_of(0), known);
    if (!inputs_[i].weight) return type_of(i) == type_of(0);
    return i == 2 ? type_of(2) == DataType::kFLOAT || type_of(2) == type_of(0)
                  : type_of(i) == type_of(2);
  }

  // Reads the shapes of all inputs, -1 where a size is open.
  template <typename DimsOf>
  bool read(ScanSizes& sizes, DimsOf dims_of) const noexcept {
    sizes = ScanSizes();
    for (int i = 0; i < inputs_.count(); ++i) {
      const nvinfer1::Dims& dims = dims_of(i);
      if (!sizes.read(inputs_[i], dims.nbDims, [&](int axis) { return dims.d[axis]; })) {
        return false;
      }
    }
    return sizes.fit();
  }

  // Reads the sizes of a call, all of them known, and compares y with u.
  bool read_call(ScanSizes& sizes, const nvinfer1::PluginTensorDesc* inputs,
                 const nvinfer1::PluginTensorDesc* outputs) const noexcept {
    if (!read(sizes, [&](int i) -> const nvinfer1::Dims& { return inputs[i].dims; })) {
      fail("%s", sizes.error());
      return false;
    }
    for (int axis = 0; axis < kScanAxes; ++axis) {
      if (sizes[static_cast<ScanAxis>(axis)] < 0) {
        fail("%s is not known when the scan runs", kAxisNames[axis]);
        return false;
      }
    }
    const nvinfer1::Dims& u = inputs[0].dims;
    const nvinfer1::Dims& y = outputs[0].dims;
    if (y.nbDims != u.nbDims || std::memcmp(y.d, u.d, sizeof u.d[0] * u.nbDims) != 0) {
      fail("y has another shape than u");
      return false;
    }
    return true;
  }

  const Settings settings_;
  const ScanInputs inputs_;
  char summary_[64];
  PluginField fields_[2];
  PluginFieldCollection collection_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    Settings settings;
    if (!read(fields, settings)) return nullptr;
    if (settings.optional < 0) {
      fail(
          "node '%s' has no attribute %s: write the ONNX file with "
          "tfanet.plugins.tensorrt_plugin.plugin_graph",
          name == nullptr ? "" : name, kOptionalField);
      return nullptr;
    }
    if (phase != nvinfer1::TensorRTPhase::kBUILD && phase != nvinfer1::TensorRTPhase::kRUNTIME) {
      fail("phase %d is unknown", static_cast<int>(phase));
      return nullptr;
    }
    auto* const plugin = new (std::nothrow) Plugin(settings);
    if (plugin == nullptr) fail("out of memory");
    return plugin;
  }

 private:
  static bool read(const PluginFieldCollection* fields, Settings& settings) noexcept {
    if (fields == nullptr || fields->nbFields < 0 ||
        (fields->nbFields > 0 && fields->fields == nullptr)) {
      fail("no fields were given");
      return false;
    }
    for (int i = 0; i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      const char* const name = field.name == nullptr ? "" : field.name;
      const bool softplus = std::strcmp(name, kSoftplusField) == 0;
      if (!softplus && std::strcmp(name, kOptionalField) != 0) {
        fail("field '%s' is unknown: there are %s and %s", name, kSoftplusField, kOptionalField);
        return false;
      }
      if (field.type != PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
        fail("field %s must be one 32-bit integer", name);
        return false;
      }
      std::int32_t value = 0;
      std::memcpy(&value, field.data, sizeof value);
      const std::int32_t largest = softplus ? 1 : ScanInputs::kAllOptional;
      if (value < 0 || value > largest) {
        fail("%s is %d, expected 0 to %d", name, value, largest);
        return false;
      }
      (softplus ? settings.softplus : settings.optional) = value;
    }
    return true;
  }

  const PluginField fields_[2] = {{kSoftplusField, nullptr, PluginFieldType::kINT32, 1},
                                  {kOptionalField, nullptr, PluginFieldType::kINT32, 1}};
  const PluginFieldCollection collection_ = {2, fields_};
};

}  // namespace
}  // namespace tfanet

// What IPluginRegistry::loadLibrary looks for, and the major version of TensorRT that this library
// is for: interfaces differ between them, and loadLibrary does not compare.
#define TFANET_EXPORT extern "C" __attribute__((visibility("default")))

TFANET_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static tfanet::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

TFANET_EXPORT int tfanet_tensorrt_major() { return NV_TENSORRT_MAJOR; }

TFANET_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  tfanet::logger_finder.store(finder);
}
