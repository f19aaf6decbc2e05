#include "engine_session.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine_slot.h"
#include "error.h"
#include "libraries.h"
#include "python_text.h"

namespace tfanet {
namespace {

constexpr size_t kContexts = 4;  // calls that run at the same time

bool is_rtx(const std::string& target) { return target == "tensorrt-rtx"; }

std::string shape_text(const int64_t* shape, size_t rank) {
  Json axes = Json::array();
  for (size_t axis = 0; axis < rank; ++axis) {
    const Json open = axis == 0 ? Json("batch") : Json();
    axes.push_back(shape[axis] >= 0 ? Json(shape[axis]) : open);
  }
  return repr(axes);
}

ONNXTensorElementDataType type_of(const engines::Tensor& tensor) {
  return static_cast<ONNXTensorElementDataType>(tensor.type);
}

}  // namespace

EngineLibrary::EngineLibrary(const std::string& target, const char* file) : target_(target) {
  const char* own =
      is_rtx(target) ? "libtfanet_backend_tensorrt_rtx.so" : "libtfanet_backend_tensorrt.so";
  const char* root = is_rtx(target) ? "TENSORRT_RTX_ROOT" : "TENSORRT_ROOT";
  const std::string path = find_beside(own);
  if (path.empty()) {
    fail(TFANET_MISSING_DEPENDENCY, own,
         " does not lie beside libtfanet_runtime.so: build it with ", "the library's headers (-D",
         root, "=DIR)");
  }
  // Never unloaded, as TensorRT itself.
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* symbol = library != nullptr ? ::dlsym(library, engines::kOpen) : nullptr;
  if (symbol == nullptr) {
    fail(TFANET_MISSING_DEPENDENCY, path, " cannot be loaded (", ::dlerror(), "): build it again");
  }
  if (file == nullptr) file = setting("TFANET_TENSORRT");
  if (file != nullptr && *file == '\0') file = nullptr;
  const engines::Say say = [](void* user, const char* message) {
    auto* self = static_cast<EngineLibrary*>(user);
    try {
      const std::lock_guard<std::mutex> lock(self->mutex_);
      self->errors_.emplace_back(message);
      if (self->errors_.size() > 2) self->errors_.pop_front();
    } catch (const std::bad_alloc&) {
      // What failed is reported all the same, without this line.
    }
  };
  library_.reset(reinterpret_cast<engines::Open>(symbol)(engines::kInterface, file, say, this));
  if (library_ == nullptr) {
    fail(TFANET_MISSING_DEPENDENCY, is_rtx(target) ? "TensorRT-RTX" : "TensorRT",
         " cannot be loaded (", said(),
         "): install it, and the NVIDIA driver that it wants, or name its library in "
         "options.tensorrt or in TFANET_TENSORRT");
  }
}

std::string EngineLibrary::said() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string all;
  for (const std::string& one : errors_) all += (all.empty() ? "" : "; ") + one;
  errors_.clear();
  return all.empty() ? "no reason given" : all;
}

void EngineLibrary::load_plugins(const std::string& path) const {
  constexpr char kAgain[] =
      "build it again with the headers of that version (TENSORRT_ROOT=DIR make native)";
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* symbol = library != nullptr ? ::dlsym(library, "tfanet_tensorrt_major") : nullptr;
  if (symbol == nullptr) {
    fail(TFANET_BAD_BUNDLE, path, " cannot be loaded (", ::dlerror(), "): ", kAgain);
  }
  const int major = reinterpret_cast<int (*)()>(symbol)();
  if (major != std::atoi(version().c_str())) {
    fail(TFANET_BAD_BUNDLE, path, " is for TensorRT ", major, ", here is ", version(), ": ",
         kAgain);
  }
  if (!library_->load_plugins(path.c_str())) {
    fail(TFANET_BAD_BUNDLE, path, " is refused by ", target_, " ", version(), ": ", kAgain);
  }
}

engines::Engine* EngineLibrary::load(const FileBytes& plan, bool host_code) const {
  return library_->load(plan.data.get(), plan.size, host_code);
}

EngineSession::EngineSession(const EngineChoice& choice, const FileBytes& plan, std::string graph)
    : Session(std::move(graph)), choice_(choice), file_(plan.path) {
  const Device::Current current(*choice_.device);
  engine_.reset(choice_.library->load(plan, choice_.host_code));
  if (engine_ == nullptr) refuse("cannot be loaded", TFANET_BAD_BUNDLE);
  Batches batches{0, 0};
  for (int32_t i = 0; i < engine_->tensor_count(); ++i) {
    engines::Tensor tensor{};
    const bool known = engine_->describe(i, &tensor);
    if (!known || tensor.rank < 1 ||
        std::any_of(
            tensor.shape + 1, tensor.shape + tensor.rank, [](int64_t n) { return n < 1; })) {
      fail(TFANET_BAD_BUNDLE, file_, " (engine ", choice_.name, "): '", tensor.name, "' has shape ",
           shape_text(tensor.shape, static_cast<size_t>(std::max(0, tensor.rank))),
           ", which is open beyond the batch: build it again with `tfanet engine`");
    }
    if (tensor.input && batches.highest == 0) batches = {tensor.lowest_batch, tensor.highest_batch};
    tensors_.push_back(tensor);
  }
  if (batches.highest < 1) {
    fail(TFANET_BAD_BUNDLE, file_, " (engine ", choice_.name,
         ") has no inputs: build it again with `tfanet engine`");
  }
  for (engines::Tensor& tensor : tensors_) {
    tensor.lowest_batch = batches.lowest;
    tensor.highest_batch = batches.highest;
  }
  free_.reserve(kContexts);
}

