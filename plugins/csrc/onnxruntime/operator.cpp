#include "operator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <list>
#include <mutex>

namespace tfanet_ort {

using tfanet::operands::Element;
using tfanet::operands::Operand;

constexpr const char* kCudaProvider = "CUDAExecutionProvider";

OrtStatus* failure(const Operator& op, OrtErrorCode code, const char* format, ...) {
  char text[256];
  const int start = std::snprintf(text, sizeof text, "%s: ", op.table->op_type);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + start, sizeof text - static_cast<size_t>(start), format, arguments);
  va_end(arguments);
  return op.api->CreateStatus(code, text);
}

namespace {

ONNXTensorElementDataType onnx_type(Element type) {
  switch (type) {
    case Element::kFloat64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case Element::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Element::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

OrtStatus* check_shape(const OrtTensorTypeAndShapeInfo* info, const Operator& op,
                       const Operand& input, Operands& operands) {
  size_t rank = 0;
  int64_t shape[4] = {};
  RETURN_IF_ERROR(op.api->GetDimensionsCount(info, &rank));
  if (rank != static_cast<size_t>(input.rank)) {
    return failure(op, ORT_INVALID_ARGUMENT, "input %s has rank %zu, expected %d", input.name, rank,
                   input.rank);
  }
  RETURN_IF_ERROR(op.api->GetDimensions(info, shape, rank));
  for (size_t i = 0; i < rank; ++i) {
    int64_t& known = operands.sizes[input.axes[i]];
    if (known < 0) known = shape[i];
    if (known != shape[i]) {
      return failure(op, ORT_INVALID_ARGUMENT,
                     "%s is %lld in input %s, but %lld in an input before it",
                     op.table->axis[input.axes[i]], static_cast<long long>(shape[i]), input.name,
                     static_cast<long long>(known));
    }
  }
  return nullptr;
}

OrtStatus* read_input(const OrtKernelContext* context, const Operator& op, size_t index,
                      Operands& operands) {
  const OrtApi& api = *op.api;
  const Operand& input = op.table->input[index];
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) {
    if (index >= static_cast<size_t>(op.table->required)) return nullptr;
    return failure(op, ORT_INVALID_ARGUMENT, "input %s is missing", input.name);
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(api.GetTensorTypeAndShape(value, &info));
  OrtStatus* status = check_shape(info, op, input, operands);
  api.ReleaseTensorTypeAndShapeInfo(info);
  RETURN_IF_ERROR(status);
  void* data = nullptr;
  RETURN_IF_ERROR(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  operands.data[index] = data;
  return nullptr;
}

// Other sizes than those of the first input are checked when the node runs.
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *self(op).api;
  OrtTensorTypeAndShapeInfo* first = nullptr;
  RETURN_IF_ERROR(api.ShapeInferContext_GetInputTypeShape(context, 0, &first));
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, first);
}

// A session with this entry in its configuration gets no SS2D and no SS2DScan: the functions of
// these names in the file run instead, around our SelectiveScan. That is right where most of the
// graph runs on a provider that they have no kernel for. The entry's value may name the provider:
// what this library has a kernel for there, stays.
constexpr const char* kPartsEntry = "tfanet.ss2d_as_parts";

// Written into the options that hold our operators.
constexpr const char* kRegisteredEntry = "tfanet.registered";

// The domains of one ONNX Runtime, for sessions with that entry, without it, and with it where it
// names CUDA. They live as long as the process.
struct Domains {
  const OrtApi* api;
  OrtCustomOpDomain* parts = nullptr;
  OrtCustomOpDomain* all = nullptr;
  OrtCustomOpDomain* on_cuda = nullptr;
  OrtStatus* problem = nullptr;

  explicit Domains(const OrtApi* api_of_all) : api(api_of_all), problem(make()) {}

  OrtStatus* make() {
    for (OrtCustomOpDomain** domain : {&parts, &all, &on_cuda}) {
      RETURN_IF_ERROR(api->CreateCustomOpDomain(tfanet::operands::kDomain, domain));
      RETURN_IF_ERROR(add_selective_scan(*api, *domain));
    }
    RETURN_IF_ERROR(add_ss2d(*api, all));
    RETURN_IF_ERROR(add_ss2d_scan(*api, all));
#ifdef TFANET_WITH_CUDA
    RETURN_IF_ERROR(add_ss2d(*api, on_cuda));
#endif
    return nullptr;
  }

  OrtStatus* choose(const OrtSessionOptions* options, OrtCustomOpDomain*& chosen) const {
    int entry = 0;
    RETURN_IF_ERROR(api->HasSessionConfigEntry(options, kPartsEntry, &entry));
    chosen = entry != 0 ? parts : all;
    if (entry == 0) return nullptr;
    char value[32] = "";
    size_t size = 0;
    RETURN_IF_ERROR(api->GetSessionConfigEntry(options, kPartsEntry, nullptr, &size));
    if (size > sizeof value) return nullptr;  // the name of no provider that we have
    RETURN_IF_ERROR(api->GetSessionConfigEntry(options, kPartsEntry, value, &size));
    if (std::strcmp(value, kCudaProvider) == 0) chosen = on_cuda;
    return nullptr;
  }
};

// Sessions may be made in several threads, and of several ONNX Runtimes, at once: the first call of
// each sets its operators up.
const Domains& domains_of(const OrtApi* api) {
  static std::mutex mutex;
  static std::list<Domains> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Domains& domains : known) {
    if (domains.api == api) return domains;
  }
  return known.emplace_back(api);
}

}  // namespace

