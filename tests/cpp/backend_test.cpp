// Engines on a GPU, with stand-ins for CUDA and TensorRT (standins/): what they compute, on which
// memory and streams, in many threads, when things fail, and that all of it is given back.
//
//   backend_test BUNDLE BACKEND
//
// The bundle has an engine with batches of 1 to 4. With a backend of ONNX Runtime (a stand-in too),
// only what concerns memory and streams is looked at.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "checks.hpp"
#include "cuda_standin.h"
#include "tfanet.hpp"

namespace {

constexpr size_t kPlane = 32 * 48, kPicture = 3 * kPlane;
constexpr size_t kBlocks = 2 * 5;  // of a context: for five tensors, here and on the device

using Numbers = std::vector<float>;

Numbers noise(size_t size, int seed) {
  Numbers out(size);
  for (size_t i = 0; i < size; ++i) out[i] = std::sin(static_cast<float>(i * 7 + seed * 13));
  return out;
}

bool near(const float* a, const float* b, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    if (!(std::fabs(a[i] - b[i]) < 1e-5f)) return false;
  }
  return true;
}
bool near(const Numbers& a, const Numbers& b) {
  return a.size() == b.size() && near(a.data(), b.data(), a.size());
}

// A GPU's memory and stream, as an application has them.
class Gpu {
 public:
  Gpu() {
    cuDevicePrimaryCtxRetain(&context_, 0);
    cuCtxPushCurrent_v2(context_);
    cuStreamCreate(&stream, 0);
  }
  ~Gpu() {
    cuStreamSynchronize(stream);
    for (const uint64_t block : blocks_) cuMemFree_v2(block);
    cuStreamDestroy_v2(stream);
    cuCtxPopCurrent_v2(&context_);
    cuDevicePrimaryCtxRelease_v2(0);
  }
  float* memory(size_t count) {
    uint64_t address = 0;
    CHECK(cuMemAlloc_v2(&address, count * sizeof(float)) == 0);
    blocks_.push_back(address);
    return reinterpret_cast<float*>(address);
  }
  // Puts work into the stream, which is done when that is waited for.
  void later(std::function<void()> work) {
    standin_push(
        stream,
        [](void* argument) {
          const std::unique_ptr<std::function<void()>> own(
              static_cast<std::function<void()>*>(argument));
          (*own)();
        },
        new std::function<void()>(std::move(work)));
  }
  void* stream = nullptr;

 private:
  void* context_ = nullptr;
  std::vector<uint64_t> blocks_;
};

struct Both {
  explicit Both(const std::string& bundle, const char* backend = "tensorrt")
      : engine(bundle, options(backend)), session(bundle, options("onnxruntime-cpu")) {
    for (const char* text : {"the red circle", "a blue star", "left", "the big one"}) {
      sentences.push_back(session.encode(text));
    }
  }
  static tfanet::Options options(const char* backend) {
    tfanet::Options options;
    options.backend = backend;
    options.threads = 1;
    return options;
  }
  tfanet::Span<const tfanet::Sentence> first(size_t count) const {
    return {sentences.data(), count};
  }

  tfanet::Runtime engine, session;
  std::vector<tfanet::Sentence> sentences;
};

void batches(const Both& both) {
  const StandinCounts before = standin_counts();
  for (const size_t batch : {1, 1, 1, 4, 4, 1, 2, 2, 2, 1}) {
    const Numbers tensors = noise(batch * kPicture, static_cast<int>(batch));
    CHECK(near(both.engine.predict_tensors(tensors, both.first(batch)),
               both.session.predict_tensors(tensors, both.first(batch))));
  }
  const StandinCounts after = standin_counts();
  CHECK(after.captures - before.captures == 3);  // a second run of 1, of 4 and of 2
  CHECK(after.launches - before.launches == 5);
  CHECK(after.blocks - before.blocks == kBlocks);  // all of it in one context
  const Numbers five = noise(5 * kPicture, 0);
  std::vector<tfanet::Sentence> many;
  for (int i = 0; i < 5; ++i) many.push_back(both.session.encode("red"));
  THROWS(TFANET_INVALID_ARGUMENT,
         "the batch of 'image' is 5, the engine's profile takes 1 to 4: build one with another",
         both.engine.predict_tensors(five, many));
}

