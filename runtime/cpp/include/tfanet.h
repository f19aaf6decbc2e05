/* tfanet.h: referring image segmentation in C. A picture and a sentence in, a mask out.
 *
 *   tfanet_runtime* runtime = NULL;
 *   tfanet_prediction* prediction = NULL;
 *   if (tfanet_open("bundle", NULL, &runtime) != TFANET_OK) die(tfanet_error(runtime));
 *
 *   tfanet_image image = {sizeof image, pixels, width, height, 0, TFANET_RGB};
 *   if (tfanet_predict_text(runtime, &image, "the red circle", TFANET_STRLEN, &prediction))
 *     die(tfanet_error(runtime));
 *
 *   tfanet_result result = {.size = sizeof result};
 *   tfanet_prediction_get(prediction, &result);
 *   use(result.mask, result.width, result.height);
 *
 *   tfanet_prediction_free(prediction);
 *   tfanet_close(runtime);
 *
 * Threads: every function may be called from any thread at any time, on shared handles too, except
 * that nothing may use a handle after it was freed or closed.
 *
 * Ownership: what a function hands out through `**out` is the caller's, who frees it with the
 * function named for it. What is passed in is only read during the call; nothing is kept.
 *
 * Errors: a function returns TFANET_OK (0) or a negative status. No exception leaves the library.
 * Structs begin with their own size, so that programs and library may differ in version. */
#ifndef TFANET_H_
#define TFANET_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TFANET_API __attribute__((visibility("default")))
#else
#define TFANET_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tfanet_status {
  TFANET_OK = 0,
  TFANET_INVALID_ARGUMENT = -1,   /* a null pointer, an impossible size, an unknown option */
  TFANET_BAD_BUNDLE = -2,         /* missing, truncated, altered, or of another version */
  TFANET_BAD_IMAGE = -3,          /* too small, too large, or with a stride below a row */
  TFANET_BAD_TEXT = -4,           /* empty, too long, or not UTF-8 */
  TFANET_MISSING_DEPENDENCY = -5, /* ONNX Runtime, an operator library or a backend */
  TFANET_OUT_OF_MEMORY = -6,      /* the call had no effect; the handle stays usable */
  TFANET_BUSY = -7,               /* too many predictions wait; try again when one is done */
  TFANET_CLOSED = -8,             /* the runtime is being closed by another thread */
  TFANET_FAILED = -9              /* the backend reported an error */
} tfanet_status;

typedef enum tfanet_format {
  TFANET_RGB = 1,
  TFANET_BGR = 2,
  TFANET_RGBA = 3, /* alpha is straight, not premultiplied; the picture is laid on white */
  TFANET_BGRA = 4,
  TFANET_GREY = 5
} tfanet_format;

typedef struct tfanet_runtime tfanet_runtime;       /* an open bundle */
typedef struct tfanet_sentence tfanet_sentence;     /* an encoded sentence */
typedef struct tfanet_prediction tfanet_prediction; /* a mask, with its score and timings */

/* A picture of 8 bits a channel. `stride` is the distance between rows in bytes; 0: no gap. Each
 * side has 2 to 65,535 pixels, and there are 64 million pixels at most. */
typedef struct tfanet_image {
  size_t size; /* sizeof(tfanet_image) */
  const void* pixels;
  int32_t width, height;
  int64_t stride;
  int32_t format; /* a tfanet_format */
} tfanet_image;

