#include <string.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <vector>

#include "bundle.h"
#include "error.h"

namespace tfanet {
namespace {

constexpr int kMaxDepth = 64;  // a manifest has 6
constexpr int kMaxSide = 16384;

enum class Kind { kInteger, kNumber, kString, kBoolean, kObject, kList };

struct Field {
  const char* name;
  Kind kind;
};

constexpr Field kFields[] = {
    {"schema_version", Kind::kInteger},
    {"tool", Kind::kObject},
    {"model", Kind::kObject},
    {"inputs", Kind::kObject},
    {"outputs", Kind::kObject},
    {"preprocessing", Kind::kObject},
    {"text", Kind::kObject},
    {"threshold", Kind::kNumber},
    {"scan", Kind::kObject},
    {"precision", Kind::kString},
    {"dynamic_batch", Kind::kBoolean},
    {"versions", Kind::kObject},
    {"files", Kind::kObject},
    {"engines", Kind::kList},
    {"parity", Kind::kObject},
};

bool is_kind(const Json& value, Kind kind) {
  switch (kind) {
    case Kind::kInteger:
      return value.is_number_integer();
    case Kind::kNumber:
      return value.is_number();
    case Kind::kString:
      return value.is_string();
    case Kind::kBoolean:
      return value.is_boolean();
    case Kind::kObject:
      return value.is_object();
    case Kind::kList:
      return value.is_array();
  }
  return false;
}

// The name of the type of a document that is no object, in Python.
const char* type_name(const Json& value) {
  if (value.is_array()) return "list";
  if (value.is_string()) return "str";
  if (value.is_boolean()) return "bool";
  if (value.is_number_float()) return "float";
  return value.is_null() ? "NoneType" : "int";
}

const Json& member(const Json& object, const char* name) {
  static const Json null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

Json parse(const char* data, size_t size, const std::string& path) {
  // The parser would take it for the end.
  if (const size_t end = ::strnlen(data, size); end < size) {
    fail(TFANET_BAD_BUNDLE, path, " is not JSON (byte ", end, " is zero): export again");
  }
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) {
      fail(TFANET_BAD_BUNDLE, path, " is not JSON (nested more than ", kMaxDepth,
           " times): export again");
    }
    return true;
  };
  try {
    return Json::parse(data, data + size, limit_depth);
  } catch (const Json::exception& error) {
    fail(TFANET_BAD_BUNDLE, path, " is not JSON (", printable(error.what()), "): export again");
  }
}

void check_fields(const Json& data, const std::string& path) {
  const Json& version = member(data, "schema_version");
  // As in Python, where 1.0 and True equal 1; their type is found wrong below.
  const bool equal =
      version.is_boolean() ? version.get<bool>() : version.is_number() && version == kSchemaVersion;
  if (!equal) {
    const Json& tool = member(data, "tool");
    const std::string writer = repr(tool.is_object() ? member(tool, "version") : Json());
    fail(TFANET_BAD_BUNDLE, path, " has schema version ", first_characters(repr(version), 20),
         " (of tfanet ", first_characters(writer, 20), "), tfanet ", tfanet_version(),
         " here reads ", kSchemaVersion, ": export the model again with it");
  }
  std::set<std::string> unknown;
  for (const auto& item : data.items()) unknown.insert(item.key());
  for (const auto& [name, kind] : kFields) {
    if (!unknown.erase(name)) {
      fail(TFANET_BAD_BUNDLE, path, " lacks the field '", name, "': export the model again");
    }
    if (const Json& value = data[name]; !is_kind(value, kind)) {
      fail(TFANET_BAD_BUNDLE, path, ": '", name, "' is ", first_characters(repr(value), 60),
           ", which has the wrong type");
    }
  }
  if (!unknown.empty()) {
    fail(TFANET_BAD_BUNDLE, path, " has the unknown field '", *unknown.begin(), "': it was edited");
  }
}

// Three finite numbers, or nothing.
std::optional<std::array<double, 3>> three_numbers(const Json& values) {
  if (!values.is_array() || values.size() != 3) return std::nullopt;
  std::array<double, 3> numbers;
  for (size_t i = 0; i < 3; ++i) {
    if (!values[i].is_number()) return std::nullopt;
    numbers[i] = values[i].get<double>();
    if (!std::isfinite(numbers[i])) return std::nullopt;
  }
  return numbers;
}

void read_preprocessing(const Json& pre, Manifest& manifest, const std::string& path) {
  const Json& size = member(pre, "size");
  bool good = size.is_array() && size.size() == 2;
  for (size_t i = 0; good && i < 2; ++i) {
    good = size[i].is_number_integer() && size[i] > 0 && size[i] <= kMaxSide;
  }
  if (!good) {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing.size is ", repr(size), ", expected [H, W]");
  }
  manifest.height = size[0].get<int32_t>();
  manifest.width = size[1].get<int32_t>();
  const auto mean = three_numbers(member(pre, "mean")), std = three_numbers(member(pre, "std"));
  if (!mean || !std || (*std)[0] == 0 || (*std)[1] == 0 || (*std)[2] == 0) {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing.mean and std must be three numbers each");
  }
  manifest.mean = *mean;
  manifest.std = *std;
}

void read_text(const Json& text, Manifest& manifest, const std::string& path) {
  const auto read = [&](const char* name, int64_t& out) {
    const Json& value = member(text, name);
    if (!value.is_number_integer()) {
      fail(TFANET_BAD_BUNDLE, path, ": text lacks length, pad_id, sos_id or eos_id");
    }
    constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
    out = value > kMax ? kMax : value.get<int64_t>();
  };
  read("length", manifest.text_length);
  read("pad_id", manifest.pad_id);
  read("sos_id", manifest.sos_id);
  read("eos_id", manifest.eos_id);
}

// Adds the file names of an engine's record, which is checked.
void add_engine_files(const Json& record, std::vector<std::string>& names,
                      const std::string& path) {
  constexpr Field kEngineFields[] = {
      {"name", Kind::kString},    {"target", Kind::kString},  {"precision", Kind::kString},
      {"library", Kind::kString}, {"version", Kind::kString}, {"profile", Kind::kObject},
      {"compute", Kind::kList},   {"files", Kind::kObject},
  };
  for (const auto& [name, kind] : kEngineFields) {
    if (!record.is_object() || !is_kind(member(record, name), kind)) {
      fail(TFANET_BAD_BUNDLE, path, ": an engine has no '", name, "': build it again");
    }
  }
  const auto& precision = record["precision"].get_ref<const std::string&>();
  if (std::find(std::begin(kPrecisions), std::end(kPrecisions), precision) ==
      std::end(kPrecisions)) {
    fail(TFANET_BAD_BUNDLE, path, ": an engine has the precision ",
         first_characters(repr(record["precision"]), 20));
  }
  const Json& files = record["files"];
  bool good = files.size() == 2;
  for (const char* graph : {"text.onnx", "image.onnx"})
    good = good && member(files, graph).is_string();
  if (!good) {
    fail(TFANET_BAD_BUNDLE, path, ": engine ", first_characters(repr(record["name"]), 40),
         " lacks a file: build it again");
  }
  for (const auto& item : files.items()) names.push_back(item.value().get<std::string>());
}

void check_files(const Json& data, const std::string& path) {
  const Json& files = data["files"];
  std::vector<std::string> expected = {"image.onnx", "text.onnx", "tokenizer.json"};
  for (const Json& record : data["engines"]) add_engine_files(record, expected, path);
  std::vector<std::string> names, sorted = expected;
  for (const auto& item : files.items()) names.push_back(item.key());
  std::sort(names.begin(), names.end());
  std::sort(sorted.begin(), sorted.end());
  if (names != sorted) {
    fail(TFANET_BAD_BUNDLE, path, " lists the files ", repr(Json(names)), ", expected ",
         repr(Json(expected)));
  }
  for (const auto& item : files.items()) {
    const Json& facts = item.value();
    if (!facts.is_object() || facts.size() != 2 || !facts.contains("size") ||
        !facts.contains("sha256")) {
      fail(TFANET_BAD_BUNDLE, path, ": the facts of ", item.key(), " are not size and sha256");
    }
  }
}

}  // namespace

