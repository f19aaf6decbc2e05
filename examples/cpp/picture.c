#include "picture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* clang-format off: jpeglib.h wants stdio.h before it */
#include <jpeglib.h>
#include <png.h>
/* clang-format on */

static const uint64_t kMaxPixels = 64000000; /* tfanet takes no more */
static _Thread_local char message[512];

static const char* problem(const char* path, const char* what) {
  snprintf(message, sizeof message, "%.250s %.250s", path, what);
  return message;
}

static int too_large(uint64_t width, uint64_t height) { return width * height > kMaxPixels; }

static const char* read_png(const char* path, picture* out) {
  png_image png;
  memset(&png, 0, sizeof png);
  png.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_file(&png, path)) return problem(path, png.message);
  if (too_large(png.width, png.height)) {
    png_image_free(&png);
    return problem(path, "has more than 64,000,000 pixels: reduce it first");
  }
  png.format = png.format & PNG_FORMAT_FLAG_ALPHA   ? PNG_FORMAT_RGBA
               : png.format & PNG_FORMAT_FLAG_COLOR ? PNG_FORMAT_RGB
                                                    : PNG_FORMAT_GRAY;
  out->channels = (int)PNG_IMAGE_PIXEL_CHANNELS(png.format);
  out->width = (int32_t)png.width;
  out->height = (int32_t)png.height;
  out->pixels = malloc(PNG_IMAGE_SIZE(png));
  if (out->pixels == NULL || !png_image_finish_read(&png, NULL, out->pixels, 0, NULL)) {
    free(out->pixels);
    out->pixels = NULL;
    png_image_free(&png);
    return problem(path, png.message[0] != '\0' ? png.message : "needs more memory than there is");
  }
  return NULL;
}

struct jpeg_failure {
  struct jpeg_error_mgr manager; /* first, for libjpeg hands out its address */
  jmp_buf jump;
  char text[JMSG_LENGTH_MAX];
};

static void fail_jpeg(j_common_ptr jpeg) {
  struct jpeg_failure* failure = (struct jpeg_failure*)jpeg->err;
  failure->manager.format_message(jpeg, failure->text);
  longjmp(failure->jump, 1);
}

static void stay_silent(j_common_ptr jpeg) { (void)jpeg; }

/* A number of `size` bytes in an EXIF block. */
static uint32_t number(const uint8_t* at, int size, int little) {
  uint32_t value = 0;
  for (int i = 0; i < size; ++i) value |= (uint32_t)at[i] << 8 * (little ? i : size - 1 - i);
  return value;
}

/* How the picture was held, 1 (upright) to 8, from the first directory of its EXIF block. */
static int orientation(const uint8_t* exif, size_t size) {
  if (size < 14 || memcmp(exif, "Exif\0\0", 6) != 0) return 1;
  const uint8_t* tiff = exif + 6;
  size -= 6;
  const int little = tiff[0] == 'I';
  const uint32_t directory = number(tiff + 4, 4, little);
  if (directory > size || size - directory < 2) return 1;
  const uint32_t count = number(tiff + directory, 2, little);
  for (uint32_t i = 0; i < count; ++i) {
    const size_t entry = directory + 2 + 12 * (size_t)i;
    if (entry + 12 > size) break;
    if (number(tiff + entry, 2, little) == 0x0112) {
      const uint32_t value = number(tiff + entry + 8, 2, little);
      return value >= 1 && value <= 8 ? (int)value : 1;
    }
  }
  return 1;
}

