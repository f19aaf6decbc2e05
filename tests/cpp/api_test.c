/* Every mistake that a C program can make with tfanet.h, and how the library survives it:
 *
 *   api_test BUNDLE
 *
 * Ends with 0 where all went as the header says; else names the line. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "tfanet.h"

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      fprintf(stderr, "last error: %s\n", tfanet_error(runtime));             \
      exit(1);                                                                \
    }                                                                         \
  } while (0)
#define SAYS(part) (strstr(tfanet_error(runtime), part) != NULL)

enum { WIDTH = 60, HEIGHT = 40 };
static uint8_t pixels[HEIGHT * WIDTH * 4];

static tfanet_image good_image(void) {
  tfanet_image image = {sizeof image, pixels, WIDTH, HEIGHT, 0, TFANET_RGB};
  return image;
}

static void null_arguments(tfanet_runtime* runtime) {
  tfanet_image image = good_image();
  tfanet_sentence* sentence = NULL;
  tfanet_prediction* prediction = NULL;
  const tfanet_sentence* none[1] = {NULL};
  int64_t ids[8] = {0};
  float numbers[8] = {0};

  CHECK(tfanet_open("x", NULL, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_close(NULL) == TFANET_OK);
  CHECK(strstr(tfanet_error(NULL), "null pointer") != NULL);
  CHECK(tfanet_sentence_dropped(NULL) == 0);
  tfanet_sentence_free(NULL);
  tfanet_prediction_free(NULL);
  CHECK(tfanet_predict(NULL, &image, NULL, &prediction) == TFANET_INVALID_ARGUMENT);

  CHECK(tfanet_get_info(runtime, NULL) == TFANET_INVALID_ARGUMENT && SAYS("info"));
  CHECK(tfanet_encode(runtime, NULL, 0, &sentence) == TFANET_INVALID_ARGUMENT && SAYS("text"));
  CHECK(tfanet_encode(runtime, "a", 1, NULL) == TFANET_INVALID_ARGUMENT && SAYS("out"));
  CHECK(tfanet_encode(runtime, "a", SIZE_MAX - 1, &sentence) == TFANET_BAD_TEXT);
  CHECK(SAYS("bytes, the limit is 4096") && sentence == NULL);
  CHECK(tfanet_predict_text(runtime, &image, "a", SIZE_MAX / 2, &prediction) == TFANET_BAD_TEXT);
  CHECK(tfanet_tokenize(runtime, "a", SIZE_MAX - 1, ids, numbers, 8, NULL) == TFANET_BAD_TEXT);
  CHECK(tfanet_tokenize(runtime, "a", 1, NULL, numbers, 8, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_tokenize(runtime, "a", 1, ids, NULL, 8, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_tokenize(runtime, "a", 1, ids, numbers, 7, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("length is 7, expected 8"));
  CHECK(tfanet_encode_tokens(runtime, NULL, numbers, 8, &sentence) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_encode_tokens(runtime, ids, numbers, 9, &sentence) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict(runtime, &image, NULL, &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("sentence is a null pointer"));
  CHECK(tfanet_predict_text(runtime, NULL, "a", 1, &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("image is a null pointer"));
  CHECK(tfanet_predict_text(runtime, &image, "a", 1, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict_batch(runtime, &image, 1, none, 1, &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict_batch(runtime, &image, 1, none, 0, &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("the list of sentences is empty"));
  CHECK(tfanet_predict_batch(runtime, NULL, 1, none, 1, &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_preprocess(runtime, &image, NULL, 5) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_preprocess(runtime, &image, numbers, 8) == TFANET_INVALID_ARGUMENT && SAYS("count"));
  CHECK(tfanet_prediction_get(NULL, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_prediction_instance(NULL, 0, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_prediction_word(NULL, 0, 0, NULL) == TFANET_INVALID_ARGUMENT);

  CHECK(tfanet_encode(runtime, "a", 1, &sentence) == TFANET_OK);
  CHECK(tfanet_predict_async(runtime, &image, sentence, NULL, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict_batch(runtime, &image, 2, (const tfanet_sentence**)&sentence, 1,
                             &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("image_count is 2 for 1 sentences"));
  CHECK(tfanet_predict_tensors(runtime, numbers, (const tfanet_sentence**)&sentence, 1, numbers,
                               8) == TFANET_INVALID_ARGUMENT);
  tfanet_array array = {sizeof array, numbers, 8, TFANET_HOST};
  const tfanet_sentence* one = sentence;
  CHECK(tfanet_predict_arrays(NULL, &array, &one, 1, &array, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict_arrays(runtime, NULL, &one, 1, &array, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(tfanet_predict_arrays(runtime, &array, &one, 1, NULL, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("logits is a null pointer"));
  CHECK(tfanet_predict_arrays(runtime, &array, &one, 1, &array, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("tensors.count is 8, expected 4608"));
  array.memory = TFANET_DEVICE;
  CHECK(tfanet_predict_arrays(runtime, &array, &one, 1, &array, NULL) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("tensors.memory is TFANET_DEVICE, and onnxruntime-cpu runs on the CPU"));
  ids[0] = 1 << 30; /* the backend finds that out */
  tfanet_sentence* other = NULL;
  CHECK(tfanet_encode_tokens(runtime, ids, numbers, 8, &other) == TFANET_FAILED && other == NULL);
  tfanet_sentence_free(sentence);
}

