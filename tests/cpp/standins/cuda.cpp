// A stand-in for libcuda.so.1: two GPUs made of host memory. It refuses any address that it did not
// give out, and does the work of a stream only when that is waited for.
//
// TFANET_STANDIN_COMPUTE is the compute capability of its GPUs, 89 by default; with
// TFANET_STANDIN_DEVICES there are that many.

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_standin.h"

namespace {

using Work = std::function<void()>;

struct Stream {
  std::deque<Work> work;
  std::vector<Work>* captured = nullptr;
};

struct Event {
  Stream* stream = nullptr;
  size_t recorded = 0, done = 0;
};
using SharedEvent = std::shared_ptr<Event>;  // work in a stream outlives the handle

struct Block {
  size_t size;
  int device;  // -1: of the process
};

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kCaptureFailed = 900;

struct Machine {
  std::recursive_mutex mutex;
  std::map<uint64_t, Block> blocks;
  std::map<void*, int> handles;  // that are held: streams, events, graphs
  std::map<std::string, int> failing;
  size_t limit = SIZE_MAX;
  StandinCounts counts{};
} machine;

thread_local std::vector<void*> contexts;
int devices[2] = {0, 1};

using Lock = std::lock_guard<std::recursive_mutex>;

#define ENTER(name)                                                                    \
  const Lock lock(machine.mutex);                                                      \
  if (const auto found = machine.failing.find(name); found != machine.failing.end()) { \
    return found->second;                                                              \
  }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "the stand-in for CUDA: %s\n", what);
  std::abort();
}

const Block* inside(uint64_t address, size_t size) {
  auto after = machine.blocks.upper_bound(address);
  if (after == machine.blocks.begin()) return nullptr;
  const auto& [start, block] = *--after;
  return address + size <= start + block.size ? &block : nullptr;
}

int allocate(uint64_t* out, size_t size, int device) {
  size_t held = size;
  for (const auto& [start, block] : machine.blocks) held += block.size;
  if (held > machine.limit) return kOutOfMemory;
  void* memory = std::malloc(size);
  std::memset(memory, 0xA5, size);
  *out = reinterpret_cast<uint64_t>(memory);
  machine.blocks[*out] = {size, device};
  return 0;
}

int release(uint64_t address) {
  require(machine.blocks.erase(address) == 1, "memory is freed that is not held");
  std::free(reinterpret_cast<void*>(address));
  return 0;
}

template <typename T>
int hold(void** out, T* made) {
  machine.handles[made] = 1;
  *out = made;
  return 0;
}

template <typename T>
int drop(void* handle) {
  require(machine.handles.erase(handle) == 1, "a handle is destroyed that is not held");
  delete static_cast<T*>(handle);
  return 0;
}

void push(void* handle, Work work) {
  require(machine.handles.count(handle) == 1, "a stream is used that is not held");
  require(!contexts.empty(), "a thread without a context uses a stream");
  auto* stream = static_cast<Stream*>(handle);
  if (stream->captured != nullptr) {
    stream->captured->push_back(std::move(work));
  } else {
    stream->work.push_back(std::move(work));
  }
}

void step(Stream* stream) {
  require(!stream->work.empty(), "an event is waited for that nothing will reach");
  const Work work = std::move(stream->work.front());
  stream->work.pop_front();
  work();
}

int device_of(void* context) { return *static_cast<int*>(context); }

}  // namespace

extern "C" {

void standin_push(void* stream, void (*work)(void*), void* argument) {
  const Lock lock(machine.mutex);
  push(stream, [=] { work(argument); });
}

void standin_fail(const char* function, int error) {
  const Lock lock(machine.mutex);
  if (error == 0) machine.failing.erase(function);
  if (error != 0) machine.failing[function] = error;
}

void standin_limit(size_t bytes) {
  const Lock lock(machine.mutex);
  machine.limit = bytes;
}

StandinCounts standin_counts() {
  const Lock lock(machine.mutex);
  machine.counts.blocks = machine.blocks.size();
  machine.counts.handles = machine.handles.size();
  machine.counts.contexts = contexts.size();
  return machine.counts;
}

int cuInit(unsigned) {
  ENTER("cuInit");
  return 0;
}
int cuDeviceGetCount(int* count) {
  const char* text = std::getenv("TFANET_STANDIN_DEVICES");
  *count = text != nullptr ? std::atoi(text) : 2;
  return 0;
}
int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  std::strncpy(name, "a stand-in", static_cast<size_t>(size));
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  const char* text = std::getenv("TFANET_STANDIN_COMPUTE");
  const int compute = text != nullptr ? std::atoi(text) : 89;
  *value = attribute == 75 ? compute / 10 : compute % 10;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  const Lock lock(machine.mutex);
  *context = &devices[device];
  ++machine.counts.retained;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  const Lock lock(machine.mutex);
  --machine.counts.retained;
  return 0;
}
int cuCtxPushCurrent_v2(void* context) {
  contexts.push_back(context);
  return 0;
}
int cuCtxPopCurrent_v2(void** context) {
  *context = contexts.back();
  contexts.pop_back();
  return 0;
}

