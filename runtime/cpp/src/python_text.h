// Values as Python prints them, so that both runtimes report an error in the same words.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tfanet {

// Keeps the order of the file, as a Python dict does.
using Json = nlohmann::ordered_json;

// repr(value), of data that json.loads returns.
std::string repr(const Json& value);

// repr of a str. Characters beyond ASCII are taken to be printable.
std::string repr(std::string_view text);

// The first `count` characters of UTF-8 text.
std::string first_characters(const std::string& text, size_t count);

// The text with every byte that is not printable ASCII as "?", for messages that quote a file.
std::string printable(std::string text);

// A number with a comma between thousands.
std::string grouped(int64_t value);

}  // namespace tfanet
