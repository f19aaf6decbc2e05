#include "libraries.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <string_view>

#include "error.h"

namespace tfanet {
namespace {

bool is_file(const std::string& path) {
  struct stat facts;
  return ::stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

}  // namespace

std::string find_beside(std::initializer_list<const char*> places) {
  Dl_info self;
  if (::dladdr(reinterpret_cast<const void*>(&tfanet_open), &self) == 0) return "";
  const std::string library = self.dli_fname;
  const size_t slash = library.rfind('/');
  const std::string folder = slash == library.npos ? "." : library.substr(0, slash);
  for (const char* place : places) {
    if (const std::string path = folder + "/" + place; is_file(path)) return path;
  }
  return "";
}

std::string find_op_library(const char* choice) {
  if (choice == nullptr) choice = std::getenv("TFANET_OP_LIBRARY");
  if (choice != nullptr && *choice != '\0') {
    if (std::string_view(choice) == "none") return "";
    if (!is_file(choice)) {
      fail(TFANET_MISSING_DEPENDENCY, "the operator library ", choice,
           " does not exist: check its path");
    }
    return choice;
  }
  // An installed library lies beside it; in a checkout and the Python package each has its folder.
  return find_beside({"libtfanet_ort.so", "../../plugins/lib/libtfanet_ort.so"});
}

std::string find_plugin_library(const char* choice) {
  if (choice != nullptr && *choice != '\0') {
    if (is_file(choice)) return choice;
    fail(TFANET_MISSING_DEPENDENCY, "the plugin library ", choice,
         " does not exist: check its path");
  }
  const std::string path = find_beside({"libtfanet_trt.so", "../../plugins/lib/libtfanet_trt.so"});
  if (path.empty()) {
    fail(TFANET_MISSING_DEPENDENCY, "libtfanet_trt.so does not lie beside libtfanet_runtime.so: ",
         "build it with the headers of TensorRT (TENSORRT_ROOT=DIR make native), or name it in ",
         "options.plugin_library");
  }
  return path;
}

}  // namespace tfanet
