// Engine files of TensorRT and TensorRT-RTX on a GPU, run through the library behind
// engine_library.h: what runtime/backends/engine.py is in Python.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.h"
#include "cuda_driver.h"
#include "engine_library.h"
#include "session.h"

namespace tfanet {

// Destroys what an engine library made with the function that it has for it.
struct Destroy {
  template <typename T>
  void operator()(T* made) const {
    made->destroy();
  }
};

// TensorRT or TensorRT-RTX.
class EngineLibrary {
 public:
  // `target`: "tensorrt" or "tensorrt-rtx". `file`: of that library, or null: $TFANET_TENSORRT, or
  // else where the system finds it. Throws MISSING_DEPENDENCY.
  EngineLibrary(const std::string& target, const char* file);

  std::string version() const { return library_->version(); }

  // Makes the plugins in libtfanet_trt.so known. Throws BAD_BUNDLE where it is of another major
  // version, or is refused.
  void load_plugins(const std::string& path) const;

  // Null: see said(). `host_code`: run code for the CPU that the engine may carry.
  engines::Engine* load(const FileBytes& plan, bool host_code) const;

  // The last two errors, which are forgotten with that.
  std::string said() const;

 private:
  const std::string target_;
  mutable std::mutex mutex_;
  mutable std::deque<std::string> errors_;
  std::unique_ptr<engines::Library, Destroy> library_;
};

// What EngineSession is made of.
struct EngineChoice {
  std::shared_ptr<const EngineLibrary> library;
  std::shared_ptr<const Device> device;
  std::string name;        // of the engine
  bool host_code = false;  // see EngineLibrary::load
};

class EngineSlot;

// One engine file. Each call takes an execution context of its own with a stream, pinned buffers
// and, from the second call of a batch size on, a CUDA graph of the launches. Contexts are made
// when they are needed, up to four, beyond which callers wait.
class EngineSession final : public Session {
 public:
  // `graph`: path of the ONNX file that the engine was built from. Throws BAD_BUNDLE for an engine
  // that cannot run here.
  EngineSession(const EngineChoice& choice, const FileBytes& plan, std::string graph);
  ~EngineSession() override;

  Batches batches() const;
  void run(const std::vector<Feed>& feeds, std::vector<Output>& outputs,
           void* stream) const override;

 private:
  class Lease;

  std::vector<Value> describe(bool inputs) const override;
  [[noreturn]] void refuse(const char* what, tfanet_status status) const;
  const engines::Tensor& input(const char* name) const;
  int64_t check_feeds(const std::vector<Feed>& feeds) const;
  std::unique_ptr<EngineSlot> make_slot() const;

  const EngineChoice choice_;
  const std::string file_;
  std::unique_ptr<engines::Engine, Destroy> engine_;
  std::vector<engines::Tensor> tensors_;
  mutable std::mutex making_;  // of a context, which TensorRT does one at a time
  mutable std::mutex mutex_;   // of what follows
  mutable std::condition_variable returned_;
  mutable std::vector<std::unique_ptr<EngineSlot>> free_;
  mutable size_t slots_ = 0;
};

}  // namespace tfanet
