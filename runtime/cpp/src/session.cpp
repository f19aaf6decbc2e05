#include "session.h"

#include <map>

#include "error.h"
#include "python_text.h"

namespace tfanet {
namespace {

// A shape as Python prints it.
std::string shape_text(const std::optional<std::vector<Axis>>& shape) {
  if (!shape) return "None";
  Json axes = Json::array();
  for (const Axis& axis : *shape) {
    axes.push_back(axis.size >= 0 ? Json(axis.size) : axis.name.empty() ? Json() : Json(axis.name));
  }
  return repr(axes);
}

std::string expected_text(const std::vector<int64_t>& shape) {
  Json axes = {"batch"};
  for (const int64_t size : shape) axes.push_back(size);
  return repr(axes);
}

bool fits(const std::vector<Axis>& actual, const std::vector<int64_t>& expected) {
  if (actual.size() != expected.size() + 1) return false;
  for (size_t i = 0; i < actual.size(); ++i) {
    const int64_t size = i == 0 ? 1 : expected[i - 1];
    if (actual[i].size >= 0 && actual[i].size != size) return false;
  }
  return true;
}

}  // namespace

const char* type_name(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return "float64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "int32";
    default:
      return "another type";
  }
}

size_t Feed::bytes() const {
  size_t count = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? sizeof(int64_t) : sizeof(float);
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

void Session::check_interface(const std::vector<Expected>& inputs,
                              const std::vector<Expected>& outputs) const {
  for (const bool input : {true, false}) {
    std::map<std::string, Value> found;
    for (Value& value : describe(input)) found[value.name] = std::move(value);
    for (const Expected& expected : input ? inputs : outputs) {
      const auto at = found.find(expected.name);
      const Value value = at != found.end() ? at->second : Value();
      if (!value.shape || !fits(*value.shape, expected.shape)) {
        fail(TFANET_BAD_BUNDLE, path_, ": '", expected.name, "' has shape ",
             shape_text(value.shape), ", expected ", expected_text(expected.shape),
             " by the manifest: export the model again");
      }
      if (value.type != expected.type) {
        fail(TFANET_BAD_BUNDLE, path_, ": '", expected.name, "' holds ", type_name(value.type),
             ", expected ", type_name(expected.type), ": export the model again");
      }
      found.erase(at);
    }
    if (!found.empty()) {
      fail(TFANET_BAD_BUNDLE, path_, " has the unknown value '", found.begin()->first,
           "': export again");
    }
  }
}

}  // namespace tfanet
