// Any bytes as a sentence, for both kinds of tokenizer and both rules for what is too long, with
// the files in the folder that TFANET_ASSETS names.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "error.h"
#include "tokenizer.h"

namespace {

constexpr size_t kLength = 20;
constexpr int64_t kMaxId[] = {49407, 30521};

std::vector<tfanet::Tokenizer> load() {
  const char* folder = std::getenv("TFANET_ASSETS");
  std::vector<tfanet::Tokenizer> tokenizers;
  for (const char* truncation : {"keep-end", "cut"}) {
    for (const char* kind : {"clip-bpe", "bert-wordpiece"}) {
      const char* name = kind[0] == 'c' ? "/clip_tokenizer.json" : "/bert_tokenizer.json";
      const std::string path = std::string(folder != nullptr ? folder : "") + name;
      std::ifstream file(path, std::ios::binary);
      const std::string json{std::istreambuf_iterator<char>(file), {}};
      tfanet::TokenizerRules rules;
      rules.kind = kind;
      rules.length = kLength;
      rules.pad_id = 7;
      rules.truncation = truncation;
      tokenizers.emplace_back(path, json.data(), json.size(), rules);
    }
  }
  return tokenizers;
}

void require(bool condition) {
  if (!condition) std::abort();
}

void check(const tfanet::Tokenizer& tokenizer, int64_t max_id, std::string_view sentence) {
  int64_t ids[kLength];
  float mask[kLength];
  std::vector<tfanet::WordTokens> words;
  const size_t count = tokenizer.encode(sentence, ids, mask, &words);
  const size_t used = std::min(count + 2, kLength);
  const bool ends = count + 2 <= kLength || tokenizer.room() + 2 == kLength;
  require(count > 0 && ids[0] == tokenizer.sos_id());
  require(!ends || ids[used - 1] == tokenizer.eos_id());
  for (size_t i = 0; i < kLength; ++i) {
    require(ids[i] >= 0 && ids[i] <= max_id);
    require(mask[i] == (i < used ? 1.0f : 0.0f));
    require(i < used || ids[i] == 7);
  }
  size_t counted = 0;
  for (const tfanet::WordTokens& word : words) {
    require(word.count > 0 && !tfanet::from_utf8(word.text).empty());
    counted += word.count;
  }
  require(counted == std::min(count, tokenizer.room()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<tfanet::Tokenizer> tokenizers = load();
  const std::string_view sentence(reinterpret_cast<const char*>(data), size);
  for (size_t i = 0; i < tokenizers.size(); ++i) {
    try {
      check(tokenizers[i], kMaxId[i % 2], sentence);
    } catch (const tfanet::Error& error) {
      require(error.status == TFANET_BAD_TEXT);
    }
  }
  try {
    const tfanet::CodePoints text = tfanet::from_utf8(sentence);
    const tfanet::CodePoints composed = tfanet::nfc(text), plain = tfanet::without_accents(text);
    require(tfanet::nfc(composed) == composed);
    require(tfanet::without_accents(plain) == plain);
    require(tfanet::without_accents(composed) == plain);
  } catch (const tfanet::Error& error) {
    require(error.status == TFANET_BAD_TEXT);
  }
  return 0;
}
