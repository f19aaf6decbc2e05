// Prints what the parts compute that are written for one kind of CPU and once more for all: resized
// pixels and planes, averages of areas and probabilities as checksums, and the checksums of texts.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "mask.h"
#include "resample.h"
#include "sha256.h"

namespace {

void print(const char* name, const void* data, size_t size) {
  tfanet::Sha256 sum;
  sum.update(data, size);
  std::printf("%s %s\n", name, sum.hex().c_str());
}

void resize(int width, int height, int out_width, int out_height, std::mt19937& random) {
  for (const int bytes : {3, 4}) {
    const auto row = static_cast<size_t>(width * bytes);
    std::vector<uint8_t> pixels(row * static_cast<size_t>(height) + 2);
    for (uint8_t& value : pixels) value = static_cast<uint8_t>(random());
    const auto out_row = static_cast<size_t>(4 * out_width);
    std::vector<uint8_t> rows(out_row * static_cast<size_t>(height));
    const tfanet::FixedFilter across(width, out_width), down(height, out_height);
    tfanet::resize_rows(pixels.data(), row, bytes, rows.data(), static_cast<size_t>(height),
                        across);
    // The fourth byte of pixels with three is left to chance.
    for (size_t at = 3; at < rows.size(); at += 4) rows[at] = 0;
    print("rows", rows.data(), rows.size());
    std::vector<uint8_t> out(out_row);
    for (int y = 0; y < out_height; ++y) {
      const auto first = static_cast<size_t>(down.spans[static_cast<size_t>(y)].first);
      tfanet::resize_column(&rows[first * out_row], out.data(), out_row, y, down);
      print("column", out.data(), out.size());
    }
  }
  std::vector<float> plane(static_cast<size_t>(width * height));
  for (float& value : plane) value = static_cast<float>(random() % 20001) / 1000 - 10;
  std::vector<float> out(static_cast<size_t>(out_width * out_height));
  tfanet::resize_plane(plane.data(), width, height, out.data(), out_width, out_height);
  print("plane", out.data(), out.size() * sizeof(float));
}

// Of each row alone.
void average(int width, int out_width, std::mt19937& random) {
  std::vector<uint8_t> pixels(static_cast<size_t>(4 * width));
  for (uint8_t& value : pixels) value = static_cast<uint8_t>(random());
  std::vector<uint64_t> sums(static_cast<size_t>(3 * out_width));
  const tfanet::AreaFilter across(width, out_width);
  for (const size_t bytes : {3, 4}) tfanet::add_areas(pixels.data(), bytes, 7, sums.data(), across);
  print("areas", sums.data(), sums.size() * sizeof(uint64_t));
}

void probabilities(std::mt19937& random) {
  std::vector<float> logits(10'007), out(logits.size());
  for (float& value : logits) value = (static_cast<float>(random()) / 4294967296.0f - 0.5f) * 220;
  tfanet::to_probabilities(logits.data(), logits.size(), out.data());
  print("probabilities", out.data(), out.size() * sizeof(float));
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const int sides[] = {1, 2, 3, 7, 16, 31, 64, 129};
  for (const int width : sides) {
    for (const int out_width : sides) {
      resize(width, 40, out_width, 17, random);
      resize(23, width, 30, out_width, random);
      if (out_width <= width) average(width, out_width, random);
    }
  }
  probabilities(random);
  std::vector<uint8_t> text(300, 'a');
  for (size_t size = 0; size <= text.size(); ++size) print("text", text.data(), size);
}
