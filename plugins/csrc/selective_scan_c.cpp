// libtfanet_cpu.so: the kernel behind a C interface, with threads of its own.
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

}  // namespace

// Grows with every change of the structures or functions below.
TFANET_EXPORT std::int32_t tfanet_abi_version() { return 1; }

TFANET_EXPORT const char* tfanet_isa_name(std::int32_t isa) { return tfanet::isa_name(isa); }

// Both passes return null, or what is wrong with the arguments.
TFANET_EXPORT const char* tfanet_scan_forward(const tfanet::ScanArgs* args, std::int32_t threads) {
  if (const char* wrong = tfanet::check(*args)) return wrong;
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
  in_parallel(tfanet::backward_units(*args), tfanet::backward_unit_cost(*args), threads,
              [&](std::int64_t unit) { tfanet::run_backward(*args, *grads, unit, unit + 1); });
  return nullptr;
}
