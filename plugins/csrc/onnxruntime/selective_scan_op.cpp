// The operator tfanet::SelectiveScan, version 1, for ONNX Runtime: checks the operands, then runs
// the kernel of selective_scan.h on the session's own threads, or, built with CUDA and on the CUDA
// execution provider, the one of selective_scan_cuda.h on the session's stream.
//
// Only the C interface of ONNX Runtime is used, no exception crosses it, and every function comes
// from the running ONNX Runtime: kApiVersion is the oldest one that loads this library.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "../selective_scan.h"
#ifdef TFANET_WITH_CUDA
#include "../cuda/selective_scan_cuda.h"
#endif

namespace {

constexpr uint32_t kApiVersion = 20;
static_assert(ORT_API_VERSION >= kApiVersion, "headers of ONNX Runtime 1.20 or newer are needed");

// Below this cost one thread is done before a second one has woken up.
constexpr double kCostWorthThreads = 100e3;
// Parts that a call is cut into; more than threads, so that a busy core holds up only one part.
constexpr int64_t kParts = 32;

enum Input : size_t { kU, kDelta, kA, kB, kC, kD, kDeltaBias, kZ, kInputs };
enum Axis : size_t { kBatch, kDim, kGroups, kState, kLength, kAxes };
constexpr const char* kAxisNames[kAxes] = {"batch", "dim", "G", "N", "L"};

struct InputSpec {
  const char* name;
  bool weight;
  size_t rank;
  Axis axes[4];
};
constexpr InputSpec kSpecs[kInputs] = {
    {"u", false, 3, {kBatch, kDim, kLength}},
    {"delta", false, 3, {kBatch, kDim, kLength}},
    {"A", true, 2, {kDim, kState}},
    {"B", false, 4, {kBatch, kGroups, kState, kLength}},
    {"C", false, 4, {kBatch, kGroups, kState, kLength}},
    {"D", true, 1, {kDim}},
    {"delta_bias", true, 1, {kDim}},
    {"z", false, 3, {kBatch, kDim, kLength}},
};

// Set once, before any operator exists.
const OrtApi* g_api = nullptr;

#define RETURN_IF_ERROR(call)                             \
  do {                                                    \
    OrtStatus* const status_of_call = (call);             \
    if (status_of_call != nullptr) return status_of_call; \
  } while (false)

OrtStatus* failure(OrtErrorCode code, const char* format, ...) {
  char text[256] = "SelectiveScan: ";
  const size_t start = std::strlen(text);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + start, sizeof text - start, format, arguments);
  va_end(arguments);
  return g_api->CreateStatus(code, text);
}

enum class Provider { kCpu, kCuda };

// One operator per provider and pair of element types: of the sequences, and of A, D and
// delta_bias.
struct SelectiveScanOp : OrtCustomOp {
  SelectiveScanOp(ONNXTensorElementDataType sequence, ONNXTensorElementDataType weight,
                  Provider provider = Provider::kCpu);
  ONNXTensorElementDataType sequence, weight;
  Provider provider;
};

const SelectiveScanOp& self(const OrtCustomOp* op) {
  return *static_cast<const SelectiveScanOp*>(op);
}

tfanet::DType kernel_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return tfanet::kFloat64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return tfanet::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return tfanet::kBFloat16;
    default:
      return tfanet::kFloat32;
  }
}

