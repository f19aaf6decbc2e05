// What the programs of these tests say when something is not so.
#ifndef TFANET_TESTS_CHECKS_HPP_
#define TFANET_TESTS_CHECKS_HPP_

#include <cstdlib>
#include <iostream>
#include <string>

#include "tfanet.hpp"

inline void check_at(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  std::cerr << file << ":" << line << ": not so: " << text << std::endl;
  std::exit(1);
}
#define CHECK(...) check_at((__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

template <typename Call>
void throws_at(tfanet_status status, const std::string& part, Call call, const char* file,
               int line) {
  try {
    call();
  } catch (const tfanet::Exception& error) {
    check_at(error.status() == status, error.what(), file, line);
    check_at(std::string(error.what()).find(part) != std::string::npos, error.what(), file, line);
    return;
  }
  check_at(false, "nothing was thrown", file, line);
}
#define THROWS(status, part, ...) throws_at(status, part, [&] { __VA_ARGS__; }, __FILE__, __LINE__)

#endif  // TFANET_TESTS_CHECKS_HPP_
