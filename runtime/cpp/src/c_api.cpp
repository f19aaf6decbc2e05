// tfanet.h: calls of its functions, and exceptions into statuses.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>

#include "arguments.h"
#include "error.h"
#include "handle.h"
#include "onnxruntime.h"

namespace tfanet {
namespace {

// Runs `body` and reports what it throws through `report(status, message)`.
template <typename Body, typename Report>
tfanet_status caught(Body body, Report report) noexcept {
  try {
    body();
    return TFANET_OK;
  } catch (const Error& error) {
    report(error.status, error.what());
    return error.status;
  } catch (const std::bad_alloc&) {
    report(TFANET_OUT_OF_MEMORY, kNoMemory);
    return TFANET_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    report(TFANET_FAILED, error.what());
    return TFANET_FAILED;
  } catch (...) {
    report(TFANET_FAILED, "an unknown exception came up");
    return TFANET_FAILED;
  }
}

// A call on an open runtime.
template <typename Body>
tfanet_status call(tfanet_runtime* runtime, Body body) noexcept {
  if (runtime == nullptr) return TFANET_INVALID_ARGUMENT;
  const Gate::Pass pass(runtime->gate);
  const auto report = [&](tfanet_status, const char* message) { runtime->errors.set(message); };
  return caught(
      [&] {
        pass.require_open();
        if (runtime->predictor == nullptr) {
          fail(TFANET_INVALID_ARGUMENT, "the runtime did not open: close it, and open it again");
        }
        body(*runtime->predictor);
      },
      report);
}

tfanet_prediction* made(Prediction&& prediction) {
  return new tfanet_prediction{std::move(prediction)};
}

// Runs a batch of tensors; the logits go where they are wanted.
void run_tensors(const Predictor& predictor, const Tensors& tensors,
                 const tfanet_sentence* const* sentences, size_t batch, const Array& logits,
                 void* stream) {
  const std::vector<SharedSentence> encoded = sentences_of(sentences, batch);
  const Manifest& manifest = predictor.manifest();
  const Interface& interface = manifest.interface;
  require_length(logits.count,
                 batch * numbers_in({interface.logits_height(), interface.logits_width()}),
                 "count");
  if (batch > 1 && !manifest.dynamic_batch) {
    fail(TFANET_INVALID_ARGUMENT, "batch is ", batch,
         ", the bundle takes 1: export the model with a dynamic batch");
  }
  std::vector<const Sentence*> parts;
  for (const SharedSentence& one : encoded) parts.push_back(one.get());
  float* device_logits = logits.on_device ? logits.data : nullptr;
  const std::vector<float> result =
      predictor.run(tensors, parts.data(), batch, device_logits, stream);
  if (!logits.on_device) std::copy(result.begin(), result.end(), logits.data);
}

}  // namespace
}  // namespace tfanet

using namespace tfanet;

const char* tfanet_version(void) { return TFANET_VERSION; }

const char* tfanet_status_name(int status) {
  switch (status) {
    case TFANET_OK:
      return "OK";
    case TFANET_INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case TFANET_BAD_BUNDLE:
      return "BAD_BUNDLE";
    case TFANET_BAD_IMAGE:
      return "BAD_IMAGE";
    case TFANET_BAD_TEXT:
      return "BAD_TEXT";
    case TFANET_MISSING_DEPENDENCY:
      return "MISSING_DEPENDENCY";
    case TFANET_OUT_OF_MEMORY:
      return "OUT_OF_MEMORY";
    case TFANET_BUSY:
      return "BUSY";
    case TFANET_CLOSED:
      return "CLOSED";
    case TFANET_FAILED:
      return "FAILED";
  }
  return "UNKNOWN";
}

const char* tfanet_error(const tfanet_runtime* runtime) {
  return runtime == nullptr ? "the runtime is a null pointer: open one" : runtime->errors.get();
}

