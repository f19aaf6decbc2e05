#include "preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "error.h"
#include "resample.h"

namespace tfanet {
namespace {

constexpr size_t kBlock = 64;  // rows that are converted together, so that they stay in the cache

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

// One row as RGBX. The fourth byte is never read for its value.
void convert_row(const uint8_t* source, uint8_t* target, size_t width, int32_t format) {
  const bool swap = format == TFANET_BGR || format == TFANET_BGRA;
  const int red = swap ? 2 : 0, blue = 2 - red;
  switch (format) {
    case TFANET_GREY:
      for (size_t x = 0; x < width; ++x, target += 4) {
        target[0] = target[1] = target[2] = target[3] = source[x];
      }
      return;
    case TFANET_RGB:
    case TFANET_BGR:
      for (size_t x = 0; x < width; ++x, source += 3, target += 4) {
        target[0] = source[red], target[1] = source[1], target[2] = source[blue], target[3] = 0;
      }
      return;
    default:
      for (size_t x = 0; x < width; ++x, source += 4, target += 4) {
        const uint32_t alpha = source[3];
        target[0] = on_white(source[red], alpha);
        target[1] = on_white(source[1], alpha);
        target[2] = on_white(source[blue], alpha);
        target[3] = 0;
      }
  }
}

// Approximates exp(x) for x <= 0 to a few units in the last place, in a form that vectorises.
inline float exp_negative(float x) {
  x = std::max(x, -87.0f);
  // x = n ln 2 + rest, with n found by letting the sum round to a whole number.
  const float shifted = x * 1.44269504f + 12582912.0f;
  uint32_t n, bits;
  std::memcpy(&n, &shifted, sizeof n);
  const float whole = shifted - 12582912.0f;
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float power = 1.0f / 5040;
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    power = power * rest + term;
  }
  std::memcpy(&bits, &power, sizeof bits);
  bits += n << 23;  // adds n to the exponent
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

inline float sigmoid(float x) {
  const float e = exp_negative(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

}  // namespace

void check_image(const tfanet_image& image) {
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
  const size_t bytes = 4 * out_width;
  const int64_t packed = image.width * int64_t{bytes_per_pixel(image.format)};
  const auto stride = static_cast<size_t>(image.stride != 0 ? image.stride : packed);
  const auto* pixels = static_cast<const uint8_t*>(image.pixels);

  std::unique_ptr<uint8_t[]> rows(new uint8_t[height * bytes]);
  if (width == out_width) {
    for (size_t y = 0; y < height; ++y) {
      convert_row(pixels + y * stride, &rows[y * bytes], width, image.format);
    }
  } else {
    const FixedFilter filter(image.width, manifest.width);
    std::unique_ptr<uint8_t[]> block(new uint8_t[4 * width * std::min(kBlock, height)]);
    for (size_t y = 0; y < height; y += kBlock) {
      const size_t count = std::min(kBlock, height - y);
      for (size_t i = 0; i < count; ++i) {
        convert_row(pixels + (y + i) * stride, &block[4 * width * i], width, image.format);
      }
      resize_rows(block.get(), &rows[y * bytes], count, filter);
    }
  }

  std::array<float, 3> scale, shift;
  for (size_t c = 0; c < 3; ++c) {
    scale[c] = static_cast<float>(1.0 / (255.0 * manifest.std[c]));
    shift[c] = static_cast<float>(manifest.mean[c] / manifest.std[c]);
  }
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
      for (size_t c = 0; c < 3; ++c) out[c * plane + x] = row[4 * x + c] * scale[c] - shift[c];
    }
  }
}

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
  const float threshold = manifest.threshold;
  constexpr size_t kPart = 1024;
  float probability[kPart];
  double sum = 0;
  size_t inside = 0;
  for (size_t begin = 0; begin < count; begin += kPart) {
    const size_t length = std::min(kPart, count - begin);
    const float* logit = logits + begin;
    uint8_t* pixel = mask.pixels.data() + begin;
    int32_t set = 0;
    for (size_t i = 0; i < length; ++i) {
      pixel[i] = logit[i] > threshold ? 255 : 0;
      set += logit[i] > threshold;
    }
    if (set == 0) continue;
    for (size_t i = 0; i < length; ++i) probability[i] = sigmoid(logit[i]);
    for (size_t i = 0; i < length; ++i) sum += pixel[i] ? probability[i] : 0.0f;
    inside += static_cast<size_t>(set);
  }
  mask.score = inside > 0 ? static_cast<float>(sum / static_cast<double>(inside)) : 0.0f;
  return mask;
}

}  // namespace tfanet