/* All zeros except `size` are the defaults. */
typedef struct tfanet_options {
  size_t size;         /* sizeof(tfanet_options) */
  const char* backend; /* see README.md; NULL or "auto": the best one that can run here */
  int32_t threads;     /* of a single run, up to 1024; 0: all cores that the process may use */
  int32_t cache;       /* sentences that tfanet_predict_text remembers; 0: 256, negative: none */
  /* File of ONNX Runtime 1.20 or newer. NULL: $TFANET_ONNXRUNTIME, or else libonnxruntime.so as
   * the system finds it. It stays loaded when the runtime is closed. */
  const char* onnxruntime;
  /* File of the operator library. NULL: $TFANET_OP_LIBRARY, or else libtfanet_ort.so where it lies
   * beside this library, or else none. "none": run the function bodies in the ONNX files. */
  const char* op_library;
  int32_t device;       /* index of the GPU */
  const char* tensorrt; /* TensorRT's library. NULL: $TFANET_TENSORRT, or as the system finds it */
  const char* plugin_library; /* libtfanet_trt.so, where it does not lie beside this library */
  const char* host_code; /* name of an engine that may run the code for the CPU which it carries */
  const char* digest;    /* of the bundle that is meant, as info.digest; NULL: any is taken */
} tfanet_options;

/* The strings live as long as the runtime. */
typedef struct tfanet_info {
  size_t size; /* sizeof(tfanet_info) */
  const char* backend;
  const char* backend_version;
  const char* op_library; /* NULL: none is loaded */
  const char* bundle;
  const char* model;
  int32_t image_width, image_height; /* of the model's input */
  int32_t text_length;               /* token ids of a sentence, start and end included */
  float threshold;                   /* a pixel is set where its logit is above; see README.md */
  int32_t dynamic_batch;             /* 1: several sentences may run together */
  const char* engine;                /* name of the bundle's engine that runs; NULL: none */
  const char* device;                /* name of the GPU; NULL: the backend is on the CPU */
  const char* passed_over;           /* better backends that cannot run here: "name: why" lines */
  int32_t min_batch, max_batch;      /* of one run */
  const char* digest;                /* SHA-256 of manifest.json, as 64 digits; see README.md */
  const char* int8; /* what INT8 graphs run in: "integers", or "floating point" where
                       this processor's integers would saturate; NULL: none */
  int32_t logits_width, logits_height; /* of the mask logits that the model gives */
  const char* family;                  /* of the model, as "tfanet"; empty: it is not named */
} tfanet_info;

typedef enum tfanet_memory { TFANET_HOST = 0, TFANET_DEVICE = 1 } tfanet_memory;

/* Floats of the caller's, in the memory of the process or in that of the runtime's GPU. */
typedef struct tfanet_array {
  size_t size; /* sizeof(tfanet_array) */
  float* data;
  size_t count;   /* of floats */
  int32_t memory; /* a tfanet_memory */
} tfanet_array;

typedef struct tfanet_result {
  size_t size;           /* sizeof(tfanet_result) */
  int32_t width, height; /* of the picture, and so of the mask */
  const uint8_t* mask;   /* height rows of width bytes: 255 inside, 0 outside; empty where the
                            sentence means nothing in the picture: no_target above 0.5 */
  float score;           /* mean probability of the mask's pixels, 0 to 1; 0 for an empty mask */
  int32_t logits_width, logits_height;
  const float* logits; /* as the model gives them; probability = 1 / (1 + exp(-logit)) */
  /* Milliseconds; over all pictures and sentences of a batch. `text` is near 0 for a sentence that
   * was encoded before. */
  double preprocess_ms, text_ms, image_ms, postprocess_ms, total_ms;
  /* How likely it is that the sentence means nothing in the picture, 0 to 1; negative: the model
   * does not say. */
  float no_target;
  int32_t instance_count; /* see tfanet_prediction_instance; -1: the model gives none */
} tfanet_result;

/* One object that a sentence means, of a model that tells them apart. */
typedef struct tfanet_instance {
  size_t size;         /* sizeof(tfanet_instance) */
  const uint8_t* mask; /* as that of the result */
  float relevance;     /* how likely it is that the sentence means it, 0.5 to 1 */
  /* What share of its attention each token of the sentence has; NULL: the model does not say. */
  const float* alignment;
  size_t alignment_length; /* info.text_length, or 0 */
  /* See tfanet_prediction_word; -1: there is no alignment, or the sentence came as tokens. */
  int32_t word_count;
} tfanet_instance;

