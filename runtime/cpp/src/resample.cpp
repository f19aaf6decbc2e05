#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__SSE2__) && !defined(TFANET_PORTABLE)
#define TFANET_SSE2
#include <emmintrin.h>
#endif

#include "simd.h"

namespace tfanet {
namespace {

constexpr int kBits = 22;       // of a weight's fraction: Pillow's 32 - 8 - 2
constexpr int kLowerBits = 11;  // of them in the lower part
constexpr int32_t kHalf = 1 << (kBits - 1);

#if !defined(TFANET_SSE2)
// Sums wrap around, as those of Pillow do, where a picture has millions of pixels in a row.
uint8_t rounded(uint32_t sum) {
  return static_cast<uint8_t>(std::clamp(static_cast<int32_t>(sum) >> kBits, 0, 255));
}

uint32_t weight(const FixedFilter& filter, size_t at) {
  return (static_cast<uint32_t>(filter.upper[at]) << kLowerBits) +
         static_cast<uint32_t>(filter.lower[at]);
}
#else
// Two weights side by side in every lane, for _mm_madd_epi16.
__m128i pair(const int16_t* weights) {
  int32_t both;
  std::memcpy(&both, weights, sizeof both);
  return _mm_set1_epi32(both);
}

// Sums of products with a pair of weights: upper and lower parts apart, joined at the end.
struct Sums {
  __m128i upper = _mm_setzero_si128(), lower = _mm_set1_epi32(kHalf);

  void add(__m128i pixels, __m128i upper_weights, __m128i lower_weights) {
    upper = _mm_add_epi32(upper, _mm_madd_epi16(pixels, upper_weights));
    lower = _mm_add_epi32(lower, _mm_madd_epi16(pixels, lower_weights));
  }
  __m128i result() const {
    return _mm_srai_epi32(_mm_add_epi32(_mm_slli_epi32(upper, kLowerBits), lower), kBits);
  }
};

__m128i load_pixel(const uint8_t* at) {
  int32_t bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  return _mm_cvtsi32_si128(bytes);
}

__m128i load_8(const uint8_t* at) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)); }
#endif

// A row of pixels of kBytes bytes to one of 4-byte pixels.
template <int kBytes>
void resize_row(const uint8_t* source, uint8_t* target, const FixedFilter& filter) {
  const size_t width = filter.spans.size(), taps = static_cast<size_t>(filter.taps);
  for (size_t out = 0; out < width; ++out) {
    const auto [first, count] = filter.spans[out];
    const uint8_t* pixel = source + kBytes * static_cast<size_t>(first);
    const size_t weights = out * taps;
#if defined(TFANET_SSE2)
    const __m128i zero = _mm_setzero_si128();
    const int16_t *upper = &filter.upper[weights], *lower = &filter.lower[weights];
    Sums sums;
    int i = 0;
    for (; i + 1 < count; i += 2, pixel += 2 * kBytes) {
      // r0 r1 g0 g1 b0 b1 and, of 4-byte pixels, x0 x1
      const __m128i two = load_8(pixel);
      const __m128i mixed = _mm_unpacklo_epi8(two, _mm_srli_si128(two, kBytes));
      sums.add(_mm_unpacklo_epi8(mixed, zero), pair(upper + i), pair(lower + i));
    }
    if (i < count) {  // the second weight of the last pair is 0
      const __m128i mixed = _mm_unpacklo_epi8(load_pixel(pixel), zero);
      sums.add(_mm_unpacklo_epi8(mixed, zero), pair(upper + i), pair(lower + i));
    }
    const __m128i words = _mm_packs_epi32(sums.result(), zero);
    const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, zero));
    std::memcpy(target + 4 * out, &bytes, sizeof bytes);
#else
    uint32_t sums[kBytes];
    std::fill_n(sums, kBytes, kHalf);
    for (int i = 0; i < count; ++i, pixel += kBytes) {
      const uint32_t factor = weight(filter, weights + static_cast<size_t>(i));
      for (int channel = 0; channel < kBytes; ++channel) sums[channel] += pixel[channel] * factor;
    }
    for (int channel = 0; channel < kBytes; ++channel) {
      target[4 * out + channel] = rounded(sums[channel]);
    }
#endif
  }
}

}  // namespace

