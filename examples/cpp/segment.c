/* A picture and a sentence in, a mask out:
 *
 *   segment BUNDLE picture.jpg "the red circle" mask.png [BACKEND [DIGEST]]
 *
 * DIGEST is that of the bundle which is meant: another one is refused. It is printed in any case.
 */
#include <stdio.h>
#include <stdlib.h>

#include "picture.h"
#include "tfanet.h"

/* The objects that are meant, each with the words of the sentence and their shares in it. */
static void print_instances(const tfanet_prediction* prediction, int32_t count) {
  for (int32_t i = 0; i < count; ++i) { /* not at all, where the model does not tell them apart */
    tfanet_instance instance = {.size = sizeof instance};
    if (tfanet_prediction_instance(prediction, (size_t)i, &instance) != TFANET_OK) return;
    printf("object, relevance %g", instance.relevance);
    for (int32_t j = 0; j < instance.word_count; ++j) {
      tfanet_word word = {.size = sizeof word};
      if (tfanet_prediction_word(prediction, (size_t)i, (size_t)j, &word) != TFANET_OK) return;
      printf(", %s %g", word.text, word.share);
    }
    puts("");
  }
}

int main(int argc, char** argv) {
  if (argc < 5 || argc > 7) {
    fprintf(stderr, "usage: %s BUNDLE PICTURE TEXT MASK.png [BACKEND [DIGEST]]\n", argv[0]);
    return 1;
  }
  picture picture;
  const char* problem = picture_read(argv[2], &picture);
  if (problem != NULL) {
    fprintf(stderr, "%s\n", problem);
    return 1;
  }

  tfanet_runtime* runtime = NULL;
  tfanet_prediction* prediction = NULL;
  const tfanet_format format = picture.channels == 1   ? TFANET_GREY
                               : picture.channels == 3 ? TFANET_RGB
                                                       : TFANET_RGBA;
  const tfanet_image image = {sizeof image, picture.pixels, picture.width, picture.height, 0,
                              format};
  tfanet_result result = {.size = sizeof result};

  tfanet_info info = {.size = sizeof info};

  const tfanet_options options = {.size = sizeof options,
                                  .backend = argc > 5 ? argv[5] : NULL,
                                  .digest = argc > 6 ? argv[6] : NULL};
  tfanet_status status = tfanet_open(argv[1], &options, &runtime);
  if (status == TFANET_OK) {
    status = tfanet_predict_text(runtime, &image, argv[3], TFANET_STRLEN, &prediction);
  }
  if (status == TFANET_OK) status = tfanet_prediction_get(prediction, &result);
  if (status == TFANET_OK) status = tfanet_get_info(runtime, &info);
  if (status != TFANET_OK) {
    fprintf(stderr, "%s\n", tfanet_error(runtime));
  } else {
    problem = picture_write_grey(argv[4], result.mask, result.width, result.height);
    if (problem != NULL) {
      fprintf(stderr, "%s\n", problem);
    } else {
      printf("%s: score %.3f, %.1f ms, bundle %s\n", argv[4], result.score, result.total_ms,
             info.digest);
      print_instances(prediction, result.instance_count);
    }
  }

  tfanet_prediction_free(prediction);
  tfanet_close(runtime);
  free(picture.pixels);
  if (status == TFANET_MISSING_DEPENDENCY) return 3;
  return status != TFANET_OK || problem != NULL;
}
