#include "operator_plugin.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

namespace tfanet {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

int fail_in(const char* name, const char* format, ...) noexcept {
  char line[256];
  const int start = std::snprintf(line, sizeof line, "tfanet::%s: ", name);
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(line + start, sizeof line - static_cast<std::size_t>(start), format, values);
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

namespace {

operands::Element element_of(ScanType type) {
  switch (type) {
    case ScanType::kFloat16:
      return operands::Element::kFloat16;
    case ScanType::kBFloat16:
      return operands::Element::kBFloat16;
    default:
      return operands::Element::kFloat32;
  }
}

}  // namespace

nvinfer1::IPluginCapability* OperatorPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  fail_in(table_.op_type, "no capability of type %d", static_cast<int>(type));
  return nullptr;
}

nvinfer1::IPluginV3* OperatorPlugin::clone() noexcept {
  OperatorPlugin* const result = copy();
  if (result == nullptr) fail_in(table_.op_type, "out of memory");
  return result;
}

std::int32_t OperatorPlugin::getOutputDataTypes(DataType* output_types, std::int32_t output_count,
                                                const DataType* input_types,
                                                std::int32_t input_count) const noexcept {
  if (output_types == nullptr || input_types == nullptr) {
    return fail_in(table_.op_type, "null array of types");
  }
  if (!counts_fit(input_count, output_count)) return kFail;
  for (int i = 0; i < input_count; ++i) {
    if (!type_fits(i, input_types)) {
      return fail_in(table_.op_type, "%s has type %d: %s", input(i).name,
                     static_cast<int>(input_types[i]), types_that_fit());
    }
  }
  output_types[0] = input_types[0];
  return 0;
}

std::int32_t OperatorPlugin::getOutputShapes(const nvinfer1::DimsExprs* shapes,
                                             std::int32_t input_count, const nvinfer1::DimsExprs*,
                                             std::int32_t shape_inputs,
                                             nvinfer1::DimsExprs* outputs,
                                             std::int32_t output_count,
                                             nvinfer1::IExprBuilder&) noexcept {
  if (shapes == nullptr || outputs == nullptr)
    return fail_in(table_.op_type, "null array of shapes");
  if (!counts_fit(input_count, output_count)) return kFail;
  if (shape_inputs != 0) {
    return fail_in(table_.op_type, "%d shape inputs given, there are none", shape_inputs);
  }
  const nvinfer1::IDimensionExpr* known[operands::kMaxAxes] = {};
  OperandSizes sizes(table_, fit_);
  for (int i = 0; i < input_count; ++i) {
    const auto size_of = [&](int axis) -> std::int64_t {
      const nvinfer1::IDimensionExpr* const size = shapes[i].d[axis];
      if (size == nullptr || !size->isConstant()) return -1;
      known[input(i).axes[axis]] = size;
      return size->getConstantValue();
    };
    if (!sizes.read(input(i), shapes[i].nbDims, size_of))
      return fail_in(table_.op_type, "%s", sizes.error());
  }
  if (!sizes.fit()) return fail_in(table_.op_type, "%s", sizes.error());
  outputs[0].nbDims = input(0).rank;
  for (int i = 0; i < outputs[0].nbDims; ++i) {
    const nvinfer1::IDimensionExpr* const size = known[input(0).axes[i]];
    outputs[0].d[i] = size != nullptr ? size : shapes[0].d[i];
  }
  return 0;
}

bool OperatorPlugin::type_fits(int i, const DataType* types) const noexcept {
  ScanType u, own;
  if (!scan_type(types[0], u) || !scan_type(types[i], own)) return false;
  if (!input(i).weight) return own == u;
  for (int before = 0; before < i; ++before) {
    if (input(before).weight && types[before] != types[i]) return false;
  }
  return operands::in_cuda(table_, element_of(u), element_of(own));
}

bool OperatorPlugin::supportsFormatCombination(std::int32_t position,
                                               const DynamicPluginTensorDesc* tensors,
                                               std::int32_t input_count,
                                               std::int32_t output_count) noexcept {
  if (tensors == nullptr || !counts_fit(input_count, output_count)) return false;
  if (position < 0 || position >= input_count + output_count) return false;
  if (tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == input_count) return tensors[position].desc.type == tensors[0].desc.type;
  DataType types[operands::kMaxInputs] = {};
  for (int i = 0; i <= position; ++i) types[i] = tensors[i].desc.type;
  return type_fits(position, types);
}

std::int32_t OperatorPlugin::configurePlugin(const DynamicPluginTensorDesc* tensors,
                                             std::int32_t input_count,
                                             const DynamicPluginTensorDesc* outputs,
                                             std::int32_t output_count) noexcept {
  if (tensors == nullptr || outputs == nullptr)
    return fail_in(table_.op_type, "null array of tensors");
  if (!counts_fit(input_count, output_count)) return kFail;
  OperandSizes sizes(table_, fit_);
  // Bounds are sizes of a profile each; Dims of rank 0 there say that none was set.
  const auto bounds_fit = [&](nvinfer1::Dims DynamicPluginTensorDesc::* bound) {
    if ((tensors[0].*bound).nbDims <= 0) return true;
    return read(sizes, [&](int i) -> const nvinfer1::Dims& { return tensors[i].*bound; });
  };
  const bool fits =
      read(sizes, [&](int i) -> const nvinfer1::Dims& { return tensors[i].desc.dims; }) &&
      bounds_fit(&DynamicPluginTensorDesc::min) && bounds_fit(&DynamicPluginTensorDesc::opt) &&
      bounds_fit(&DynamicPluginTensorDesc::max);
  return fits ? 0 : fail_in(table_.op_type, "%s", sizes.error());
}

// Of the largest sizes of a profile, or of the tensors' own where none was set.
std::size_t OperatorPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* tensors,
                                             std::int32_t input_count,
                                             const DynamicPluginTensorDesc*,
                                             std::int32_t output_count) const noexcept {
  ScanType type;
  OperandSizes sizes(table_, fit_);
  if (tensors == nullptr || !counts_fit(input_count, output_count)) return 0;
  const bool bounded = tensors[0].max.nbDims > 0;
  const bool known = read(sizes, [&](int i) -> const nvinfer1::Dims& {
    return bounded ? tensors[i].max : tensors[i].desc.dims;
  });
  if (!known || sizes.unknown() != nullptr || !scan_type(tensors[0].desc.type, type)) return 0;
  return workspace_bytes(sizes, type);
}

