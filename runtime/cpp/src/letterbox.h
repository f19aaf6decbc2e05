// A picture in a box, its sides' ratio kept: the geometry of runtime/letterbox.py, bit for bit.
#pragma once

#include <cstdint>

namespace tfanet {

// Edges in pixels; right and bottom are those behind the last one.
struct Crop {
  int32_t top, left, bottom, right;
};

struct Letterbox {
  // Where a picture lies in a box.
  Letterbox(int32_t picture_width, int32_t picture_height, int32_t box_width, int32_t box_height);

  int32_t width, height;  // of the picture in the box
  int32_t top, left;      // its corner
  Crop crop;              // what is cut out of the box on the way back
};

}  // namespace tfanet
