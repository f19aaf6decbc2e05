// BERT's word pieces, uncased: words and single marks are taken apart into the longest pieces that
// the vocabulary holds, from the left.
#pragma once

#include "tokenizer.h"
#include "tokenizer_file.h"

namespace tfanet {

class BertPieces final : public Pieces {
 public:
  explicit BertPieces(TokenizerFile file);

  // No token is special: "[SEP]" is a word between brackets.
  Tokens tokens(const CodePoints& text) const override;

 private:
  void add_word(const char32_t* begin, const char32_t* end, Tokens& out) const;
  void add_pieces(const char32_t* begin, const char32_t* end, std::vector<int32_t>& out) const;

  TokenizerFile file_;
  int32_t unknown_;
};

}  // namespace tfanet