std::int32_t OperatorPlugin::setTactic(std::int32_t tactic) noexcept {
  return tactic == 0 ? 0 : fail_in(table_.op_type, "tactic %d is unknown, there is one: 0", tactic);
}

std::int32_t OperatorPlugin::onShapeChange(const PluginTensorDesc* tensors,
                                           std::int32_t input_count,
                                           const PluginTensorDesc* outputs,
                                           std::int32_t output_count) noexcept {
  if (tensors == nullptr || outputs == nullptr)
    return fail_in(table_.op_type, "null array of tensors");
  if (!counts_fit(input_count, output_count)) return kFail;
  OperandSizes sizes(table_, fit_);
  return read_call(sizes, tensors, outputs) ? 0 : kFail;
}

std::int32_t OperatorPlugin::enqueue(const PluginTensorDesc* tensors,
                                     const PluginTensorDesc* outputs, const void* const* input_data,
                                     void* const* output_data, void* workspace,
                                     cudaStream_t stream) noexcept {
  if (tensors == nullptr || outputs == nullptr || input_data == nullptr || output_data == nullptr) {
    return fail_in(table_.op_type, "null array of tensors");
  }
  OperandSizes sizes(table_, fit_);
  if (!read_call(sizes, tensors, outputs)) return kFail;
  for (int i = 0; i < tensors[0].dims.nbDims; ++i) {
    if (tensors[0].dims.d[i] == 0) return 0;
  }
  for (int i = 0; i < inputs(); ++i) {
    if (input_data[i] == nullptr) return fail_in(table_.op_type, "%s has no memory", input(i).name);
  }
  if (output_data[0] == nullptr) return fail_in(table_.op_type, "y has no memory");
  const char* const wrong = launch(sizes, tensors, input_data, output_data[0], workspace, stream);
  return wrong == nullptr ? 0 : fail_in(table_.op_type, "%s", wrong);
}

template <typename DimsOf>
bool OperatorPlugin::read(OperandSizes& sizes, DimsOf dims_of) const noexcept {
  sizes = OperandSizes(table_, fit_);
  for (int i = 0; i < inputs(); ++i) {
    const nvinfer1::Dims& dims = dims_of(i);
    if (!sizes.read(input(i), dims.nbDims, [&](int axis) { return dims.d[axis]; })) return false;
  }
  return sizes.fit();
}

bool OperatorPlugin::read_call(OperandSizes& sizes, const PluginTensorDesc* tensors,
                               const PluginTensorDesc* outputs) const noexcept {
  if (!read(sizes, [&](int i) -> const nvinfer1::Dims& { return tensors[i].dims; })) {
    fail_in(table_.op_type, "%s", sizes.error());
    return false;
  }
  if (const char* const axis = sizes.unknown()) {
    fail_in(table_.op_type, "%s is not known when the scan runs", axis);
    return false;
  }
  const nvinfer1::Dims& u = tensors[0].dims;
  const nvinfer1::Dims& y = outputs[0].dims;
  if (y.nbDims != u.nbDims || std::memcmp(y.d, u.d, sizeof u.d[0] * u.nbDims) != 0) {
    fail_in(table_.op_type, "y has another shape than u");
    return false;
  }
  return true;
}

}  // namespace tfanet

// What IPluginRegistry::loadLibrary looks for, and the major version of TensorRT that this library
// is for: interfaces differ between them, and loadLibrary does not compare.
#define TFANET_EXPORT extern "C" __attribute__((visibility("default")))

TFANET_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {tfanet::selective_scan_creator(),
                                                                tfanet::ss2d_creator()};
  count = 2;
  return creators;
}

TFANET_EXPORT int tfanet_tensorrt_major() { return NV_TENSORRT_MAJOR; }

TFANET_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  tfanet::logger_finder.store(finder);
}
