// Prints what becomes of texts:
//   print_tokens tokenizer.json KIND < texts                           token ids, uncut
//   print_tokens tokenizer.json KIND LENGTH PAD_ID TRUNCATION < texts  as the model reads them
//
// A text is its number of bytes on a line of its own, then the bytes. A line of the second form is
// the number of tokens before the cut, the ids, how many of them the mask counts, and each word's
// bytes and number of tokens; or what is wrong with the text. Where a tokenizer cannot be made, the
// reason is all that is printed.

#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "error.h"
#include "tokenizer.h"

namespace {

void print_tokens(const tfanet::Tokenizer& tokenizer, const std::string& text) {
  const char* between = "";
  for (const int token : tokenizer.tokens(tfanet::from_utf8(text)).ids) {
    std::cout << between << token;
    between = " ";
  }
}

void print_encoded(const tfanet::Tokenizer& tokenizer, const std::string& text) {
  std::vector<int64_t> ids(tokenizer.length());
  std::vector<float> mask(ids.size());
  std::vector<tfanet::WordTokens> words;
  std::cout << tokenizer.encode(text, ids.data(), mask.data(), &words);
  for (const int64_t id : ids) std::cout << ' ' << id;
  std::cout << ' ' << std::accumulate(mask.begin(), mask.end(), 0.0f);
  for (const auto& [word, count] : words) {
    std::cout << ' ';
    for (const unsigned char byte : word) std::cout << int{byte} << '.';
    std::cout << ':' << count;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 6) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  tfanet::TokenizerRules rules;
  rules.kind = argv[2];
  rules.length = argc == 6 ? std::stoll(argv[3]) : 77;
  if (argc == 6) {
    if (argv[4][0] != '\0') rules.pad_id = std::stoll(argv[4]);
    rules.truncation = argv[5];
  }
  try {
    const tfanet::Tokenizer tokenizer("t.json", json.data(), json.size(), rules);
    std::string line;
    while (std::getline(std::cin, line)) {
      std::string text(std::stoul(line), '\0');
      std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
      try {
        (argc == 6 ? print_encoded : print_tokens)(tokenizer, text);
      } catch (const tfanet::Error& error) {
        std::cout << error.what();
      }
      std::cout << '\n';
    }
  } catch (const tfanet::Error& error) {
    std::cout << error.what() << '\n';
  }
}
