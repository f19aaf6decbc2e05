// A bundle with its sessions: what runtime/predictor.py is in Python. All of it is free of locks,
// but for the cache of sentences.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backends.h"
#include "bundle.h"
#include "mask.h"
#include "preprocess.h"
#include "session.h"
#include "tfanet.h"
#include "tokenizer.h"

namespace tfanet {

using SharedWords = std::shared_ptr<const std::vector<WordTokens>>;

struct Sentence {
  struct Feature {
    std::string name;
    std::vector<float> values;
  };
  std::vector<Feature> features;  // what the text graph gives
  std::vector<float> mask;        // (length)
  size_t dropped = 0;             // tokens that found no room
  SharedWords words;              // null where it came as tokens

  // Of a feature, or the word mask; null for any other name.
  const std::vector<float>* values(const std::string& name) const;
};
using SharedSentence = std::shared_ptr<const Sentence>;

struct Timings {
  double preprocess = 0, text = 0, image = 0, postprocess = 0, total = 0;  // milliseconds
};

// One object that a sentence means, of a model that tells them apart.
struct Instance {
  std::vector<uint8_t> mask;  // as Mask::pixels
  float relevance = 0;
  std::vector<float> alignment;  // of each token; empty where the model does not give it
  std::vector<float> shares;     // of each of Prediction::words in that
};

struct Prediction {
  Mask mask;
  int32_t width = 0, height = 0;
  std::vector<float> logits;
  int32_t logits_width = 0, logits_height = 0;
  std::optional<float> no_target;                  // none: the model does not say
  std::optional<std::vector<Instance>> instances;  // the same
  SharedWords words;                               // of the sentence; null: it came as tokens
  Timings timings;
};

// What the image graph gives for a batch: for each of Interface::image_outputs its numbers.
using Found = std::vector<std::vector<float>>;

// A picture as the model reads it, and its own size.
struct Prepared {
  std::vector<float> tensor;
  int32_t width = 0, height = 0;
  double milliseconds = 0;
};

// Prepared pictures of the caller's, in the memory of the process or in that of the GPU.
struct Tensors {
  const float* data;
  bool on_device = false;
};

// The last sentences that were encoded, by their text. Safe in many threads.
class SentenceCache {
 public:
  explicit SentenceCache(size_t capacity) : capacity_(capacity) {}
  SharedSentence find(const std::string& text);  // null where it is not known
  void add(const std::string& text, SharedSentence sentence);

 private:
  using Entry = std::pair<std::string, SharedSentence>;
  std::mutex mutex_;
  size_t capacity_;
  std::list<Entry> entries_;  // the one used last comes first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> places_;
};

class Predictor {
 public:
  Predictor(const char* path, const tfanet_options& options);

  const Manifest& manifest() const { return bundle_.manifest; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& path() const { return bundle_.path; }
  const std::string& digest() const { return bundle_.digest; }
  const std::string& op_library() const { return op_library_; }
  const Running& running() const { return running_; }

  SharedSentence encode(std::string_view text) const;
  SharedSentence encode(const int64_t* ids, const float* mask) const;
  SharedSentence encode_cached(std::string_view text);

  Prepared prepare(const tfanet_image& image) const;
  Prediction predict(const Prepared& prepared, const Sentence& sentence) const;
  Prediction predict_text(const tfanet_image& image, std::string_view text);
  // `image_count` is 1 or the number of sentences.
  std::vector<Prediction> predict_batch(const tfanet_image* images, size_t image_count,
                                        const std::vector<SharedSentence>& sentences) const;

  // Mask logits of tensors (batch, 3, height, width), which may lie in the memory of the GPU. Where
  // `device_logits` is not null they stay there; else they are returned. `stream` as in
  // Session::run.
  std::vector<float> run(const Tensors& tensors, const Sentence* const* sentences, size_t batch,
                         float* device_logits, void* stream) const;

 private:
  void check_parts() const;
  size_t tensor_size() const;
  // `masks_only`: only the first output is asked for.
  Found run_graph(const Tensors& tensors, const Sentence* const* sentences, size_t batch,
                  bool masks_only, float* device_logits, void* stream) const;
  Sentence encode_ids(const int64_t* ids, const float* mask) const;
  // Of a sentence and its place in a batch; all but the timings.
  Prediction result(const Found& found, const Sentence& sentence, size_t place, Size picture) const;
  [[noreturn]] void fail_to_fit(const char* file, const char* name, const Shape& given,
                                const Shape& expected) const;

  Bundle bundle_;
  std::string op_library_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  Running running_;
  SentenceCache cache_;
};

}  // namespace tfanet
