// Any bytes as a sentence, with the tokenizer.json that TFANET_TOKENIZER names.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "error.h"
#include "tokenizer.h"

namespace {

constexpr size_t kLength = 20;

tfanet::Tokenizer load() {
  const char* path = std::getenv("TFANET_TOKENIZER");
  std::ifstream file(path != nullptr ? path : "", std::ios::binary);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  return tfanet::Tokenizer("$TFANET_TOKENIZER", json.data(), json.size(), kLength);
}

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const tfanet::Tokenizer tokenizer = load();
  const std::string_view sentence(reinterpret_cast<const char*>(data), size);
  try {
    int64_t ids[kLength];
    float mask[kLength];
    const size_t count = tokenizer.encode(sentence, ids, mask);
    const size_t kept = count < kLength - 2 ? count : kLength - 2;
    for (size_t i = 0; i < kLength; ++i) {
      require(ids[i] >= 0 && ids[i] <= tokenizer.eos_id());
      require(mask[i] == (i < kept + 2 ? 1.0f : 0.0f));
    }
    const tfanet::CodePoints composed = tfanet::nfc(tfanet::from_utf8(sentence));
    require(tfanet::nfc(composed) == composed);
  } catch (const tfanet::Error& error) {
    require(error.status == TFANET_BAD_TEXT);
  }
  return 0;
}
