#include "tokenizer_bert.h"

#include <utility>

namespace tfanet {
namespace {

constexpr size_t kMaxWord = 100;  // characters; a longer word is not taken apart
constexpr char kGoesOn[] = "##";  // in front of a piece that does not begin a word

// Control characters are dropped, each ideograph stands alone, accents go, capitals become small:
// BertNormalizer of `tokenizers`, in its order. White space is one space.
CodePoints normalized(const CodePoints& text) {
  CodePoints clean;
  clean.reserve(text.size());
  for (const char32_t c : text) {
    switch (bert_class(c)) {
      case BertClass::kDropped:
        break;
      case BertClass::kSpace:
        clean.push_back(' ');
        break;
      case BertClass::kIdeograph:
        clean.insert(clean.end(), {' ', c, ' '});
        break;
      case BertClass::kOther:
        clean.push_back(c);
    }
  }
  return lower_case(without_accents(clean));
}

}  // namespace

BertPieces::BertPieces(TokenizerFile file)
    : file_(std::move(file)), unknown_(*file_.vocabulary.find("[UNK]")) {}

Tokens BertPieces::tokens(const CodePoints& raw) const {
  const CodePoints text = normalized(raw);
  Tokens out;
  const char32_t* const end = text.data() + text.size();
  for (const char32_t* at = text.data(); at < end;) {
    const char32_t* const begin = at;
    while (at < end && *at != ' ' && !is_bert_punctuation(*at)) ++at;
    if (at > begin) add_word(begin, at, out);
    if (at == end) break;
    if (*at != ' ') add_word(at, at + 1, out);
    ++at;
  }
  return out;
}

void BertPieces::add_word(const char32_t* begin, const char32_t* end, Tokens& out) const {
  const size_t before = out.ids.size();
  add_pieces(begin, end, out.ids);
  WordTokens& word = out.words.emplace_back(WordTokens{{}, out.ids.size() - before});
  for (const char32_t* at = begin; at < end; ++at) append_utf8(word.text, *at);
}

void BertPieces::add_pieces(const char32_t* begin, const char32_t* end,
                            std::vector<int32_t>& out) const {
  if (static_cast<size_t>(end - begin) > kMaxWord) {
    out.push_back(unknown_);
    return;
  }
  const size_t before = out.size();
  std::string piece;
  std::vector<size_t> ends;  // where each character that is left ends, in the piece
  while (begin < end) {
    piece = out.size() == before ? "" : kGoesOn;
    ends.clear();
    for (const char32_t* at = begin; at < end; ++at) {
      append_utf8(piece, *at);
      ends.push_back(piece.size());
    }
    const int32_t* found = nullptr;
    size_t count = ends.size();
    for (; count > 0; --count) {
      found = file_.vocabulary.find(std::string_view(piece.data(), ends[count - 1]));
      if (found != nullptr) break;
    }
    if (found == nullptr) {  // then the whole word is unknown
      out.resize(before);
      out.push_back(unknown_);
      return;
    }
    out.push_back(*found);
    begin += count;
  }
}

}  // namespace tfanet
