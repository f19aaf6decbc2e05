// What the operators for ONNX Runtime share: the check of operands, errors.
//
// Only the C interface of ONNX Runtime is used, no exception crosses it, and every function comes
// from the running ONNX Runtime: kApiVersion is the oldest one that loads this library. Several may
// run in one process, such as Python's and that of libtfanet_runtime.so: what belongs to one never
// meets the functions of another, so each has operators of its own.
#ifndef TFANET_ONNXRUNTIME_OPERATOR_H
#define TFANET_ONNXRUNTIME_OPERATOR_H

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "../cpu/selective_scan.h"
#include "../operands.h"
#ifdef TFANET_WITH_CUDA
#include "../cuda/selective_scan_cuda.h"
#endif

namespace tfanet_ort {

constexpr uint32_t kApiVersion = 20;
static_assert(ORT_API_VERSION >= kApiVersion, "headers of ONNX Runtime 1.20 or newer are needed");

// Below this cost one thread is done before a second one has woken up.
constexpr double kCostWorthThreads = 100e3;
// Parts that a call is cut into at most.
constexpr int64_t kParts = 32;

#define RETURN_IF_ERROR(call)                             \
  do {                                                    \
    OrtStatus* const status_of_call = (call);             \
    if (status_of_call != nullptr) return status_of_call; \
  } while (false)

// Operands of one call; an axis of size -1 is not known, an optional input may be null.
struct Operands {
  const void* data[tfanet::operands::kMaxInputs] = {};
  int64_t sizes[tfanet::operands::kMaxAxes] = {-1, -1, -1, -1, -1, -1, -1, -1, -1};
};

enum class Provider { kCpu, kCuda };

// An operator of one ONNX Runtime, for one provider and pair of element types: of most inputs and
// the output, and of the weights.
// What remains to be set are CreateKernelV2, KernelComputeV2 and KernelDestroy.
struct Operator : OrtCustomOp {
  Operator(const OrtApi& api, const tfanet::operands::Operator& table,
           tfanet::operands::Types types, Provider provider);

  const OrtApi* api;
  const tfanet::operands::Operator* table;
  tfanet::operands::Types types;
  Provider provider;
};

inline const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

// "<operator>: <message>", in the manner of printf.
OrtStatus* failure(const Operator& op, OrtErrorCode code, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// Reads all inputs; an error names the one that is missing or whose shape does not fit.
OrtStatus* read_inputs(const OrtKernelContext* context, const Operator& op, Operands& operands);

tfanet::DType kernel_type(tfanet::operands::Element type);
#ifdef TFANET_WITH_CUDA
tfanet::ScanType cuda_type(tfanet::operands::Element type);
#endif

// Adds operators of the class Op to the domain, one for each provider and pair of element types
// that there is a kernel for. They live as long as the process.
template <class Op>
OrtStatus* add_operators(const OrtApi& api, OrtCustomOpDomain* domain,
                         const tfanet::operands::Operator& table) {
  const auto add = [&](const tfanet::operands::Types* types, int count,
                       Provider provider) -> OrtStatus* {
    for (int i = 0; i < count; ++i) {
      auto* op = new (std::nothrow) Op(api, table, types[i], provider);
      if (op == nullptr) return api.CreateStatus(ORT_FAIL, "tfanet: out of memory");
      RETURN_IF_ERROR(api.CustomOpDomain_Add(domain, op));
    }
    return nullptr;
  };
  RETURN_IF_ERROR(add(table.cpu_types, table.cpu, Provider::kCpu));
#ifdef TFANET_WITH_CUDA
  RETURN_IF_ERROR(add(table.cuda_types, table.cuda, Provider::kCuda));
#endif
  return nullptr;
}

OrtStatus* add_selective_scan(const OrtApi& api, OrtCustomOpDomain* domain);
OrtStatus* add_ss2d(const OrtApi& api, OrtCustomOpDomain* domain);
OrtStatus* add_ss2d_scan(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace tfanet_ort

#endif
