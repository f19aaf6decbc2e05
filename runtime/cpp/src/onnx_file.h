// What an ONNX file refers to, read from its bytes. Tensors of an ONNX file may lie in other files,
// named by any path, which no checksum of the bundle covers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tfanet {

struct NotOnnx {};

// The fields of a protobuf message, one after the other. Throws NotOnnx where the bytes are none.
class Fields {
 public:
  Fields(const unsigned char* data, size_t begin, size_t end)
      : data_(data), position_(begin), end_(end) {}

  bool next();        // steps to the next field; false behind the last
  uint64_t varint();  // the next number of a packed list, while not `done`
  bool done() const { return position_ >= end_; }

  uint64_t number = 0, value = 0;  // value: of a number
  bool is_number() const { return wire_ == 0; }
  bool is_bytes() const { return wire_ == 2; }
  Fields inside() const { return {data_, begin_, position_}; }  // of bytes: a message
  std::string_view bytes() const {
    return {reinterpret_cast<const char*>(data_) + begin_, position_ - begin_};
  }

 private:
  const unsigned char* data_;
  size_t position_, end_, begin_ = 0;
  uint64_t wire_ = 0;
};

// Throws BAD_BUNDLE where a tensor lies elsewhere, or the bytes are not an ONNX file.
void check_self_contained(const std::string& path, const unsigned char* data, size_t size);

}  // namespace tfanet
