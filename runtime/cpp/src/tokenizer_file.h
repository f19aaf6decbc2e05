// tokenizer.json of the `tokenizers` library, as far as CLIP's and BERT's tokenizers go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tfanet {

inline constexpr char kStartToken[] = "<|startoftext|>";
inline constexpr char kEndToken[] = "<|endoftext|>";

// Token ids by token: a hash table for short strings, several times faster than the standard one,
// which would take a tenth of the time to open a bundle.
class Vocabulary {
 public:
  explicit Vocabulary(size_t count);
  void set(std::string_view token, int32_t id);
  const int32_t* find(std::string_view token) const;  // null where it is not known
  bool has_id(int64_t id) const;

 private:
  struct Slot {
    uint32_t hash;
    int32_t id;
    std::string_view token;  // without an address: the slot is free
  };
  size_t slot_of(std::string_view token, uint32_t hash) const;

  size_t mask_;
  std::vector<Slot> slots_;
};

struct TokenizerFile {
  std::vector<char>
      text;  // all tokens and merges, one behind the other; the views below look into it
  Vocabulary vocabulary{0};
  std::vector<std::pair<std::string_view, std::string_view>> merges;  // the first ones come first
};

// What a kind of tokenizer fixes, whatever its vocabulary.
struct TokenizerKind {
  const char* name;   // in manifests
  const char* owner;  // the text encoder that it belongs to
  int64_t positions;  // tokens which that one can take
  const char *start, *end, *pad;
  const char* truncation;  // unless a manifest says it
  bool byte_pairs;         // else word pieces
};

// Throws BAD_BUNDLE where there is none of this name.
const TokenizerKind& find_tokenizer_kind(const std::string& name);

// Throws BAD_BUNDLE, in Python's words, where the file is damaged, is of another kind, lacks a
// token that the kind needs, or any setting differs from the kind's.
TokenizerFile read_tokenizer_file(const std::string& path, const char* data, size_t size,
                                  const TokenizerKind& kind);

}  // namespace tfanet
