// What a program passes to the functions of tfanet.h, checked. All of these throw INVALID_ARGUMENT.
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "error.h"
#include "handle.h"

#ifndef TFANET_VERSION
#error "TFANET_VERSION is not defined: build with the CMakeLists.txt of runtime/cpp"
#endif

namespace tfanet {

void require(const void* pointer, const char* name);

void require_length(size_t given, size_t expected, const char* name);

// A struct of the caller's, whose own size may be that of another version of this header.
template <typename Struct>
Struct taken(const Struct* given, size_t first_version, const char* name) {
  require(given, name);
  if (given->size < first_version) {
    fail(TFANET_INVALID_ARGUMENT, name, ".size is ", given->size, ", expected ", sizeof(Struct),
         ": set it to sizeof(tfanet_", name, ")");
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t at = sizeof(Struct); at < given->size; ++at) {
    if (bytes[at] != 0) {
      fail(TFANET_INVALID_ARGUMENT, name, " asks for something that version ", TFANET_VERSION,
           " does not know: use a newer libtfanet_runtime.so");
    }
  }
  Struct out{};
  std::memcpy(&out, given, std::min(given->size, sizeof(Struct)));
  return out;
}

// Facts into a struct of the caller's, as far as its size goes.
template <typename Struct>
void give(const Struct& facts, Struct* out, const char* name) {
  require(out, name);
  const size_t size = out->size;
  if (size < sizeof size || size > 4096) {
    fail(TFANET_INVALID_ARGUMENT, name, ".size is ", size, ", expected ", sizeof(Struct),
         ": set it to sizeof(tfanet_", name, ")");
  }
  std::memset(out, 0, size);
  std::memcpy(out, &facts, std::min(size, sizeof(Struct)));
  out->size = size;
}

tfanet_image taken_image(const tfanet_image* image);

std::string_view text_of(const char* text, size_t bytes);

std::vector<SharedSentence> sentences_of(const tfanet_sentence* const* sentences, size_t count);

// A tfanet_array, in memory where `predictor` runs.
struct Array {
  float* data;
  size_t count;
  bool on_device;
};
Array taken_array(const Predictor& predictor, const tfanet_array* given, const char* name);

}  // namespace tfanet