tfanet_status tfanet_open(const char* path, const tfanet_options* options, tfanet_runtime** out) {
  if (out == nullptr) return TFANET_INVALID_ARGUMENT;
  *out = nullptr;
  const auto report = [&](tfanet_status, const char* message) {
    if (*out != nullptr) (*out)->errors.set(message);
  };
  return caught(
      [&] {
        *out = new tfanet_runtime;
        keep_onnxruntime_quiet();
        require(path, "path");
        tfanet_options chosen{};
        if (options != nullptr) {
          chosen = taken(options, offsetof(tfanet_options, device), "options");
        }
        (*out)->predictor = std::make_unique<Predictor>(path, chosen);
      },
      report);
}

tfanet_status tfanet_close(tfanet_runtime* runtime) {
  if (runtime == nullptr) return TFANET_OK;
  if (runtime->worker.is_this_thread()) {
    runtime->errors.set("a callback cannot close its own runtime: close it in another thread");
    return TFANET_BUSY;
  }
  runtime->gate.close();
  runtime->worker.finish();
  delete runtime;
  return TFANET_OK;
}

tfanet_status tfanet_get_info(tfanet_runtime* runtime, tfanet_info* info) {
  return call(runtime, [&](Predictor& predictor) {
    const Manifest& manifest = predictor.manifest();
    tfanet_info facts{};
    const Running& running = predictor.running();
    facts.backend = running.backend.c_str();
    facts.backend_version = running.version.c_str();
    facts.op_library = predictor.op_library().empty() ? nullptr : predictor.op_library().c_str();
    facts.bundle = predictor.path().c_str();
    facts.model = manifest.preset.c_str();
    facts.image_width = manifest.preprocessing.width;
    facts.image_height = manifest.preprocessing.height;
    facts.text_length = static_cast<int32_t>(manifest.text.length);
    facts.threshold = static_cast<float>(manifest.postprocessing.logit_threshold());
    facts.dynamic_batch = manifest.dynamic_batch;
    facts.engine = running.engine.empty() ? nullptr : running.engine.c_str();
    facts.device = running.device == nullptr ? nullptr : running.device->name().c_str();
    facts.passed_over = running.passed_over.c_str();
    facts.min_batch = static_cast<int32_t>(running.batches.lowest);
    facts.max_batch = static_cast<int32_t>(running.batches.highest);
    facts.digest = predictor.digest().c_str();
    facts.int8 = running.int8;
    facts.logits_width = manifest.interface.logits_width();
    facts.logits_height = manifest.interface.logits_height();
    facts.family = manifest.family.c_str();
    give(facts, info, "info");
  });
}

tfanet_status tfanet_tokenize(tfanet_runtime* runtime, const char* text, size_t bytes, int64_t* ids,
                              float* mask, size_t length, size_t* tokens) {
  return call(runtime, [&](Predictor& predictor) {
    require(ids, "ids");
    require(mask, "mask");
    require_length(length, predictor.tokenizer().length(), "length");
    const size_t count = predictor.tokenizer().encode(text_of(text, bytes), ids, mask);
    if (tokens != nullptr) *tokens = count;
  });
}

tfanet_status tfanet_encode(tfanet_runtime* runtime, const char* text, size_t bytes,
                            tfanet_sentence** out) {
  if (out != nullptr) *out = nullptr;
  return call(runtime, [&](Predictor& predictor) {
    require(out, "out");
    *out = new tfanet_sentence{predictor.encode(text_of(text, bytes))};
  });
}

tfanet_status tfanet_encode_tokens(tfanet_runtime* runtime, const int64_t* ids, const float* mask,
                                   size_t length, tfanet_sentence** out) {
  if (out != nullptr) *out = nullptr;
  return call(runtime, [&](Predictor& predictor) {
    require(out, "out");
    require(ids, "ids");
    require(mask, "mask");
    require_length(length, predictor.tokenizer().length(), "length");
    *out = new tfanet_sentence{predictor.encode(ids, mask)};
  });
}

size_t tfanet_sentence_dropped(const tfanet_sentence* sentence) {
  return sentence == nullptr ? 0 : sentence->sentence->dropped;
}

