// A stand-in for TensorRT behind engine_library.h: it computes what tests/runtime/conftest.py's
// image graph does, on the stand-in for CUDA. A plan is words: "standin", "text" or "image", the
// smallest and largest batch, and then what is odd about it:
//
//   refused=WHY fails=WHY no-context=WHY   what it says when it is loaded, run, or given a context
//   host-code      carries code for the CPU
//   needs-plugin   wants a plugin library to be loaded before
//   uncapturable   runs, but not while its stream is captured
//   open-height    has another open axis beside the batch
//   empty          has neither inputs nor outputs
//
// Underscores stand for spaces.

#include "engine_library.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_standin.h"

namespace {

using namespace tfanet::engines;

constexpr int64_t kLength = 8, kWidth = 4, kHeight = 32, kColumns = 48;
constexpr int64_t kPlane = kHeight * kColumns;

struct Plan {
  bool image = false, host_code = false, needs_plugin = false, uncapturable = false;
  bool open_height = false, empty = false;
  int64_t lowest = 1, highest = 1;
  std::string refused, fails, no_context;
};

struct Teller {
  Say say;
  void* user;
  void operator()(const std::string& why) const { say(user, why.c_str()); }
};

// One launch: the addresses and the batch that the context had.
struct Launch {
  bool image;
  int64_t batch;
  std::map<std::string, void*> at;
};

void compute(void* argument) {
  const Launch& launch = *static_cast<Launch*>(argument);  // graphs may run it again
  const auto floats = [&](const char* name) { return static_cast<float*>(launch.at.at(name)); };
  for (int64_t b = 0; b < launch.batch; ++b) {
    if (!launch.image) {
      const auto* ids = static_cast<const int64_t*>(launch.at.at("token_ids")) + b * kLength;
      for (int64_t i = 0; i < kWidth * kLength; ++i) {
        floats("word_features")[b * kWidth * kLength + i] =
            static_cast<float>(ids[i % kLength] * (i / kLength + 1)) / 49408.0f;
      }
      for (int64_t t = 0; t < kWidth; ++t) {
        floats("sentence_feature")[b * kWidth + t] = static_cast<float>(ids[t]) / 49408.0f;
      }
      continue;
    }
    float both = 0;
    for (int64_t i = 0; i < kWidth * kLength; ++i) {
      both += floats("word_features")[b * kWidth * kLength + i] *
              floats("word_mask")[b * kLength + i % kLength] / (kWidth * kLength);
    }
    for (int64_t t = 0; t < kWidth; ++t)
      both += floats("sentence_feature")[b * kWidth + t] / kWidth;
    const float* image = floats("image") + b * 3 * kPlane;
    for (int64_t i = 0; i < kPlane; ++i) {
      floats("mask_logit")[b * kPlane + i] = 2 * image[i] - 2 * image[2 * kPlane + i] + both;
    }
  }
}

class StandinContext final : public Context {
 public:
  StandinContext(const Plan& plan, const Teller& tell) : plan_(plan), tell_(tell) {}
  bool set_shape(const char* name, const int64_t* shape, int32_t rank) noexcept override {
    const bool good = shape[0] >= plan_.lowest && shape[0] <= plan_.highest && rank >= 2;
    if (!good) tell_(std::string("a shape that the profile does not hold: ") + name);
    batch_ = shape[0];
    return good;
  }
  bool set_address(const char* name, void* address) noexcept override {
    at_[name] = address;
    return true;
  }
  bool enqueue(void* stream) noexcept override {
    // The runtime launches a shape once before it captures it.
    const bool captured = launched_ == batch_ && plan_.uncapturable && !refused_;
    launched_ = batch_;
    if (captured) {
      refused_ = true;
      tell_("this cannot be captured");
      return false;
    }
    if (!plan_.fails.empty()) {
      tell_(plan_.fails);
      return false;
    }
    launches_.push_back(new Launch{plan_.image, batch_, at_});
    standin_push(stream, compute, launches_.back());
    return true;
  }
  void destroy() noexcept override {
    for (Launch* launch : launches_) delete launch;
    delete this;
  }

