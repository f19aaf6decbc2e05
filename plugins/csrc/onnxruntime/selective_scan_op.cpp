// The operator tfanet::SelectiveScan, version 1, for ONNX Runtime: the kernel of selective_scan.h
// on the session's own threads, or, built with CUDA and on the CUDA execution provider, the one of
// selective_scan_cuda.h on the session's stream.
#include <algorithm>
#include <new>

#include "../cpu/selective_scan.h"
#include "operator.h"

namespace tfanet_ort {
namespace {

using namespace tfanet::operands::selective_scan;

struct Kernel {
  const Operator& op;
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
  if (kernel == nullptr) return failure(self(op), ORT_FAIL, "out of memory");
  *result = kernel;
  return nullptr;
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

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
  args.state = sizes[kStates];
  args.groups = sizes[kGroups];
  args.dtype = kernel_type(kernel.op.types.sequence);
  args.weight_dtype = kernel_type(kernel.op.types.weight);
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
  if (const char* why = tfanet::check(args)) {
    return failure(kernel.op, ORT_INVALID_ARGUMENT, "%s", why);
  }

  const int64_t units = tfanet::forward_units(args);
  const double cost = static_cast<double>(units) * tfanet::forward_unit_cost(args);
  if (units == 1 || cost < kCostWorthThreads) {
    tfanet::run_forward(args, 0, units);
    return nullptr;
  }
  // More parts than threads, so that a busy core holds up only one part.
  Work work{args, units, std::min(units, kParts)};
  const auto parts = static_cast<size_t>(work.parts);
  return kernel.op.api->KernelContext_ParallelFor(context, run_part, parts, parts, &work);
}

#ifdef TFANET_WITH_CUDA
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
  call.states = operands.sizes[kStates];
  call.io = cuda_type(kernel.op.types.sequence);
  call.weight = cuda_type(kernel.op.types.weight);
  call.softplus = kernel.delta_softplus;
  void* stream = nullptr;
  RETURN_IF_ERROR(kernel.op.api->KernelContext_GetGPUComputeStream(context, &stream));
  const char* why = tfanet::launch_selective_scan(call, static_cast<cudaStream_t>(stream));
  return why == nullptr ? nullptr : failure(kernel.op, ORT_FAIL, "%s", why);
}
#endif

OrtStatus* compute(void* kernel_of_node, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(kernel_of_node);
  Operands operands;
  RETURN_IF_ERROR(read_inputs(context, kernel.op, operands));
  const int64_t* sizes = operands.sizes;
  const int64_t shape[] = {sizes[kBatch], sizes[kDim], sizes[kLength]};
  OrtValue* output = nullptr;
  void* y = nullptr;
  RETURN_IF_ERROR(kernel.op.api->KernelContext_GetOutput(context, 0, shape, 3, &output));
  RETURN_IF_ERROR(kernel.op.api->GetTensorMutableData(output, &y));
  if (shape[0] == 0 || shape[1] == 0 || shape[2] == 0) return nullptr;
#ifdef TFANET_WITH_CUDA
  if (kernel.op.provider == Provider::kCuda) return run_cuda(kernel, context, operands, y);
#endif
  return run_cpu(kernel, context, operands, y);
}

struct SelectiveScanOp : Operator {
  SelectiveScanOp(const OrtApi& running, const tfanet::operands::Operator& table_of_op,
                  tfanet::operands::Types types_of_op, Provider provider_of_op)
      : Operator(running, table_of_op, types_of_op, provider_of_op) {
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = compute;
    KernelDestroy = destroy_kernel;
  }
};

}  // namespace

OrtStatus* add_selective_scan(const OrtApi& api, OrtCustomOpDomain* domain) {
  return add_operators<SelectiveScanOp>(api, domain, kOperator);
}

}  // namespace tfanet_ort
