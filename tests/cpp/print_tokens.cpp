// Prints the token ids of texts of any length, uncut: print_tokens tokenizer.json < texts
//
// A text is its number of bytes on a line of its own, then the bytes.

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  const tfanet::Tokenizer tokenizer(argv[1], json.data(), json.size(), 77);
  std::string line;
  while (std::getline(std::cin, line)) {
    std::string text(std::stoul(line), '\0');
    std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
    const char* between = "";
    for (const int token : tokenizer.tokens(tfanet::from_utf8(text))) {
      std::cout << between << token;
      between = " ";
    }
    std::cout << '\n';
  }
}
