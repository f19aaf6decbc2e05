// The operators tfanet::SS2D and tfanet::SS2DScan, version 1, for ONNX Runtime: the kernel of
// ss2d.h on the session's own threads, or, for SS2D built with CUDA and on the CUDA execution
// provider, the kernels of ss2d_cuda.h on the session's stream. The workspace comes from the
// session's own allocator.
#include <algorithm>
#include <atomic>
#include <thread>

#include "../cpu/ss2d.h"
#include "operator.h"
#ifdef TFANET_WITH_CUDA
#include "../cuda/ss2d_cuda.h"
#endif

namespace tfanet_ort {
namespace {

using namespace tfanet::operands::ss2d;

// Sizes that are not those of another axis, but follow from them.
OrtStatus* check_sizes(const Operator& op, const int64_t* sizes) {
  for (const int axis : {kK, kRows, kKE}) {
    if (axis >= op.table->axes) continue;
    const int64_t expected = derived_size(*op.table, axis, sizes);
    if (sizes[axis] == expected) continue;
    return failure(op, ORT_INVALID_ARGUMENT, "%s is %lld, expected %lld", op.table->axis[axis],
                   static_cast<long long>(sizes[axis]), static_cast<long long>(expected));
  }
  return nullptr;
}

// A block of the session's memory, aligned to 64 bytes.
class Memory {
 public:
  OrtStatus* take(const OrtKernelContext* context, int64_t bytes) {
    RETURN_IF_ERROR(api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info_));
    RETURN_IF_ERROR(api_.KernelContext_GetAllocator(context, info_, &allocator_));
    return api_.AllocatorAlloc(allocator_, static_cast<size_t>(bytes) + kAlignment, &memory_);
  }
  // Where a tensor of the GPU is. Bound to the session's stream: given back before the kernels have
  // run, it goes to no other stream.
  OrtStatus* take_beside(const OrtKernelContext* context, size_t input, int64_t bytes) {
    const OrtValue* tensor = nullptr;
    const OrtMemoryInfo* place = nullptr;
    RETURN_IF_ERROR(api_.KernelContext_GetInput(context, input, &tensor));
    RETURN_IF_ERROR(api_.GetTensorMemoryInfo(tensor, &place));
    RETURN_IF_ERROR(api_.KernelContext_GetAllocator(context, place, &allocator_));
    return api_.KernelContext_GetScratchBuffer(context, place,
                                               static_cast<size_t>(bytes) + kAlignment, &memory_);
  }
  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  explicit Memory(const OrtApi& api) : api_(api) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (memory_ != nullptr) {
      if (OrtStatus* status = api_.AllocatorFree(allocator_, memory_)) {
        api_.ReleaseStatus(status);
      }
    }
    if (allocator_ != nullptr) api_.ReleaseAllocator(allocator_);
    if (info_ != nullptr) api_.ReleaseMemoryInfo(info_);
  }

 private:
  static constexpr size_t kAlignment = 64;
  const OrtApi& api_;
  OrtMemoryInfo* info_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  void* memory_ = nullptr;
};

// Units of a phase, taken by whichever part is free.
struct Work {
  const tfanet::SS2DArgs& args;
  tfanet::SS2DPhase phase;
  int64_t units;
  std::atomic<int64_t> next{0};
};

void run_part(void* work_of_all, size_t part) {
  auto& work = *static_cast<Work*>(work_of_all);
  for (int64_t unit; (unit = work.next++) < work.units;) {
    tfanet::run_ss2d(work.args, work.phase, unit, static_cast<int64_t>(part));
  }
}

