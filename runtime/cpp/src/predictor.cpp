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
constexpr float kRelevant = 0.5f;  // an instance is meant from here on
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
  const Tokenization& says = bundle.manifest.text;
  const TokenizerRules rules = {says.kind, says.length, says.pad_id, says.truncation};
  return std::make_unique<Tokenizer>(bundle.tokenizer.path, text, bundle.tokenizer.size, rules);
}

Shape batched(size_t batch, const Shape& shape) {
  Shape whole = {static_cast<int64_t>(batch)};
  whole.insert(whole.end(), shape.begin(), shape.end());
  return whole;
}

// A shape as Python prints it.
std::string shape_text(const Shape& shape) {
  std::string out = "(";
  for (const int64_t size : shape) out += join(out.size() > 1 ? ", " : "", size);
  return out + (shape.size() == 1 ? ",)" : ")");
}

std::vector<Expected> expected_floats(const std::vector<NamedShape>& values) {
  std::vector<Expected> out;
  for (const NamedShape& value : values) out.push_back({value.name, kFloat, value.shape});
  return out;
}

}  // namespace

const std::vector<float>* Sentence::values(const std::string& name) const {
  if (name == kWordMask) return &mask;
  for (const Feature& feature : features) {
    if (feature.name == name) return &feature.values;
  }
  return nullptr;
}

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
  } const ids[] = {{"sos_id", says.text.sos_id, tokenizer_->sos_id()},
                   {"eos_id", says.text.eos_id, tokenizer_->eos_id()}};
  for (const auto& [name, said, found] : ids) {
    if (said != found) {
      fail(TFANET_BAD_BUNDLE, bundle_.path, ": the tokenizer's ", name, " is ", found,
           ", the manifest says ", said, ": export the model again");
    }
  }
  const Interface& interface = says.interface;
  running_.text->check_interface({{kTokenIds, kInt64, {says.text.length}}},
                                 expected_floats(interface.text_outputs));
  std::vector<Expected> outputs;
  for (const ImageOutput& one : interface.image_outputs) {
    outputs.push_back({one.name, kFloat, one.shape});
  }
  running_.image->check_interface(expected_floats(interface.image_inputs), outputs);
}

size_t Predictor::tensor_size() const {
  const Preprocessing& pre = manifest().preprocessing;
  return 3 * static_cast<size_t>(pre.height) * static_cast<size_t>(pre.width);
}

void Predictor::fail_to_fit(const char* file, const char* name, const Shape& given,
                            const Shape& expected) const {
  fail(TFANET_BAD_BUNDLE, bundle_.path, "/", file, " gives float32 ", shape_text(given), " for '",
       name, "', the manifest says floats ", shape_text(expected), ": export the model again");
}

Sentence Predictor::encode_ids(const int64_t* ids, const float* mask) const {
  const auto length = static_cast<int64_t>(tokenizer_->length());
  const std::vector<NamedShape>& features = manifest().interface.text_outputs;
  std::vector<Output> outputs;
  for (const NamedShape& one : features) outputs.push_back({one.name.c_str(), {}, {}, nullptr});
  running_.text->run({{kTokenIds, kInt64, ids, {1, length}}}, outputs, nullptr);
  Sentence sentence;
  for (size_t i = 0; i < features.size(); ++i) {
    const Shape expected = batched(1, features[i].shape);
    if (outputs[i].shape != expected) {
      fail_to_fit(kText, outputs[i].name, outputs[i].shape, expected);
    }
    sentence.features.push_back({features[i].name, std::move(outputs[i].data)});
  }
  sentence.mask.assign(mask, mask + length);
  return sentence;
}

SharedSentence Predictor::encode(const int64_t* ids, const float* mask) const {
  return std::make_shared<Sentence>(encode_ids(ids, mask));
}

