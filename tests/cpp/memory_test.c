/* Every function of tfanet.h while memory is exhausted, at each place in turn:
 *
 *   memory_test BUNDLE
 *
 * malloc fails for the library alone, once or from some allocation on. No call may end the program;
 * each tells of it, or succeeds, and the runtime stays usable. */
#define _GNU_SOURCE /* dl_iterate_phdr */
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tfanet.h"

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      armed = 0;                                                              \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

static uintptr_t library_begin, library_end;
static atomic_int armed, forever, fired;
static atomic_long left; /* allocations that still succeed */

void* __libc_malloc(size_t size);

void* malloc(size_t size) {
  const uintptr_t from = (uintptr_t)__builtin_return_address(0);
  if (armed && from >= library_begin && from < library_end) {
    const long number = atomic_fetch_sub(&left, 1);
    if (number == 0 || (number < 0 && forever)) {
      fired = 1;
      return NULL;
    }
  }
  return __libc_malloc(size);
}

static int find_library(struct dl_phdr_info* info, size_t size, void* unused) {
  (void)size;
  (void)unused;
  if (strstr(info->dlpi_name, "libtfanet_runtime.so") == NULL) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)* part = &info->dlpi_phdr[i];
    if (part->p_type != PT_LOAD || (part->p_flags & PF_X) == 0) continue;
    library_begin = info->dlpi_addr + part->p_vaddr;
    library_end = library_begin + part->p_memsz;
  }
  return 1;
}

enum { WIDTH = 9, HEIGHT = 7, LENGTH = 8 };
static tfanet_runtime* runtime;
static tfanet_sentence* sentence;
static tfanet_info info;
static uint8_t pixels[WIDTH * HEIGHT * 3];
static float *tensor, *logits;
static size_t plane;
static const tfanet_image image = {sizeof image, pixels, WIDTH, HEIGHT, 0, TFANET_RGB};

/* Of what is no bundle: JSON that is being taken apart while memory is exhausted ends the program,
 * for nlohmann-json's destructors take memory. */
static tfanet_status open_nothing(void) {
  tfanet_runtime* opened = NULL;
  const tfanet_status status = tfanet_open("/no/such/bundle", NULL, &opened);
  CHECK(status == TFANET_BAD_BUNDLE || status == TFANET_OUT_OF_MEMORY);
  if (opened != NULL) CHECK(strlen(tfanet_error(opened)) > 0);
  CHECK(tfanet_close(opened) == TFANET_OK);
  return status == TFANET_OUT_OF_MEMORY ? status : TFANET_OK;
}

static tfanet_status get_info(void) {
  tfanet_info facts = {0};
  facts.size = sizeof facts;
  return tfanet_get_info(runtime, &facts);
}

static tfanet_status tokenize(void) {
  int64_t ids[LENGTH];
  float mask[LENGTH];
  return tfanet_tokenize(runtime, "the red circle", TFANET_STRLEN, ids, mask, LENGTH, NULL);
}

static tfanet_status encode(void) {
  tfanet_sentence* made = NULL;
  const tfanet_status status = tfanet_encode(runtime, "a circle", TFANET_STRLEN, &made);
  CHECK((status == TFANET_OK) == (made != NULL));
  tfanet_sentence_free(made);
  return status;
}

static tfanet_status encode_tokens(void) {
  const int64_t ids[LENGTH] = {0};
  const float mask[LENGTH] = {0};
  tfanet_sentence* made = NULL;
  const tfanet_status status = tfanet_encode_tokens(runtime, ids, mask, LENGTH, &made);
  CHECK((status == TFANET_OK) == (made != NULL));
  tfanet_sentence_free(made);
  return status;
}

static tfanet_status taken(tfanet_status status, tfanet_prediction* made) {
  CHECK((status == TFANET_OK) == (made != NULL));
  if (made != NULL) {
    tfanet_result result = {0};
    result.size = sizeof result;
    CHECK(tfanet_prediction_get(made, &result) == TFANET_OK && result.width == WIDTH);
  }
  tfanet_prediction_free(made);
  return status;
}

static tfanet_status predict(void) {
  tfanet_prediction* made = NULL;
  const tfanet_status status = tfanet_predict(runtime, &image, sentence, &made);
  return taken(status, made);
}

static tfanet_status predict_text(void) {
  static int number;
  char text[40]; /* one that is not remembered */
  snprintf(text, sizeof text, "circle number %d", ++number);
  tfanet_prediction* made = NULL;
  const tfanet_status status = tfanet_predict_text(runtime, &image, text, TFANET_STRLEN, &made);
  return taken(status, made);
}

