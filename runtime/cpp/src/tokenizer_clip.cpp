#include "tokenizer_clip.h"

#include <algorithm>
#include <queue>

#include "error.h"
#include "python_text.h"

namespace tfanet {
namespace {

constexpr uint64_t kEmpty = UINT64_MAX;

uint64_t pair_of(int32_t first, int32_t second) {
  return uint64_t{static_cast<uint32_t>(first)} << 32 | static_cast<uint32_t>(second);
}

// Byte-level BPE writes a byte as a character that can be seen: printable ones stand for
// themselves, all others follow from U+0100 on.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    characters[byte] = printable ? byte : next++;
  }
  return characters;
}

bool starts_with(const char32_t* at, const char32_t* end, std::string_view ascii) {
  return static_cast<size_t>(end - at) >= ascii.size() &&
         std::equal(ascii.begin(), ascii.end(), at,
                    [](char a, char32_t b) { return static_cast<char32_t>(a) == b; });
}

// Length of the English ending at an apostrophe, or 0.
size_t contraction(const char32_t* at, const char32_t* end) {
  for (const char* ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (starts_with(at, end, ending)) return std::string_view(ending).size();
  }
  return 0;
}

}  // namespace

MergeTable::MergeTable(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  mask_ = size - 1;
  slots_.resize(size, Slot{kEmpty, {}});
}

size_t MergeTable::slot_of(uint64_t pair) const {
  size_t at = (pair * 0x9E3779B97F4A7C15u) >> 32 & mask_;
  while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & mask_;
  return at;
}

void MergeTable::add(int32_t first, int32_t second, Merge merge) {
  const uint64_t pair = pair_of(first, second);
  slots_[slot_of(pair)] = {pair, merge};
}

const MergeTable::Merge* MergeTable::find(int32_t first, int32_t second) const {
  const Slot& slot = slots_[slot_of(pair_of(first, second))];
  return slot.pair == kEmpty ? nullptr : &slot.merge;
}

ClipPieces::ClipPieces(const std::string& path, const TokenizerFile& file)
    : sos_id_(*file.vocabulary.find(kStartToken)),
      eos_id_(*file.vocabulary.find(kEndToken)),
      merges_(file.merges.size()) {
  const auto id_of = [&](std::string_view token) {
    const int32_t* found = file.vocabulary.find(token);
    if (found == nullptr) {
      fail(TFANET_BAD_BUNDLE, path, " is not a tokenizer file (it lacks the token ", repr(token),
           "): copy it again");
    }
    return *found;
  };
  const auto alphabet = byte_alphabet();
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string token;
    append_utf8(token, alphabet[byte]);
    inner_[byte] = id_of(token);
    last_[byte] = id_of(token + "</w>");
  }
  std::string whole;
  for (size_t rank = 0; rank < file.merges.size(); ++rank) {
    const auto& [first, second] = file.merges[rank];
    const int32_t left = id_of(first), right = id_of(second);
    whole.assign(first).append(second);
    merges_.add(left, right, {static_cast<int32_t>(rank), id_of(whole)});
  }
}

Tokens ClipPieces::tokens(const CodePoints& text) const {
  // Start and end tokens are found first, in the text as it came; what lies between them is
  // normalised part by part.
  Tokens out;
  const char32_t* const end = text.data() + text.size();
  const char32_t* begin = text.data();
  for (const char32_t* at = begin; at < end;) {
    const bool start = starts_with(at, end, kStartToken);
    if (!start && !starts_with(at, end, kEndToken)) {
      ++at;
      continue;
    }
    add_words(CodePoints(begin, at), out);
    const std::string_view token = start ? kStartToken : kEndToken;
    out.ids.push_back(start ? sos_id_ : eos_id_);
    out.words.push_back({std::string(token), 1});
    at += token.size();
    begin = at;
  }
  add_words(CodePoints(begin, end), out);
  return out;
}

// Words are runs of letters, single digits, the endings after an apostrophe, and runs of all else
// but white space.
void ClipPieces::add_words(const CodePoints& raw, Tokens& out) const {
  const CodePoints text = lower_case(nfc(raw));
  const char32_t* const end = text.data() + text.size();
  std::string bytes;
  const auto take = [&](const char32_t*& at, size_t count) {
    bytes.clear();
    for (; count > 0; --count) append_utf8(bytes, *at++);
    add_word(bytes, out);
  };
  for (const char32_t* at = text.data(); at < end;) {
    const CharClass kind = char_class(*at);
    if (kind == CharClass::kSpace) {
      ++at;
    } else if (kind == CharClass::kNumber) {
      take(at, 1);
    } else if (const size_t ending = kind == CharClass::kOther ? contraction(at, end) : 0) {
      take(at, ending);
    } else if (const bool start = starts_with(at, end, kStartToken);
               start || starts_with(at, end, kEndToken)) {
      // These come from capitals: one piece, which then falls apart at its letters.
      const size_t letters = std::string_view(start ? kStartToken : kEndToken).size() - 4;
      take(at, 2);
      take(at, letters);
      take(at, 2);
    } else {
      const char32_t* after = at + 1;
      while (after < end && char_class(*after) == kind) ++after;
      take(at, static_cast<size_t>(after - at));
    }
  }
}

// Joins neighbours by the rank of their merge, the leftmost first among equals.
void ClipPieces::add_word(std::string_view bytes, Tokens& out) const {
  struct Symbol {
    int32_t token, before, after;  // places of the neighbours; -1: none. Token -1: joined away
  };
  struct Candidate {
    int32_t rank, place, token;
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : place > other.place;
    }
  };
  const auto count = static_cast<int32_t>(bytes.size());
  std::vector<Symbol> symbols;
  symbols.reserve(bytes.size());
  for (int32_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    const auto& ids = last ? last_ : inner_;
    symbols.push_back({ids[static_cast<unsigned char>(bytes[i])], i - 1, last ? -1 : i + 1});
  }
  std::priority_queue<Candidate> queue;
  const auto consider = [&](int32_t place) {
    if (place < 0 || symbols[place].after < 0) return;
    const auto* merge = merges_.find(symbols[place].token, symbols[symbols[place].after].token);
    if (merge != nullptr) queue.push({merge->rank, place, merge->token});
  };
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& symbol = symbols[best.place];
    if (symbol.token < 0 || symbol.after < 0) continue;
    Symbol& next = symbols[symbol.after];
    const auto* merge = merges_.find(symbol.token, next.token);
    if (merge == nullptr || merge->token != best.token) continue;  // a neighbour has changed
    symbol.token = best.token;
    symbol.after = next.after;
    next.token = -1;
    if (symbol.after >= 0) symbols[symbol.after].before = best.place;
    consider(symbol.before);
    consider(best.place);
  }
  const size_t before = out.ids.size();
  for (int32_t at = 0; at >= 0; at = symbols[at].after) out.ids.push_back(symbols[at].token);
  out.words.push_back({std::string(bytes), out.ids.size() - before});
}

}  // namespace tfanet
