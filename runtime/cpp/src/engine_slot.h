// A context of an engine with its stream and buffers; used by one call at a time.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine_session.h"

namespace tfanet {

class EngineSlot {
 public:
  using Handle = CudaDriver::Handle;

  using Context = std::unique_ptr<engines::Context, Destroy>;

  // The calling thread's GPU must be `device`, here and in all calls.
  EngineSlot(const Device& device, Context context, const std::vector<engines::Tensor>& tensors,
             bool may_be_captured);
  ~EngineSlot();
  EngineSlot(const EngineSlot&) = delete;
  EngineSlot& operator=(const EngineSlot&) = delete;

  // Runs checked inputs. False: the library refused, and has said why.
  bool run(const std::vector<Feed>& feeds, std::vector<Output>& outputs, int64_t batch,
           Handle stream);

 private:
  // Page-locked memory, and memory of the same size on the device.
  struct Buffer {
    const engines::Tensor* tensor;
    size_t bytes = 0;  // of one of the batch
    void* host = nullptr;
    CudaDriver::Address device = 0;
  };

  void make(const std::vector<engines::Tensor>& tensors);
  void free();
  void upload(const Feed& feed);
  bool execute(int64_t batch);
  bool capture();
  void drop_graph();
  void copy(CudaDriver::Address to, CudaDriver::Address from, size_t bytes);

  const Device& device_;
  const CudaDriver& cuda_;
  Context context_;
  std::map<std::string, Buffer> buffers_;
  Handle stream_ = nullptr, before_ = nullptr, after_ = nullptr, graph_ = nullptr;
  bool may_be_captured_;
  int64_t batch_ = 0;     // that the context has the shapes of; 0: none
  bool running_ = false;  // there may be work in the stream
};

}  // namespace tfanet
