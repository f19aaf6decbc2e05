#include "tokenizer.h"

#include <algorithm>
#include <utility>

#include "error.h"
#include "python_text.h"
#include "tokenizer_bert.h"
#include "tokenizer_clip.h"
#include "tokenizer_file.h"

namespace tfanet {

Tokenizer::Tokenizer(const std::string& path, const char* data, size_t size,
                     const TokenizerRules& rules)
    : length_(static_cast<size_t>(rules.length)) {
  const TokenizerKind& kind = find_tokenizer_kind(rules.kind);
  const std::string truncation = rules.truncation.empty() ? kind.truncation : rules.truncation;
  if (truncation != "keep-end" && truncation != "cut") {
    fail(TFANET_BAD_BUNDLE, "the truncation is ", repr(std::string_view(truncation)),
         ": choose keep-end or cut");
  }
  if (rules.length < 3 || rules.length > kind.positions) {
    fail(TFANET_BAD_BUNDLE, "the text length is ", rules.length, ": ", kind.owner, " has ",
         kind.positions, " positions, give 3 to ", kind.positions);
  }
  room_ = length_ - (truncation == "keep-end" ? 2 : 1);
  TokenizerFile file = read_tokenizer_file(path, data, size, kind);
  sos_id_ = *file.vocabulary.find(kind.start);
  eos_id_ = *file.vocabulary.find(kind.end);
  pad_id_ = rules.pad_id.value_or(*file.vocabulary.find(kind.pad));
  if (!file.vocabulary.has_id(pad_id_)) {
    fail(TFANET_BAD_BUNDLE, "the pad id is ", pad_id_, ", which is no token of ", path,
         ": give another");
  }
  if (kind.byte_pairs) {
    pieces_ = std::make_unique<ClipPieces>(path, file);
  } else {
    pieces_ = std::make_unique<BertPieces>(std::move(file));
  }
}

size_t Tokenizer::encode(std::string_view sentence, int64_t* ids, float* mask,
                         std::vector<WordTokens>* words) const {
  Tokens found = tokens(check_text(sentence));
  const std::vector<int32_t>& all = found.ids;
  if (all.empty()) {
    fail(TFANET_BAD_TEXT, "the sentence has nothing but accents and control characters: say what ",
         "to segment");
  }
  const size_t kept = std::min(all.size(), room_);
  std::fill(ids, ids + length_, pad_id_);
  ids[0] = sos_id_;
  std::copy(all.begin(), all.begin() + static_cast<ptrdiff_t>(kept), ids + 1);
  const size_t count = std::min(kept + 2, length_);
  if (count == kept + 2) ids[kept + 1] = eos_id_;
  std::fill(mask, mask + count, 1.0f);
  std::fill(mask + count, mask + length_, 0.0f);
  if (words != nullptr) {
    words->clear();
    size_t left = kept;
    for (WordTokens& word : found.words) {
      if (left == 0) break;
      word.count = std::min(word.count, left);
      left -= word.count;
      words->push_back(std::move(word));
    }
  }
  return all.size();
}

CodePoints check_text(std::string_view sentence) {
  // First, for a size may be given that goes beyond the text.
  if (sentence.size() > kMaxTextBytes) {
    fail(TFANET_BAD_TEXT, "the sentence has ", sentence.size(), " bytes, the limit is ",
         kMaxTextBytes, ": shorten it");
  }
  CodePoints text = from_utf8(sentence);
  if (std::all_of(text.begin(), text.end(), is_python_space)) {
    fail(TFANET_BAD_TEXT, "the sentence is empty: say what to segment");
  }
  return text;
}

}  // namespace tfanet
