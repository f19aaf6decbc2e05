#include "mask.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "letterbox.h"
#include "resample.h"
#include "simd.h"

namespace tfanet {
namespace {

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

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2Upper = 0.6931471803691238, kLn2Rest = 1.9082149292705877e-10;
// Of the Taylor series of exp: 1 / n!, from n = 13 to 0.
constexpr double kTerms[] = {1.0 / 6227020800,
                             1.0 / 479001600,
                             1.0 / 39916800,
                             1.0 / 3628800,
                             1.0 / 362880,
                             1.0 / 40320,
                             1.0 / 5040,
                             1.0 / 720,
                             1.0 / 120,
                             1.0 / 24,
                             1.0 / 6,
                             1.0 / 2,
                             1.0,
                             1.0};

TFANET_INLINE void probabilities(const float* logits, size_t count, float* out) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: what is added to it becomes whole
  for (size_t i = 0; i < count; ++i) {
    double x = -static_cast<double>(logits[i]);
    x = x < -700.0 ? -700.0 : x;
    x = x > 700.0 ? 700.0 : x;
    const double shifted = x * kLog2E + kRound, power = shifted - kRound;
    const double rest = (x - power * kLn2Upper) - power * kLn2Rest;
    double total = 0;
    for (const double term : kTerms) total = total * rest + term;
    // 2 to that power; the lower bits of `shifted` are the power's own.
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double scale;
    std::memcpy(&scale, &bits, sizeof scale);
    out[i] = static_cast<float>(1.0 / (1.0 + total * scale));
  }
}

TFANET_DISPATCH(write_probabilities, probabilities, (const float* logits, size_t count, float* out),
                (logits, count, out))

struct Inside {
  double probability = 0;  // of all pixels in the mask, added up
  size_t count = 0;
};

// Sets the pixels of the mask; `values` are logits or, as they are, probabilities.
TFANET_INLINE void set_mask(const float* values, size_t count, float threshold, bool as_they_are,
                            uint8_t* pixels, Inside& inside) {
  constexpr size_t kPart = 1024;
  float probability[kPart];
  for (size_t begin = 0; begin < count; begin += kPart) {
    const size_t length = std::min(kPart, count - begin);
    const float* value = values + begin;
    uint8_t* pixel = pixels + begin;
    uint32_t set = 0;
    for (size_t i = 0; i < length; ++i) {
      pixel[i] = value[i] > threshold ? 255 : 0;
      set += value[i] > threshold;
    }
    if (set == 0) continue;
    if (as_they_are) {
      for (size_t i = 0; i < length; ++i) probability[i] = value[i] > threshold ? value[i] : 0.0f;
    } else {
      for (size_t i = 0; i < length; ++i) {
        const float likely = sigmoid(value[i]);
        probability[i] = value[i] > threshold ? likely : 0.0f;
      }
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
                (const float* values, size_t count, float threshold, bool as_they_are,
                 uint8_t* pixels, Inside& inside),
                (values, count, threshold, as_they_are, pixels, inside))

size_t area(Size size) {
  return static_cast<size_t>(size.width) * static_cast<size_t>(size.height);
}

// A plane that is the caller's, or made here.
class Plane {
 public:
  Plane(const float* values, Size size) : values_(values), size_(size) {}

  const float* values() const { return values_; }

  void make_probabilities() {
    std::unique_ptr<float[]> made(new float[area(size_)]);
    to_probabilities(values_, area(size_), made.get());
    take(std::move(made), size_);
  }
  void resize(Size to) {
    if (to.width == size_.width && to.height == size_.height) return;
    std::unique_ptr<float[]> made(new float[area(to)]);
    resize_plane(values_, size_.width, size_.height, made.get(), to.width, to.height);
    take(std::move(made), to);
  }
  void crop(const Crop& crop) {
    const Size to = {crop.right - crop.left, crop.bottom - crop.top};
    std::unique_ptr<float[]> made(new float[area(to)]);
    const auto stride = static_cast<size_t>(size_.width), width = static_cast<size_t>(to.width);
    const float* row = values_ + static_cast<size_t>(crop.top) * stride + crop.left;
    for (size_t y = 0; y < static_cast<size_t>(to.height); ++y, row += stride) {
      std::copy_n(row, width, made.get() + y * width);
    }
    take(std::move(made), to);
  }

 private:
  void take(std::unique_ptr<float[]> made, Size size) {
    own_ = std::move(made);
    values_ = own_.get();
    size_ = size;
  }

  const float* values_;
  Size size_;
  std::unique_ptr<float[]> own_;
};

}  // namespace

void to_probabilities(const float* logits, size_t count, float* out) {
  write_probabilities(logits, count, out);
}

Mask plane_to_mask(const float* logits, Size size, const Preprocessing& pre,
                   const Postprocessing& post, Size picture) {
  Plane plane(logits, size);
  if (post.probability) plane.make_probabilities();
  if (pre.letterbox) {
    plane.resize({pre.width, pre.height});
    plane.crop(Letterbox(picture.width, picture.height, pre.width, pre.height).crop);
  }
  plane.resize(picture);
  Mask mask;
  mask.pixels.resize(area(picture));
  Inside inside;
  set_pixels(plane.values(), mask.pixels.size(), static_cast<float>(post.threshold),
             post.probability, mask.pixels.data(), inside);
  if (inside.count > 0) {
    mask.score = static_cast<float>(inside.probability / static_cast<double>(inside.count));
  }
  return mask;
}

}  // namespace tfanet
