// tfanet.hpp in use: what it returns, what it throws, and that handles free themselves.
//
//   api_test BUNDLE

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "checks.hpp"
#include "tfanet.hpp"

namespace {

static_assert(!std::is_copy_constructible_v<tfanet::Runtime>);
static_assert(std::is_nothrow_move_constructible_v<tfanet::Runtime>);
static_assert(std::is_nothrow_move_constructible_v<tfanet::Sentence>);

std::vector<uint8_t> noise(size_t size) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i * i / 7);
  return bytes;
}

bool equal(const tfanet::Prediction& a, const tfanet::Prediction& b) {
  return std::equal(a.mask().begin(), a.mask().end(), b.mask().begin(), b.mask().end());
}

void results(const tfanet::Runtime& runtime) {
  const std::vector<uint8_t> pixels = noise(60 * 40 * 3);
  const tfanet::Image image(pixels.data(), 60, 40, TFANET_RGB);
  const tfanet::Sentence sentence = runtime.encode("the red circle");
  const tfanet::Prediction one = runtime.predict(image, sentence);
  CHECK(one.width() == 60 && one.height() == 40 && one.mask().size() == 2400);
  CHECK(!one.no_target() && !one.instances());  // this model gives neither
  CHECK(one.score() >= 0 && one.score() <= 1 && sentence.dropped() == 0);
  CHECK(equal(one, runtime.predict(image, "the red circle")));
  CHECK(equal(one, runtime.predict_async(image, sentence).get()));

  std::vector<tfanet::Sentence> sentences;
  for (const char* text : {"the red circle", "a", "b", "the red circle", "c", "the red circle"}) {
    sentences.push_back(runtime.encode(text));
  }
  const std::vector<tfanet::Image> images = {image};
  const std::vector<tfanet::Prediction> many = runtime.predict(images, sentences);
  CHECK(many.size() == 6 && equal(many[0], one) && equal(many[5], one));

  const std::vector<float> tensor = runtime.preprocess(image);
  const std::vector<tfanet::Sentence> single = [&] {
    std::vector<tfanet::Sentence> out;
    out.push_back(runtime.encode("the red circle"));
    return out;
  }();
  const std::vector<float> logits = runtime.predict_tensors(tensor, single);
  CHECK(std::equal(logits.begin(), logits.end(), one.logits().begin(), one.logits().end()));
  THROWS(TFANET_INVALID_ARGUMENT, "the tensors hold 0 numbers",
         runtime.predict_tensors(std::vector<float>(), single));
  THROWS(TFANET_INVALID_ARGUMENT, "image_count is 0",
         runtime.predict(tfanet::Span<const tfanet::Image>(images.data(), 0), sentences));
}

void mistakes(const tfanet::Runtime& runtime, const std::string& bundle) {
  const std::vector<uint8_t> pixels = noise(60 * 40);
  const auto predict = [&](const tfanet::Image& image, std::string_view text = "red") {
    return runtime.predict(image, text);
  };
  THROWS(TFANET_BAD_IMAGE, "0x40", predict({pixels.data(), 0, 40, TFANET_GREY}));
  THROWS(TFANET_BAD_IMAGE, "60x-40", predict({pixels.data(), 60, -40, TFANET_GREY}));
  THROWS(TFANET_BAD_IMAGE, "image.stride is 59", predict({pixels.data(), 60, 40, TFANET_GREY, 59}));
  THROWS(TFANET_INVALID_ARGUMENT, "pixels", predict({nullptr, 60, 40, TFANET_GREY}));
  THROWS(TFANET_BAD_TEXT, "empty", predict({pixels.data(), 60, 40, TFANET_GREY}, {}));
  THROWS(TFANET_BAD_TEXT, "not valid UTF-8",
         predict({pixels.data(), 60, 40, TFANET_GREY}, "a\xff"));
  THROWS(TFANET_BAD_TEXT, "the limit is 4096", runtime.encode(std::string(4097, 'a')));
  const std::vector<int64_t> ids(8);
  const std::vector<float> mask(7);
  THROWS(TFANET_INVALID_ARGUMENT, "differ in length", runtime.encode(ids, mask));
  THROWS(TFANET_BAD_BUNDLE, "not a bundle directory", tfanet::Runtime("/no/such/bundle"));
  tfanet::Options options;
  options.backend = "tensorrt";
  THROWS(TFANET_MISSING_DEPENDENCY, "holds no tensorrt engine", tfanet::Runtime(bundle, options));
  options.backend = "gpu";
  THROWS(TFANET_INVALID_ARGUMENT, "backend is 'gpu': choose auto, tensorrt",
         tfanet::Runtime(bundle, options));
  options = {};
  options.digest = "";
  THROWS(TFANET_INVALID_ARGUMENT, "digest is ''", tfanet::Runtime(bundle, options));
  options.digest = std::string(64, '0');
  THROWS(TFANET_BAD_BUNDLE, "expected 0000", tfanet::Runtime(bundle, options));
  options.digest = runtime.info().digest;
  CHECK(tfanet::Runtime(bundle, options).info().digest == *options.digest);
  options = {};
  options.onnxruntime = "/no/such/library.so";
  THROWS(TFANET_MISSING_DEPENDENCY, "/no/such/library.so", tfanet::Runtime(bundle, options));
}

void moves_and_threads(tfanet::Runtime first) {
  const tfanet::Runtime runtime = std::move(first);
  const std::vector<uint8_t> pixels = noise(60 * 40 * 4);
  const tfanet::Image image(pixels.data(), 60, 40, TFANET_RGBA);
  const tfanet::Prediction expected = runtime.predict(image, "red");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const tfanet::Sentence own = runtime.encode("red");
      std::vector<std::future<tfanet::Prediction>> waiting;
      for (int j = 0; j < 10; ++j) {
        CHECK(equal(runtime.predict(image, own), expected));
        waiting.push_back(runtime.predict_async(image, own));
      }
      for (auto& future : waiting) CHECK(equal(future.get(), expected));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The first thing that the process does with ONNX Runtime.
void open_at_once(const std::string& bundle) {
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      ++ready;
      while (ready < 8) std::this_thread::yield();
      CHECK(tfanet::Runtime(bundle).info().text_length == 8);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  open_at_once(argv[1]);
  tfanet::Runtime runtime(argv[1]);
  CHECK(runtime.info().text_length == 8);
  results(runtime);
  mistakes(runtime, argv[1]);
  moves_and_threads(std::move(runtime));
  std::cout << "all as the header says\n";
}
