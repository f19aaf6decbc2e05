/* Loads the library at run time, as a plugin of a larger program would, and opens a bundle:
 *
 *   print_loading LIBRARY FOLDER BUNDLE ONNXRUNTIME
 *
 * LIBRARY is loaded first, then FOLDER becomes the working directory. "-": no ONNX Runtime is
 * named. It prints the status; the error, or the operator library; and ORT_DISABLE_TELEMETRY. Then
 * it lives until its input ends, predicting before and after. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tfanet.h"

#define FIND(library, name) __typeof__(&name) find_##name = (__typeof__(&name))dlsym(library, #name)

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL || chdir(argv[2]) != 0) {
    fprintf(stderr, "%s\n", library == NULL ? dlerror() : argv[2]);
    return 2;
  }
  FIND(library, tfanet_open);
  FIND(library, tfanet_error);
  FIND(library, tfanet_get_info);
  FIND(library, tfanet_status_name);
  FIND(library, tfanet_predict_text);
  FIND(library, tfanet_prediction_free);
  FIND(library, tfanet_close);

  tfanet_options options = {0};
  options.size = sizeof options;
  options.onnxruntime = strcmp(argv[4], "-") == 0 ? NULL : argv[4];
  tfanet_runtime* runtime = NULL;
  tfanet_info info = {0};
  info.size = sizeof info;
  tfanet_status status = find_tfanet_open(argv[3], &options, &runtime);
  if (status == TFANET_OK) status = find_tfanet_get_info(runtime, &info);
  const char* fact = status != TFANET_OK ? find_tfanet_error(runtime) : info.op_library;
  const char* telemetry = getenv("ORT_DISABLE_TELEMETRY");
  const unsigned char pixels[2 * 2 * 3] = {0};
  const tfanet_image image = {sizeof image, pixels, 2, 2, 0, TFANET_RGB};
  for (int round = 0; round < 2; ++round) {
    tfanet_prediction* prediction = NULL;
    if (status == TFANET_OK &&
        find_tfanet_predict_text(runtime, &image, "red", TFANET_STRLEN, &prediction) != TFANET_OK) {
      fprintf(stderr, "%s\n", find_tfanet_error(runtime));
      return 1;
    }
    find_tfanet_prediction_free(prediction);
    if (round == 0) {
      printf("%s\n%s\n%s\n", find_tfanet_status_name(status), fact != NULL ? fact : "-",
             telemetry != NULL ? telemetry : "-");
      fflush(stdout);
      while (getchar() != EOF) continue;
    }
  }
  return find_tfanet_close(runtime) == TFANET_OK ? 0 : 1;
}
