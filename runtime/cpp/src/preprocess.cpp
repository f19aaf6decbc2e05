#include "preprocess.h"

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "error.h"
#include "letterbox.h"
#include "python_text.h"
#include "resample.h"

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

// Takes the rows of a picture, of 4-byte pixels, from the top.
using TakeRow = std::function<void(size_t y, const uint8_t* row)>;

// Pixels of a checked picture.
struct Pixels {
  explicit Pixels(const tfanet_image& image)
      : data(static_cast<const uint8_t*>(image.pixels)),
        width(static_cast<size_t>(image.width)),
        height(static_cast<size_t>(image.height)),
        bytes(bytes_per_pixel(image.format)),
        stride(image.stride != 0 ? static_cast<size_t>(image.stride) : width * size_t(bytes)) {}

  const uint8_t* data;
  size_t width, height;
  int bytes;
  size_t stride;
};

// By Pillow's bilinear filter.
void resize_bilinear(const Pixels& from, int32_t width, int32_t height, const TakeRow& take) {
  const size_t bytes = 4 * static_cast<size_t>(width);
  std::unique_ptr<uint8_t[]> rows(new uint8_t[from.height * bytes]);
  const auto inputs = static_cast<int>(from.width), high = static_cast<int>(from.height);
  resize_width(from.data, from.stride, from.bytes, from.height, rows.get(),
               FixedFilter(inputs, width));
  const FixedFilter filter(high, height);
  std::vector<uint8_t> resized(bytes);
  for (int32_t y = 0; y < height; ++y) {
    const auto row = static_cast<size_t>(y);
    if (height == high) {
      take(row, &rows[row * bytes]);
      continue;
    }
    const auto first = static_cast<size_t>(filter.spans[row].first);
    resize_column(&rows[first * bytes], resized.data(), bytes, y, filter);
    take(row, resized.data());
  }
}

// By the exact average of areas; no side may grow.
void resize_area(const Pixels& from, int32_t width, int32_t height, const TakeRow& take) {
  const AreaFilter across(static_cast<int>(from.width), width),
      down(static_cast<int>(from.height), height);
  const uint64_t whole = uint64_t{from.width} * from.height;
  std::vector<uint8_t> converted(4 * from.width), averaged(4 * across.outputs);
  std::vector<uint64_t> sums(3 * across.outputs);
  const auto add = [&](size_t y, uint64_t weight) {
    const uint8_t* row = from.data + y * from.stride;
    if (from.bytes != 3) {
      convert_row(row, converted.data(), from.width, from.bytes);
      row = converted.data();
    }
    add_areas(row, from.bytes == 3 ? 3 : 4, weight, sums.data(), across);
  };
  for (size_t out = 0; out < down.outputs; ++out) {
    const AreaFilter::Edge begin = down.edges[out], end = down.edges[out + 1];
    std::fill(sums.begin(), sums.end(), 0);
    for (size_t y = begin.pixel; y < end.pixel; ++y) {
      add(y, down.outputs - (y == begin.pixel ? begin.part : 0));
    }
    if (end.part != 0) add(end.pixel, end.part);
    for (size_t i = 0; i < sums.size(); ++i) {  // a half is rounded up
      averaged[i / 3 * 4 + i % 3] = static_cast<uint8_t>((2 * sums[i] + whole) / (2 * whole));
    }
    take(out, averaged.data());
  }
}

}  // namespace

void check_image(const tfanet_image& image, const Preprocessing& pre) {
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
  const int64_t needed = 4 * std::max(height * pre.width, pre.height * width);
  if (needed > kMaxResizeBytes) {
    fail(TFANET_BAD_IMAGE, "the image is ", width, "x", height, " pixels, too long for a model of ",
         pre.width, "x", pre.height, ": resizing it would take ", grouped(needed),
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

void image_to_tensor(const tfanet_image& image, const Preprocessing& pre, float* tensor) {
  std::array<float, 3> scale, shift;
  for (size_t c = 0; c < 3; ++c) {
    scale[c] = static_cast<float>(1.0 / (255.0 * pre.std[c]));
    shift[c] = static_cast<float>(pre.mean[c] / pre.std[c]);
  }
  const auto columns = static_cast<size_t>(pre.width);
  const size_t plane = columns * static_cast<size_t>(pre.height);
  const bool swap = image.format == TFANET_BGR || image.format == TFANET_BGRA;
  // Where the picture lies, and how wide it is there.
  float* corner = tensor;
  size_t width = columns;
  const TakeRow take = [&](size_t y, const uint8_t* row) {
    float* out = corner + y * columns;
    for (size_t x = 0; x < width; ++x) {
      for (size_t c = 0; c < 3; ++c) {
        out[c * plane + x] = row[4 * x + (swap ? 2 - c : c)] * scale[c] - shift[c];
      }
    }
  };
  const Pixels pixels(image);
  if (!pre.letterbox) {
    resize_bilinear(pixels, pre.width, pre.height, take);
    return;
  }
  for (size_t c = 0; c < 3; ++c) {
    std::fill_n(tensor + c * plane, plane, pre.padding[c] * scale[c] - shift[c]);
  }
  const Letterbox place(image.width, image.height, pre.width, pre.height);
  corner += static_cast<size_t>(place.top) * columns + static_cast<size_t>(place.left);
  width = static_cast<size_t>(place.width);
  const bool enlarges = place.width > image.width || place.height > image.height;
  (enlarges ? resize_bilinear : resize_area)(pixels, place.width, place.height, take);
}

}  // namespace tfanet
