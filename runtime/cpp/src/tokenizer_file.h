// tokenizer.json of the `tokenizers` library, as far as CLIP's tokenizer goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tfanet {

inline constexpr char kStartToken[] = "<|startoftext|>";
inline constexpr char kEndToken[] = "<|endoftext|>";

struct TokenizerFile {
  std::vector<char>
      text;  // all tokens and merges, one behind the other; the views below look into it
  std::unordered_map<std::string_view, int32_t> vocabulary;
  std::vector<std::pair<std::string_view, std::string_view>> merges;  // the first ones come first
};

// Throws BAD_BUNDLE where the file is damaged, or any setting differs from CLIP's.
TokenizerFile read_tokenizer_file(const std::string& path, const char* data, size_t size);

}  // namespace tfanet
