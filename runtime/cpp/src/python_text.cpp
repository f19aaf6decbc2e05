#include "python_text.h"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "error.h"

namespace tfanet {
namespace {

// Python's rule: the shortest digits that read back as the same number, with an exponent below
// 1e-4 and from 1e16 on.
std::string repr_number(double value) {
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  const double magnitude = std::fabs(value);
  const bool scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  char digits[400];
  const auto format = scientific ? std::chars_format::scientific : std::chars_format::fixed;
  std::string text(digits, std::to_chars(digits, digits + sizeof digits, value, format).ptr);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

template <typename Items, typename Print>
std::string listed(char open, const Items& items, char close, Print print) {
  std::string out(1, open);
  const char* between = "";
  for (const auto& item : items) {
    out += between + print(item);
    between = ", ";
  }
  return out + close;
}

}  // namespace

std::string visible(const std::string& text) {
  const auto byte_at = [&](size_t at) {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u;
  };
  std::string out;
  for (size_t at = 0, length = 1; at < text.size(); at += length, length = 1) {
    const unsigned first = byte_at(at), second = byte_at(at + 1), third = byte_at(at + 2);
    unsigned point = first;
    if (first == 0xC2 && second >= 0x80 && second < 0xA0) {
      point = second;
      length = 2;
    } else if (first == 0xE2 && (second & 0xFE) == 0x80 && (third & 0xC0) == 0x80) {
      point = 0x2000 + ((second & 0x3F) << 6) + (third & 0x3F);
      length = 3;
    }
    const bool control = point < 0x20 || point == 0x7F || length == 2;
    // These end lines, or turn them around.
    const bool layout =
        (point >= 0x2028 && point <= 0x202E) || (point >= 0x2066 && point <= 0x2069);
    if (!control && !layout) {
      out.append(text, at, length);
    } else if (point == '\n' || point == '\r' || point == '\t') {
      out += {'\\', point == '\n' ? 'n' : point == '\r' ? 'r' : 't'};
    } else {
      char digits[8];
      std::snprintf(digits, sizeof digits, point < 0x100 ? "\\x%02x" : "\\u%04x", point);
      out += digits;
    }
  }
  return out;
}

std::string repr(std::string_view text) {
  const bool double_quotes =
      text.find('\'') != text.npos && text.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') out += '\\';
    out += c;
  }
  return visible(out + quote);
}

std::string repr(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "None";
    case Json::value_t::boolean:
      return value.get<bool>() ? "True" : "False";
    case Json::value_t::string:
      return repr(std::string_view(value.get_ref<const std::string&>()));
    case Json::value_t::number_float:
      return repr_number(value.get<double>());
    case Json::value_t::array:
      return listed('[', value, ']', [](const Json& item) { return repr(item); });
    case Json::value_t::object:
      return listed('{', value.items(), '}', [](const auto& item) {
        return repr(std::string_view(item.key())) + ": " + repr(item.value());
      });
    default:
      return value.dump();
  }
}

std::string first_characters(const std::string& text, size_t count) {
  size_t end = 0;
  while (end < text.size()) {
    const bool starts = (static_cast<unsigned char>(text[end]) & 0xC0) != 0x80;
    if (starts && count-- == 0) break;
    ++end;
  }
  return text.substr(0, end);
}

std::string printable(std::string text) {
  for (char& c : text) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return text;
}

std::string grouped(int64_t value) {
  std::string out = std::to_string(value);
  const size_t digits_from = value < 0 ? 1 : 0;
  for (size_t at = out.size(); at > digits_from + 3;) {
    at -= 3;
    out.insert(at, 1, ',');
  }
  return out;
}

}  // namespace tfanet