void tfanet_sentence_free(tfanet_sentence* sentence) { delete sentence; }

tfanet_status tfanet_predict(tfanet_runtime* runtime, const tfanet_image* image,
                             const tfanet_sentence* sentence, tfanet_prediction** out) {
  if (out != nullptr) *out = nullptr;
  return call(runtime, [&](Predictor& predictor) {
    require(out, "out");
    require(sentence, "sentence");
    const Prepared prepared = predictor.prepare(taken_image(image));
    *out = made(predictor.predict(prepared, *sentence->sentence));
  });
}

tfanet_status tfanet_predict_text(tfanet_runtime* runtime, const tfanet_image* image,
                                  const char* text, size_t bytes, tfanet_prediction** out) {
  if (out != nullptr) *out = nullptr;
  return call(runtime, [&](Predictor& predictor) {
    require(out, "out");
    *out = made(predictor.predict_text(taken_image(image), text_of(text, bytes)));
  });
}

tfanet_status tfanet_predict_batch(tfanet_runtime* runtime, const tfanet_image* images,
                                   size_t image_count, const tfanet_sentence* const* sentences,
                                   size_t count, tfanet_prediction** out) {
  if (out != nullptr) std::fill_n(out, count, nullptr);
  return call(runtime, [&](Predictor& predictor) {
    require(out, "out");
    const std::vector<SharedSentence> encoded = sentences_of(sentences, count);
    if (image_count != 1 && image_count != count) {
      fail(TFANET_INVALID_ARGUMENT, "image_count is ", image_count, " for ", count,
           " sentences: give 1 or as many");
    }
    require(images, "images");
    // All images of an array have the size of its first one.
    std::vector<tfanet_image> pictures;
    const size_t step = images->size;
    for (size_t i = 0; i < image_count; ++i) {
      const auto* at = reinterpret_cast<const unsigned char*>(images) + i * step;
      pictures.push_back(taken_image(reinterpret_cast<const tfanet_image*>(at)));
    }
    std::vector<Prediction> predictions =
        predictor.predict_batch(pictures.data(), image_count, encoded);
    std::vector<std::unique_ptr<tfanet_prediction>> owners;
    owners.reserve(count);
    for (Prediction& one : predictions) owners.emplace_back(made(std::move(one)));
    for (size_t i = 0; i < count; ++i) out[i] = owners[i].release();
  });
}

tfanet_status tfanet_predict_async(tfanet_runtime* runtime, const tfanet_image* image,
                                   const tfanet_sentence* sentence, tfanet_callback callback,
                                   void* user) {
  return call(runtime, [&](Predictor& predictor) {
    require(sentence, "sentence");
    if (callback == nullptr) {
      fail(TFANET_INVALID_ARGUMENT, "callback is a null pointer: give a function");
    }
    auto prepared = std::make_shared<const Prepared>(predictor.prepare(taken_image(image)));
    // The runtime waits for its worker before it goes, so the predictor is there.
    runtime->worker.add([&predictor, prepared, words = sentence->sentence, callback, user] {
      tfanet_prediction* prediction = nullptr;
      bool failed = false;
      caught([&] { prediction = made(predictor.predict(*prepared, *words)); },
             [&](tfanet_status status, const char* message) {
               failed = true;
               callback(user, status, nullptr, message);
             });
      if (!failed) callback(user, TFANET_OK, prediction, "");
    });
  });
}

tfanet_status tfanet_preprocess(tfanet_runtime* runtime, const tfanet_image* image, float* tensor,
                                size_t count) {
  return call(runtime, [&](Predictor& predictor) {
    require(tensor, "tensor");
    const tfanet_image picture = taken_image(image);
    const Preprocessing& pre = predictor.manifest().preprocessing;
    check_image(picture, pre);
    require_length(count, numbers_in({3, pre.height, pre.width}), "count");
    image_to_tensor(picture, pre, tensor);
  });
}

