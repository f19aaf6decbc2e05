#include "tokenizer_file.h"

#include <string.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "error.h"
#include "python_text.h"

namespace tfanet {
namespace {

constexpr size_t kMaxDepth = 16;
constexpr size_t kMaxName = 200;  // paths are kept, so their length must have an end

// Where each token or merge lies in the text; views are made once the text no longer moves.
struct Piece {
  size_t begin, size;
};

// Takes in vocabulary and merges as they come, for they are long; of all else, it keeps every
// scalar under its path, like "/model/type".
class Reader {
 public:
  bool null() { return scalar("null"); }
  bool boolean(bool value) { return scalar(value ? "true" : "false"); }
  bool number_integer(int64_t value) { return scalar(std::to_string(value)); }
  bool number_unsigned(uint64_t value) {
    if (!in_vocabulary_) return scalar(std::to_string(value));
    if (value > INT32_MAX) return reject("a token id is above 2147483647");
    tokens.push_back({key_, static_cast<int32_t>(value)});
    return true;
  }
  bool number_float(double, const std::string& text) { return scalar(text); }
  bool string(std::string& value) {
    if (!in_merges_) return scalar(value);
    const bool pair = depth() == 4;  // ["a", "b"]; else "a b"
    const size_t space = pair ? value.size() : value.find(' ');
    if (space == value.npos) return reject("a merge has no space");
    merges.push_back(keep(value.data(), space));
    if (!pair) merges.push_back(keep(value.data() + space + 1, value.size() - space - 1));
    return true;
  }
  bool binary(std::vector<uint8_t>&) { return reject("binary data"); }
  bool start_object(size_t) { return enter(false); }
  bool key(std::string& name) {
    if (in_vocabulary_) {
      key_ = keep(name.data(), name.size());
      return true;
    }
    if (name.size() > kMaxName) return reject("a setting has a name of more than 200 bytes");
    path_.resize(levels_.back().path_size);
    path_ += '/';
    for (const char c : name) path_ += c == '/' ? '|' : c;  // a slash stands for a level alone
    return true;
  }
  bool end_object() { return leave(); }
  bool start_array(size_t) { return enter(true); }
  bool end_array() { return leave(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) {
    return reject(printable(error.what()));
  }

  std::vector<char> text;
  std::string problem;
  std::vector<std::pair<Piece, int32_t>> tokens;
  std::vector<Piece> merges;
  std::map<std::string, std::string> settings;

 private:
  struct Level {
    size_t path_size;
    bool array;
    size_t index;
  };

  size_t depth() const { return levels_.size(); }

  // Names the value that comes, where it is an element of an array.
  void step() {
    if (levels_.empty() || !levels_.back().array) return;
    path_.resize(levels_.back().path_size);
    path_ += '/' + std::to_string(levels_.back().index++);
  }

  bool enter(bool array) {
    if (depth() == kMaxDepth) return reject("it is nested too deeply");
    if (in_vocabulary_) return reject("a token id is no number");
    if (!in_merges_) step();
    levels_.push_back({path_.size(), array, 0});
    in_vocabulary_ = !array && path_ == "/model/vocab";
    in_merges_ = in_merges_ || (array && path_ == "/model/merges");
    return true;
  }

  bool leave() {
    path_.resize(levels_.back().path_size);
    levels_.pop_back();
    in_vocabulary_ = false;
    if (depth() < 3) in_merges_ = false;  // the array of merges is the third level
    return true;
  }

  bool scalar(std::string value) {
    if (in_vocabulary_ || in_merges_) return reject("the vocabulary or a merge has a wrong type");
    step();
    settings[path_] = std::move(value);
    return true;
  }

  Piece keep(const char* data, size_t size) {
    text.insert(text.end(), data, data + size);
    return {text.size() - size, size};
  }

  bool reject(std::string why) {
    problem = std::move(why);
    return false;
  }

  std::vector<Level> levels_;
  std::string path_;
  Piece key_{};
  bool in_vocabulary_ = false, in_merges_ = false;
};

constexpr TokenizerKind kKinds[] = {
    {"clip-bpe", "CLIP", 77, kStartToken, kEndToken, kEndToken, "keep-end", true},
    {"bert-wordpiece", "BERT", 512, "[CLS]", "[SEP]", "[PAD]", "cut", false},
};

constexpr char kAny[] = "*";

struct Setting {
  std::string path, value;
};
using Settings = std::vector<Setting>;

void add_token(Settings& settings, const char* place, const char* token) {
  // The vocabulary says the id.
  const char* absent = place[0] == '?' ? "" : "?";
  settings.push_back({join(absent, place, "/id"), kAny});
  settings.push_back({join(place, "/content"), token});
  for (const char* name : {"/normalized", "/single_word", "/lstrip", "/rstrip"}) {
    settings.push_back({join(place, name), "false"});
  }
  settings.push_back({join(place, "/special"), "true"});
}

// What the C++ code does, said in the file's terms. A setting that is absent has this value too in
// `tokenizers`, where it is marked with "?" in front.
Settings clip_settings() {
  Settings settings = {{"?/truncation", "null"}, {"?/padding", "null"}};
  add_token(settings, "/added_tokens/0", kStartToken);
  add_token(settings, "/added_tokens/1", kEndToken);
  const Settings parts = {
      {"/normalizer/type", "Sequence"},
      {"/normalizer/normalizers/0/type", "NFC"},
      {"/normalizer/normalizers/1/type", "Replace"},
      {"/normalizer/normalizers/1/pattern/Regex", "\\s+"},
      {"/normalizer/normalizers/1/content", " "},
      {"/normalizer/normalizers/2/type", "Lowercase"},
      {"/pre_tokenizer/type", "Sequence"},
      {"/pre_tokenizer/pretokenizers/0/type", "Split"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex",
       "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|"
       "[^\\s\\p{L}\\p{N}]+"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Removed"},
      {"/pre_tokenizer/pretokenizers/0/invert", "true"},
      {"/pre_tokenizer/pretokenizers/1/type", "ByteLevel"},
      {"/pre_tokenizer/pretokenizers/1/add_prefix_space", "false"},
      {"?/pre_tokenizer/pretokenizers/1/trim_offsets", "true"},
      {"?/pre_tokenizer/pretokenizers/1/use_regex", "true"},
      {"/model/type", "BPE"},
      {"?/model/dropout", "null"},
      {"?/model/unk_token", kEndToken},
      {"?/model/continuing_subword_prefix", ""},
      {"/model/end_of_word_suffix", "</w>"},
      {"?/model/fuse_unk", "false"},
      {"?/model/byte_fallback", "false"},
      {"?/model/ignore_merges", "false"},
  };
  settings.insert(settings.end(), parts.begin(), parts.end());
  return settings;
}

Settings bert_settings() {
  Settings settings = {{"?/truncation", "null"}, {"?/padding", "null"}};
  add_token(settings, "/added_tokens/0", "[PAD]");
  add_token(settings, "/added_tokens/1", "[UNK]");
  add_token(settings, "/added_tokens/2", "[CLS]");
  add_token(settings, "/added_tokens/3", "[SEP]");
  add_token(settings, "?/added_tokens/4", "[MASK]");
  const Settings parts = {
      {"/normalizer/type", "BertNormalizer"},
      {"/normalizer/clean_text", "true"},
      {"/normalizer/handle_chinese_chars", "true"},
      {"?/normalizer/strip_accents", "null"},
      {"/normalizer/lowercase", "true"},
      {"/pre_tokenizer/type", "BertPreTokenizer"},
      {"/model/type", "WordPiece"},
      {"/model/unk_token", "[UNK]"},
      {"/model/continuing_subword_prefix", "##"},
      {"/model/max_input_chars_per_word", "100"},
  };
  settings.insert(settings.end(), parts.begin(), parts.end());
  return settings;
}

bool steers(const std::string& path) {
  for (const char* part :
       {"/added_tokens/", "/normalizer", "/pre_tokenizer", "/model/", "/truncation", "/padding"}) {
    if (path.rfind(part, 0) == 0) return true;
  }
  return false;
}

void check_settings(std::map<std::string, std::string> settings, const std::string& path,
                    const TokenizerKind& kind) {
  const auto differs = [&](const std::string& name, const std::string& found,
                           const std::string& expected) {
    fail(TFANET_BAD_BUNDLE, path, " is another tokenizer than ", kind.owner, "'s (", name, " is ",
         found, ", expected ", expected, "): export the model again");
  };
  const auto model = settings.find("/model/type");
  const char* const other = kind.byte_pairs ? "WordPiece" : "BPE";
  if (model != settings.end() && model->second == other) {
    fail(TFANET_BAD_BUNDLE, path, " is a ", kKinds[kind.byte_pairs ? 1 : 0].name,
         " tokenizer, the model takes ", kind.name,
         ": give the file that the model was trained with");
  }
  for (const Setting& expected : kind.byte_pairs ? clip_settings() : bert_settings()) {
    const bool optional = expected.path[0] == '?';
    const std::string name = expected.path.substr(optional ? 1 : 0);
    const auto found = settings.find(name);
    if (found == settings.end()) {
      if (!optional) differs(name, "missing", expected.value);
    } else {
      if (expected.value != kAny && found->second != expected.value) {
        differs(name, found->second, expected.value);
      }
      settings.erase(found);
    }
  }
  for (const auto& [name, value] : settings) {
    if (steers(name)) differs(name, value, "nothing");
  }
}

void check_tokens(const TokenizerFile& file, const std::string& path, const TokenizerKind& kind) {
  const auto lacks = [&](const char* token) { return file.vocabulary.find(token) == nullptr; };
  if (kind.byte_pairs) {
    if (lacks(kStartToken) || lacks(kEndToken)) {
      fail(TFANET_BAD_BUNDLE, path, " lacks CLIP's start and end tokens: use a CLIP tokenizer");
    }
    return;
  }
  if (lacks("[PAD]") || lacks("[UNK]") || lacks("[CLS]") || lacks("[SEP]")) {
    fail(TFANET_BAD_BUNDLE, path,
         " lacks BERT's [PAD], [UNK], [CLS] or [SEP]: use a BERT tokenizer");
  }
  if (!file.merges.empty()) {
    fail(TFANET_BAD_BUNDLE, path,
         " is not a tokenizer file (a vocabulary of word pieces has no merges): copy it again");
  }
}

// Eight bytes at a time; most tokens have fewer.
uint32_t hash_of(std::string_view text) {
  uint64_t hash = text.size();
  for (size_t at = 0; at < text.size(); at += 8) {
    uint64_t part = 0;
    std::memcpy(&part, text.data() + at, std::min<size_t>(8, text.size() - at));
    hash = (hash ^ part) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return static_cast<uint32_t>(hash);
}

}  // namespace

Vocabulary::Vocabulary(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  mask_ = size - 1;
  slots_.resize(size);
}

size_t Vocabulary::slot_of(std::string_view token, uint32_t hash) const {
  size_t at = hash & mask_;
  while (slots_[at].token.data() != nullptr &&
         (slots_[at].hash != hash || slots_[at].token != token)) {
    at = (at + 1) & mask_;
  }
  return at;
}

void Vocabulary::set(std::string_view token, int32_t id) {
  const uint32_t hash = hash_of(token);
  slots_[slot_of(token, hash)] = {hash, id, token};
}

const int32_t* Vocabulary::find(std::string_view token) const {
  const Slot& slot = slots_[slot_of(token, hash_of(token))];
  return slot.token.data() == nullptr ? nullptr : &slot.id;
}

bool Vocabulary::has_id(int64_t id) const {
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return slot.token.data() != nullptr && slot.id == id;
  });
}

const TokenizerKind& find_tokenizer_kind(const std::string& name) {
  for (const TokenizerKind& kind : kKinds) {
    if (name == kind.name) return kind;
  }
  fail(TFANET_BAD_BUNDLE, "the tokenizer is ", repr(std::string_view(name)), ": choose ",
       kKinds[0].name, " or ", kKinds[1].name);
}

TokenizerFile read_tokenizer_file(const std::string& path, const char* data, size_t size,
                                  const TokenizerKind& kind) {
  // The parser would take it for the end.
  if (const size_t end = ::strnlen(data, size); end < size) {
    fail(TFANET_BAD_BUNDLE, path, " is not a tokenizer file (byte ", end,
         " is zero): copy it again");
  }
  Reader reader;
  reader.text.reserve(size);
  reader.tokens.reserve(size / 30);
  reader.merges.reserve(size / 15);
  if (!nlohmann::json::sax_parse(data, data + size, &reader)) {
    fail(TFANET_BAD_BUNDLE, path, " is not a tokenizer file (", reader.problem, "): copy it again");
  }
  check_settings(std::move(reader.settings), path, kind);
  if (reader.merges.size() % 2 != 0) {
    fail(TFANET_BAD_BUNDLE, path, " is not a tokenizer file (a merge has no second part): copy it ",
         "again");
  }
  TokenizerFile file;
  file.text = std::move(reader.text);
  const auto view = [&](Piece piece) {
    return std::string_view(file.text.data() + piece.begin, piece.size);
  };
  file.vocabulary = Vocabulary(reader.tokens.size());
  for (const auto& [piece, id] : reader.tokens) file.vocabulary.set(view(piece), id);
  file.merges.reserve(reader.merges.size() / 2);
  for (size_t i = 0; i < reader.merges.size(); i += 2) {
    file.merges.emplace_back(view(reader.merges[i]), view(reader.merges[i + 1]));
  }
  check_tokens(file, path, kind);
  return file;
}

}  // namespace tfanet
