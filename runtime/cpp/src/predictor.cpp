#include "predictor.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>

#include "error.h"
#include "libraries.h"

namespace tfanet {
namespace {

constexpr size_t kBatch = 4;  // sentences that run together: more are no faster and take memory
constexpr int32_t kCache = 256;
constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

class Watch {
 public:
  // Milliseconds since the last call.
  double lap() {
    const auto now = Clock::now();
    const double passed = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
    return passed;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

std::unique_ptr<const Tokenizer> make_tokenizer(const Bundle& bundle) {
  const auto* text = reinterpret_cast<const char*>(bundle.tokenizer.data.get());
  TokenizerRules rules;
  rules.length = bundle.manifest.text_length;
  return std::make_unique<Tokenizer>(bundle.tokenizer.path, text, bundle.tokenizer.size, rules);
}

}  // namespace

SharedSentence SentenceCache::find(const std::string& text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = places_.find(text);
  if (found == places_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->second;
}

void SentenceCache::add(const std::string& text, SharedSentence sentence) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (capacity_ == 0 || places_.count(text) != 0) return;
  entries_.emplace_front(text, std::move(sentence));
  try {
    places_.emplace(entries_.front().first, entries_.begin());
  } catch (...) {
    entries_.pop_front();
    throw;
  }
  if (entries_.size() > capacity_) {
    places_.erase(entries_.back().first);
    entries_.pop_back();
  }
}

Predictor::Predictor(const char* path, const tfanet_options& options)
    : bundle_(open_bundle(path, options.digest)),
      cache_(options.cache < 0 ? 0
                               : static_cast<size_t>(options.cache == 0 ? kCache : options.cache)) {
  // The tokenizer is read beside the graphs. What is wrong with it is reported first, as in Python.
  auto tokenizer = std::async(make_tokenizer, std::cref(bundle_));
  try {
    op_library_ = find_op_library(options.op_library);
    running_ = open_backend(bundle_, options, op_library_);
  } catch (...) {
    tokenizer.get();
    throw;
  }
  tokenizer_ = tokenizer.get();
  check_parts();
  for (FileBytes* file : {&bundle_.image, &bundle_.text, &bundle_.tokenizer}) file->data.reset();
}

// That the graphs and the tokenizer are what the manifest says.
void Predictor::check_parts() const {
  const Manifest& says = bundle_.manifest;
  struct {
    const char* name;
    int64_t said, found;
  } const ids[] = {{"sos_id", says.sos_id, tokenizer_->sos_id()},
                   {"eos_id", says.eos_id, tokenizer_->eos_id()},
                   {"pad_id", says.pad_id, tokenizer_->pad_id()}};
  for (const auto& [name, said, found] : ids) {
    if (said != found) {
      fail(TFANET_BAD_BUNDLE, bundle_.path, ": the tokenizer's ", name, " is ", found,
           ", the manifest says ", said, ": export the model again");
    }
  }
  const int64_t length = says.text_length, height = says.height, width = says.width;
  const Expected words = {"word_features", kFloat, {-1, length}};
  const Expected sentence = {"sentence_feature", kFloat, {-1}};
  running_.text->check_interface({{"token_ids", kInt64, {length}}}, {words, sentence});
  running_.image->check_interface(
      {{"image", kFloat, {3, height, width}}, words, sentence, {"word_mask", kFloat, {length}}},
      {{"mask_logit", kFloat, {1, height, width}}});
}

size_t Predictor::plane() const {
  return static_cast<size_t>(manifest().height) * static_cast<size_t>(manifest().width);
}

SharedSentence Predictor::encode(const int64_t* ids, const float* mask) const {
  const auto length = static_cast<int64_t>(tokenizer_->length());
  std::vector<Output> outputs = {{"word_features", {}, {}, nullptr},
                                 {"sentence_feature", {}, {}, nullptr}};
  running_.text->run({{"token_ids", kInt64, ids, {1, length}}}, outputs, nullptr);
  Output &words = outputs[0], &feature = outputs[1];
  const int64_t width = words.shape.size() == 3 ? words.shape[1] : 0;
  if (words.shape != std::vector<int64_t>{1, width, length} ||
      feature.shape != std::vector<int64_t>{1, width}) {
    fail(TFANET_BAD_BUNDLE, bundle_.path, "/text.onnx gave features of ", words.data.size(),
         " and ", feature.data.size(), " numbers, which do not belong together: export the model ",
         "again");
  }
  auto sentence = std::make_shared<Sentence>();
  sentence->words = std::move(words.data);
  sentence->feature = std::move(feature.data);
  sentence->mask.assign(mask, mask + length);
  return sentence;
}

SharedSentence Predictor::encode(std::string_view text) const {
  std::vector<int64_t> ids(tokenizer_->length());
  std::vector<float> mask(ids.size());
  const size_t tokens = tokenizer_->encode(text, ids.data(), mask.data());
  const SharedSentence encoded = encode(ids.data(), mask.data());
  const size_t room = tokenizer_->room();
  if (tokens <= room) return encoded;
  auto cut = std::make_shared<Sentence>(*encoded);
  cut->dropped = tokens - room;
  return cut;
}

SharedSentence Predictor::encode_cached(std::string_view text) {
  if (text.size() > kMaxTextBytes) return encode(text);  // which says why it cannot be used
  const std::string key(text);
  if (SharedSentence known = cache_.find(key)) return known;
  SharedSentence encoded = encode(text);
  cache_.add(key, encoded);
  return encoded;
}

Prepared Predictor::prepare(const tfanet_image& image) const {
  Watch watch;
  check_image(image, manifest());
  Prepared prepared;
  prepared.width = image.width;
  prepared.height = image.height;
  prepared.tensor.resize(3 * plane());
  image_to_tensor(image, manifest(), prepared.tensor.data());
  prepared.milliseconds = watch.lap();
  return prepared;
}

std::vector<float> Predictor::run(const float* tensors, const Sentence* const* sentences,
                                  size_t batch) const {
  return run({tensors}, sentences, batch, nullptr, nullptr);
}

std::vector<float> Predictor::run(const Tensors& tensors, const Sentence* const* sentences,
                                  size_t batch, float* device_logits, void* stream) const {
  const Sentence& first = *sentences[0];
  std::vector<float> words, feature, mask;
  const auto stacked = [&](const std::vector<float> Sentence::* part, std::vector<float>& room) {
    if (batch == 1) return (first.*part).data();
    for (size_t i = 0; i < batch; ++i) {
      const std::vector<float>& values = sentences[i]->*part;
      if (values.size() != (first.*part).size()) {
        fail(TFANET_INVALID_ARGUMENT,
             "the sentences come from different bundles: encode them with ", "this runtime");
      }
      room.insert(room.end(), values.begin(), values.end());
    }
    return static_cast<const float*>(room.data());
  };
  const auto count = static_cast<int64_t>(batch), length = manifest().text_length;
  const auto width = static_cast<int64_t>(first.feature.size());
  if (static_cast<int64_t>(first.mask.size()) != length ||
      static_cast<int64_t>(first.words.size()) != width * length) {
    fail(TFANET_INVALID_ARGUMENT, "the sentence comes from a bundle with another text length: ",
         "encode it with this runtime");
  }
  const int64_t height = manifest().height, columns = manifest().width;
  const std::vector<int64_t> shape = {count, 1, height, columns};
  std::vector<Output> outputs = {{"mask_logit", shape, {}, device_logits}};
  running_.image->run(
      {{"image", kFloat, tensors.data, {count, 3, height, columns}, tensors.on_device},
       {"word_features", kFloat, stacked(&Sentence::words, words), {count, width, length}},
       {"sentence_feature", kFloat, stacked(&Sentence::feature, feature), {count, width}},
       {"word_mask", kFloat, stacked(&Sentence::mask, mask), {count, length}}},
      outputs, stream);
  if (outputs[0].shape != shape) {
    fail(TFANET_BAD_BUNDLE, bundle_.path, "/image.onnx gave ", outputs[0].data.size(),
         " logits, expected ", batch * plane(), ": export the model again");
  }
  return std::move(outputs[0].data);
}

Prediction Predictor::predict(const Prepared& prepared, const Sentence& sentence) const {
  Watch watch;
  const Sentence* sentences[] = {&sentence};
  Prediction out;
  out.timings.preprocess = prepared.milliseconds;
  out.logits = run(prepared.tensor.data(), sentences, 1);
  out.timings.image = watch.lap();
  out.mask = logits_to_mask(out.logits.data(), manifest(), prepared.width, prepared.height);
  out.timings.postprocess = watch.lap();
  out.timings.total = out.timings.preprocess + out.timings.image + out.timings.postprocess;
  out.width = prepared.width;
  out.height = prepared.height;
  out.logits_width = manifest().width;
  out.logits_height = manifest().height;
  return out;
}

Prediction Predictor::predict_text(const tfanet_image& image, std::string_view text) {
  const Prepared prepared = prepare(image);
  Watch watch;
  const SharedSentence sentence = encode_cached(text);
  const double milliseconds = watch.lap();
  Prediction out = predict(prepared, *sentence);
  out.timings.text = milliseconds;
  out.timings.total += milliseconds;
  return out;
}

std::vector<Prediction> Predictor::predict_batch(
    const tfanet_image* images, size_t image_count,
    const std::vector<SharedSentence>& sentences) const {
  const size_t count = sentences.size();
  const size_t group = std::min(kBatch, static_cast<size_t>(running_.batches.highest));
  const size_t tensor_size = 3 * plane();
  for (size_t i = 0; i < image_count; ++i) check_image(images[i], manifest());
  std::vector<float> tensors(std::min(group, count) * tensor_size);
  std::vector<Prediction> out(count);
  Timings all;
  Watch watch;
  for (size_t begin = 0; begin < count; begin += group) {
    const size_t size = std::min(group, count - begin);
    const Sentence* part[kBatch];
    for (size_t i = 0; i < size; ++i) {
      part[i] = sentences[begin + i].get();
      float* tensor = tensors.data() + i * tensor_size;
      if (image_count > 1 || (begin == 0 && i == 0)) {
        image_to_tensor(images[begin + i], manifest(), tensor);
      } else if (begin == 0) {
        std::copy_n(tensors.data(), tensor_size, tensor);
      }
    }
    all.preprocess += watch.lap();
    const std::vector<float> logits = run(tensors.data(), part, size);
    all.image += watch.lap();
    for (size_t i = 0; i < size; ++i) {
      const tfanet_image& image = images[image_count > 1 ? begin + i : 0];
      Prediction& one = out[begin + i];
      const float* from = logits.data() + i * plane();
      one.logits.assign(from, from + plane());
      one.mask = logits_to_mask(from, manifest(), image.width, image.height);
      one.width = image.width;
      one.height = image.height;
      one.logits_width = manifest().width;
      one.logits_height = manifest().height;
    }
    all.postprocess += watch.lap();
  }
  all.total = all.preprocess + all.image + all.postprocess;
  for (Prediction& one : out) one.timings = all;
  return out;
}

}  // namespace tfanet
