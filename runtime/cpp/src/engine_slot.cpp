#include "engine_slot.h"

#include <cstring>

#include "error.h"

namespace tfanet {
namespace {

// Of cuda.h, where they are enumerated.
constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2;
constexpr int kCaptureThreadLocal = 1;

CudaDriver::Address address_of(const void* memory) {
  return reinterpret_cast<CudaDriver::Address>(memory);
}

size_t bytes_of_one(const engines::Tensor& tensor) {
  size_t bytes = tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? 8 : 4;
  for (int32_t axis = 1; axis < tensor.rank; ++axis) {
    bytes *= static_cast<size_t>(tensor.shape[axis]);
  }
  return bytes;
}

}  // namespace

EngineSlot::EngineSlot(const Device& device, Context context,
                       const std::vector<engines::Tensor>& tensors, bool may_be_captured)
    : device_(device),
      cuda_(device.driver()),
      context_(std::move(context)),
      may_be_captured_(may_be_captured) {
  try {
    make(tensors);
  } catch (...) {
    free();
    throw;
  }
}

EngineSlot::~EngineSlot() {
  if (running_) cuda_.cuStreamSynchronize(stream_);
  free();
}

void EngineSlot::make(const std::vector<engines::Tensor>& tensors) {
  device_.check(cuda_.cuStreamCreate(&stream_, kStreamNonBlocking));
  device_.check(cuda_.cuEventCreate(&before_, kEventDisableTiming));
  device_.check(cuda_.cuEventCreate(&after_, kEventDisableTiming));
  for (const engines::Tensor& tensor : tensors) {
    Buffer& buffer = buffers_[tensor.name];
    buffer.tensor = &tensor;
    buffer.bytes = bytes_of_one(tensor);
    const size_t room = buffer.bytes * static_cast<size_t>(tensor.highest_batch);
    device_.check(cuda_.cuMemHostAlloc(&buffer.host, room, 0));
    device_.check(cuda_.cuMemAlloc_v2(&buffer.device, room));
    if (!context_->set_address(tensor.name, reinterpret_cast<void*>(buffer.device))) {
      fail(TFANET_FAILED, "the engine takes no memory for '", tensor.name, "'");
    }
  }
}

void EngineSlot::free() {
  drop_graph();
  context_.reset();
  for (auto& [name, buffer] : buffers_) {
    if (buffer.device != 0) cuda_.cuMemFree_v2(buffer.device);
    if (buffer.host != nullptr) cuda_.cuMemFreeHost(buffer.host);
  }
  for (const Handle event : {before_, after_}) {
    if (event != nullptr) cuda_.cuEventDestroy_v2(event);
  }
  if (stream_ != nullptr) cuda_.cuStreamDestroy_v2(stream_);
}

void EngineSlot::copy(CudaDriver::Address to, CudaDriver::Address from, size_t bytes) {
  device_.check(cuda_.cuMemcpyAsync(to, from, bytes, stream_));
}

bool EngineSlot::run(const std::vector<Feed>& feeds, std::vector<Output>& outputs, int64_t batch,
                     Handle stream) {
  // The last call may have left work behind that reads the page-locked memory.
  if (running_) device_.check(cuda_.cuStreamSynchronize(stream_));
  running_ = true;
  if (stream != nullptr) {
    device_.check(cuda_.cuEventRecord(before_, stream));
    device_.check(cuda_.cuStreamWaitEvent(stream_, before_, 0));
  }
  for (const Feed& feed : feeds) upload(feed);
  if (!execute(batch)) {
    batch_ = 0;
    return false;
  }
  bool wait = stream == nullptr;
  for (const Output& output : outputs) {
    const Buffer& buffer = buffers_.at(output.name);
    const size_t bytes = buffer.bytes * static_cast<size_t>(batch);
    wait = wait || output.device == nullptr;
    copy(address_of(output.device != nullptr ? output.device : buffer.host), buffer.device, bytes);
  }
  if (!wait) {
    device_.check(cuda_.cuEventRecord(after_, stream_));
    device_.check(cuda_.cuStreamWaitEvent(stream, after_, 0));
    return true;
  }
  device_.check(cuda_.cuStreamSynchronize(stream_));
  running_ = false;
  for (Output& output : outputs) {
    if (output.device != nullptr) continue;
    const Buffer& buffer = buffers_.at(output.name);
    const engines::Tensor& tensor = *buffer.tensor;
    output.shape.assign(tensor.shape, tensor.shape + tensor.rank);
    output.shape[0] = batch;
    const auto* begin = static_cast<const float*>(buffer.host);
    output.data.assign(begin, begin + buffer.bytes / sizeof(float) * static_cast<size_t>(batch));
  }
  return true;
}

void EngineSlot::upload(const Feed& feed) {
  const Buffer& buffer = buffers_.at(feed.name);
  const void* from = feed.data;
  if (!feed.on_device) from = std::memcpy(buffer.host, feed.data, feed.bytes());
  copy(buffer.device, address_of(from), feed.bytes());
}

// The launches of a batch size seen before come from a CUDA graph. It belongs to the shapes that
// the context had, so another batch drops it.
bool EngineSlot::execute(int64_t batch) {
  if (batch != batch_) {
    drop_graph();
    for (const auto& [name, buffer] : buffers_) {
      const engines::Tensor& tensor = *buffer.tensor;
      if (!tensor.input) continue;
      int64_t shape[engines::kMaxRank];
      std::memcpy(shape, tensor.shape, sizeof shape);
      shape[0] = batch;
      if (!context_->set_shape(tensor.name, shape, tensor.rank)) return false;
    }
    batch_ = batch;
    return context_->enqueue(stream_);
  }
  if (graph_ == nullptr && may_be_captured_) may_be_captured_ = capture();
  if (graph_ == nullptr) return context_->enqueue(stream_);
  device_.check(cuda_.cuGraphLaunch(graph_, stream_));
  return true;
}

// False where these launches cannot be captured; they run one by one then.
bool EngineSlot::capture() {
  if (cuda_.cuStreamBeginCapture_v2(stream_, kCaptureThreadLocal) != 0) return false;
  const bool launched = context_->enqueue(stream_);
  Handle captured = nullptr;
  const int ended = cuda_.cuStreamEndCapture(stream_, &captured);
  if (captured == nullptr) return false;
  if (launched && ended == 0 && cuda_.cuGraphInstantiateWithFlags(&graph_, captured, 0) != 0) {
    graph_ = nullptr;
  }
  cuda_.cuGraphDestroy(captured);
  return graph_ != nullptr;
}

void EngineSlot::drop_graph() {
  if (graph_ != nullptr) cuda_.cuGraphExecDestroy(graph_);
  graph_ = nullptr;
}

}  // namespace tfanet