void pictures(const Both& both) {
  std::vector<uint8_t> pixels(60 * 40 * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * i / 7);
  const tfanet::Image image(pixels.data(), 60, 40, TFANET_RGB);
  const tfanet::Prediction one = both.engine.predict(image, both.sentences[0]);
  const tfanet::Prediction known = both.session.predict(image, both.sentences[0]);
  CHECK(near(one.logits().data(), known.logits().data(), kPlane) && one.mask().size() == 2400);
  const tfanet::Prediction later = both.engine.predict_async(image, both.sentences[0]).get();
  CHECK(near(later.logits().data(), known.logits().data(), kPlane));
  // More than the profile holds go one after the other.
  std::vector<tfanet::Sentence> many;
  for (int i = 0; i < 7; ++i) many.push_back(both.session.encode("word " + std::to_string(i)));
  const std::vector<tfanet::Image> images = {image};
  const std::vector<tfanet::Prediction> all = both.engine.predict(images, many);
  const std::vector<tfanet::Prediction> expected = both.session.predict(images, many);
  for (size_t i = 0; i < 7; ++i) {
    CHECK(near(all[i].logits().data(), expected[i].logits().data(), kPlane));
  }
  // The text's engine, by its formula.
  int64_t ids[8];
  float mask[8];
  CHECK(tfanet_tokenize(both.engine.get(), "red", 3, ids, mask, 8, nullptr) == TFANET_OK);
  float text = 0;
  for (int i = 0; i < 32; ++i) {
    text += static_cast<float>(ids[i % 8] * (i / 8 + 1)) / 49408.0f * mask[i % 8] / 32;
  }
  for (int t = 0; t < 4; ++t) text += static_cast<float>(ids[t]) / 49408.0f / 4;
  const Numbers tensor = both.engine.preprocess(image);
  std::vector<tfanet::Sentence> red;
  red.push_back(both.engine.encode("red"));
  const Numbers logits = both.engine.predict_tensors(tensor, red);
  CHECK(std::fabs(logits[5] - (2 * tensor[5] - 2 * tensor[2 * kPlane + 5] + text)) < 1e-4f);
}

void memory_and_streams(const Both& both) {
  const bool early = std::string(both.engine.info().backend) == "tensorrt";
  Gpu gpu;
  const Numbers first = noise(2 * kPicture, 3), second = noise(2 * kPicture, 4);
  const Numbers want_first = both.session.predict_tensors(first, both.first(2));
  const Numbers want_second = both.session.predict_tensors(second, both.first(2));
  float *tensors = gpu.memory(2 * kPicture), *other = gpu.memory(2 * kPicture);
  float *logits = gpu.memory(2 * kPlane), *more = gpu.memory(2 * kPlane);
  const tfanet::Array in(tensors, 2 * kPicture, TFANET_DEVICE);
  const tfanet::Array out(logits, 2 * kPlane, TFANET_DEVICE);
  const auto holds = [](const float* memory, const Numbers& expected) {
    return near(memory, expected.data(), expected.size());
  };

  // The tensors are made in the stream before the call, the logits are used in it after.
  gpu.later([&] { std::memcpy(tensors, first.data(), first.size() * sizeof(float)); });
  both.engine.predict_arrays(in, both.first(2), out, gpu.stream);
  bool found = false;
  gpu.later([&] { found = holds(logits, want_first); });
  CHECK(holds(logits, want_first) != early && !found);  // early: it returned before anything ran
  // The next call takes the same context, while the work of the last one waits.
  gpu.later([&] { std::memcpy(other, second.data(), second.size() * sizeof(float)); });
  both.engine.predict_arrays({other, 2 * kPicture, TFANET_DEVICE}, both.first(2),
                             {more, 2 * kPlane, TFANET_DEVICE}, gpu.stream);
  CHECK(cuStreamSynchronize(gpu.stream) == 0);
  CHECK(found && holds(logits, want_first) && holds(more, want_second));

  // Logits that the process reads, and those of no stream, are there at the return.
  Numbers host(2 * kPlane), tensor = second;
  gpu.later([&] { std::memcpy(tensors, second.data(), second.size() * sizeof(float)); });
  both.engine.predict_arrays(in, both.first(2), {host.data(), host.size(), TFANET_HOST},
                             gpu.stream);
  CHECK(near(host, want_second));
  std::memset(logits, 0, host.size() * sizeof(float));
  both.engine.predict_arrays(in, both.first(2), out);
  CHECK(holds(logits, want_second));
  std::memset(logits, 0, host.size() * sizeof(float));
  both.engine.predict_arrays({tensor.data(), tensor.size(), TFANET_HOST}, both.first(2), out,
                             gpu.stream);
  std::fill(tensor.begin(), tensor.end(), 0.0f);  // it was read during the call
  CHECK(cuStreamSynchronize(gpu.stream) == 0 && holds(logits, want_second));
  CHECK(standin_counts().contexts == 1);  // this thread's own
}

