#include "unicode.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <iterator>

#include "error.h"

namespace tfanet {
namespace {

#include "unicode_tables.inc"

template <size_t N>
using Row = std::array<int32_t, N>;

// Rows from their deltas, at compile time.
template <size_t N, size_t Size>
constexpr auto summed(const int32_t (&deltas)[Size]) {
  static_assert(Size % N == 0);
  std::array<Row<N>, Size / N> rows{};
  for (size_t i = 0; i < Size; ++i) {
    rows[i / N][i % N] = deltas[i] + (i < N ? 0 : rows[i / N - 1][i % N]);
  }
  return rows;
}

constexpr auto kLetterRows = summed<2>(kLetters);
constexpr auto kNumberRows = summed<2>(kNumbers);
constexpr auto kSpaceRows = summed<2>(kSpaces);
constexpr auto kCapitalRows = summed<4>(kCapitals);
constexpr auto kCombiningRows = summed<3>(kCombining);
constexpr auto kDecompositionRows = summed<4>(kDecompositions);
constexpr auto kBertDroppedRows = summed<2>(kBertDropped);
constexpr auto kBertSpaceRows = summed<2>(kBertSpaces);
constexpr auto kBertIdeographRows = summed<2>(kBertIdeographs);
constexpr auto kBertAccentRows = summed<2>(kBertAccents);
constexpr auto kBertPunctuationRows = summed<2>(kBertPunctuation);

// The last row that begins at or before c, or null.
template <typename Rows>
const typename Rows::value_type* row_before(const Rows& rows, int32_t c) {
  const auto after = std::upper_bound(
      rows.begin(), rows.end(), c, [](int32_t value, const auto& row) { return value < row[0]; });
  return after == rows.begin() ? nullptr : &*std::prev(after);
}

template <typename Rows>
bool in_ranges(const Rows& rows, char32_t c) {
  const auto* row = row_before(rows, static_cast<int32_t>(c));
  return row != nullptr && static_cast<int32_t>(c) <= (*row)[1];
}

int32_t combining_class(char32_t c) {
  const auto* row = row_before(kCombiningRows, static_cast<int32_t>(c));
  return row != nullptr && static_cast<int32_t>(c) <= (*row)[1] ? (*row)[2] : 0;
}

// Hangul syllables are made of two or three parts by arithmetic.
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

void decompose(char32_t c, CodePoints& out) {
  if (c - kSyllables < kSyllableCount) {
    const char32_t index = c - kSyllables;
    out.push_back(kLeads + index / (kVowelCount * kTailCount));
    out.push_back(kVowels + index / kTailCount % kVowelCount);
    if (index % kTailCount != 0) out.push_back(kTails + index % kTailCount);
    return;
  }
  const auto* row = row_before(kDecompositionRows, static_cast<int32_t>(c));
  if (row == nullptr || (*row)[0] != static_cast<int32_t>(c)) {
    out.push_back(c);
    return;
  }
  decompose(static_cast<char32_t>((*row)[1]), out);
  if ((*row)[2] != 0) decompose(static_cast<char32_t>((*row)[2]), out);
}

// Normalization form D.
CodePoints nfd(const CodePoints& text) {
  CodePoints parts;
  parts.reserve(text.size());
  for (const char32_t c : text) decompose(c, parts);
  std::vector<int32_t> classes(parts.size());
  std::transform(parts.begin(), parts.end(), classes.begin(), combining_class);
  for (size_t at = 0; at < parts.size();) {
    size_t end = at;
    while (end < parts.size() && classes[end] != 0) ++end;
    std::stable_sort(parts.begin() + at, parts.begin() + end, [](char32_t a, char32_t b) {
      return combining_class(a) < combining_class(b);
    });
    at = end + 1;
  }
  return parts;
}

struct Pair {
  char32_t first, second, whole;
  bool operator<(const Pair& other) const {
    return first != other.first ? first < other.first : second < other.second;
  }
};

const std::vector<Pair>& composing_pairs() {
  static const std::vector<Pair> pairs = [] {
    std::vector<Pair> found;
    for (const auto& row : kDecompositionRows) {
      if (row[3] != 0) found.push_back({char32_t(row[1]), char32_t(row[2]), char32_t(row[0])});
    }
    std::sort(found.begin(), found.end());
    return found;
  }();
  return pairs;
}

// The character that two make together, or 0.
char32_t composed(char32_t first, char32_t second) {
  if (first - kLeads < kLeadCount && second - kVowels < kVowelCount) {
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
  }
  if (first - kSyllables < kSyllableCount && (first - kSyllables) % kTailCount == 0 &&
      second - kTails - 1 < kTailCount - 1) {
    return first + (second - kTails);
  }
  const auto& pairs = composing_pairs();
  const Pair wanted{first, second, 0};
  const auto found = std::lower_bound(pairs.begin(), pairs.end(), wanted);
  return found != pairs.end() && !(wanted < *found) ? found->whole : 0;
}

[[noreturn]] void fail_utf8(std::string_view bytes, size_t at, size_t count, const char* reason) {
  char where[80];
  if (count == 1) {
    std::snprintf(where, sizeof where, "byte 0x%02x in position %zu",
                  static_cast<unsigned char>(bytes[at]), at);
  } else {
    std::snprintf(where, sizeof where, "bytes in position %zu-%zu", at, at + count - 1);
  }
  fail(TFANET_BAD_TEXT, "the sentence is not valid UTF-8 ('utf-8' codec can't decode ", where, ": ",
       reason, "): encode it again");
}

}  // namespace

CharClass char_class(char32_t c) {
  if (in_ranges(kLetterRows, c)) return CharClass::kLetter;
  if (in_ranges(kNumberRows, c)) return CharClass::kNumber;
  return in_ranges(kSpaceRows, c) ? CharClass::kSpace : CharClass::kOther;
}

BertClass bert_class(char32_t c) {
  if (in_ranges(kBertSpaceRows, c)) return BertClass::kSpace;
  if (in_ranges(kBertDroppedRows, c)) return BertClass::kDropped;
  return in_ranges(kBertIdeographRows, c) ? BertClass::kIdeograph : BertClass::kOther;
}

bool is_bert_punctuation(char32_t c) { return in_ranges(kBertPunctuationRows, c); }

bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

CodePoints from_utf8(std::string_view bytes) {
  CodePoints out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    if (lead < 0x80) {
      out.push_back(lead);
      ++at;
      continue;
    }
    const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (lead < 0xC2 || lead > 0xF4) fail_utf8(bytes, at, 1, "invalid start byte");
    char32_t c = lead & (0x7F >> length);
    for (size_t i = 1; i < length; ++i) {
      if (at + i == bytes.size()) fail_utf8(bytes, at, i, "unexpected end of data");
      const auto next = static_cast<unsigned char>(bytes[at + i]);
      // The second byte also decides on overlong forms, surrogates, and what is above U+10FFFF.
      const int low = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
      const int high = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
      if (next < low || next > high) fail_utf8(bytes, at, i, "invalid continuation byte");
      c = c << 6 | (next & 0x3F);
    }
    out.push_back(c);
    at += length;
  }
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr unsigned char kLead[] = {0, 0xC0, 0xE0, 0xF0};
  out += static_cast<char>(kLead[more] | c >> (6 * more));
  for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (c >> (6 * i) & 0x3F));
}

