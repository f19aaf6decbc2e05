// CLIP's byte-pair tokenizer, equal token for token to the `tokenizers` library with the
// tokenizer.json of a bundle.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "unicode.h"

namespace tfanet {

inline constexpr size_t kMaxTextBytes = 4096;

// What becomes of two neighbouring tokens: a hash table, read-only once it is filled.
class MergeTable {
 public:
  struct Merge {
    int32_t rank, token;
  };
  explicit MergeTable(size_t count);
  void add(int32_t first, int32_t second, Merge merge);
  const Merge* find(int32_t first, int32_t second) const;  // null: they stay apart

 private:
  struct Slot {
    uint64_t pair;
    Merge merge;
  };
  size_t slot_of(uint64_t pair) const;

  size_t mask_;
  std::vector<Slot> slots_;
};

class Tokenizer {
 public:
  // `path` is for messages. Throws BAD_BUNDLE where the bytes are not CLIP's tokenizer, or `length`
  // is not 3 to 77.
  Tokenizer(const std::string& path, const char* data, size_t size, int64_t length);

  // All tokens of a text of any length, without start and end.
  std::vector<int32_t> tokens(const CodePoints& text) const;

  // Token ids and word mask of `length` places each; returns the number of tokens before the cut.
  // Throws BAD_TEXT, in Python's words, where the sentence is empty, too long or not UTF-8.
  size_t encode(std::string_view sentence, int64_t* ids, float* mask) const;

  size_t length() const { return length_; }
  int64_t sos_id() const { return sos_id_; }
  int64_t eos_id() const { return eos_id_; }
  int64_t pad_id() const { return eos_id_; }

 private:
  void add_words(const CodePoints& text, std::vector<int32_t>& out) const;
  void add_word(std::string_view bytes, std::vector<int32_t>& out) const;

  size_t length_ = 0;
  int32_t sos_id_ = 0, eos_id_ = 0;
  std::array<int32_t, 256> inner_{}, last_{};  // token of a byte inside a word, and at its end
  MergeTable merges_;
};

// The sentence's characters, if it can be used; throws BAD_TEXT if not.
CodePoints check_text(std::string_view sentence);

}  // namespace tfanet
