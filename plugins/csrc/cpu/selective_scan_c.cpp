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
#include "ss2d.h"

#define TFANET_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// A thread is started per this much work, so that small scans start none. Threads end with the
// call, which keeps the library safe in a process that forks.
constexpr double kCostPerThread = 4e6;

// Units that a thread takes at once: enough to prepare one's memory while another is computed, few
// enough that a busy core does not hold up the rest.
std::int64_t run_of_units(std::int64_t units, std::int32_t threads) {
  constexpr std::int64_t kRuns = 16;  // of each thread
  return std::max<std::int64_t>(units / (kRuns * std::max(threads, 1)), 1);
}

// Calls run(unit, part) for every unit; parts, numbered from 0, are the threads.
template <class Run>
void in_parallel(std::int64_t units, double unit_cost, std::int32_t threads, const Run& run) {
  const double useful = 1 + unit_cost * static_cast<double>(units) / kCostPerThread;
  const auto wanted = std::min({static_cast<double>(threads), useful, static_cast<double>(units)});
  std::atomic<std::int64_t> next{0};
  const auto work = [&](std::int64_t part) {
    for (std::int64_t unit; (unit = next++) < units;) run(unit, part);
  };
  std::vector<std::thread> others;
  try {
    for (std::int64_t part = 1; static_cast<double>(part) + 1 <= wanted; ++part) {
      others.emplace_back(work, part);
    }
  } catch (const std::system_error&) {
    // No more threads to be had: those that started, and this one, do all the work.
  }
  work(0);
  for (std::thread& other : others) other.join();
}

// Results are fresh memory as a rule, and the kernel's zeroing of it page by page takes five times
// as long as the scan itself; with huge pages it does not.
void prefer_huge_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t kHuge = 2 << 20;
  const auto first = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (first + kHuge - 1) & -kHuge;
  const std::uintptr_t end = (first + static_cast<std::uintptr_t>(bytes)) & -kHuge;
  if (memory && end > begin) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: may fail
  }
#else
  (void)memory, (void)bytes;
#endif
}

constexpr char kNoThread[] = "threads must be 1 or more";
constexpr char kNoResult[] = "y and the gradients of what is given must not be null";

constexpr std::int64_t kBytes[] = {4, 8, 2, 2};  // by DType

std::int64_t sequence_bytes(const tfanet::ScanArgs& a) {
  return a.batch * a.dim * a.length * kBytes[a.dtype];
}

bool complete(const tfanet::ScanArgs& a, const tfanet::ScanGradients& g) {
  return g.dy && g.du && g.ddelta && g.dA_parts && g.dB_parts && g.dC_parts && (g.dz || !a.z) &&
         (g.dD_parts || !a.D) && (g.ddelta_bias_parts || !a.delta_bias);
}

}  // namespace

// Grows with every change of the structures or functions below.
TFANET_EXPORT std::int32_t tfanet_abi_version() { return 3; }

TFANET_EXPORT const char* tfanet_isa_name(std::int32_t isa) { return tfanet::isa_name(isa); }

// Both passes return null, or what is wrong with the arguments.
TFANET_EXPORT const char* tfanet_scan_forward(const tfanet::ScanArgs* args, std::int32_t threads) {
  if (const char* wrong = tfanet::check(*args)) return wrong;
  if (threads < 1) return kNoThread;
  if (!args->y && sequence_bytes(*args)) return kNoResult;
  prefer_huge_pages(args->y, sequence_bytes(*args));
  const std::int64_t units = tfanet::forward_units(*args), taken = run_of_units(units, threads);
  in_parallel((units + taken - 1) / taken,
              tfanet::forward_unit_cost(*args) * static_cast<double>(taken), threads,
              [&](std::int64_t run, std::int64_t) {
                tfanet::run_forward(*args, run * taken, std::min((run + 1) * taken, units));
              });
  return nullptr;
}

TFANET_EXPORT std::int64_t tfanet_scan_backward_slabs(const tfanet::ScanArgs* args) {
  return tfanet::backward_slabs(*args);
}

TFANET_EXPORT const char* tfanet_scan_backward(const tfanet::ScanArgs* args,
                                               const tfanet::ScanGradients* grads,
                                               std::int32_t threads) {
  if (const char* wrong = tfanet::check(*args)) return wrong;
  if (threads < 1) return kNoThread;
  if (!complete(*args, *grads) && sequence_bytes(*args)) return kNoResult;
  for (void* gradient : {grads->du, grads->ddelta, grads->dz}) {
    prefer_huge_pages(gradient, sequence_bytes(*args));
  }
  in_parallel(tfanet::backward_units(*args), tfanet::backward_unit_cost(*args), threads,
              [&](std::int64_t unit, std::int64_t) {
                tfanet::run_backward(*args, *grads, unit, unit + 1);
              });
  return nullptr;
}

// Bytes of args->workspace for so many threads; the arguments must be right.
TFANET_EXPORT std::int64_t tfanet_ss2d_workspace(const tfanet::SS2DArgs* args,
                                                 std::int32_t threads) {
  return tfanet::ss2d_workspace(*args, threads);
}

TFANET_EXPORT const char* tfanet_ss2d_forward(const tfanet::SS2DArgs* args, std::int32_t threads) {
  if (const char* wrong = tfanet::check(*args)) return wrong;
  if (threads < 1) return kNoThread;
  const std::int64_t elements = args->batch * args->channels * args->height * args->width;
  prefer_huge_pages(args->y, elements * kBytes[args->dtype]);
  prefer_huge_pages(args->workspace, tfanet::ss2d_workspace(*args, threads));
  for (const tfanet::SS2DPhase phase : {tfanet::kProject, tfanet::kScan}) {
    in_parallel(
        tfanet::ss2d_units(*args, phase), tfanet::ss2d_unit_cost(*args, phase), threads,
        [&](std::int64_t unit, std::int64_t part) { tfanet::run_ss2d(*args, phase, unit, part); });
  }
  return nullptr;
}