struct Kernel {
  const SelectiveScanOp& op;
  bool delta_softplus;
};

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                         void** result) {
  int64_t softplus = 0;
  if (OrtStatus* absent = api->KernelInfoGetAttribute_int64(info, "delta_softplus", &softplus)) {
    api->ReleaseStatus(absent);
    softplus = 0;  // the attribute's default
  }
  auto* kernel = new (std::nothrow) Kernel{self(op), softplus != 0};
  if (kernel == nullptr) return failure(ORT_FAIL, "out of memory");
  *result = kernel;
  return nullptr;
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

// Operands of one call; an axis of size -1 is not known yet.
struct Operands {
  const void* data[kInputs] = {};
  int64_t sizes[kAxes] = {-1, -1, -1, -1, -1};
};

OrtStatus* check_shape(const OrtTensorTypeAndShapeInfo* info, const InputSpec& spec,
                       Operands& operands) {
  size_t rank = 0;
  int64_t shape[4] = {};
  RETURN_IF_ERROR(g_api->GetDimensionsCount(info, &rank));
  if (rank != spec.rank) {
    return failure(ORT_INVALID_ARGUMENT, "input %s has rank %zu, expected %zu", spec.name, rank,
                   spec.rank);
  }
  RETURN_IF_ERROR(g_api->GetDimensions(info, shape, rank));
  for (size_t i = 0; i < rank; ++i) {
    int64_t& known = operands.sizes[spec.axes[i]];
    if (known < 0) known = shape[i];
    if (known != shape[i]) {
      return failure(ORT_INVALID_ARGUMENT, "%s is %lld in input %s, but %lld in an input before it",
                     kAxisNames[spec.axes[i]], static_cast<long long>(shape[i]), spec.name,
                     static_cast<long long>(known));
    }
  }
  return nullptr;
}

OrtStatus* read_input(const OrtKernelContext* context, size_t index, Operands& operands) {
  const InputSpec& spec = kSpecs[index];
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(g_api->KernelContext_GetInput(context, index, &value));
  if (value == nullptr) {
    if (index >= kD) return nullptr;
    return failure(ORT_INVALID_ARGUMENT, "input %s is missing", spec.name);
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(g_api->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = check_shape(info, spec, operands);
  g_api->ReleaseTensorTypeAndShapeInfo(info);
  RETURN_IF_ERROR(status);
  void* data = nullptr;
  RETURN_IF_ERROR(g_api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  operands.data[index] = data;
  return nullptr;
}

struct Work {
  const tfanet::ScanArgs& args;
  int64_t units, parts;
};

void run_part(void* work_of_all, size_t part) {
  const auto& work = *static_cast<const Work*>(work_of_all);
  const auto p = static_cast<int64_t>(part);
  tfanet::run_forward(work.args, work.units * p / work.parts, work.units * (p + 1) / work.parts);
}

OrtStatus* run_cpu(const Kernel& kernel, OrtKernelContext* context, const Operands& operands,
                   void* y) {
  const int64_t* sizes = operands.sizes;
  tfanet::ScanArgs args{};
  args.batch = sizes[kBatch];
  args.dim = sizes[kDim];
  args.length = sizes[kLength];
  args.state = sizes[kState];
  args.groups = sizes[kGroups];
  args.dtype = kernel_type(kernel.op.sequence);
  args.weight_dtype = kernel_type(kernel.op.weight);
  args.delta_softplus = kernel.delta_softplus;
  args.isa = tfanet::kAutomatic;
  args.u = operands.data[kU];
  args.delta = operands.data[kDelta];
  args.A = operands.data[kA];
  args.B = operands.data[kB];
  args.C = operands.data[kC];
  args.D = operands.data[kD];
  args.delta_bias = operands.data[kDeltaBias];
  args.z = operands.data[kZ];
  args.y = y;
  tfanet::set_contiguous(args);
  if (const char* why = tfanet::check(args)) return failure(ORT_INVALID_ARGUMENT, "%s", why);

  const int64_t units = tfanet::forward_units(args);
  const double cost = static_cast<double>(units) * tfanet::forward_unit_cost(args);
  if (units == 1 || cost < kCostWorthThreads) {
    tfanet::run_forward(args, 0, units);
    return nullptr;
  }
  Work work{args, units, std::min(units, kParts)};
  const auto parts = static_cast<size_t>(work.parts);
  return g_api->KernelContext_ParallelFor(context, run_part, parts, parts, &work);
}

#ifdef TFANET_WITH_CUDA
tfanet::ScanType cuda_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return tfanet::ScanType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return tfanet::ScanType::kBFloat16;
    default:
      return tfanet::ScanType::kFloat32;
  }
}

OrtStatus* run_cuda(const Kernel& kernel, OrtKernelContext* context, const Operands& operands,
                    void* y) {
  tfanet::ScanCall call{};
  call.u = operands.data[kU];
  call.delta = operands.data[kDelta];
  call.A = operands.data[kA];
  call.B = operands.data[kB];
  call.C = operands.data[kC];
  call.D = operands.data[kD];
  call.z = operands.data[kZ];
  call.delta_bias = operands.data[kDeltaBias];
  call.y = y;
  call.batch = operands.sizes[kBatch];
  call.dim = operands.sizes[kDim];
  call.length = operands.sizes[kLength];
  call.groups = operands.sizes[kGroups];
  call.states = operands.sizes[kState];
  call.io = cuda_type(kernel.op.sequence);
  call.weight = cuda_type(kernel.op.weight);
  call.softplus = kernel.delta_softplus;
  void* stream = nullptr;
  RETURN_IF_ERROR(g_api->KernelContext_GetGPUComputeStream(context, &stream));
  const char* why = tfanet::launch_selective_scan(call, static_cast<cudaStream_t>(stream));
  return why == nullptr ? nullptr : failure(ORT_FAIL, "%s", why);
}
#endif

OrtStatus* compute(void* kernel_of_node, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(kernel_of_node);
  size_t inputs = 0;
  RETURN_IF_ERROR(g_api->KernelContext_GetInputCount(context, &inputs));
  Operands operands;
  for (size_t i = 0; i < std::min<size_t>(inputs, kInputs); ++i) {
    RETURN_IF_ERROR(read_input(context, i, operands));
  }
  const int64_t* sizes = operands.sizes;
  if (inputs <= kC) return failure(ORT_INVALID_ARGUMENT, "needs the inputs u, delta, A, B and C");
  const int64_t shape[] = {sizes[kBatch], sizes[kDim], sizes[kLength]};
  OrtValue* output = nullptr;
  void* y = nullptr;
  RETURN_IF_ERROR(g_api->KernelContext_GetOutput(context, 0, shape, 3, &output));
  RETURN_IF_ERROR(g_api->GetTensorMutableData(output, &y));
  if (shape[0] == 0 || shape[1] == 0 || shape[2] == 0) return nullptr;
#ifdef TFANET_WITH_CUDA
  if (kernel.op.provider == Provider::kCuda) return run_cuda(kernel, context, operands, y);
#endif
  return run_cpu(kernel, context, operands, y);
}

// y has the element type and shape of u. Other sizes are checked when the node runs.
OrtStatus* infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* u = nullptr;
  RETURN_IF_ERROR(g_api->ShapeInferContext_GetInputTypeShape(context, kU, &u));
  return g_api->ShapeInferContext_SetOutputTypeShape(context, 0, u);
}

SelectiveScanOp::SelectiveScanOp(ONNXTensorElementDataType sequence_type,
                                 ONNXTensorElementDataType weight_type, Provider provider_of_op)
    : OrtCustomOp{}, sequence(sequence_type), weight(weight_type), provider(provider_of_op) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp*) { return "SelectiveScan"; };
  GetExecutionProviderType = [](const OrtCustomOp* op) -> const char* {
    return self(op).provider == Provider::kCuda ? "CUDAExecutionProvider" : nullptr;
  };
  GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  GetInputType = [](const OrtCustomOp* op, size_t index) {
    return kSpecs[index].weight ? self(op).weight : self(op).sequence;
  };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index < kD ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return self(op).sequence; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = infer_shape;
}

