// Where the libraries lie that are loaded at run time.
#pragma once

#include <initializer_list>
#include <string>

namespace tfanet {

// The first of these files that exists, by paths from the folder of this library; or nothing.
std::string find_beside(std::initializer_list<const char*> places);

// The operator library's file, or nothing. `choice` as in tfanet_options.
std::string find_op_library(const char* choice);

// The file of TensorRT's plugin library. `choice` as in tfanet_options. Throws MISSING_DEPENDENCY.
std::string find_plugin_library(const char* choice);

}  // namespace tfanet