OrtStatus* read_inputs(const OrtKernelContext* context, const Operator& op, Operands& operands) {
  const auto required = static_cast<size_t>(op.table->required);
  const auto known = static_cast<size_t>(op.table->inputs);
  size_t inputs = 0;
  RETURN_IF_ERROR(op.api->KernelContext_GetInputCount(context, &inputs));
  if (inputs < required) {
    return failure(op, ORT_INVALID_ARGUMENT, "has %zu inputs, needs %zu", inputs, required);
  }
  for (size_t i = 0; i < std::min(inputs, known); ++i) {
    RETURN_IF_ERROR(read_input(context, op, i, operands));
  }
  return nullptr;
}

Operator::Operator(const OrtApi& running, const tfanet::operands::Operator& table_of_op,
                   tfanet::operands::Types types_of_op, Provider provider_of_op)
    : OrtCustomOp{},
      api(&running),
      table(&table_of_op),
      types(types_of_op),
      provider(provider_of_op) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).table->op_type; };
  GetExecutionProviderType = [](const OrtCustomOp* op) -> const char* {
    return self(op).provider == Provider::kCuda ? kCudaProvider : nullptr;
  };
  GetInputTypeCount = [](const OrtCustomOp* op) {
    return static_cast<size_t>(self(op).table->inputs);
  };
  GetInputType = [](const OrtCustomOp* op, size_t index) {
    const tfanet::operands::Types& types = self(op).types;
    return onnx_type(self(op).table->input[index].weight ? types.weight : types.sequence);
  };
  GetInputCharacteristic = [](const OrtCustomOp* op, size_t index) {
    return self(op).table->input[index].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return onnx_type(self(op).types.sequence); };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetStartVersion = [](const OrtCustomOp*) { return tfanet::operands::kVersion; };
  GetEndVersion = [](const OrtCustomOp*) { return tfanet::operands::kVersion; };
  InferOutputShapeFn = infer_shape;
}

tfanet::DType kernel_type(Element type) {
  switch (type) {
    case Element::kFloat64:
      return tfanet::kFloat64;
    case Element::kFloat16:
      return tfanet::kFloat16;
    case Element::kBFloat16:
      return tfanet::kBFloat16;
    default:
      return tfanet::kFloat32;
  }
}

#ifdef TFANET_WITH_CUDA
tfanet::ScanType cuda_type(Element type) {
  switch (type) {
    case Element::kFloat16:
      return tfanet::ScanType::kFloat16;
    case Element::kBFloat16:
      return tfanet::ScanType::kBFloat16;
    default:
      return tfanet::ScanType::kFloat32;
  }
}
#endif

}  // namespace tfanet_ort

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace tfanet_ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(
        ORT_NOT_IMPLEMENTED, "tfanet: ONNX Runtime 1.20 or newer is needed; upgrade it");
  }
  // Options that hold the operators already, through this library or a copy of it, stay as they
  // are: ONNX Runtime refuses a session with the same domain twice.
  int registered = 0;
  RETURN_IF_ERROR(api->HasSessionConfigEntry(options, kRegisteredEntry, &registered));
  if (registered != 0) return nullptr;
  const Domains& domains = domains_of(api);
  if (const OrtStatus* problem = domains.problem) {
    return api->CreateStatus(api->GetErrorCode(problem), api->GetErrorMessage(problem));
  }
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF_ERROR(domains.choose(options, domain));
  RETURN_IF_ERROR(api->AddCustomOpDomain(options, domain));
  return api->AddSessionConfigEntry(options, kRegisteredEntry, "1");
}