Manifest read_manifest(const char* bytes, size_t size, const std::string& path) {
  const Json data = parse(bytes, size, path);
  if (!data.is_object()) {
    fail(TFANET_BAD_BUNDLE, path, " holds a ", type_name(data), ": expected a JSON object");
  }
  check_fields(data, path);
  Manifest manifest;
  const Json& pre = data["preprocessing"];
  read_preprocessing(pre, manifest, path);
  const auto threshold = data["threshold"].get<double>();
  if (!std::isfinite(threshold)) {
    fail(TFANET_BAD_BUNDLE, path, ": threshold is ", repr(data["threshold"]),
         ", expected a finite number");
  }
  manifest.threshold = static_cast<float>(threshold);
  if (member(pre, "resize") != "pillow-bilinear" || member(pre, "color") != "RGB") {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing is not RGB with the resize pillow-bilinear");
  }
  read_text(data["text"], manifest, path);
  check_files(data, path);
  const Json& preset = member(data["model"], "preset");
  manifest.precision = data["precision"].get<std::string>();
  manifest.preset = preset.is_string() ? visible(preset.get<std::string>()) : "";
  manifest.dynamic_batch = data["dynamic_batch"].get<bool>();
  manifest.files = data["files"];
  manifest.engines = data["engines"];
  return manifest;
}

}  // namespace tfanet
