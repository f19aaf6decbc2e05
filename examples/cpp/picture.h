/* PNG and JPEG files for the examples, through libpng and libjpeg. Not part of tfanet.
 *
 * libpng converts PNG files of 16 bits, or with a gamma of their own, to sRGB; Python's runtime
 * takes their pixels as they are. */
#ifndef PICTURE_H_
#define PICTURE_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct picture {
  uint8_t* pixels; /* height rows of width * channels bytes; released with free() */
  int32_t width, height;
  int channels; /* 1: grey, 3: RGB, 4: RGBA */
} picture;

/* Reads a PNG or JPEG file, as 8-bit pixels, upright as its EXIF orientation says. Returns NULL, or
 * what is wrong, in a sentence that lasts until the next call of this thread. */
const char* picture_read(const char* path, picture* out);

/* Writes a grey PNG file. Returns as picture_read does. */
const char* picture_write_grey(const char* path, const uint8_t* pixels, int32_t width,
                               int32_t height);

#ifdef __cplusplus
}
#endif

#endif /* PICTURE_H_ */
