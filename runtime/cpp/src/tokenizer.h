// Sentences to token ids, equal token for token to the `tokenizers` library with the
// tokenizer.json of a bundle: CLIP's byte pairs or BERT's word pieces, cut and padded to a length.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "unicode.h"

namespace tfanet {

inline constexpr size_t kMaxTextBytes = 4096;

// What a manifest says of its tokenizer, in its words.
struct TokenizerRules {
  std::string kind = "clip-bpe";  // or "bert-wordpiece": BERT's, uncased
  int64_t length = 0;             // of a sentence in tokens, the start and end token included
  std::optional<int64_t> pad_id;  // CLIP's end token or BERT's [PAD] unless given
  // Of a longer sentence. "keep-end" cuts its words; "cut" what is too long, so that the end token
  // is lost. Empty: CLIP's is "keep-end", BERT's is "cut".
  std::string truncation;
};

// A word as the tokenizer reads it, whether or not it knows it, and how many tokens it has.
struct WordTokens {
  std::string text;
  size_t count;
};

// A text's tokens without start and end, and the words that they make up, both in order.
struct Tokens {
  std::vector<int32_t> ids;
  std::vector<WordTokens> words;
};

// The part in which the kinds differ.
class Pieces {
 public:
  virtual ~Pieces() = default;
  virtual Tokens tokens(const CodePoints& text) const = 0;
};

class Tokenizer {
 public:
  // `path` is for messages. Throws BAD_BUNDLE, in Python's words, where the rules cannot be, or the
  // bytes are not the tokenizer that they name.
  Tokenizer(const std::string& path, const char* data, size_t size, const TokenizerRules& rules);

  // All tokens of a text of any length, without start and end.
  Tokens tokens(const CodePoints& text) const { return pieces_->tokens(text); }

  // Token ids and word mask of `length` places each; returns the number of tokens before the cut,
  // of which there is room for `room`. Throws BAD_TEXT, in Python's words, where the sentence is
  // empty or holds no word, is too long or not UTF-8. `words`, where not null, are those that have
  // room, with the tokens that have.
  size_t encode(std::string_view sentence, int64_t* ids, float* mask,
                std::vector<WordTokens>* words = nullptr) const;

  size_t length() const { return length_; }
  size_t room() const { return room_; }
  int64_t sos_id() const { return sos_id_; }
  int64_t eos_id() const { return eos_id_; }
  int64_t pad_id() const { return pad_id_; }

 private:
  size_t length_, room_ = 0;
  int64_t sos_id_ = 0, eos_id_ = 0, pad_id_ = 0;
  std::unique_ptr<const Pieces> pieces_;
};

// The sentence's characters, if it can be used; throws BAD_TEXT if not.
CodePoints check_text(std::string_view sentence);

}  // namespace tfanet
