// What the processor's integer instructions make of INT8 graphs, and which graphs they run right.
// The rule, its words and its numbers are those of runtime/backends/integer.py.
#pragma once

#include <cstddef>

namespace tfanet {

// Whether an ONNX file's integer layers would come out wrong on this processor: run it without
// them. Throws INVALID_ARGUMENT where the environment variable TFANET_INTEGER names no
// instructions.
bool needs_floats(const unsigned char* data, size_t size);

}  // namespace tfanet
