// Where the libraries lie that are loaded at run time.
#pragma once

#include <string>

namespace tfanet {

// An environment variable; null where it is not set or empty, and in a program that runs with more
// rights than whoever started it (set-uid), who must not choose what code it loads.
const char* setting(const char* name);

// The file of this name in the folder of this library, or nothing. The path is absolute.
std::string find_beside(const char* name);

// The operator library's file, or nothing. `choice` as in tfanet_options.
std::string find_op_library(const char* choice);

// The file of TensorRT's plugin library. `choice` as in tfanet_options. Throws MISSING_DEPENDENCY.
std::string find_plugin_library(const char* choice);

}  // namespace tfanet
