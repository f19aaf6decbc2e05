#include <string.h>

#include <algorithm>
#include <set>
#include <vector>

#include "bundle.h"
#include "error.h"

namespace tfanet {
namespace {

constexpr int kMaxDepth = 64;     // a manifest has 6
constexpr int kFirstVersion = 1;  // which is read too

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
    {"postprocessing", Kind::kObject},
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

// As in Python, where 1.0 and True equal 1; their type is found wrong later.
bool is_version(const Json& version, int number) {
  return version.is_boolean() ? number == int{version.get<bool>()}
                              : version.is_number() && version == number;
}

// The fields of a manifest of that version.
std::vector<Field> fields_of(bool first_version) {
  std::vector<Field> fields(std::begin(kFields), std::end(kFields));
  if (first_version) {
    fields.erase(std::find_if(fields.begin(), fields.end(), [](const Field& field) {
      return field.name == std::string_view("postprocessing");
    }));
    fields.push_back({"threshold", Kind::kNumber});
  }
  return fields;
}

// Whether it is of the first version.
bool check_fields(const Json& data, const std::string& path) {
  const Json& version = member(data, "schema_version");
  const bool first = is_version(version, kFirstVersion);
  if (!first && !is_version(version, kSchemaVersion)) {
    const Json& tool = member(data, "tool");
    const std::string writer = repr(tool.is_object() ? member(tool, "version") : Json());
    fail(TFANET_BAD_BUNDLE, path, " has schema version ", first_characters(repr(version), 20),
         " (of tfanet ", first_characters(writer, 20), "), tfanet ", tfanet_version(),
         " here reads ", kFirstVersion, " and ", kSchemaVersion,
         ": export the model again with it");
  }
  std::set<std::string> unknown;
  for (const auto& item : data.items()) unknown.insert(item.key());
  for (const auto& [name, kind] : fields_of(first)) {
    if (!unknown.erase(name)) {
      fail(TFANET_BAD_BUNDLE, path, " lacks the field '", name, "': export the model again");
    }
    if (const Json& value = data[name]; !is_kind(value, kind)) {
      fail(TFANET_BAD_BUNDLE, path, ": '", name, "' is ", first_characters(repr(value), 60),
           ", which has the wrong type");
    }
  }
  if (!unknown.empty()) {
    fail(TFANET_BAD_BUNDLE, path, " has the unknown field '",
         first_characters(*unknown.begin(), 80), "': it was edited");
  }
  return first;
}

// What version 1 left unsaid: it knew one family, whose image graph gives a mask alone.
void upgrade(Json& data) {
  data["schema_version"] = kSchemaVersion;
  data["model"]["family"] = "tfanet";
  if (Json& outputs = data["outputs"]; member(outputs, kImage).is_array()) {
    for (Json& mask : outputs[kImage]) {
      if (mask.is_object()) mask["role"] = "mask";
    }
  }
  data["preprocessing"]["padding"] = nullptr;
  data["text"]["tokenizer"] = "clip-bpe";
  data["text"]["truncation"] = "keep-end";
  data["postprocessing"] = {{"value", "logit"}, {"threshold", data["threshold"]}};
  data.erase("threshold");
}

// A string of the manifest's `model`, or nothing.
std::string model_text(const Json& model, const char* field) {
  const Json& value = member(model, field);
  return value.is_string() ? visible(value.get<std::string>()) : "";
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
  for (const char* graph : {kText, kImage}) good = good && member(files, graph).is_string();
  if (!good) {
    fail(TFANET_BAD_BUNDLE, path, ": engine ", first_characters(repr(record["name"]), 40),
         " lacks a file: build it again");
  }
  for (const auto& item : files.items()) names.push_back(item.value().get<std::string>());
}

void check_files(const Json& data, const std::string& path) {
  const Json& files = data["files"];
  std::vector<std::string> expected = {kImage, kText, kTokenizer};
  for (const Json& record : data["engines"]) add_engine_files(record, expected, path);
  std::vector<std::string> names, sorted = expected;
  for (const auto& item : files.items()) names.push_back(item.key());
  std::sort(names.begin(), names.end());
  std::sort(sorted.begin(), sorted.end());
  if (names != sorted) {
    const auto shown = [](const Json& list) { return first_characters(repr(list), 300); };
    fail(TFANET_BAD_BUNDLE, path, " lists the files ", shown(names), ", expected ",
         shown(expected));
  }
  for (const auto& item : files.items()) {
    const Json& facts = item.value();
    if (!facts.is_object() || facts.size() != 2 || !facts.contains("size") ||
        !facts.contains("sha256")) {
      fail(TFANET_BAD_BUNDLE, path, ": the facts of ", first_characters(item.key(), 80),
           " are not size and sha256");
    }
  }
}

}  // namespace

Manifest read_manifest(const char* bytes, size_t size, const std::string& path) {
  Json data = parse(bytes, size, path);
  if (!data.is_object()) {
    fail(TFANET_BAD_BUNDLE, path, " holds a ", type_name(data), ": expected a JSON object");
  }
  if (check_fields(data, path)) upgrade(data);
  Manifest manifest;
  manifest.preprocessing = read_preprocessing(data["preprocessing"], path);
  manifest.text = read_tokenization(data["text"], path);
  manifest.postprocessing = read_postprocessing(data["postprocessing"], path);
  manifest.interface =
      read_interface(data["inputs"], data["outputs"], manifest.text, manifest.preprocessing, path);
  check_files(data, path);
  manifest.precision = data["precision"].get<std::string>();
  manifest.family = model_text(data["model"], "family");
  manifest.preset = model_text(data["model"], "preset");
  manifest.dynamic_batch = data["dynamic_batch"].get<bool>();
  manifest.files = data["files"];
  manifest.engines = data["engines"];
  return manifest;
}

}  // namespace tfanet
