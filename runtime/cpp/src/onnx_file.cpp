#include "onnx_file.h"

#include <cstdint>
#include <vector>

#include "error.h"

namespace tfanet {
namespace {

enum Message { kNone, kModel, kTraining, kGraph, kFunction, kNode, kAttribute, kSparse, kTensor };

// The fields of onnx.proto that lead to a tensor, and the message in each.
Message child(Message message, uint64_t field) {
  switch (message) {
    case kModel:
      return field == 7 ? kGraph : field == 20 ? kTraining : field == 25 ? kFunction : kNone;
    case kTraining:
      return field == 1 || field == 2 ? kGraph : kNone;
    case kGraph:
      return field == 1 ? kNode : field == 5 ? kTensor : field == 15 ? kSparse : kNone;
    case kFunction:
      return field == 7 ? kNode : field == 11 ? kAttribute : kNone;
    case kNode:
      return field == 5 ? kAttribute : kNone;
    case kAttribute:
      if (field == 5 || field == 10) return kTensor;
      if (field == 6 || field == 11) return kGraph;
      return field == 22 || field == 23 ? kSparse : kNone;
    case kSparse:
      return field == 1 || field == 2 ? kTensor : kNone;
    default:
      return kNone;
  }
}

constexpr uint64_t kExternalData = 13, kDataLocation = 14;  // fields of a tensor

struct NotOnnx {};

// A base-128 number; moves `position` behind it.
uint64_t varint(const unsigned char* data, size_t size, size_t& position) {
  uint64_t value = 0;
  for (int shift = 0; shift <= 63; shift += 7) {
    if (position >= size) throw NotOnnx{};
    const uint64_t byte = data[position++];
    value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw NotOnnx{};
}

// Walks the messages that can hold tensors, and steps over the contents of all others.
bool has_external_data(const unsigned char* data, size_t size) {
  struct Part {
    Message message;
    size_t position, end;
  };
  std::vector<Part> waiting = {{kModel, 0, size}};
  while (!waiting.empty()) {
    auto [message, position, end] = waiting.back();
    waiting.pop_back();
    while (position < end) {
      const uint64_t tag = varint(data, end, position);
      const uint64_t field = tag >> 3, wire = tag & 7;
      uint64_t length = 0;
      if (wire == 0) {
        const uint64_t value = varint(data, end, position);
        if (message == kTensor && field == kDataLocation && value != 0) return true;
      } else if (wire == 2) {
        length = varint(data, end, position);
        if (message == kTensor && field == kExternalData) return true;
      } else if (wire == 1 || wire == 5) {
        length = wire == 1 ? 8 : 4;
      } else {
        throw NotOnnx{};
      }
      if (length > end - position) throw NotOnnx{};
      const Message inner = wire == 2 ? child(message, field) : kNone;
      if (inner != kNone) waiting.push_back({inner, position, position + length});
      position += length;
    }
  }
  return false;
}

}  // namespace

void check_self_contained(const std::string& path, const unsigned char* data, size_t size) {
  if (size == 0) {
    fail(TFANET_BAD_BUNDLE, path, " is empty: it is not an ONNX file, copy the bundle again");
  }
  bool external = false;
  try {
    external = has_external_data(data, size);
  } catch (const NotOnnx&) {
    fail(TFANET_BAD_BUNDLE, path, " is not an ONNX file: copy the bundle again");
  }
  if (external) {
    fail(TFANET_BAD_BUNDLE, path,
         " keeps tensors in another file: a bundle's graphs hold all their weights, export the "
         "model again");
  }
}

}  // namespace tfanet
