// libtfanet_cpu.so: the kernel behind a C interface, with threads of its own.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "selective_scan.h"

#define TFANET_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// A thread is started per this much work, so that small scans start none. Threads end with the
// call, which keeps the library safe in a process that forks.
constexpr double kCostPerThread = 4e6;

template <class Run>
void in_parallel(std::int64_t units, double unit_cost, std::int32_t threads, const Run& run) {
  const double useful = 1 + unit_cost * static_cast<double>(units) / kCostPerThread;
  const auto wanted = std::min({static_cast<double>(threads), useful, static_cast<double>(units)});
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t unit; (unit = next++) < units;) run(unit);
  };
  std::vector<std::thread> others;
  try {
    while (static_cast<double>(others.size()) + 2 <= wanted) others.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started, and this one, do all the work.
  }
  work();
  for (std::thread& other : others) other.join();
}

// Results are fresh memory as a rule, and the kernel's zeroing of it page by page takes five times
// as long as the scan itself; with huge pages it does not.
void prefer_huge_pages(const tfanet::ScanArgs& args, void* sequence) {
#if defined(__linux__)
  constexpr std::uintptr_t kHuge = 2 << 20;
  const std::int64_t sizes[] = {4, 8, 2, 2};  // by DType
  const auto bytes =
      static_cast<std::uintptr_t>(args.batch * args.dim * args.length * sizes[args.dtype]);
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(sequence) + kHuge - 1) & -kHuge;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(sequence) + bytes) & -kHuge;
  if (sequence && end > begin) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: may fail
  }
#else
  (void)args, (void)sequence;
#endif
}

}  // namespace

// Grows with every change of the structures or functions below.
TFANET_EXPORT std::int32_t tfanet_abi_version() { return 1; }

TFANET_EXPORT const char* tfanet_isa_name(std::int32_t isa) { return tfanet::isa_name(isa); }

// Both passes return null, or what is wrong with the arguments.
TFANET_EXPORT const char* tfanet_scan_forward(const tfanet::ScanArgs* args, std::int32_t threads) {
  if (const char* wrong = tfanet::check(*args)) return wrong;
  prefer_huge_pages(*args, args->y);
  in_parallel(tfanet::forward_units(*args), tfanet::forward_unit_cost(*args), threads,
              [&](std::int64_t unit) { tfanet::run_forward(*args, unit, unit + 1); });
  return nullptr;
}

TFANET_EXPORT std::int64_t tfanet_scan_backward_slabs(const tfanet::ScanArgs* args) {
  return tfanet::backward_slabs(*args);
}

TFANET_EXPORT const char* tfanet_scan_backward(const tfanet::ScanArgs* args,
                                               const tfanet::ScanGradients* grads,
                                               std::int32_t threads) {
  if (const char* wrong = tfanet::check(*args)) return wrong;
  for (void* gradient : {grads->du, grads->ddelta, grads->dz}) prefer_huge_pages(*args, gradient);
  in_parallel(tfanet::backward_units(*args), tfanet::backward_unit_cost(*args), threads,
              [&](std::int64_t unit) { tfanet::run_backward(*args, *grads, unit, unit + 1); });
  return nullptr;
}