static tfanet_status try_image(tfanet_runtime* runtime, tfanet_image image) {
  tfanet_prediction* prediction = (tfanet_prediction*)pixels;
  const tfanet_status status = tfanet_predict_text(runtime, &image, "red", 3, &prediction);
  CHECK((status == TFANET_OK) == (prediction != NULL));
  tfanet_prediction_free(prediction);
  return status;
}

static void bad_images(tfanet_runtime* runtime) {
  static const int32_t sides[] = {0, 1, -1, INT32_MIN};
  tfanet_image image = good_image();
  for (size_t i = 0; i < sizeof sides / sizeof *sides; ++i) {
    image = good_image();
    image.width = sides[i];
    CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("each side must be 2 or more"));
    image = good_image();
    image.height = sides[i];
    CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("each side must be 2 or more"));
  }
  image = good_image();
  image.width = image.height = INT32_MAX;
  CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("the limit is 64,000,000"));
  image = good_image();
  image.pixels = NULL;
  CHECK(try_image(runtime, image) == TFANET_INVALID_ARGUMENT && SAYS("image.pixels"));
  image = good_image();
  image.width = 65536;
  CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("at most 65,535"));
  image = good_image();
  image.height = 65536;
  CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("at most 65,535"));
  static const int64_t strides[] = {1, 3 * WIDTH - 1, -1, -3 * WIDTH, INT64_MIN};
  for (size_t i = 0; i < sizeof strides / sizeof *strides; ++i) {
    image = good_image();
    image.stride = strides[i];
    CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("less than a row of 180 bytes"));
  }
  image = good_image();
  image.stride = INT64_MAX;
  CHECK(try_image(runtime, image) == TFANET_BAD_IMAGE && SAYS("beyond any memory"));
  static const int32_t formats[] = {0, -1, 6, 1000};
  for (size_t i = 0; i < sizeof formats / sizeof *formats; ++i) {
    image = good_image();
    image.format = formats[i];
    CHECK(try_image(runtime, image) == TFANET_INVALID_ARGUMENT && SAYS("image.format"));
  }
  for (size_t size = 0; size < sizeof image; ++size) {
    image = good_image();
    image.size = size;
    CHECK(try_image(runtime, image) == TFANET_INVALID_ARGUMENT && SAYS("image.size"));
  }
  CHECK(try_image(runtime, good_image()) == TFANET_OK);
}

