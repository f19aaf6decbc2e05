#include "cores.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "error.h"

namespace tfanet {
namespace {

struct FreeSet {
  void operator()(cpu_set_t* set) const { CPU_FREE(set); }
};

// What tells the core of a processor from others: the processors that share it.
std::string core_of(int cpu) {
  std::ifstream file(join("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list"));
  std::string siblings;
  std::getline(file, siblings);
  return siblings.empty() ? join("cpu ", cpu) : siblings;
}

}  // namespace

int32_t allowed_cores() {
  // The kernel refuses a set that has no room for all its processors.
  for (int room = 1024; room <= (1 << 20); room *= 2) {
    const std::unique_ptr<cpu_set_t, FreeSet> allowed(CPU_ALLOC(room));
    const size_t size = CPU_ALLOC_SIZE(room);
    if (allowed == nullptr) break;
    if (::sched_getaffinity(0, size, allowed.get()) != 0) {
      if (errno == EINVAL) continue;
      break;
    }
    std::set<std::string> cores;
    for (int cpu = 0; cpu < room; ++cpu) {
      if (CPU_ISSET_S(cpu, size, allowed.get())) cores.insert(core_of(cpu));
    }
    return std::clamp(static_cast<int32_t>(cores.size()), 1, kMaxThreads);
  }
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

}  // namespace tfanet