void mistakes(const Both& both) {
  Gpu gpu;
  float* memory = gpu.memory(kPicture);
  Numbers host(kPicture);
  const tfanet::Array in(memory, kPicture, TFANET_DEVICE), out(memory, kPlane, TFANET_DEVICE);
  const tfanet::Array here(host.data(), kPicture, TFANET_HOST),
      room(host.data(), kPlane, TFANET_HOST);
  const auto run = [&](const tfanet::Array& from, const tfanet::Array& to,
                       const tfanet::Runtime& runtime, void* stream = nullptr) {
    runtime.predict_arrays(from, both.first(1), to, stream);
  };
  run(here, room, both.session);
  run(in, out, both.engine);
  THROWS(TFANET_INVALID_ARGUMENT,
         "tensors.memory is TFANET_DEVICE, and onnxruntime-cpu runs on the CPU",
         run(in, room, both.session));
  THROWS(TFANET_INVALID_ARGUMENT, "logits.memory is TFANET_DEVICE", run(here, out, both.session));
  THROWS(TFANET_INVALID_ARGUMENT, "a stream is given, and onnxruntime-cpu runs on the CPU",
         run(here, room, both.session, gpu.stream));
  THROWS(TFANET_INVALID_ARGUMENT, "tensors.data is not in the memory of GPU 0",
         run({host.data(), kPicture, TFANET_DEVICE}, out, both.engine));
  THROWS(TFANET_INVALID_ARGUMENT, "logits.data is not in the memory of GPU 0",
         run(in, {host.data(), kPlane, TFANET_DEVICE}, both.engine));
  THROWS(TFANET_INVALID_ARGUMENT, "tensors.data is a null pointer",
         run({nullptr, kPicture, TFANET_DEVICE}, out, both.engine));
  THROWS(TFANET_INVALID_ARGUMENT, "tensors.count is 4607, expected 4608",
         run({memory, kPicture - 1, TFANET_DEVICE}, out, both.engine));
  THROWS(TFANET_INVALID_ARGUMENT, "count is 1535, expected 1536",
         run(in, {memory, kPlane - 1, TFANET_DEVICE}, both.engine));
  tfanet::Array odd = in;
  odd.memory = 7;
  THROWS(TFANET_INVALID_ARGUMENT, "tensors.memory is 7", run(odd, out, both.engine));
  odd = in;
  odd.size = 8;
  THROWS(TFANET_INVALID_ARGUMENT, "array.size is 8", run(odd, out, both.engine));
  const tfanet_sentence* handle = both.sentences[0].get();
  CHECK(tfanet_predict_arrays(both.engine.get(), nullptr, &handle, 1, &out, nullptr) ==
        TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict_arrays(both.engine.get(), &in, &handle, 1, nullptr, nullptr) ==
        TFANET_INVALID_ARGUMENT);
}

