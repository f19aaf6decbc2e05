// CLIP's byte pairs: words are taken apart into bytes, which join by the rank of their merges.
#pragma once

#include <array>

#include "tokenizer.h"
#include "tokenizer_file.h"

namespace tfanet {

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

class ClipPieces final : public Pieces {
 public:
  // Throws BAD_BUNDLE where a byte or a merge has no token. `path` is for messages.
  ClipPieces(const std::string& path, const TokenizerFile& file);

  Tokens tokens(const CodePoints& text) const override;

 private:
  void add_words(const CodePoints& text, Tokens& out) const;
  void add_word(std::string_view bytes, Tokens& out) const;

  int32_t sos_id_, eos_id_;
  std::array<int32_t, 256> inner_{}, last_{};  // token of a byte inside a word, and at its end
  MergeTable merges_;
};

}  // namespace tfanet