CodePoints without_accents(const CodePoints& text) {
  // Below U+00C0 nothing has parts.
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0xC0; })) return text;
  CodePoints parts = nfd(text);
  parts.erase(std::remove_if(parts.begin(), parts.end(),
                             [](char32_t c) { return in_ranges(kBertAccentRows, c); }),
              parts.end());
  return parts;
}

CodePoints nfc(const CodePoints& text) {
  // Below U+0300 every character is composed already, and none joins with its neighbour.
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; })) return text;
  const CodePoints parts = nfd(text);
  CodePoints out;
  out.reserve(parts.size());
  constexpr size_t kNone = SIZE_MAX;
  size_t starter = kNone;
  int32_t before = 0;  // class of the last character that was kept behind the starter
  for (const char32_t c : parts) {
    const int32_t now = combining_class(c);
    const bool adjacent = starter != kNone && starter + 1 == out.size();
    if (starter != kNone && (adjacent || before < now)) {
      if (const char32_t whole = composed(out[starter], c); whole != 0) {
        out[starter] = whole;
        continue;
      }
    }
    if (now == 0) starter = out.size();
    before = now;
    out.push_back(c);
  }
  return out;
}

CodePoints lower_case(const CodePoints& text) {
  CodePoints out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    const auto value = static_cast<int32_t>(c);
    const auto* row = row_before(kCapitalRows, value);
    if (c == 0x130) {  // the only capital whose small letter has two characters
      out.push_back('i');
      out.push_back(0x307);
    } else if (row != nullptr && (value - (*row)[0]) % (*row)[2] == 0 &&
               (value - (*row)[0]) / (*row)[2] < (*row)[1]) {
      out.push_back(static_cast<char32_t>(value + (*row)[3]));
    } else {
      out.push_back(c);
    }
  }
  return out;
}

}  // namespace tfanet