// Lives as long as the process: sessions keep pointers to it.
OrtStatus* operator_domain(OrtCustomOpDomain** result) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  constexpr auto kDouble = ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
  constexpr auto kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  constexpr auto kBrain = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  static SelectiveScanOp ops[] = {
      {kFloat, kFloat},
      {kDouble, kDouble},
      {kHalf, kFloat},
      {kHalf, kHalf},
      {kBrain, kFloat},
      {kBrain, kBrain},
#ifdef TFANET_WITH_CUDA
      {kFloat, kFloat, Provider::kCuda},
      {kHalf, kFloat, Provider::kCuda},
      {kHalf, kHalf, Provider::kCuda},
      {kBrain, kFloat, Provider::kCuda},
      {kBrain, kBrain, Provider::kCuda},
#endif
  };
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF_ERROR(g_api->CreateCustomOpDomain("tfanet", &domain));
  for (SelectiveScanOp& op : ops) {
    if (OrtStatus* status = g_api->CustomOpDomain_Add(domain, &op)) {
      g_api->ReleaseCustomOpDomain(domain);
      return status;
    }
  }
  *result = domain;
  return nullptr;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(
        ORT_NOT_IMPLEMENTED, "SelectiveScan: ONNX Runtime 1.20 or newer is needed; upgrade it");
  }
  // Sessions may be made in several threads at once: the first call sets everything up.
  static OrtCustomOpDomain* domain = nullptr;
  static OrtStatus* const problem = [api] {
    g_api = api;
    return operator_domain(&domain);
  }();
  if (problem != nullptr) {
    return api->CreateStatus(api->GetErrorCode(problem), api->GetErrorMessage(problem));
  }
  return api->AddCustomOpDomain(options, domain);
}
