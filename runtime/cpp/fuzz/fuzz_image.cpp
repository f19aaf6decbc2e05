// Pictures of any geometry, stretched or boxed: what is not refused is read inside its buffer,
// which ends where the last pixel does. What becomes of them is taken for logits, and a mask made
// of it.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "error.h"
#include "mask.h"
#include "preprocess.h"

namespace {

constexpr int32_t kMaxSide = 200;  // of what is really resized, for speed

struct Geometry {
  int32_t width, height, format;
  int64_t stride;
  uint8_t model_width, model_height, shrink;
};

void require(bool condition) {
  if (!condition) std::abort();
}

int channels(int32_t format) {
  return format == TFANET_GREY ? 1 : format == TFANET_RGB || format == TFANET_BGR ? 3 : 4;
}

tfanet::Preprocessing model_of(const Geometry& geometry) {
  tfanet::Preprocessing pre;
  pre.width = geometry.model_width % 80 + 1;
  pre.height = geometry.model_height % 80 + 1;
  if (geometry.shrink % 16 == 0) pre.width *= 200;  // which makes the bound on a resize speak
  pre.mean = {0.5, 0.4, 0.3};
  pre.std = {0.2, 0.25, 0.3};
  pre.letterbox = geometry.model_width >= 128;
  pre.padding = {geometry.model_width, geometry.model_height, geometry.shrink};
  return pre;
}

void resize(tfanet_image image, const tfanet::Preprocessing& pre, const uint8_t* data,
            size_t size) {
  const int64_t row = int64_t{image.width} * channels(image.format);
  const int64_t stride = image.stride != 0 ? image.stride : row;
  if (stride > 4096) return;
  std::vector<uint8_t> pixels(static_cast<size_t>(stride * (image.height - 1) + row));
  for (size_t i = 0; i < pixels.size() && size > 0; ++i) pixels[i] = data[i % size];
  image.pixels = pixels.data();
  std::vector<float> tensor(tfanet::numbers_in({3, pre.height, pre.width}));
  tfanet::image_to_tensor(image, pre, tensor.data());
  for (const float value : tensor) require(std::fabs(value) < 6);
  tfanet::Postprocessing post;
  post.probability = pre.height % 2 != 0;
  post.threshold = post.probability ? 0.35 : 0;
  // As large as the model's input, or half as large.
  const int32_t part = pre.width % 2 + 1;
  const tfanet::Size logits = {(pre.width + part - 1) / part, (pre.height + part - 1) / part};
  const tfanet::Mask mask =
      tfanet::plane_to_mask(tensor.data(), logits, pre, post, {image.width, image.height});
  require(mask.pixels.size() == tfanet::numbers_in({image.height, image.width}));
  require(mask.score >= 0 && mask.score <= 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Geometry geometry;
  if (size < sizeof geometry) return 0;
  std::memcpy(&geometry, data, sizeof geometry);
  if (geometry.shrink % 4 != 0) {  // mostly sizes that can be used
    geometry.width %= kMaxSide;
    geometry.height %= kMaxSide;
    geometry.format = geometry.format % 4 + 2;
    geometry.stride %= 1024;
  }
  const tfanet::Preprocessing pre = model_of(geometry);
  const uint8_t pixel = 0;
  const tfanet_image image = {sizeof image,    &pixel,          geometry.width,
                              geometry.height, geometry.stride, geometry.format};
  try {
    tfanet::check_image(image, pre);
  } catch (const tfanet::Error& error) {
    require(error.status == TFANET_BAD_IMAGE || error.status == TFANET_INVALID_ARGUMENT);
    return 0;
  }
  require(image.width >= 2 && image.height >= 2 && image.stride >= 0);
  const int64_t longer = std::max(image.width, image.height);
  require(longer <= tfanet::kMaxSide);
  if (longer <= kMaxSide) {
    resize(image, pre, data + sizeof geometry, size - sizeof geometry);
  }
  return 0;
}
