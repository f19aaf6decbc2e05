// Pictures to tensors, equal to runtime/preprocess.py.
#pragma once

#include <cstdint>

#include "contract.h"
#include "tfanet.h"

namespace tfanet {

inline constexpr int64_t kMaxPixels = 64'000'000;
inline constexpr int32_t kMinSide = 2, kMaxSide = 65'535;  // the longest side of a JPEG
// Of what a resize holds between its two steps.
inline constexpr int64_t kMaxResizeBytes = int64_t{1} << 30;

// Throws INVALID_ARGUMENT or BAD_IMAGE where the picture's description cannot be right, or it
// cannot be resized to the model's size, and the mask back, within the limits above.
void check_image(const tfanet_image& image, const Preprocessing& pre);

// A checked picture to 3 planes of the model's size: resized, scaled and normalised.
void image_to_tensor(const tfanet_image& image, const Preprocessing& pre, float* tensor);

}  // namespace tfanet