/* A word of the sentence, with what an instance makes of it. */
typedef struct tfanet_word {
  size_t size;      /* sizeof(tfanet_word) */
  const char* text; /* as the tokenizer reads it: in small letters, BERT's without accents */
  size_t bytes;     /* of the text, whose UTF-8 ends with a zero byte that is not counted */
  float share;      /* of the instance's attention, 0 to 1; the sum of its tokens' */
} tfanet_word;

/* A size that says: the string ends at its first zero byte. */
#define TFANET_STRLEN SIZE_MAX

/* Version of the library, as "0.1.0". The string is constant. */
TFANET_API const char* tfanet_version(void);

/* "BAD_BUNDLE" for TFANET_BAD_BUNDLE, and so on. The string is constant. */
TFANET_API const char* tfanet_status_name(int status);

/* What went wrong in the last call of this thread that failed on this runtime: one sentence, never
 * NULL, valid until the next one fails, or the runtime is closed. */
TFANET_API const char* tfanet_error(const tfanet_runtime* runtime);

/* Open the bundle in directory `path`, and check every file in it by its SHA-256.
 *
 * The first call puts ORT_DISABLE_TELEMETRY=1 into the environment, where it is not set: without
 * it, ONNX Runtime from 1.29 on reports to its makers. No other thread may use the environment in
 * that moment; set it yourself before there are threads, where that cannot be kept.
 *
 * `options` may be NULL. *out is set where this fails too (but not where memory is exhausted), for
 * tfanet_error to tell why: close it in any case. */
TFANET_API tfanet_status tfanet_open(const char* path, const tfanet_options* options,
                                     tfanet_runtime** out);

/* Wait for the calls that run in other threads and for all callbacks, then free the runtime.
 * Sentences and predictions stay valid. NULL is ignored. TFANET_BUSY, and nothing done, inside a
 * callback of the same runtime: it would wait for itself. */
TFANET_API tfanet_status tfanet_close(tfanet_runtime* runtime);

/* Facts about the open bundle. The caller sets info->size. */
TFANET_API tfanet_status tfanet_get_info(tfanet_runtime* runtime, tfanet_info* info);

/* Token ids and word mask (1 up to the end token, then 0) of a sentence, as the model reads them.
 *
 * `ids` and `mask` have `length` places, which must be info.text_length. *tokens, where not NULL,
 * is how many tokens the sentence has without start and end. There is room for length - 2 of them,
 * or for length - 1 where the manifest's truncation is "cut", which gives up the end token. */
TFANET_API tfanet_status tfanet_tokenize(tfanet_runtime* runtime, const char* text, size_t bytes,
                                         int64_t* ids, float* mask, size_t length, size_t* tokens);

/* Encode a UTF-8 sentence of up to 4096 bytes once, for any number of pictures. It is cut to the
 * model's length; see tfanet_sentence_dropped. */
TFANET_API tfanet_status tfanet_encode(tfanet_runtime* runtime, const char* text, size_t bytes,
                                       tfanet_sentence** out);

/* Encode token ids and a word mask, both of info.text_length places. */
TFANET_API tfanet_status tfanet_encode_tokens(tfanet_runtime* runtime, const int64_t* ids,
                                              const float* mask, size_t length,
                                              tfanet_sentence** out);

/* How many tokens at the end of the sentence the model has no room for. */
TFANET_API size_t tfanet_sentence_dropped(const tfanet_sentence* sentence);

/* NULL is ignored. Predictions that use the sentence are not disturbed. */
TFANET_API void tfanet_sentence_free(tfanet_sentence* sentence);

/* Segment what an encoded sentence names in a picture. */
TFANET_API tfanet_status tfanet_predict(tfanet_runtime* runtime, const tfanet_image* image,
                                        const tfanet_sentence* sentence, tfanet_prediction** out);