SharedSentence Predictor::encode(std::string_view text) const {
  std::vector<int64_t> ids(tokenizer_->length());
  std::vector<float> mask(ids.size());
  std::vector<WordTokens> words;
  const size_t tokens = tokenizer_->encode(text, ids.data(), mask.data(), &words);
  const auto sentence = std::make_shared<Sentence>(encode_ids(ids.data(), mask.data()));
  sentence->dropped = tokens - std::min(tokens, tokenizer_->room());
  sentence->words = std::make_shared<const std::vector<WordTokens>>(std::move(words));
  return sentence;
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
  const Preprocessing& pre = manifest().preprocessing;
  check_image(image, pre);
  Prepared prepared;
  prepared.width = image.width;
  prepared.height = image.height;
  prepared.tensor.resize(tensor_size());
  image_to_tensor(image, pre, prepared.tensor.data());
  prepared.milliseconds = watch.lap();
  return prepared;
}

std::vector<float> Predictor::run(const Tensors& tensors, const Sentence* const* sentences,
                                  size_t batch, float* device_logits, void* stream) const {
  return std::move(run_graph(tensors, sentences, batch, true, device_logits, stream)[0]);
}

Found Predictor::run_graph(const Tensors& tensors, const Sentence* const* sentences, size_t batch,
                           bool masks_only, float* device_logits, void* stream) const {
  std::vector<std::vector<float>> rooms;  // for values of several sentences
  // What the image graph takes of the sentences by this name.
  const auto stacked = [&](const NamedShape& input) {
    const size_t count = numbers_in(input.shape);
    std::vector<float> room;
    for (size_t i = 0; i < batch; ++i) {
      const std::vector<float>* values = sentences[i]->values(input.name);
      if (values == nullptr || values->size() != count) {
        fail(TFANET_INVALID_ARGUMENT, "the sentence comes from another bundle, whose '", input.name,
             "' has another size: encode it with this runtime");
      }
      if (batch == 1) return values->data();
      room.insert(room.end(), values->begin(), values->end());
    }
    return static_cast<const float*>(rooms.emplace_back(std::move(room)).data());
  };
  const Interface& interface = manifest().interface;
  std::vector<Feed> feeds;
  for (const NamedShape& input : interface.image_inputs) {
    const bool picture = input.name == kPicture;
    const float* values = picture ? tensors.data : stacked(input);
    feeds.push_back({input.name.c_str(), kFloat, values, batched(batch, input.shape),
                     picture && tensors.on_device});
  }
  std::vector<Output> outputs;
  for (const ImageOutput& one : interface.image_outputs) {
    outputs.push_back({one.name.c_str(),
                       batched(batch, one.shape),
                       {},
                       outputs.empty() ? device_logits : nullptr});
    if (masks_only) break;
  }
  running_.image->run(feeds, outputs, stream);
  Found found;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Shape expected = batched(batch, interface.image_outputs[i].shape);
    if (outputs[i].shape != expected) {
      fail_to_fit(kImage, outputs[i].name, outputs[i].shape, expected);
    }
    found.push_back(std::move(outputs[i].data));
  }
  return found;
}

