// tfanet.hpp: tfanet.h in C++17. Handles free themselves, errors are exceptions.
//
//   tfanet::Runtime runtime("bundle");
//   tfanet::Image image{pixels, width, height, TFANET_RGB};
//   tfanet::Prediction prediction = runtime.predict(image, "the red circle");
//   for (uint8_t pixel : prediction.mask()) ...
//
// Objects may be moved, not copied, and may be used from many threads at a time. Header only: an
// exception never crosses the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "tfanet.h"

namespace tfanet {

class Exception : public std::runtime_error {
 public:
  Exception(tfanet_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  tfanet_status status() const noexcept { return status_; }

 private:
  tfanet_status status_;
};

// A view of elements that lie one behind the other; it does not own them.
template <typename T>
class Span {
 public:
  Span() = default;
  Span(T* data, size_t size) : data_(data), size_(size) {}
  // Of a vector, array or string; a temporary one is good until the end of the call.
  template <typename Container,
            typename = std::enable_if_t<!std::is_same_v<std::decay_t<Container>, Span>>,
            typename = decltype(static_cast<T*>(std::declval<Container&>().data()))>
  Span(Container&& container) : data_(container.data()), size_(container.size()) {}

  T* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  T* begin() const noexcept { return data_; }
  T* end() const noexcept { return data_ + size_; }
  T& operator[](size_t at) const { return data_[at]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// A picture of the caller's; see tfanet_image.
struct Image : tfanet_image {
  Image(const void* pixels, int32_t width, int32_t height, tfanet_format format = TFANET_RGB,
        int64_t stride = 0)
      : tfanet_image{sizeof(tfanet_image), pixels, width, height, stride, format} {}
};

struct Options {
  std::string backend = "auto";
  int32_t threads = 0;         // of a single run; 0: all cores that the process may use
  int32_t cache = 0;           // sentences that are remembered; 0: 256, negative: none
  std::string onnxruntime;     // file of the library; empty: where the system finds it
  std::string op_library;      // file; empty: beside this library; "none": none
  int32_t device = 0;          // index of the GPU
  std::string tensorrt;        // file of TensorRT; empty: where the system finds it
  std::string plugin_library;  // file of libtfanet_trt.so; empty: beside this library
  std::string host_code;       // name of an engine that may run code for the CPU; empty: none
  std::optional<std::string> digest;  // of the bundle that is meant; none: any is taken
};

// Floats of the caller's in the memory of the process, or of the GPU; see tfanet_array.
struct Array : tfanet_array {
  Array(float* data, size_t count, tfanet_memory memory)
      : tfanet_array{sizeof(tfanet_array), data, count, memory} {}
};

class Sentence {
 public:
  // Tokens at the end that the model has no room for.
  size_t dropped() const { return tfanet_sentence_dropped(handle_.get()); }
  const tfanet_sentence* get() const noexcept { return handle_.get(); }

 private:
  friend class Runtime;
  struct Free {
    void operator()(tfanet_sentence* handle) const { tfanet_sentence_free(handle); }
  };
  explicit Sentence(tfanet_sentence* handle) : handle_(handle) {}
  std::unique_ptr<tfanet_sentence, Free> handle_;
};

// A word of the sentence; see tfanet_word. It lives as long as its prediction.
struct Word {
  std::string_view text;
  float share = 0;
};

// One object that a sentence means; see tfanet_instance. It lives as long as its prediction.
struct Instance {
  Span<const uint8_t> mask;  // as that of the prediction
  float relevance = 0;
  Span<const float> alignment;  // of each token; empty: the model does not say
  std::vector<Word> words;      // of the sentence, in order; empty: they are not known
};

class Prediction {
 public:
  explicit Prediction(tfanet_prediction* handle) : handle_(handle), result_{} {
    result_.size = sizeof result_;
    const tfanet_status status = tfanet_prediction_get(handle, &result_);
    if (status != TFANET_OK) throw Exception(status, "the prediction cannot be read");
  }

  int32_t width() const noexcept { return result_.width; }
  int32_t height() const noexcept { return result_.height; }
  // Height rows of width bytes: 255 inside, 0 outside. Lives as long as the prediction.
  Span<const uint8_t> mask() const { return {result_.mask, area(result_.width, result_.height)}; }
  // As the model gives them, result().logits_height rows.
  Span<const float> logits() const {
    return {result_.logits, area(result_.logits_width, result_.logits_height)};
  }
  float score() const noexcept { return result_.score; }
  // How likely it is that the sentence means nothing in the picture; none: the model does not say.
  std::optional<float> no_target() const {
    return result_.no_target < 0 ? std::nullopt : std::optional<float>(result_.no_target);
  }
  // The objects that are meant, the most relevant first; none: the model does not tell them apart.
  std::optional<std::vector<Instance>> instances() const {
    if (result_.instance_count < 0) return std::nullopt;
    std::vector<Instance> out(static_cast<size_t>(result_.instance_count));
    for (size_t index = 0; index < out.size(); ++index) {
      tfanet_instance one{};
      one.size = sizeof one;
      const tfanet_status status = tfanet_prediction_instance(handle_.get(), index, &one);
      if (status != TFANET_OK) throw Exception(status, "the instance cannot be read");
      out[index] = {{one.mask, area(result_.width, result_.height)},
                    one.relevance,
                    {one.alignment, one.alignment_length},
                    words(index, one.word_count)};
    }
    return out;
  }
  const tfanet_result& result() const noexcept { return result_; }

 private:
  struct Free {
    void operator()(tfanet_prediction* handle) const { tfanet_prediction_free(handle); }
  };
  static size_t area(int32_t width, int32_t height) {
    return static_cast<size_t>(width) * static_cast<size_t>(height);
  }
  std::vector<Word> words(size_t instance, int32_t count) const {
    std::vector<Word> out;
    for (int32_t index = 0; index < count; ++index) {
      tfanet_word one{};
      one.size = sizeof one;
      const tfanet_status status =
          tfanet_prediction_word(handle_.get(), instance, static_cast<size_t>(index), &one);
      if (status != TFANET_OK) throw Exception(status, "the word cannot be read");
      out.push_back({{one.text, one.bytes}, one.share});
    }
    return out;
  }
  std::unique_ptr<tfanet_prediction, Free> handle_;
  tfanet_result result_;
};

class Runtime {
 public:
  explicit Runtime(const std::string& path, const Options& options = {}) {
    const auto text = [](const std::string& value) {
      return value.empty() ? nullptr : value.c_str();
    };
    const tfanet_options plain = {sizeof plain,
                                  text(options.backend),
                                  options.threads,
                                  options.cache,
                                  text(options.onnxruntime),
                                  text(options.op_library),
                                  options.device,
                                  text(options.tensorrt),
                                  text(options.plugin_library),
                                  text(options.host_code),
                                  options.digest ? options.digest->c_str() : nullptr};
    tfanet_runtime* handle = nullptr;
    const tfanet_status status = tfanet_open(path.c_str(), &plain, &handle);
    handle_.reset(handle);  // it holds the message, and is closed in any case
    check(status);
  }

  tfanet_info info() const {
    tfanet_info info{};
    info.size = sizeof info;
    check(tfanet_get_info(get(), &info));
    return info;
  }

  Sentence encode(std::string_view text) const {
    tfanet_sentence* sentence = nullptr;
    check(tfanet_encode(get(), text.data() ? text.data() : "", text.size(), &sentence));
    return Sentence(sentence);
  }

  Sentence encode(Span<const int64_t> ids, Span<const float> mask) const {
    if (ids.size() != mask.size()) {
      throw Exception(TFANET_INVALID_ARGUMENT, "ids and mask differ in length: give one of each");
    }
    tfanet_sentence* sentence = nullptr;
    check(tfanet_encode_tokens(get(), ids.data(), mask.data(), ids.size(), &sentence));
    return Sentence(sentence);
  }

  Prediction predict(const Image& image, const Sentence& sentence) const {
    tfanet_prediction* prediction = nullptr;
    check(tfanet_predict(get(), &image, sentence.get(), &prediction));
    return Prediction(prediction);
  }

  Prediction predict(const Image& image, std::string_view text) const {
    tfanet_prediction* prediction = nullptr;
    const char* begin = text.data() ? text.data() : "";
    check(tfanet_predict_text(get(), &image, begin, text.size(), &prediction));
    return Prediction(prediction);
  }

  // One picture for all sentences, or as many pictures as sentences.
  std::vector<Prediction> predict(Span<const Image> images, Span<const Sentence> sentences) const {
    const std::vector<const tfanet_sentence*> handles = handles_of(sentences);
    const std::vector<tfanet_image> plain(images.begin(), images.end());
    std::vector<tfanet_prediction*> made(handles.size(), nullptr);
    check(tfanet_predict_batch(get(), plain.data(), plain.size(), handles.data(), handles.size(),
                               made.data()));
    std::vector<Prediction> out;
    out.reserve(made.size());
    for (tfanet_prediction* one : made) out.emplace_back(one);
    return out;
  }

  // The picture is prepared before the return, and may be freed then.
  std::future<Prediction> predict_async(const Image& image, const Sentence& sentence) const {
    auto promise = std::make_unique<std::promise<Prediction>>();
    std::future<Prediction> future = promise->get_future();
    check(tfanet_predict_async(get(), &image, sentence.get(), &Runtime::fulfil, promise.get()));
    promise.release();  // the callback owns it now
    return future;
  }

  // 3 planes of the model's input.
  std::vector<float> preprocess(const Image& image) const {
    const tfanet_info facts = info();
    std::vector<float> tensor(size_t{3} * static_cast<size_t>(facts.image_width) *
                              static_cast<size_t>(facts.image_height));
    check(tfanet_preprocess(get(), &image, tensor.data(), tensor.size()));
    return tensor;
  }

  // Mask logits (batch, info().logits_height, logits_width) of tensors (batch, 3, image_height,
  // image_width), one sentence for each.
  std::vector<float> predict_tensors(Span<const float> tensors,
                                     Span<const Sentence> sentences) const {
    const std::vector<const tfanet_sentence*> handles = handles_of(sentences);
    const tfanet_info facts = info();
    const auto area = [](int32_t width, int32_t height) {
      return static_cast<size_t>(width) * static_cast<size_t>(height);
    };
    const size_t expected = handles.size() * 3 * area(facts.image_width, facts.image_height);
    if (tensors.size() != expected) {
      throw Exception(TFANET_INVALID_ARGUMENT,
                      "the tensors hold " + std::to_string(tensors.size()) + " numbers, expected " +
                          std::to_string(expected) + ": see preprocess");
    }
    std::vector<float> logits(handles.size() * area(facts.logits_width, facts.logits_height));
    check(tfanet_predict_tensors(get(), tensors.data(), handles.data(), handles.size(),
                                 logits.data(), logits.size()));
    return logits;
  }

  // The same between arrays in any memory, with a CUDA stream; see tfanet_predict_arrays.
  void predict_arrays(const Array& tensors, Span<const Sentence> sentences, const Array& logits,
                      void* stream = nullptr) const {
    const std::vector<const tfanet_sentence*> handles = handles_of(sentences);
    check(tfanet_predict_arrays(get(), &tensors, handles.data(), handles.size(), &logits, stream));
  }

  tfanet_runtime* get() const noexcept { return handle_.get(); }

 private:
  struct Close {
    void operator()(tfanet_runtime* handle) const { tfanet_close(handle); }
  };

  void check(tfanet_status status) const {
    if (status == TFANET_OK) return;
    throw Exception(status, handle_ ? tfanet_error(get()) : tfanet_status_name(status));
  }

  static std::vector<const tfanet_sentence*> handles_of(Span<const Sentence> sentences) {
    std::vector<const tfanet_sentence*> handles;
    for (const Sentence& sentence : sentences) handles.push_back(sentence.get());
    return handles;
  }

  static void fulfil(void* user, tfanet_status status, tfanet_prediction* prediction,
                     const char* message) {
    const std::unique_ptr<std::promise<Prediction>> promise(
        static_cast<std::promise<Prediction>*>(user));
    try {
      if (status != TFANET_OK) throw Exception(status, message);
      promise->set_value(Prediction(prediction));
    } catch (...) {
      promise->set_exception(std::current_exception());
    }
  }

  std::unique_ptr<tfanet_runtime, Close> handle_;
};

}  // namespace tfanet