void failures(const std::string& bundle) {
  const Both both(bundle);
  const Numbers tensor = noise(kPicture, 5);
  const Numbers expected = both.session.predict_tensors(tensor, both.first(1));
  const auto run = [&] { return both.engine.predict_tensors(tensor, both.first(1)); };
  standin_limit(1 << 10);
  THROWS(TFANET_OUT_OF_MEMORY, "(CUDA_ERROR_OUT_OF_MEMORY): use a smaller batch", run());
  standin_limit(SIZE_MAX);
  CHECK(near(run(), expected));
  standin_fail("cuMemcpyAsync", 2);
  THROWS(TFANET_OUT_OF_MEMORY, "(CUDA_ERROR_OUT_OF_MEMORY): use a smaller batch", run());
  standin_fail("cuMemcpyAsync", 999);
  THROWS(TFANET_FAILED, "an unknown error of CUDA (999): see nvidia-smi", run());
  standin_fail("cuMemcpyAsync", 100);
  THROWS(TFANET_MISSING_DEPENDENCY, "use a machine with an NVIDIA GPU", run());
  standin_fail("cuMemcpyAsync", 0);
  // Without a graph it launches one by one.
  standin_fail("cuGraphInstantiateWithFlags", 801);
  for (int i = 0; i < 3; ++i) CHECK(near(run(), expected));
  standin_fail("cuGraphInstantiateWithFlags", 0);
}

void threads(const Both& both) {
  const size_t before = standin_counts().blocks;
  std::vector<Numbers> tensors, expected;
  for (int i = 0; i < 12; ++i) {
    tensors.push_back(noise(kPicture, i));
    expected.push_back(both.session.predict_tensors(tensors.back(), both.first(1)));
  }
  std::vector<std::thread> all;
  for (int i = 0; i < 12; ++i) {
    all.emplace_back([&, i] {
      Gpu gpu;
      float* logits = gpu.memory(kPlane);
      for (int j = 0; j < 20; ++j) {
        CHECK(near(both.engine.predict_tensors(tensors[i], both.first(1)), expected[i]));
        both.engine.predict_arrays({tensors[i].data(), kPicture, TFANET_HOST}, both.first(1),
                                   {logits, kPlane, TFANET_DEVICE}, gpu.stream);
        CHECK(cuStreamSynchronize(gpu.stream) == 0);
        CHECK(near(logits, expected[i].data(), kPlane));
      }
    });
  }
  for (std::thread& thread : all) thread.join();
  const size_t made = standin_counts().blocks - before;
  CHECK(made <= 3 * kBlocks);  // one context was there, and there are four at most
}

// Closing waits for work that was left in a stream, and gives all of it back.
void closing(const std::string& bundle) {
  const StandinCounts before = standin_counts();
  {
    Gpu gpu;
    float* logits = gpu.memory(kPlane);
    const Numbers tensor = noise(kPicture, 6);
    Numbers input = tensor, expected;
    {
      const Both both(bundle);
      expected = both.session.predict_tensors(tensor, both.first(1));
      both.engine.predict_arrays({input.data(), kPicture, TFANET_HOST}, both.first(1),
                                 {logits, kPlane, TFANET_DEVICE}, gpu.stream);
      CHECK(!near(logits, expected.data(), kPlane));
    }
    CHECK(cuStreamSynchronize(gpu.stream) == 0 && near(logits, expected.data(), kPlane));
  }
  const StandinCounts after = standin_counts();
  CHECK(after.blocks == before.blocks && after.handles == before.handles);
  CHECK(after.retained == before.retained && after.contexts == before.contexts);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  {
    const Both both(argv[1], argv[2]);
    memory_and_streams(both);
    mistakes(both);
  }
  if (std::string(argv[2]) == "tensorrt") {
    const Both both(argv[1]);
    const tfanet_info info = both.engine.info();
    CHECK(std::string(info.backend) == "tensorrt" && std::string(info.device) == "a stand-in");
    CHECK(info.min_batch == 1 && info.max_batch == 4 && info.backend_version[0] == '1');
    CHECK(std::string(info.engine) == "tensorrt-fp16" && info.passed_over[0] == '\0');
    batches(both);
    pictures(both);
    threads(both);
    failures(argv[1]);
    closing(argv[1]);
  }
  const StandinCounts end = standin_counts();
  CHECK(end.blocks == 0 && end.handles == 0 && end.retained == 0 && end.contexts == 0);
  std::cout << "all as the header says\n";
}
