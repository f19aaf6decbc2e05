// Pillow's bilinear resize, bit for bit: a triangle filter that averages over its whole footprint
// when it reduces, rows first, then columns, 8-bit pixels rounded in between; and the exact average
// of areas, which runtime/resize.py defines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tfanet {

// For each place of the output, which inputs it is made of, and their weights.
struct Filter {
  Filter(int inputs, int outputs);

  struct Span {
    int first, count;
  };
  int inputs;
  int taps;  // room for the weights of one output: an even number
  std::vector<Span> spans;
  std::vector<double> weights;  // outputs * taps, zeros behind `count`
};

// The weights as fixed-point numbers, as Pillow uses them for 8-bit pixels. Each is cut into an
// upper and a lower part, for products of 16 bits.
struct FixedFilter : Filter {
  FixedFilter(int inputs, int outputs);
  std::vector<int16_t> upper, lower;
};

// Rows of pixels to rows of 4-byte pixels of another width. `bytes` of a source pixel is 3 or 4; a
// row of 3-byte pixels must have 2 readable bytes behind it.
void resize_rows(const uint8_t* source, size_t stride, int bytes, uint8_t* target, size_t rows,
                 const FixedFilter& filter);

// One row of the output from rows of `bytes` bytes, the first of which is filter.spans[row].first.
void resize_column(const uint8_t* source, uint8_t* target, size_t bytes, int row,
                   const FixedFilter& filter);

// Where the n pixels of a side meet the m, m <= n, that they become: the i-th new one covers
// [i n, (i + 1) n), the j-th old one [j m, (j + 1) m). The overlaps are whole numbers.
struct AreaFilter {
  AreaFilter(int inputs, int outputs);

  struct Edge {
    size_t pixel;   // the old one in which a new one begins
    uint32_t part;  // and how much of it, of m, lies before
  };
  size_t inputs, outputs;
  std::vector<Edge> edges;  // one more than there are outputs, for the end
};

// Adds a row of pixels of `bytes` bytes, times `weight`, to sums of three channels for each output.
void add_areas(const uint8_t* source, size_t bytes, uint64_t weight, uint64_t* sums,
               const AreaFilter& filter);

// A float plane to another size; `target` has room for height * width.
void resize_plane(const float* source, int source_width, int source_height, float* target,
                  int width, int height);

}  // namespace tfanet
