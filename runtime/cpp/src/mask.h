// From what a model gives for pixels to a mask at the picture's size, equal to
// runtime/preprocess.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "contract.h"

namespace tfanet {

// 1 / (1 + exp(-z)) in the bits of Python: additions, products and one division of doubles.
void to_probabilities(const float* logits, size_t count, float* out);

struct Mask {
  std::vector<uint8_t> pixels;  // 255 or 0
  float score = 0;              // mean probability of the pixels that are set; 0: there is none
};

struct Size {
  int32_t width, height;
};

// Logits of any size to a mask at the picture's.
Mask plane_to_mask(const float* logits, Size size, const Preprocessing& pre,
                   const Postprocessing& post, Size picture);

}  // namespace tfanet