EngineSession::~EngineSession() {
  try {
    const Device::Current current(*choice_.device);
    free_.clear();
    engine_.reset();
  } catch (const Error&) {
    // The GPU is gone, and with it what would be freed there.
  }
}

Batches EngineSession::batches() const {
  return {tensors_.front().lowest_batch, tensors_.front().highest_batch};
}

std::vector<Value> EngineSession::describe(bool inputs) const {
  std::vector<Value> values;
  for (const engines::Tensor& tensor : tensors_) {
    if (tensor.input != inputs) continue;
    Value value{tensor.name, std::vector<Axis>(), type_of(tensor)};
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
      value.shape->push_back({tensor.shape[axis], tensor.shape[axis] < 0 ? "batch" : ""});
    }
    values.push_back(std::move(value));
  }
  return values;
}

// The library's own words, with what to do.
void EngineSession::refuse(const char* what, tfanet_status status) const {
  const std::string said = choice_.library->said();
  std::string low = said;
  std::transform(low.begin(), low.end(), low.begin(), [](unsigned char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  });
  const char* remedy = "build it again on this machine with `tfanet engine`";
  if (contains(low, "plugin") || contains(low, "creator")) {
    remedy = "load the plugin's library first, or build with `--plugin aot`";
  } else if (contains(low, "host code") || contains(low, "lean runtime")) {
    remedy = "it carries code for the CPU; allow it by name (host_code) if you built it";
  } else if (contains(low, "memory")) {
    remedy = "free memory on the GPU, or build for a smaller batch";
    status = TFANET_OUT_OF_MEMORY;
  }
  fail(status, file_, " (engine ", choice_.name, ") ", what, ": ", said, "; ", remedy);
}

const engines::Tensor& EngineSession::input(const char* name) const {
  return *std::find_if(tensors_.begin(), tensors_.end(), [&](const engines::Tensor& tensor) {
    return tensor.input && std::strcmp(tensor.name, name) == 0;
  });
}

// Shapes behind the batch, and the batch, which is returned. That there are no other names and
// types is known since check_interface.
int64_t EngineSession::check_feeds(const std::vector<Feed>& feeds) const {
  for (const Feed& feed : feeds) {
    const engines::Tensor& tensor = input(feed.name);
    if (feed.shape.size() != static_cast<size_t>(tensor.rank) ||
        !std::equal(feed.shape.begin() + 1, feed.shape.end(), tensor.shape + 1)) {
      fail(TFANET_INVALID_ARGUMENT, "input '", feed.name, "' is ", type_name(feed.type), " ",
           shape_text(feed.shape.data(), feed.shape.size()), ", the engine takes ",
           type_name(type_of(tensor)), " ",
           shape_text(tensor.shape, static_cast<size_t>(tensor.rank)));
    }
    const int64_t batch = feed.shape[0];
    if (batch < tensor.lowest_batch || batch > tensor.highest_batch) {
      fail(TFANET_INVALID_ARGUMENT, "the batch of '", feed.name, "' is ", batch,
           ", the engine's profile takes ", tensor.lowest_batch, " to ", tensor.highest_batch,
           ": build one with another --profile, or run fewer at a time");
    }
  }
  return feeds[0].shape[0];
}

std::unique_ptr<EngineSlot> EngineSession::make_slot() const {
  const std::lock_guard<std::mutex> lock(making_);
  EngineSlot::Context context(engine_->make_context());
  if (context == nullptr) refuse("gives no execution context", TFANET_FAILED);
  return std::make_unique<EngineSlot>(*choice_.device, std::move(context), tensors_,
                                      engine_->may_be_captured());
}

// A slot for the time of a call: one that is free, a new one, or the next that is given back.
class EngineSession::Lease {
 public:
  explicit Lease(const EngineSession& session) : session_(session) {
    std::unique_lock<std::mutex> lock(session_.mutex_);
    session_.returned_.wait(lock,
                            [&] { return !session_.free_.empty() || session_.slots_ < kContexts; });
    if (!session_.free_.empty()) {
      slot_ = std::move(session_.free_.back());
      session_.free_.pop_back();
      return;
    }
    ++session_.slots_;
    lock.unlock();
    try {
      slot_ = session_.make_slot();
    } catch (...) {
      lock.lock();
      --session_.slots_;
      session_.returned_.notify_one();
      throw;
    }
  }
  ~Lease() {
    const std::lock_guard<std::mutex> lock(session_.mutex_);
    session_.free_.push_back(std::move(slot_));
    session_.returned_.notify_one();
  }
  EngineSlot* operator->() const { return slot_.get(); }

 private:
  const EngineSession& session_;
  std::unique_ptr<EngineSlot> slot_;
};

void EngineSession::run(const std::vector<Feed>& feeds, std::vector<Output>& outputs,
                        void* stream) const {
  const int64_t batch = check_feeds(feeds);
  const Device::Current current(*choice_.device);
  const Lease slot(*this);
  if (!slot->run(feeds, outputs, batch, stream)) refuse("failed to run", TFANET_FAILED);
}

}  // namespace tfanet