Filter::Filter(int inputs, int outputs) : inputs(inputs) {
  const double scale = static_cast<double>(inputs) / outputs;
  const double stretch = std::max(scale, 1.0);  // an enlargement looks at two neighbours only
  const double support = stretch;               // a triangle reaches 1 to each side
  taps = (static_cast<int>(std::ceil(support)) * 2 + 1 + 1) / 2 * 2;
  spans.resize(static_cast<size_t>(outputs));
  weights.resize(spans.size() * static_cast<size_t>(taps));
  const double narrow = 1.0 / stretch;
  for (int out = 0; out < outputs; ++out) {
    const double center = (out + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), inputs) - first;
    double* row = &weights[static_cast<size_t>(out) * static_cast<size_t>(taps)];
    double sum = 0;
    for (int i = 0; i < count; ++i) {
      const double distance = std::fabs((i + first - center + 0.5) * narrow);
      row[i] = distance < 1.0 ? 1.0 - distance : 0.0;
      sum += row[i];
    }
    for (int i = 0; i < count && sum != 0.0; ++i) row[i] /= sum;
    spans[static_cast<size_t>(out)] = {first, count};
  }
}

FixedFilter::FixedFilter(int inputs, int outputs)
    : Filter(inputs, outputs), upper(weights.size()), lower(weights.size()) {
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto fixed = static_cast<int32_t>(0.5 + weights[i] * (1 << kBits));
    upper[i] = static_cast<int16_t>(fixed >> kLowerBits);
    lower[i] = static_cast<int16_t>(fixed & ((1 << kLowerBits) - 1));
  }
}

void resize_rows(const uint8_t* source, size_t stride, int bytes, uint8_t* target, size_t rows,
                 const FixedFilter& filter) {
  for (; rows > 0; --rows, source += stride, target += 4 * filter.spans.size()) {
    bytes == 3 ? resize_row<3>(source, target, filter) : resize_row<4>(source, target, filter);
  }
}

void resize_column(const uint8_t* source, uint8_t* target, size_t bytes, int row,
                   const FixedFilter& filter) {
  const int count = filter.spans[static_cast<size_t>(row)].count;
  const size_t weights = static_cast<size_t>(row) * static_cast<size_t>(filter.taps);
  // All rows are of RGBX pixels, resized to the model's width.
#if defined(TFANET_SSE2)
  const __m128i zero = _mm_setzero_si128();
  const int16_t *upper = &filter.upper[weights], *lower = &filter.lower[weights];
  for (size_t at = 0; at < bytes; at += 4) {
    const uint8_t* pixel = source + at;
    if (at + 8 <= bytes) {
      Sums left, right;
      for (int i = 0; i < count; i += 2, pixel += 2 * bytes) {
        const __m128i next = i + 1 < count ? load_8(pixel + bytes) : zero;
        const __m128i mixed = _mm_unpacklo_epi8(load_8(pixel), next);
        const __m128i up = pair(upper + i), low = pair(lower + i);
        left.add(_mm_unpacklo_epi8(mixed, zero), up, low);
        right.add(_mm_unpackhi_epi8(mixed, zero), up, low);
      }
      const __m128i words = _mm_packs_epi32(left.result(), right.result());
      _mm_storel_epi64(reinterpret_cast<__m128i*>(target + at), _mm_packus_epi16(words, zero));
      at += 4;
    } else {
      Sums sums;
      for (int i = 0; i < count; i += 2, pixel += 2 * bytes) {
        const __m128i next = i + 1 < count ? load_pixel(pixel + bytes) : zero;
        const __m128i mixed = _mm_unpacklo_epi8(load_pixel(pixel), next);
        sums.add(_mm_unpacklo_epi8(mixed, zero), pair(upper + i), pair(lower + i));
      }
      const __m128i words = _mm_packs_epi32(sums.result(), zero);
      const int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(words, zero));
      std::memcpy(target + at, &packed, sizeof packed);
    }
  }
#else
  for (size_t at = 0; at < bytes; ++at) {
    uint32_t sum = kHalf;
    for (int i = 0; i < count; ++i) {
      sum += source[static_cast<size_t>(i) * bytes + at] *
             weight(filter, weights + static_cast<size_t>(i));
    }
    target[at] = rounded(sum);
  }
#endif
}

