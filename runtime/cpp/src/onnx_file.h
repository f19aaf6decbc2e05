// What an ONNX file refers to, read from its bytes. Tensors of an ONNX file may lie in other files,
// named by any path, which no checksum of the bundle covers.
#pragma once

#include <cstddef>
#include <string>

namespace tfanet {

// Throws BAD_BUNDLE where a tensor lies elsewhere, or the bytes are not an ONNX file.
void check_self_contained(const std::string& path, const unsigned char* data, size_t size);

}  // namespace tfanet