int cuMemAlloc_v2(uint64_t* address, size_t size) {
  ENTER("cuMemAlloc_v2");
  require(!contexts.empty(), "a thread without a context allocates");
  return allocate(address, size, device_of(contexts.back()));
}
int cuMemFree_v2(uint64_t address) {
  const Lock lock(machine.mutex);
  return release(address);
}
int cuMemHostAlloc(void** memory, size_t size, unsigned) {
  const Lock lock(machine.mutex);
  uint64_t address = 0;
  const int result = allocate(&address, size, -1);
  *memory = reinterpret_cast<void*>(address);
  return result;
}
int cuMemFreeHost(void* memory) { return cuMemFree_v2(reinterpret_cast<uint64_t>(memory)); }

int cuMemcpyAsync(uint64_t to, uint64_t from, size_t size, void* stream) {
  ENTER("cuMemcpyAsync");
  require(inside(to, size) && inside(from, size), "memory is copied that was never given out");
  push(stream, [=] {
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size);
  });
  return 0;
}

int cuPointerGetAttribute(void* value, int attribute, uint64_t address) {
  const Lock lock(machine.mutex);
  const Block* block = inside(address, 1);
  if (block == nullptr) return kInvalidValue;
  if (attribute == 2) *static_cast<unsigned*>(value) = block->device < 0 ? 1 : 2;
  if (attribute == 9) *static_cast<int*>(value) = block->device;
  return 0;
}

int cuStreamCreate(void** stream, unsigned) {
  const Lock lock(machine.mutex);
  return hold(stream, new Stream);
}
int cuStreamDestroy_v2(void* stream) {
  const Lock lock(machine.mutex);
  require(static_cast<Stream*>(stream)->work.empty(), "a stream is destroyed with work in it");
  return drop<Stream>(stream);
}
int cuStreamSynchronize(void* handle) {
  ENTER("cuStreamSynchronize");
  require(machine.handles.count(handle) == 1, "a stream is waited for that is not held");
  auto* stream = static_cast<Stream*>(handle);
  while (!stream->work.empty()) step(stream);
  return 0;
}

int cuEventCreate(void** event, unsigned) {
  const Lock lock(machine.mutex);
  return hold(event, new SharedEvent(new Event));
}
int cuEventDestroy_v2(void* event) {
  const Lock lock(machine.mutex);
  return drop<SharedEvent>(event);
}
int cuEventRecord(void* handle, void* stream) {
  const Lock lock(machine.mutex);
  const SharedEvent event = *static_cast<SharedEvent*>(handle);
  event->stream = static_cast<Stream*>(stream);
  const size_t number = ++event->recorded;
  push(stream, [=] { event->done = number; });
  return 0;
}
int cuStreamWaitEvent(void* stream, void* handle, unsigned) {
  const Lock lock(machine.mutex);
  const SharedEvent event = *static_cast<SharedEvent*>(handle);
  const size_t number = event->recorded;
  push(stream, [=] {
    while (event->done < number) step(event->stream);
  });
  return 0;
}

int cuStreamBeginCapture_v2(void* stream, int) {
  ENTER("cuStreamBeginCapture_v2");
  static_cast<Stream*>(stream)->captured = new std::vector<Work>;
  return 0;
}
int cuStreamEndCapture(void* handle, void** graph) {
  const Lock lock(machine.mutex);
  auto* stream = static_cast<Stream*>(handle);
  std::vector<Work>* captured = std::exchange(stream->captured, nullptr);
  if (captured->empty()) {  // as where a launch in between failed
    delete captured;
    return kCaptureFailed;
  }
  ++machine.counts.captures;
  return hold(graph, captured);
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  ENTER("cuGraphInstantiateWithFlags");
  return hold(executable, new std::vector<Work>(*static_cast<std::vector<Work>*>(graph)));
}
int cuGraphLaunch(void* executable, void* stream) {
  ENTER("cuGraphLaunch");
  for (const Work& work : *static_cast<std::vector<Work>*>(executable)) push(stream, work);
  ++machine.counts.launches;
  return 0;
}
int cuGraphExecDestroy(void* executable) {
  const Lock lock(machine.mutex);
  return drop<std::vector<Work>>(executable);
}
int cuGraphDestroy(void* graph) { return cuGraphExecDestroy(graph); }

int cuGetErrorName(int error, const char** name) {
  *name = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : error == 100 ? "CUDA_ERROR_NO_DEVICE" : nullptr;
  return *name == nullptr;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == 2     ? "out of memory"
          : error == 100 ? "no CUDA-capable device is detected"
                         : nullptr;
  return *text == nullptr;
}

}  // extern "C"
