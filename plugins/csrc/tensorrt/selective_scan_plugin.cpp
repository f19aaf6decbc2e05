// The ONNX node tfanet::SelectiveScan as a TensorRT plugin (IPluginV3), for trtexec
// --dynamicPlugins, IPluginRegistry::loadLibrary and programs without Python.
//
// The node carries plugin_namespace = "tfanet", plugin_version = "1", delta_softplus and
// optional_inputs (tfanet.plugins.tensorrt.plugin_graph writes them). Sequences are float32,
// float16 or bfloat16, weights (A, D, delta_bias) float32 or the same type. The state is float32.
#include <cstdio>
#include <cstring>
#include <new>

#include "operator_plugin.h"
#include "scan_operands.h"

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace tfanet {
namespace {

using namespace operands::selective_scan;

constexpr const char* kName = kOperator.op_type;
constexpr const char* kSoftplusField = "delta_softplus";
constexpr const char* kOptionalField = "optional_inputs";

struct Settings {
  std::int32_t softplus = 0;
  std::int32_t optional = -1;  // see ScanInputs
};

class Plugin final : public OperatorPlugin {
 public:
  explicit Plugin(const Settings& settings)
      : OperatorPlugin(kOperator, scan_fits), settings_(settings), inputs_(settings.optional) {
    std::snprintf(summary_, sizeof summary_, "%s=%d,%s=%d", kSoftplusField, settings.softplus,
                  kOptionalField, settings.optional);
  }

  const char* getTimingCacheID() noexcept override { return summary_; }
  const char* getMetadataString() noexcept override { return summary_; }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_[0] = {kSoftplusField, &settings_.softplus, PluginFieldType::kINT32, 1};
    fields_[1] = {kOptionalField, &settings_.optional, PluginFieldType::kINT32, 1};
    collection_ = {2, fields_};
    return &collection_;
  }

 private:
  OperatorPlugin* copy() const noexcept override { return new (std::nothrow) Plugin(settings_); }
  int inputs() const noexcept override { return inputs_.count(); }
  const operands::Operand& input(int i) const noexcept override { return inputs_[i]; }

  bool counts_fit(std::int32_t inputs, std::int32_t outputs) const noexcept override {
    if (inputs == inputs_.count() && outputs == 1) return true;
    fail_in(kName, "%d inputs and %d outputs, but %s = %d means %d inputs and 1 output", inputs,
            outputs, kOptionalField, settings_.optional, inputs_.count());
    return false;
  }

  const char* types_that_fit() const noexcept override {
    return "sequences are float32, float16 or bfloat16, all the same; weights are float32 or that "
           "type";
  }

  const char* launch(const OperandSizes& sizes, const nvinfer1::PluginTensorDesc* inputs,
                     const void* const* input_data, void* y, void*,
                     cudaStream_t stream) const noexcept override {
    ScanCall call{};
    const auto data = [&](int operand) -> const void* {
      const int place = inputs_.place(operand);
      return place < 0 ? nullptr : input_data[place];
    };
    call.u = data(kU);
    call.delta = data(kDelta);
    call.A = data(kA);
    call.B = data(kB);
    call.C = data(kC);
    call.D = data(kD);
    call.delta_bias = data(kDeltaBias);
    call.z = data(kZ);
    call.y = y;
    call.batch = sizes[kBatch];
    call.dim = sizes[kDim];
    call.length = sizes[kLength];
    call.groups = sizes[kGroups];
    call.states = sizes[kStates];
    call.softplus = settings_.softplus != 0;
    if (!scan_type(inputs[kU].type, call.io) || !scan_type(inputs[kA].type, call.weight)) {
      return "the types of u and A are not supported";
    }
    return launch_selective_scan(call, stream);
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
      fail_in(kName,
              "node '%s' has no attribute %s: write the ONNX file with "
              "tfanet.plugins.tensorrt.plugin_graph",
              name == nullptr ? "" : name, kOptionalField);
      return nullptr;
    }
    if (phase != nvinfer1::TensorRTPhase::kBUILD && phase != nvinfer1::TensorRTPhase::kRUNTIME) {
      fail_in(kName, "phase %d is unknown", static_cast<int>(phase));
      return nullptr;
    }
    auto* const plugin = new (std::nothrow) Plugin(settings);
    if (plugin == nullptr) fail_in(kName, "out of memory");
    return plugin;
  }

 private:
  static bool read(const PluginFieldCollection* fields, Settings& settings) noexcept {
    if (fields == nullptr || fields->nbFields < 0 ||
        (fields->nbFields > 0 && fields->fields == nullptr)) {
      fail_in(kName, "no fields were given");
      return false;
    }
    for (int i = 0; i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      const char* const name = field.name == nullptr ? "" : field.name;
      const bool softplus = std::strcmp(name, kSoftplusField) == 0;
      if (!softplus && std::strcmp(name, kOptionalField) != 0) {
        fail_in(kName, "field '%s' is unknown: there are %s and %s", name, kSoftplusField,
                kOptionalField);
        return false;
      }
      if (field.type != PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
        fail_in(kName, "field %s must be one 32-bit integer", name);
        return false;
      }
      std::int32_t value = 0;
      std::memcpy(&value, field.data, sizeof value);
      const std::int32_t largest = softplus ? 1 : ScanInputs::kAllOptional;
      if (value < 0 || value > largest) {
        fail_in(kName, "%s is %d, expected 0 to %d", name, value, largest);
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

nvinfer1::IPluginCreatorInterface* selective_scan_creator() {
  static Creator creator;
  return &creator;
}

}  // namespace tfanet