Prediction Predictor::result(const Found& found, const Sentence& sentence, size_t place,
                             Size picture) const {
  const Preprocessing& pre = manifest().preprocessing;
  const Interface& interface = manifest().interface;
  // The numbers of a role, or null where the graph does not give it.
  const auto values_of = [&](Role role) -> const float* {
    const ImageOutput* output = interface.output(role);
    if (output == nullptr) return nullptr;
    const auto at = static_cast<size_t>(output - interface.image_outputs.data());
    return found[at].data() + place * numbers_in(output->shape);
  };
  Prediction out;
  out.width = picture.width;
  out.height = picture.height;
  out.logits_width = interface.logits_width();
  out.logits_height = interface.logits_height();
  const float* logits = values_of(Role::kMask);
  out.logits.assign(logits, logits + numbers_in(interface.output(Role::kMask)->shape));
  out.mask = plane_to_mask(logits, {out.logits_width, out.logits_height}, pre,
                           manifest().postprocessing, picture);
  if (const float* no_target = values_of(Role::kNoTarget)) {
    to_probabilities(no_target, 1, &out.no_target.emplace());
    if (*no_target > 0) {
      std::fill(out.mask.pixels.begin(), out.mask.pixels.end(), uint8_t{0});
      out.mask.score = 0;
    }
  }
  if (const float* planes = values_of(Role::kInstances)) {
    const Shape& shape = interface.output(Role::kInstances)->shape;
    const float *relevance = values_of(Role::kRelevance), *alignments = values_of(Role::kAlignment);
    std::vector<size_t> order;
    for (size_t i = 0; i < static_cast<size_t>(shape[0]); ++i) {
      if (relevance[i] >= kRelevant) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return relevance[a] > relevance[b]; });
    const Size size = {static_cast<int32_t>(shape[2]), static_cast<int32_t>(shape[1])};
    const size_t plane = numbers_in({shape[1], shape[2]});
    const auto length = static_cast<size_t>(manifest().text.length);
    out.instances.emplace();
    out.words = sentence.words;
    for (const size_t i : order) {
      Instance& one = out.instances->emplace_back();
      one.mask = plane_to_mask(planes + i * plane, size, pre, Postprocessing(), picture).pixels;
      one.relevance = relevance[i];
      if (alignments == nullptr) continue;
      one.alignment.assign(alignments + i * length, alignments + (i + 1) * length);
      if (out.words == nullptr) continue;
      size_t at = 1;  // behind the start token
      for (const WordTokens& word : *out.words) {
        // The sentence may come from another bundle, with more tokens.
        const size_t end = std::min(at + word.count, length);
        float& share = one.shares.emplace_back(0.0f);
        for (; at < end; ++at) share += one.alignment[at];
      }
    }
  }
  return out;
}

Prediction Predictor::predict(const Prepared& prepared, const Sentence& sentence) const {
  Watch watch;
  const Sentence* sentences[] = {&sentence};
  const Found found = run_graph({prepared.tensor.data()}, sentences, 1, false, nullptr, nullptr);
  const double image = watch.lap();
  Prediction out = result(found, sentence, 0, {prepared.width, prepared.height});
  out.timings.preprocess = prepared.milliseconds;
  out.timings.image = image;
  out.timings.postprocess = watch.lap();
  out.timings.total = out.timings.preprocess + out.timings.image + out.timings.postprocess;
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
  const Preprocessing& pre = manifest().preprocessing;
  for (size_t i = 0; i < image_count; ++i) check_image(images[i], pre);
  std::vector<float> tensors(std::min(group, count) * tensor_size());
  std::vector<Prediction> out(count);
  Timings all;
  Watch watch;
  for (size_t begin = 0; begin < count; begin += group) {
    const size_t size = std::min(group, count - begin);
    const Sentence* part[kBatch];
    for (size_t i = 0; i < size; ++i) {
      part[i] = sentences[begin + i].get();
      float* tensor = tensors.data() + i * tensor_size();
      if (image_count > 1 || (begin == 0 && i == 0)) {
        image_to_tensor(images[begin + i], pre, tensor);
      } else if (begin == 0) {
        std::copy_n(tensors.data(), tensor_size(), tensor);
      }
    }
    all.preprocess += watch.lap();
    const Found found = run_graph({tensors.data()}, part, size, false, nullptr, nullptr);
    all.image += watch.lap();
    for (size_t i = 0; i < size; ++i) {
      const tfanet_image& image = images[image_count > 1 ? begin + i : 0];
      out[begin + i] = result(found, *part[i], i, {image.width, image.height});
    }
    all.postprocess += watch.lap();
  }
  all.total = all.preprocess + all.image + all.postprocess;
  for (Prediction& one : out) one.timings = all;
  return out;
}

}  // namespace tfanet