/* Turns and mirrors the pixels, so that the picture stands upright. */
static int set_upright(picture* image, int held) {
  if (held == 1) return 1;
  const int32_t width = image->width, height = image->height;
  const size_t bytes = (size_t)image->channels;
  const int sideways = held > 4;
  uint8_t* turned = malloc((size_t)width * (size_t)height * bytes);
  if (turned == NULL) return 0;
  const int32_t out_width = sideways ? height : width, out_height = sideways ? width : height;
  for (int32_t y = 0; y < out_height; ++y) {
    for (int32_t x = 0; x < out_width; ++x) {
      int32_t from_x = sideways ? y : x, from_y = sideways ? x : y;
      if (held == 2 || held == 3 || held == 7 || held == 8) from_x = width - 1 - from_x;
      if (held == 3 || held == 4 || held == 6 || held == 7) from_y = height - 1 - from_y;
      memcpy(turned + ((size_t)y * (size_t)out_width + (size_t)x) * bytes,
             image->pixels + ((size_t)from_y * (size_t)width + (size_t)from_x) * bytes, bytes);
    }
  }
  free(image->pixels);
  image->pixels = turned;
  image->width = out_width;
  image->height = out_height;
  return 1;
}

static const char* read_jpeg(const char* path, FILE* file, picture* out) {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_failure failure;
  jpeg.err = jpeg_std_error(&failure.manager);
  failure.manager.error_exit = fail_jpeg;
  failure.manager.output_message = stay_silent;
  if (setjmp(failure.jump) != 0) {
    jpeg_destroy_decompress(&jpeg);
    free(out->pixels);
    out->pixels = NULL;
    return problem(path, failure.text);
  }
  jpeg_create_decompress(&jpeg);
  jpeg_stdio_src(&jpeg, file);
  jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&jpeg, TRUE);
  if (too_large(jpeg.image_width, jpeg.image_height)) {
    jpeg_destroy_decompress(&jpeg);
    return problem(path, "has more than 64,000,000 pixels: reduce it first");
  }
  jpeg.out_color_space = jpeg.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(&jpeg);
  out->channels = jpeg.output_components;
  out->width = (int32_t)jpeg.output_width;
  out->height = (int32_t)jpeg.output_height;
  const size_t row = (size_t)jpeg.output_width * (size_t)jpeg.output_components;
  out->pixels = malloc(row * jpeg.output_height);
  if (out->pixels == NULL) {
    jpeg_destroy_decompress(&jpeg);
    return problem(path, "needs more memory than there is");
  }
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW at = out->pixels + row * jpeg.output_scanline;
    jpeg_read_scanlines(&jpeg, &at, 1);
  }
  int held = 1;
  for (jpeg_saved_marker_ptr marker = jpeg.marker_list; marker != NULL; marker = marker->next) {
    held = orientation(marker->data, marker->data_length);
    if (held != 1) break;
  }
  jpeg_finish_decompress(&jpeg);
  jpeg_destroy_decompress(&jpeg);
  return set_upright(out, held) ? NULL : problem(path, "needs more memory than there is");
}

const char* picture_read(const char* path, picture* out) {
  memset(out, 0, sizeof *out);
  FILE* file = fopen(path, "rb");
  if (file == NULL) return problem(path, strerror(errno));
  unsigned char start[8] = {0};
  const size_t count = fread(start, 1, sizeof start, file);
  rewind(file);
  const char* error = NULL;
  if (count == sizeof start && png_sig_cmp(start, 0, sizeof start) == 0) {
    error = read_png(path, out);
  } else if (count >= 2 && start[0] == 0xFF && start[1] == 0xD8) {
    error = read_jpeg(path, file, out);
  } else {
    error = problem(path, "is no PNG or JPEG file: save it as one");
  }
  fclose(file);
  return error;
}

const char* picture_write_grey(const char* path, const uint8_t* pixels, int32_t width,
                               int32_t height) {
  png_image png;
  memset(&png, 0, sizeof png);
  png.version = PNG_IMAGE_VERSION;
  png.width = (png_uint_32)width;
  png.height = (png_uint_32)height;
  png.format = PNG_FORMAT_GRAY;
  if (png_image_write_to_file(&png, path, 0, pixels, 0, NULL)) return NULL;
  return problem(path, png.message);
}