OrtStatus* run_cpu(const Operator& op, OrtKernelContext* context, const Operands& operands,
                   void* y) {
  const int64_t* sizes = operands.sizes;
  tfanet::SS2DArgs args{};
  args.batch = sizes[kBatch];
  args.channels = sizes[kE];
  args.height = sizes[kH];
  args.width = sizes[kW];
  args.rank = sizes[kR];
  args.state = sizes[kN];
  args.dtype = kernel_type(op.types.sequence);
  args.isa = tfanet::kAutomatic;
  args.u = operands.data[kU];
  (op.table == &kWhole ? args.x_proj_weight : args.rows) = operands.data[kProjection];
  args.dt_weight = operands.data[kDtWeight];
  args.dt_bias = operands.data[kDtBias];
  args.A = operands.data[kA];
  args.D = operands.data[kD];
  args.y = y;
  if (const char* why = tfanet::check(args)) {
    return failure(op, ORT_INVALID_ARGUMENT, "%s", why);
  }
  const int64_t channel_units = tfanet::ss2d_units(args, tfanet::kScan);
  if (channel_units == 0) return nullptr;  // an empty map
  const double cost =
      static_cast<double>(channel_units) * tfanet::ss2d_unit_cost(args, tfanet::kScan);
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t parts = cost < kCostWorthThreads ? 1 : std::min(cores, kParts);

  Memory memory(*op.api);
  RETURN_IF_ERROR(memory.take(context, tfanet::ss2d_workspace(args, parts)));
  args.workspace = memory.data();
  for (const tfanet::SS2DPhase phase : {tfanet::kProject, tfanet::kScan}) {
    Work work{args, phase, tfanet::ss2d_units(args, phase)};
    const auto wanted = static_cast<size_t>(std::min(parts, work.units));
    if (wanted == 1) {
      run_part(&work, 0);
    } else {
      RETURN_IF_ERROR(op.api->KernelContext_ParallelFor(context, run_part, wanted, wanted, &work));
    }
  }
  return nullptr;
}

#ifdef TFANET_WITH_CUDA
OrtStatus* run_cuda(const Operator& op, OrtKernelContext* context, const Operands& operands,
                    void* y) {
  const int64_t* sizes = operands.sizes;
  tfanet::SS2DCall call{};
  call.u = operands.data[kU];
  call.x_proj_weight = static_cast<const float*>(operands.data[kProjection]);
  call.dt_weight = static_cast<const float*>(operands.data[kDtWeight]);
  call.dt_bias = static_cast<const float*>(operands.data[kDtBias]);
  call.A = static_cast<const float*>(operands.data[kA]);
  call.D = static_cast<const float*>(operands.data[kD]);
  call.y = y;
  call.batch = sizes[kBatch];
  call.channels = sizes[kE];
  call.height = sizes[kH];
  call.width = sizes[kW];
  call.rank = sizes[kR];
  call.states = sizes[kN];
  call.io = cuda_type(op.types.sequence);
  if (const char* why = tfanet::check_ss2d_sizes(call)) {
    return failure(op, ORT_INVALID_ARGUMENT, "%s", why);
  }
  const int64_t bytes = tfanet::ss2d_workspace(call);
  if (bytes == 0) return nullptr;  // an empty map
  Memory memory(*op.api);
  void* stream = nullptr;
  RETURN_IF_ERROR(memory.take_beside(context, kU, bytes));
  RETURN_IF_ERROR(op.api->KernelContext_GetGPUComputeStream(context, &stream));
  call.workspace = memory.data();
  const char* why = tfanet::launch_ss2d(call, static_cast<cudaStream_t>(stream));
  return why == nullptr ? nullptr : failure(op, ORT_FAIL, "%s", why);
}
#endif

OrtStatus* compute(void* op_of_node, OrtKernelContext* context) {
  const Operator& op = *static_cast<const Operator*>(op_of_node);
  Operands operands;
  RETURN_IF_ERROR(read_inputs(context, op, operands));
  const int64_t* sizes = operands.sizes;
  RETURN_IF_ERROR(check_sizes(op, sizes));
  OrtValue* output = nullptr;
  void* y = nullptr;
  RETURN_IF_ERROR(op.api->KernelContext_GetOutput(context, 0, sizes, 4, &output));
  RETURN_IF_ERROR(op.api->GetTensorMutableData(output, &y));
#ifdef TFANET_WITH_CUDA
  if (op.provider == Provider::kCuda) return run_cuda(op, context, operands, y);
#endif
  return run_cpu(op, context, operands, y);
}

struct SS2DOp : Operator {
  SS2DOp(const OrtApi& running, const tfanet::operands::Operator& table_of_op,
         tfanet::operands::Types types_of_op, Provider provider_of_op)
      : Operator(running, table_of_op, types_of_op, provider_of_op) {
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo*,
                        void** result) -> OrtStatus* {
      *result = const_cast<Operator*>(&self(op));  // a node has nothing of its own
      return nullptr;
    };
    KernelComputeV2 = compute;
    KernelDestroy = [](void*) {};
  }
};

}  // namespace

OrtStatus* add_ss2d(const OrtApi& api, OrtCustomOpDomain* domain) {
  return add_operators<SS2DOp>(api, domain, kWhole);
}

OrtStatus* add_ss2d_scan(const OrtApi& api, OrtCustomOpDomain* domain) {
  return add_operators<SS2DOp>(api, domain, kScanOnly);
}

}  // namespace tfanet_ort
