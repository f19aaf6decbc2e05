// Errors inside the library: a status of tfanet.h and one sentence. c_api.cpp catches them all.
#pragma once

#include <exception>
#include <string>

#include "tfanet.h"

namespace tfanet {

inline constexpr char kNoMemory[] =
    "memory is exhausted: free some, or give a smaller picture or batch";

// The text with what drives a terminal, or turns its lines around, written as Python's repr does:
// in messages that quote files, names and paths.
std::string visible(const std::string& text);

class Error : public std::exception {
 public:
  Error(tfanet_status status, const std::string& message)
      : status(status), message_(visible(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

  const tfanet_status status;

 private:
  std::string message_;
};

inline void append(std::string& out, const std::string& part) { out += part; }
inline void append(std::string& out, const char* part) { out += part; }
template <typename Number>
auto append(std::string& out, Number part) -> decltype(std::to_string(part), void()) {
  out += std::to_string(part);
}

inline bool contains(const std::string& text, const char* part) {
  return text.find(part) != text.npos;
}

// The parts one behind the other; numbers in decimal, whatever the locale.
template <typename... Parts>
std::string join(const Parts&... parts) {
  std::string out;
  (append(out, parts), ...);
  return out;
}

template <typename... Parts>
[[noreturn]] void fail(tfanet_status status, const Parts&... parts) {
  throw Error(status, join(parts...));
}

}  // namespace tfanet
