// Between the runtime and the libraries that run engine files: libtfanet_backend_tensorrt.so and
// libtfanet_backend_tensorrt_rtx.so, which are built where the headers of TensorRT are, and loaded
// when an engine is asked for.
//
// Each side brings its own C++ runtime. So nothing but plain types and these tables of functions
// crosses, no exception leaves either side, and what one side made it destroys itself.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tfanet::engines {

inline constexpr uint32_t kInterface = 1;  // of this file
inline constexpr int32_t kMaxRank = 8;

// An input or output of an engine.
struct Tensor {
  const char* name;  // lives as long as the engine
  int32_t type;      // as ONNX counts them: 1 float32, 7 int64
  bool input;
  int32_t rank;
  int64_t shape[kMaxRank];              // -1: open
  int64_t lowest_batch, highest_batch;  // of an input's first axis, by the first profile
};

// A place where an engine runs, one call at a time. Where a function answers false, the reason has
// been said.
class Context {
 public:
  virtual bool set_shape(const char* name, const int64_t* shape, int32_t rank) noexcept = 0;
  virtual bool set_address(const char* name, void* address) noexcept = 0;
  virtual bool enqueue(void* stream) noexcept = 0;
  virtual void destroy() noexcept = 0;

 protected:
  ~Context() = default;
};

class Engine {
 public:
  virtual int32_t tensor_count() noexcept = 0;
  virtual bool describe(int32_t index, Tensor* out) noexcept = 0;  // false: more than kMaxRank axes
  virtual Context* make_context() noexcept = 0;                    // null: the reason has been said
  // Whether the launches of `enqueue` may be captured into a CUDA graph.
  virtual bool may_be_captured() noexcept = 0;
  virtual void destroy() noexcept = 0;

 protected:
  ~Engine() = default;
};

// TensorRT or TensorRT-RTX. Contexts and engines must be destroyed before it.
class Library {
 public:
  virtual const char* version() noexcept = 0;  // as its Python bindings give it: "10.9.0.34"
  // Makes the plugins of a library known. False: refused.
  virtual bool load_plugins(const char* path) noexcept = 0;
  // `host_code`: run code for the CPU that the engine may carry. Null: the reason has been said.
  virtual Engine* load(const void* plan, size_t size, bool host_code) noexcept = 0;
  virtual void destroy() noexcept = 0;

 protected:
  ~Library() = default;
};

// Takes errors, each the first line of a message; it may be called in any thread.
using Say = void (*)(void* user, const char* message);

// The one function that such a library exports. `file`: TensorRT's own library, or null for where
// the system finds it. Null where that cannot be loaded, or `interface` is another one: the reason
// has been said.
using Open = Library* (*)(uint32_t interface, const char* file, Say say, void* user);
inline constexpr char kOpen[] = "tfanet_open_engine_library";

}  // namespace tfanet::engines