/* The same for a UTF-8 string, which is encoded, or found among the last ones. */
TFANET_API tfanet_status tfanet_predict_text(tfanet_runtime* runtime, const tfanet_image* image,
                                             const char* text, size_t bytes,
                                             tfanet_prediction** out);

/* Segment `count` pairs of picture and sentence, up to 4 at a time where the bundle's batch is
 * dynamic. `image_count` is `count`, or 1: the same picture for all sentences, prepared once.
 * out[i] is the prediction of sentence i; on failure all are NULL. */
TFANET_API tfanet_status tfanet_predict_batch(tfanet_runtime* runtime, const tfanet_image* images,
                                              size_t image_count,
                                              const tfanet_sentence* const* sentences, size_t count,
                                              tfanet_prediction** out);

/* Called once for each prediction that was started, in a thread of the runtime. The callee frees
 * `prediction`, which is NULL unless status is TFANET_OK. `message` lives during the call. It must
 * not throw. */
typedef void (*tfanet_callback)(void* user, tfanet_status status, tfanet_prediction* prediction,
                                const char* message);

/* Start a prediction and return. The picture is prepared before the return, and the sentence kept
 * by the runtime: both may be freed at once. Predictions run in order, one at a time; TFANET_BUSY
 * where 64 wait. Where this fails, the callback is not called. */
TFANET_API tfanet_status tfanet_predict_async(tfanet_runtime* runtime, const tfanet_image* image,
                                              const tfanet_sentence* sentence,
                                              tfanet_callback callback, void* user);

/* Write a picture as the model reads it: 3 planes of info.image_height rows, resized (and of some
 * models padded) and normalised. `count` is the room in `tensor` in floats. */
TFANET_API tfanet_status tfanet_preprocess(tfanet_runtime* runtime, const tfanet_image* image,
                                           float* tensor, size_t count);

/* Logits of a batch of prepared pictures, each with its sentence, in one run of the backend.
 * `tensors` holds `batch` results of tfanet_preprocess one behind the other; `count` is the room
 * in `logits` in floats: batch * info.logits_height * info.logits_width, which need not be the
 * size of the model's input. */
TFANET_API tfanet_status tfanet_predict_tensors(tfanet_runtime* runtime, const float* tensors,
                                                const tfanet_sentence* const* sentences,
                                                size_t batch, float* logits, size_t count);

/* The same between arrays in any memory. `stream` is a CUDA stream of the runtime's GPU, or NULL:
 * what is in it runs before the tensors are read, and what comes into it later finds the logits.
 * With a stream, and logits on the GPU, the call may return before it has used arrays there. */
TFANET_API tfanet_status tfanet_predict_arrays(tfanet_runtime* runtime, const tfanet_array* tensors,
                                               const tfanet_sentence* const* sentences,
                                               size_t batch, const tfanet_array* logits,
                                               void* stream);

/* The contents of a prediction; its pointers live as long as the prediction. The caller sets
 * result->size. */
TFANET_API tfanet_status tfanet_prediction_get(const tfanet_prediction* prediction,
                                               tfanet_result* result);

/* One of the result.instance_count objects that are meant, the most relevant first; its pointers
 * live as long as the prediction. The caller sets instance->size. */
TFANET_API tfanet_status tfanet_prediction_instance(const tfanet_prediction* prediction,
                                                    size_t index, tfanet_instance* instance);

/* One of the instance.word_count words of the sentence, in order; those that the model has no room
 * for are left out. The start and end token may have a share too, so that words need not add up to
 * 1. The text lives as long as the prediction. The caller sets word->size. */
TFANET_API tfanet_status tfanet_prediction_word(const tfanet_prediction* prediction,
                                                size_t instance, size_t index, tfanet_word* word);

/* NULL is ignored. */
TFANET_API void tfanet_prediction_free(tfanet_prediction* prediction);

#ifdef __cplusplus
}
#endif

#endif /* TFANET_H_ */
