// Text as the tokenizers see it: UTF-8, character classes, normal forms and lower case.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tfanet {

using CodePoints = std::vector<char32_t>;

enum class CharClass { kLetter, kNumber, kSpace, kOther };

CharClass char_class(char32_t c);

// What BertNormalizer of `tokenizers` makes of a character: nothing, a space, a word of its own.
enum class BertClass { kDropped, kSpace, kIdeograph, kOther };

BertClass bert_class(char32_t c);

// Whether BertPreTokenizer makes a word of it.
bool is_bert_punctuation(char32_t c);

// Whether Python's str.isspace holds, which str.strip goes by.
bool is_python_space(char32_t c);

// Throws BAD_TEXT, in Python's words, where the bytes are not UTF-8.
CodePoints from_utf8(std::string_view bytes);

void append_utf8(std::string& out, char32_t c);

// Normalization form C.
CodePoints nfc(const CodePoints& text);

// Normalization form D less its nonspacing marks.
CodePoints without_accents(const CodePoints& text);

// Each character for itself: no rule looks at its neighbours.
CodePoints lower_case(const CodePoints& text);

}  // namespace tfanet
