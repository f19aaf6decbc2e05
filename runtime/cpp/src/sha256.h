// SHA-256 (FIPS 180-4), with the CPU's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace tfanet {

class Sha256 {
 public:
  Sha256();
  void update(const void* data, size_t size);
  std::string hex();  // of all that was added; ends the computation

 private:
  std::array<uint32_t, 8> state_;
  unsigned char rest_[64];
  uint64_t size_ = 0;
};

}  // namespace tfanet
