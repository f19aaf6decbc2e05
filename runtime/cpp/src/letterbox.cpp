#include "letterbox.h"

#include <algorithm>
#include <cmath>

namespace tfanet {

Letterbox::Letterbox(int32_t picture_width, int32_t picture_height, int32_t box_width,
                     int32_t box_height) {
  const double ratio = std::min(static_cast<double>(box_height) / picture_height,
                                static_cast<double>(box_width) / picture_width);
  // Halves to even, as nearbyint rounds by default.
  const auto resized = [&](int32_t side) {
    return std::max(1, static_cast<int32_t>(std::nearbyint(side * ratio)));
  };
  const auto seen = [single = static_cast<float>(ratio)](int32_t side) {
    return std::max(1, static_cast<int32_t>(static_cast<float>(side) * single));
  };
  width = resized(picture_width);
  height = resized(picture_height);
  top = (box_height - height) / 2;
  left = (box_width - width) / 2;
  crop = {top, left, top + seen(picture_height), left + seen(picture_width)};
}

}  // namespace tfanet