/* A program built with a header of tomorrow, or of yesterday. */
static void other_versions(tfanet_runtime* runtime) {
  struct {
    tfanet_image known;
    int64_t unknown;
  } image = {good_image(), 0};
  tfanet_prediction* prediction = NULL;
  image.known.size = sizeof image;
  CHECK(tfanet_predict_text(runtime, &image.known, "red", 3, &prediction) == TFANET_OK);
  struct {
    tfanet_result known;
    int64_t unknown;
  } large;
  memset(&large, 7, sizeof large);
  large.known.size = sizeof large;
  CHECK(tfanet_prediction_get(prediction, &large.known) == TFANET_OK);
  CHECK(large.known.width == WIDTH && large.unknown == 0 && large.known.size == sizeof large);
  tfanet_result small;
  memset(&small, 7, sizeof small);
  small.size = offsetof(tfanet_result, score);
  CHECK(tfanet_prediction_get(prediction, &small) == TFANET_OK);
  CHECK(small.height == HEIGHT && small.mask != NULL);
  unsigned char untouched[sizeof(float)];
  memset(untouched, 7, sizeof untouched);
  CHECK(memcmp(&small.score, untouched, sizeof untouched) == 0);
  small.size = 0;
  CHECK(tfanet_prediction_get(prediction, &small) == TFANET_INVALID_ARGUMENT);
  tfanet_prediction_free(prediction);
  image.unknown = 1;
  CHECK(tfanet_predict_text(runtime, &image.known, "a", 1, &prediction) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("use a newer libtfanet_runtime.so") && prediction == NULL);
}

static void bad_options(const char* bundle) {
  tfanet_runtime* runtime = NULL;
  tfanet_options options = {0};
  CHECK(tfanet_open(bundle, &options, &runtime) == TFANET_INVALID_ARGUMENT);
  CHECK(runtime != NULL && SAYS("options.size is 0"));
  tfanet_image image = good_image();
  CHECK(try_image(runtime, image) == TFANET_INVALID_ARGUMENT && SAYS("did not open"));
  CHECK(tfanet_close(runtime) == TFANET_OK);
  options.size = sizeof options;
  options.threads = -1;
  CHECK(tfanet_open(bundle, &options, &runtime) == TFANET_INVALID_ARGUMENT && SAYS("threads"));
  tfanet_close(runtime);
  options.threads = 100000;
  CHECK(tfanet_open(bundle, &options, &runtime) == TFANET_INVALID_ARGUMENT);
  CHECK(SAYS("threads is 100000, the limit is 1,024"));
  tfanet_close(runtime);
  options.threads = 0;
  options.digest = "0123";
  CHECK(tfanet_open(bundle, &options, &runtime) == TFANET_INVALID_ARGUMENT && SAYS("digest"));
  tfanet_close(runtime);
  CHECK(tfanet_open(NULL, NULL, &runtime) == TFANET_INVALID_ARGUMENT && SAYS("path"));
  tfanet_close(runtime);
  CHECK(tfanet_open("/no/such/bundle", NULL, &runtime) == TFANET_BAD_BUNDLE);
  CHECK(SAYS("/no/such/bundle is not a bundle directory"));
  tfanet_close(runtime);
}

