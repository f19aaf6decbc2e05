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

// Walks the messages that can hold tensors, and steps over the contents of all others.
bool has_external_data(const unsigned char* data, size_t size) {
  struct Part {
    Message message;
    Fields fields;
  };
  std::vector<Part> waiting = {{kModel, {data, 0, size}}};
  while (!waiting.empty()) {
    auto [message, fields] = waiting.back();
    waiting.pop_back();
    while (fields.next()) {
      const bool is_tensor = message == kTensor;
      if (fields.is_number()) {
        if (is_tensor && fields.number == kDataLocation && fields.value != 0) return true;
      } else if (fields.is_bytes()) {
        if (is_tensor && fields.number == kExternalData) return true;
        const Message inner = child(message, fields.number);
        if (inner != kNone) waiting.push_back({inner, fields.inside()});
      }
    }
  }
  return false;
}

}  // namespace

uint64_t Fields::varint() {
  uint64_t value = 0;
  for (int shift = 0; shift <= 63; shift += 7) {
    if (position_ >= end_) throw NotOnnx{};
    const uint64_t byte = data_[position_++];
    value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw NotOnnx{};
}

bool Fields::next() {
  if (position_ >= end_) return false;
  const uint64_t tag = varint();
  number = tag >> 3;
  wire_ = tag & 7;
  value = 0;
  if (wire_ == 0) {
    value = varint();
    return true;
  }
  if (wire_ != 1 && wire_ != 2 && wire_ != 5) throw NotOnnx{};
  const uint64_t length = wire_ == 2 ? varint() : wire_ == 1 ? 8 : 4;
  if (length > end_ - position_) throw NotOnnx{};
  begin_ = position_;
  position_ += length;
  return true;
}

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