 private:
  const Plan plan_;
  const Teller tell_;
  int64_t batch_ = 0, launched_ = 0;
  bool refused_ = false;
  std::map<std::string, void*> at_;
  std::vector<Launch*> launches_;
};

class StandinEngine final : public Engine {
 public:
  StandinEngine(const Plan& plan, const Teller& tell) : plan_(plan), tell_(tell) {
    const auto add = [&](const char* name, int32_t type, bool input, std::vector<int64_t> shape) {
      Tensor tensor{name, type, input, static_cast<int32_t>(shape.size()) + 1, {-1}, 0, 0};
      std::copy(shape.begin(), shape.end(), tensor.shape + 1);
      if (input) tensor.lowest_batch = plan.lowest, tensor.highest_batch = plan.highest;
      tensors_.push_back(tensor);
    };
    if (plan.image) {
      add("mask_logit", 1, false, {1, plan.open_height ? -1 : kHeight, kColumns});
      add("image", 1, true, {3, plan.open_height ? -1 : kHeight, kColumns});
      add("word_mask", 1, true, {kLength});
    } else {
      add("token_ids", 7, true, {kLength});
    }
    add("word_features", 1, plan.image, {kWidth, kLength});
    add("sentence_feature", 1, plan.image, {kWidth});
    if (plan.empty) tensors_.clear();
  }
  int32_t tensor_count() noexcept override { return static_cast<int32_t>(tensors_.size()); }
  bool describe(int32_t index, Tensor* out) noexcept override {
    *out = tensors_[static_cast<size_t>(index)];
    return true;
  }
  Context* make_context() noexcept override {
    if (plan_.no_context.empty()) return new StandinContext(plan_, tell_);
    tell_(plan_.no_context);
    return nullptr;
  }
  bool may_be_captured() noexcept override { return true; }
  void destroy() noexcept override { delete this; }

 private:
  const Plan plan_;
  const Teller tell_;
  std::vector<Tensor> tensors_;
};

class Standin final : public Library {
 public:
  explicit Standin(const Teller& tell) : tell_(tell) {}
  const char* version() noexcept override { return "10.9.0.34"; }
  bool load_plugins(const char* path) noexcept override {
    plugins_ = std::strstr(path, "refused") == nullptr;
    return plugins_;
  }
  Engine* load(const void* data, size_t size, bool host_code) noexcept override {
    std::istringstream words(std::string(static_cast<const char*>(data), size));
    std::string word, kind;
    Plan plan;
    if (!(words >> word >> kind >> plan.lowest >> plan.highest) || word != "standin") {
      tell_("Magic tag does not match");
      return nullptr;
    }
    plan.image = kind == "image";
    while (words >> word) {
      std::replace(word.begin(), word.end(), '_', ' ');
      const size_t equals = word.find('=');
      const std::string name = word.substr(0, equals);
      const std::string value = equals == word.npos ? "" : word.substr(equals + 1);
      plan.host_code |= name == "host-code";
      plan.needs_plugin |= name == "needs-plugin";
      plan.uncapturable |= name == "uncapturable";
      plan.open_height |= name == "open-height";
      plan.empty |= name == "empty";
      if (name == "refused") plan.refused = value;
      if (name == "fails") plan.fails = value;
      if (name == "no-context") plan.no_context = value;
    }
    if (plan.host_code && !host_code) plan.refused = "host code is not allowed";
    if (plan.needs_plugin && !plugins_) plan.refused = "no creator for SelectiveScan";
    if (plan.refused.empty()) return new StandinEngine(plan, tell_);
    tell_(plan.refused);
    return nullptr;
  }
  void destroy() noexcept override { delete this; }

 private:
  const Teller tell_;
  bool plugins_ = false;
};

}  // namespace

extern "C" Library* tfanet_open_engine_library(uint32_t interface, const char* file, Say say,
                                               void* user) {
  if (interface != kInterface || (file != nullptr && std::strstr(file, "missing") != nullptr)) {
    say(user, "no such file");
    return nullptr;
  }
  return new Standin({say, user});
}