static tfanet_status predict_batch(void) {
  const tfanet_sentence* both[2] = {sentence, sentence};
  tfanet_prediction* made[2] = {NULL, NULL};
  const tfanet_status status = tfanet_predict_batch(runtime, &image, 1, both, 2, made);
  taken(status, made[1]);
  return taken(status, made[0]);
}

static atomic_int answers, last_answer;

static void answer(void* user, tfanet_status status, tfanet_prediction* made, const char* message) {
  (void)user;
  CHECK(message != NULL);
  taken(status, made);
  last_answer = status;
  ++answers;
}

static tfanet_status predict_async(void) {
  const int before = answers;
  const tfanet_status status = tfanet_predict_async(runtime, &image, sentence, answer, NULL);
  if (status != TFANET_OK) return status;
  while (answers == before) continue;
  return (tfanet_status)last_answer;
}

static tfanet_status preprocess(void) {
  return tfanet_preprocess(runtime, &image, tensor, 3 * plane);
}

static tfanet_status predict_tensors(void) {
  const tfanet_sentence* one = sentence;
  return tfanet_predict_tensors(runtime, tensor, &one, 1, logits, plane);
}

static tfanet_status predict_arrays(void) {
  const tfanet_sentence* one = sentence;
  const tfanet_array in = {sizeof in, tensor, 3 * plane, TFANET_HOST};
  const tfanet_array out = {sizeof out, logits, plane, TFANET_HOST};
  return tfanet_predict_arrays(runtime, &in, &one, 1, &out, NULL);
}

static tfanet_status wrong_size(void) { /* whose message takes memory */
  tfanet_info facts = {0};
  const tfanet_status status = tfanet_get_info(runtime, &facts);
  CHECK(status == TFANET_INVALID_ARGUMENT || status == TFANET_OUT_OF_MEMORY);
  CHECK(strlen(tfanet_error(runtime)) > 0);
  return status == TFANET_OUT_OF_MEMORY ? status : TFANET_OK;
}

/* Fails each allocation in turn, until the call ends without having met it. */
static void exhaust(const char* name, tfanet_status (*call)(void)) {
  long told = 0;
  for (int all = 0; all < 2; ++all) {
    for (long number = 0;; ++number) {
      forever = all;
      left = number;
      fired = 0;
      armed = 1;
      const tfanet_status status = call();
      armed = 0;
      if (!fired) {
        CHECK(status == TFANET_OK);
        break;
      }
      if (status != TFANET_OK && status != TFANET_OUT_OF_MEMORY) {
        fprintf(stderr, "%s, allocation %ld: %s: %s\n", name, number, tfanet_status_name(status),
                tfanet_error(runtime));
        exit(1);
      }
      told += status == TFANET_OUT_OF_MEMORY;
      CHECK(call() == TFANET_OK);
    }
  }
  printf("%s %ld\n", name, told);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  dl_iterate_phdr(find_library, NULL);
  CHECK(library_begin != 0);
  CHECK(tfanet_open(argv[1], NULL, &runtime) == TFANET_OK);
  CHECK(tfanet_encode(runtime, "red", TFANET_STRLEN, &sentence) == TFANET_OK);
  info.size = sizeof info;
  CHECK(tfanet_get_info(runtime, &info) == TFANET_OK && info.text_length == LENGTH);
  plane = (size_t)info.image_width * (size_t)info.image_height;
  tensor = calloc(3 * plane, sizeof *tensor);
  logits = calloc(plane, sizeof *logits);
  CHECK(tensor != NULL && logits != NULL);

  exhaust("tfanet_open", open_nothing);
  exhaust("tfanet_get_info", get_info);
  exhaust("tfanet_get_info, of a wrong size", wrong_size);
  exhaust("tfanet_tokenize", tokenize);
  exhaust("tfanet_encode", encode);
  exhaust("tfanet_encode_tokens", encode_tokens);
  exhaust("tfanet_predict", predict);
  exhaust("tfanet_predict_text", predict_text);
  exhaust("tfanet_predict_batch", predict_batch);
  exhaust("tfanet_predict_async", predict_async);
  exhaust("tfanet_preprocess", preprocess);
  exhaust("tfanet_predict_tensors", predict_tensors);
  exhaust("tfanet_predict_arrays", predict_arrays);

  tfanet_sentence_free(sentence);
  CHECK(tfanet_close(runtime) == TFANET_OK);
  free(tensor);
  free(logits);
  puts("all as the header says");
  return 0;
}