/* 64 megapixels need more memory than there is left; the next picture is served as before. */
static void out_of_memory(tfanet_runtime* runtime) {
  tfanet_image image = good_image();
  uint8_t* large = calloc(8000 * 8000, 1);
  CHECK(large != NULL);
  struct rlimit before, limit;
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  long used = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%ld", &used) == 1);
  fclose(file);
  limit = before;
  limit.rlim_cur = (rlim_t)used * 4096 + ((rlim_t)100 << 20);
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
  image.pixels = large;
  image.width = image.height = 8000;
  image.format = TFANET_GREY;
  CHECK(try_image(runtime, image) == TFANET_OUT_OF_MEMORY && SAYS("memory is exhausted"));
  CHECK(try_image(runtime, good_image()) == TFANET_OK);
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  free(large);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int called, opened, finished;

static void count_call(void* user, tfanet_status status, tfanet_prediction* prediction,
                       const char* message) {
  tfanet_runtime* runtime = user;
  CHECK(status == TFANET_OK && prediction != NULL && *message == '\0');
  CHECK(tfanet_close(runtime) == TFANET_BUSY && SAYS("in another thread"));
  tfanet_prediction_free(prediction);
  pthread_mutex_lock(&lock);
  ++called;
  pthread_mutex_unlock(&lock);
}

static void* predict_until_closed(void* argument) {
  tfanet_runtime* runtime = argument;
  tfanet_image image = good_image();
  pthread_mutex_lock(&lock);
  ++opened;
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 10; ++i) CHECK(try_image(runtime, image) == TFANET_OK);
  pthread_mutex_lock(&lock);
  ++finished;
  pthread_mutex_unlock(&lock);
  /* The last call of each thread may still be on its way out when the runtime is closed. */
  return NULL;
}

/* Closing waits for the predictions of callbacks, and objects outlive the runtime. */
static void closing(const char* bundle) {
  tfanet_runtime* runtime = NULL;
  tfanet_sentence* sentence = NULL;
  tfanet_prediction* prediction = NULL;
  tfanet_image image = good_image();
  CHECK(tfanet_open(bundle, NULL, &runtime) == TFANET_OK);
  CHECK(tfanet_encode(runtime, "the red circle", TFANET_STRLEN, &sentence) == TFANET_OK);
  CHECK(tfanet_predict(runtime, &image, sentence, &prediction) == TFANET_OK);
  int started = 0;
  tfanet_status status = TFANET_OK;
  while (started < 1000 && status == TFANET_OK) {
    status = tfanet_predict_async(runtime, &image, sentence, count_call, runtime);
    started += status == TFANET_OK;
  }
  CHECK(status == TFANET_OK || (status == TFANET_BUSY && SAYS("64 predictions wait already")));
  CHECK(tfanet_close(runtime) == TFANET_OK);
  runtime = NULL;
  CHECK(called == started);
  tfanet_result result = {0};
  result.size = sizeof result;
  CHECK(tfanet_prediction_get(prediction, &result) == TFANET_OK && result.mask != NULL);
  CHECK(tfanet_sentence_dropped(sentence) == 0);
  tfanet_prediction_free(prediction);
  tfanet_sentence_free(sentence);
}

static void threads(tfanet_runtime* runtime) {
  pthread_t workers[8];
  for (int i = 0; i < 8; ++i) {
    CHECK(pthread_create(&workers[i], NULL, predict_until_closed, runtime) == 0);
  }
  for (int i = 0; i < 8; ++i) CHECK(pthread_join(workers[i], NULL) == 0);
  CHECK(opened == 8 && finished == 8);
}

int main(int argc, char** argv) {
  tfanet_runtime* runtime = NULL;
  if (argc < 2) return 2;
  for (size_t i = 0; i < sizeof pixels; ++i) pixels[i] = (uint8_t)(i * i / 7);
  CHECK(tfanet_open(argv[1], NULL, &runtime) == TFANET_OK);
  null_arguments(runtime);
  bad_images(runtime);
  other_versions(runtime);
  threads(runtime);
  if (argc == 2) out_of_memory(runtime); /* left out under a sanitizer, which needs all of it */
  CHECK(tfanet_close(runtime) == TFANET_OK);
  runtime = NULL;
  closing(argv[1]);
  bad_options(argv[1]);
  for (int status = TFANET_OK; status >= TFANET_FAILED; --status) {
    CHECK(strcmp(tfanet_status_name(status), "UNKNOWN") != 0);
  }
  CHECK(strcmp(tfanet_status_name(-99), "UNKNOWN") == 0);
  puts("all as the header says");
  return 0;
}
