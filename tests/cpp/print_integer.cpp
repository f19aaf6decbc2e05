// Prints a digit for each ONNX file named: 1 where its integer layers would come out wrong here.

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "error.h"
#include "integer.h"

int main(int argc, char** argv) try {
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    const std::string data{std::istreambuf_iterator<char>(file), {}};
    std::cout << tfanet::needs_floats(reinterpret_cast<const unsigned char*>(data.data()),
                                      data.size());
  }
} catch (const tfanet::Error& error) {
  std::cerr << error.what();
  return 1;
}
