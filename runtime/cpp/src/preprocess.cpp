#include "preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "error.h"
#include "resample.h"
#include "simd.h"

namespace tfanet {
namespace {

int bytes_per_pixel(int32_t format) {
  switch (format) {
    case TFANET_RGB:
    case TFANET_BGR:
      return 3;
    case TFANET_RGBA:
    case TFANET_BGRA:
      return 4;
    case TFANET_GREY:
      return 1;
  }
  fail(TFANET_INVALID_ARGUMENT, "image.format is ", format, ": give one of tfanet_format");
}

// A channel laid on white, with the rounding of Pillow's alpha_composite.
uint8_t on_white(uint32_t value, uint32_t alpha) {
  if (alpha == 0) return 255;
  const uint32_t sum = (value * alpha + 255 * (255 - alpha) + 128) << 7;
  return static_cast<uint8_t>(((sum >> 8) + sum) >> 15);
}

// One row as 4-byte pixels, red and blue where they were. The fourth byte is never used.
void convert_row(const uint8_t* source, uint8_t* target, size_t width, int bytes) {
  for (size_t x = 0; x < width; ++x, source += bytes, target += 4) {
    for (int c = 0; c < 3; ++c) {
      target[c] = bytes == 1 ? source[0] : bytes == 3 ? source[c] : on_white(source[c], source[3]);
    }
    target[3] = 0;
  }
}

// The picture at the model's width, as 4-byte pixels.
void resize_width(const uint8_t* pixels, size_t stride, int bytes, size_t height, uint8_t* rows,
                  const FixedFilter& filter) {
  const auto width = static_cast<size_t>(filter.inputs), out_width = filter.spans.size();
  if (width == out_width) {
    for (size_t y = 0; y < height; ++y) {
      convert_row(pixels + y * stride, rows + 4 * out_width * y, width, bytes);
    }
  } else if (bytes == 3) {
    // Only behind the last row there may be nothing to read.
    resize_rows(pixels, stride, 3, rows, height - 1, filter);
    std::vector<uint8_t> last(3 * width + 2);
    std::copy_n(pixels + (height - 1) * stride, 3 * width, last.data());
    resize_rows(last.data(), 0, 3, rows + 4 * out_width * (height - 1), 1, filter);
  } else {
    std::vector<uint8_t> row(4 * width);
    for (size_t y = 0; y < height; ++y) {
      convert_row(pixels + y * stride, row.data(), width, bytes);
      resize_rows(row.data(), 0, 4, rows + 4 * out_width * y, 1, filter);
    }
  }
}

// Approximates exp(x) for x <= 0 to a few units in the last place, in a form that vectorises.
TFANET_INLINE float exp_negative(float x) {
  x = x > -87.0f ? x : -87.0f;
  // x = n ln 2 + rest, with n found by letting the sum round to a whole number.
  const float shifted = x * 1.44269504f + 12582912.0f;
  uint32_t n, bits;
  std::memcpy(&n, &shifted, sizeof n);
  const float whole = shifted - 12582912.0f;
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float power = 1.0f / 5040 * rest + 1.0f / 720;
  power = power * rest + 1.0f / 120;
  power = power * rest + 1.0f / 24;
  power = power * rest + 1.0f / 6;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  std::memcpy(&bits, &power, sizeof bits);
  bits += n << 23;  // adds n to the exponent
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

TFANET_INLINE float sigmoid(float x) {
  const float e = exp_negative(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

}  // namespace

void check_image(const tfanet_image& image, const Manifest& manifest) {
  if (image.pixels == nullptr) {
    fail(TFANET_INVALID_ARGUMENT, "image.pixels is a null pointer: give the address of the pixels");
  }
  const int64_t width = image.width, height = image.height;
  if (width < kMinSide || height < kMinSide) {
    fail(TFANET_BAD_IMAGE, "the image is ", width, "x", height, " pixels: each side must be ",
         kMinSide, " or more");
  }
  if (width * height > kMaxPixels) {
    fail(TFANET_BAD_IMAGE, "the image is ", width, "x", height, " pixels, the limit is ",
         grouped(kMaxPixels), ": reduce it first");
  }
  if (std::max(width, height) > kMaxSide) {
    fail(TFANET_BAD_IMAGE, "the image is ", width, "x", height, " pixels, a side may have at most ",
         grouped(kMaxSide), ": reduce it first");
  }
  // The picture at the model's width, and the logits at the picture's: 4 bytes a pixel each.
  const int64_t needed = 4 * std::max(height * manifest.width, manifest.height * width);
  if (needed > kMaxResizeBytes) {
    fail(TFANET_BAD_IMAGE, "the image is ", width, "x", height, " pixels, too long for a model of ",
         manifest.width, "x", manifest.height, ": resizing it would take ", grouped(needed),
         " bytes, the limit is ", grouped(kMaxResizeBytes), ": reduce it first");
  }
  const int64_t row = width * bytes_per_pixel(image.format);
  if (image.stride != 0 && image.stride < row) {
    fail(TFANET_BAD_IMAGE, "image.stride is ", image.stride, ", less than a row of ", row,
         " bytes: give the distance between rows in bytes, or 0");
  }
  if (image.stride > INT64_MAX / height) {
    fail(TFANET_BAD_IMAGE, "image.stride is ", image.stride, ", beyond any memory: give the ",
         "distance between rows in bytes, or 0");
  }
}

void image_to_tensor(const tfanet_image& image, const Manifest& manifest, float* tensor) {
  const auto width = static_cast<size_t>(image.width), height = static_cast<size_t>(image.height);
  const auto out_width = static_cast<size_t>(manifest.width);
  const int pixel = bytes_per_pixel(image.format);
  const size_t bytes = 4 * out_width;
  const auto stride = image.stride != 0 ? static_cast<size_t>(image.stride) : width * size_t(pixel);
  std::unique_ptr<uint8_t[]> rows(new uint8_t[height * bytes]);
  resize_width(static_cast<const uint8_t*>(image.pixels), stride, pixel, height, rows.get(),
               FixedFilter(image.width, manifest.width));

  std::array<float, 3> scale, shift;
  for (size_t c = 0; c < 3; ++c) {
    scale[c] = static_cast<float>(1.0 / (255.0 * manifest.std[c]));
    shift[c] = static_cast<float>(manifest.mean[c] / manifest.std[c]);
  }
  const bool swap = image.format == TFANET_BGR || image.format == TFANET_BGRA;
  const bool resizes = image.height != manifest.height;
  const FixedFilter filter(image.height, manifest.height);
  std::vector<uint8_t> resized(bytes);
  const size_t plane = out_width * static_cast<size_t>(manifest.height);
  for (int32_t y = 0; y < manifest.height; ++y) {
    const uint8_t* row = &rows[static_cast<size_t>(y) * bytes];
    if (resizes) {
      const int first = filter.spans[static_cast<size_t>(y)].first;
      resize_column(&rows[static_cast<size_t>(first) * bytes], resized.data(), bytes, y, filter);
      row = resized.data();
    }
    float* out = tensor + static_cast<size_t>(y) * out_width;
    for (size_t x = 0; x < out_width; ++x) {
      for (size_t c = 0; c < 3; ++c) {
        out[c * plane + x] = row[4 * x + (swap ? 2 - c : c)] * scale[c] - shift[c];
      }
    }
  }
}

namespace {

struct Inside {
  double probability = 0;  // of all pixels in the mask, added up
  size_t count = 0;
};

// Sets the pixels of the mask.
TFANET_INLINE void set_mask(const float* logits, size_t count, float threshold, uint8_t* pixels,
                            Inside& inside) {
  constexpr size_t kPart = 1024;
  float probability[kPart];
  for (size_t begin = 0; begin < count; begin += kPart) {
    const size_t length = std::min(kPart, count - begin);
    const float* logit = logits + begin;
    uint8_t* pixel = pixels + begin;
    uint32_t set = 0;
    for (size_t i = 0; i < length; ++i) {
      pixel[i] = logit[i] > threshold ? 255 : 0;
      set += logit[i] > threshold;
    }
    if (set == 0) continue;
    for (size_t i = 0; i < length; ++i) {
      const float value = sigmoid(logit[i]);
      probability[i] = logit[i] > threshold ? value : 0.0f;
    }
    // Side by side, for an addition has to wait for the one before it.
    double sums[4] = {};
    size_t i = 0;
    for (; i + 4 <= length; i += 4) {
      for (size_t lane = 0; lane < 4; ++lane) sums[lane] += probability[i + lane];
    }
    for (; i < length; ++i) sums[0] += probability[i];
    inside.probability += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    inside.count += set;
  }
}

TFANET_DISPATCH(set_pixels, set_mask,
                (const float* logits, size_t count, float threshold, uint8_t* pixels,
                 Inside& inside),
                (logits, count, threshold, pixels, inside))

}  // namespace

Mask logits_to_mask(const float* logits, const Manifest& manifest, int32_t width, int32_t height) {
  const size_t count = static_cast<size_t>(width) * static_cast<size_t>(height);
  std::unique_ptr<float[]> plane;
  if (width != manifest.width || height != manifest.height) {
    plane.reset(new float[count]);
    resize_plane(logits, manifest.width, manifest.height, plane.get(), width, height);
    logits = plane.get();
  }
  Mask mask;
  mask.pixels.resize(count);
  Inside inside;
  set_pixels(logits, count, manifest.threshold, mask.pixels.data(), inside);
  if (inside.count > 0) {
    mask.score = static_cast<float>(inside.probability / static_cast<double>(inside.count));
  }
  return mask;
}

}  // namespace tfanet
