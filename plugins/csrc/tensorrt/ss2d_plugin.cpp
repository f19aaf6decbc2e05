// The ONNX node tfanet::SS2D as a TensorRT plugin (IPluginV3): the fused 2-D scan.
//
// The node carries plugin_namespace = "tfanet" and plugin_version = "1", and has no settings. Maps
// are float32, float16 or bfloat16, weights float32. The state is float32.
#include <new>

#include "operator_plugin.h"
#include "ss2d_cuda.h"

using nvinfer1::DataType;
using nvinfer1::PluginFieldCollection;

namespace tfanet {
namespace {

using namespace operands::ss2d;

constexpr const char* kName = kWhole.op_type;

bool ss2d_fits(const std::int64_t* sizes, char* error, std::size_t room) {
  const auto fails = [&](const char* what, std::int64_t size, const char* expected) {
    std::snprintf(error, room, "%s is %lld, expected %s", what, static_cast<long long>(size),
                  expected);
    return false;
  };
  const auto differs = [&](int axis) {
    const std::int64_t expected = derived_size(kWhole, axis, sizes);
    return sizes[axis] >= 0 && expected >= 0 && sizes[axis] != expected;
  };
  static_assert(kDirections == 4 && kMaxStatesCuda == 64, "the messages say so");
  if (differs(kK)) return fails("K", sizes[kK], "4 directions");
  if (sizes[kR] == 0) return fails("R", sizes[kR], "1 or more");
  if (sizes[kN] == 0 || sizes[kN] > kMaxStatesCuda) {
    return fails("N", sizes[kN], "1 to 64 in this library");
  }
  if (differs(kRows)) return fails("the rows of x_proj_weight", sizes[kRows], "R + 2N");
  if (differs(kKE)) return fails("the rows of A", sizes[kKE], "4E");
  return true;
}

class Plugin final : public OperatorPlugin {
 public:
  Plugin() : OperatorPlugin(kWhole, ss2d_fits) {}

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  OperatorPlugin* copy() const noexcept override { return new (std::nothrow) Plugin; }
  int inputs() const noexcept override { return kInputs; }
  const operands::Operand& input(int i) const noexcept override { return kWhole.input[i]; }

  bool counts_fit(std::int32_t inputs, std::int32_t outputs) const noexcept override {
    if (inputs == kInputs && outputs == 1) return true;
    fail_in(kName, "%d inputs and %d outputs, expected %d inputs and 1 output", inputs, outputs,
            kInputs);
    return false;
  }

  const char* types_that_fit() const noexcept override {
    return "u is float32, float16 or bfloat16, weights are float32";
  }

  static SS2DCall call_of(const OperandSizes& sizes, ScanType io) noexcept {
    SS2DCall call{};
    call.batch = sizes[kBatch];
    call.channels = sizes[kE];
    call.height = sizes[kH];
    call.width = sizes[kW];
    call.rank = sizes[kR];
    call.states = sizes[kN];
    call.io = io;
    return call;
  }

  std::size_t workspace_bytes(const OperandSizes& sizes, ScanType io) const noexcept override {
    const SS2DCall call = call_of(sizes, io);
    return check_ss2d_sizes(call) != nullptr ? 0 : static_cast<std::size_t>(ss2d_workspace(call));
  }

  const char* launch(const OperandSizes& sizes, const nvinfer1::PluginTensorDesc* inputs,
                     const void* const* input_data, void* y, void* workspace,
                     cudaStream_t stream) const noexcept override {
    ScanType io;
    if (!scan_type(inputs[kU].type, io)) return "the type of u is not supported";
    SS2DCall call = call_of(sizes, io);
    const auto weight = [&](int i) { return static_cast<const float*>(input_data[i]); };
    call.u = input_data[kU];
    call.x_proj_weight = weight(kProjection);
    call.dt_weight = weight(kDtWeight);
    call.dt_bias = weight(kDtBias);
    call.A = weight(kA);
    call.D = weight(kD);
    call.y = y;
    call.workspace = workspace;
    return launch_ss2d(call, stream);
  }

  const PluginFieldCollection fields_{0, nullptr};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }

  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    if (fields != nullptr && fields->nbFields > 0) {
      fail_in(kName, "%d fields were given, there are none", fields->nbFields);
      return nullptr;
    }
    if (phase != nvinfer1::TensorRTPhase::kBUILD && phase != nvinfer1::TensorRTPhase::kRUNTIME) {
      fail_in(kName, "phase %d is unknown", static_cast<int>(phase));
      return nullptr;
    }
    auto* const plugin = new (std::nothrow) Plugin;
    if (plugin == nullptr) fail_in(kName, "out of memory");
    return plugin;
  }

 private:
  const PluginFieldCollection fields_{0, nullptr};
};

}  // namespace

nvinfer1::IPluginCreatorInterface* ss2d_creator() {
  static Creator creator;
  return &creator;
}

}  // namespace tfanet