tfanet_status tfanet_predict_tensors(tfanet_runtime* runtime, const float* tensors,
                                     const tfanet_sentence* const* sentences, size_t batch,
                                     float* logits, size_t count) {
  return call(runtime, [&](Predictor& predictor) {
    require(tensors, "tensors");
    require(logits, "logits");
    run_tensors(predictor, {tensors}, sentences, batch, {logits, count, false}, nullptr);
  });
}

tfanet_status tfanet_predict_arrays(tfanet_runtime* runtime, const tfanet_array* tensors,
                                    const tfanet_sentence* const* sentences, size_t batch,
                                    const tfanet_array* logits, void* stream) {
  return call(runtime, [&](Predictor& predictor) {
    const Array in = taken_array(predictor, tensors, "tensors");
    const Array out = taken_array(predictor, logits, "logits");
    const Preprocessing& pre = predictor.manifest().preprocessing;
    require_length(in.count, batch * numbers_in({3, pre.height, pre.width}), "tensors.count");
    if (stream != nullptr && predictor.running().device == nullptr) {
      fail(TFANET_INVALID_ARGUMENT, "a stream is given, and ", predictor.running().backend,
           " runs on the CPU: give NULL, or open the bundle with a backend on a GPU");
    }
    run_tensors(predictor, {in.data, in.on_device}, sentences, batch, out, stream);
  });
}

tfanet_status tfanet_prediction_get(const tfanet_prediction* prediction, tfanet_result* result) {
  if (prediction == nullptr || result == nullptr) return TFANET_INVALID_ARGUMENT;
  const Prediction& from = prediction->prediction;
  tfanet_result facts{};
  facts.width = from.width;
  facts.height = from.height;
  facts.mask = from.mask.pixels.data();
  facts.score = from.mask.score;
  facts.logits_width = from.logits_width;
  facts.logits_height = from.logits_height;
  facts.logits = from.logits.data();
  facts.preprocess_ms = from.timings.preprocess;
  facts.text_ms = from.timings.text;
  facts.image_ms = from.timings.image;
  facts.postprocess_ms = from.timings.postprocess;
  facts.total_ms = from.timings.total;
  facts.no_target = from.no_target.value_or(-1.0f);
  facts.instance_count = from.instances ? static_cast<int32_t>(from.instances->size()) : -1;
  return caught([&] { give(facts, result, "result"); }, [](tfanet_status, const char*) {});
}

tfanet_status tfanet_prediction_instance(const tfanet_prediction* prediction, size_t index,
                                         tfanet_instance* instance) {
  if (prediction == nullptr || instance == nullptr) return TFANET_INVALID_ARGUMENT;
  const auto& all = prediction->prediction.instances;
  if (!all || index >= all->size()) return TFANET_INVALID_ARGUMENT;
  const Instance& from = (*all)[index];
  tfanet_instance facts{};
  facts.mask = from.mask.data();
  facts.relevance = from.relevance;
  facts.alignment = from.alignment.empty() ? nullptr : from.alignment.data();
  facts.alignment_length = from.alignment.size();
  facts.word_count = from.shares.empty() ? -1 : static_cast<int32_t>(from.shares.size());
  return caught([&] { give(facts, instance, "instance"); }, [](tfanet_status, const char*) {});
}

tfanet_status tfanet_prediction_word(const tfanet_prediction* prediction, size_t instance,
                                     size_t index, tfanet_word* word) {
  if (prediction == nullptr || word == nullptr) return TFANET_INVALID_ARGUMENT;
  const Prediction& from = prediction->prediction;
  if (!from.instances || instance >= from.instances->size()) return TFANET_INVALID_ARGUMENT;
  const std::vector<float>& shares = (*from.instances)[instance].shares;
  if (index >= shares.size()) return TFANET_INVALID_ARGUMENT;
  tfanet_word facts{};
  facts.text = (*from.words)[index].text.c_str();
  facts.bytes = (*from.words)[index].text.size();
  facts.share = shares[index];
  return caught([&] { give(facts, word, "word"); }, [](tfanet_status, const char*) {});
}

void tfanet_prediction_free(tfanet_prediction* prediction) { delete prediction; }