AreaFilter::AreaFilter(int inputs, int outputs)
    : inputs(static_cast<size_t>(inputs)), outputs(static_cast<size_t>(outputs)) {
  for (size_t i = 0; i <= this->outputs; ++i) {
    const size_t begin = i * this->inputs;
    edges.push_back({begin / this->outputs, static_cast<uint32_t>(begin % this->outputs)});
  }
}

void add_areas(const uint8_t* source, size_t bytes, uint64_t weight, uint64_t* sums,
               const AreaFilter& filter) {
  const auto whole = static_cast<uint32_t>(filter.outputs);
  for (size_t out = 0; out < filter.outputs; ++out, sums += 3) {
    const AreaFilter::Edge begin = filter.edges[out], end = filter.edges[out + 1];
    // At most 255 times the sum of a row's weights, its number of pixels.
    uint32_t row[3] = {};
    for (size_t at = begin.pixel; at < end.pixel; ++at) {
      for (size_t c = 0; c < 3; ++c) row[c] += source[bytes * at + c];
    }
    for (size_t c = 0; c < 3; ++c) {
      row[c] = row[c] * whole - source[bytes * begin.pixel + c] * begin.part;
      if (end.part != 0) row[c] += source[bytes * end.pixel + c] * end.part;
      sums[c] += row[c] * weight;
    }
  }
}

namespace {

TFANET_INLINE void float_rows(const float* source, float* target, size_t rows,
                              const Filter& filter) {
  const size_t width = filter.spans.size();
  for (size_t row = 0; row < rows; ++row) {
    for (size_t out = 0; out < width; ++out) {
      const auto [first, count] = filter.spans[out];
      const float* pixel = source + first;
      const double* weights = &filter.weights[out * static_cast<size_t>(filter.taps)];
      double sum = 0;
      for (int i = 0; i < count; ++i) sum += pixel[i] * weights[i];
      target[out] = static_cast<float>(sum);
    }
    source += filter.inputs;
    target += width;
  }
}

// Each output row is a weighted sum of whole rows, added up in the order of Pillow. Enlargements,
// the rule for masks, take two or three rows.
TFANET_INLINE void float_columns(const float* source, float* target, size_t width,
                                 const Filter& filter) {
  std::vector<double> sums(width);
  for (size_t out = 0; out < filter.spans.size(); ++out, target += width) {
    const auto [first, count] = filter.spans[out];
    const double* weight = &filter.weights[out * static_cast<size_t>(filter.taps)];
    const float* a = source + static_cast<size_t>(first) * width;
    const float *b = a + width, *c = b + width;
    if (count == 2) {
      for (size_t x = 0; x < width; ++x) {
        target[x] = static_cast<float>(0.0 + a[x] * weight[0] + b[x] * weight[1]);
      }
    } else if (count == 3) {
      for (size_t x = 0; x < width; ++x) {
        target[x] =
            static_cast<float>(0.0 + a[x] * weight[0] + b[x] * weight[1] + c[x] * weight[2]);
      }
    } else {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int i = 0; i < count; ++i, a += width) {
        for (size_t x = 0; x < width; ++x) sums[x] += a[x] * weight[i];
      }
      for (size_t x = 0; x < width; ++x) target[x] = static_cast<float>(sums[x]);
    }
  }
}

TFANET_DISPATCH(resize_float_rows, float_rows,
                (const float* source, float* target, size_t rows, const Filter& filter),
                (source, target, rows, filter))
TFANET_DISPATCH(resize_float_columns, float_columns,
                (const float* source, float* target, size_t width, const Filter& filter),
                (source, target, width, filter))

}  // namespace

void resize_plane(const float* source, int source_width, int source_height, float* target,
                  int width, int height) {
  const auto wide = static_cast<size_t>(width), high = static_cast<size_t>(source_height);
  if (width == source_width && height == source_height) {
    std::copy_n(source, wide * high, target);
  } else if (width == source_width) {
    resize_float_columns(source, target, wide, Filter(source_height, height));
  } else if (height == source_height) {
    resize_float_rows(source, target, high, Filter(source_width, width));
  } else {
    std::vector<float> rows(wide * high);
    resize_float_rows(source, rows.data(), high, Filter(source_width, width));
    resize_float_columns(rows.data(), target, wide, Filter(source_height, height));
  }
}

}  // namespace tfanet
