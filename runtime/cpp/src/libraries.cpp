#include "libraries.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cstring>
#include <string_view>

#include "error.h"

namespace tfanet {
namespace {

bool is_file(const std::string& path) {
  struct stat facts;
  return ::stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

// The path of this library, without links. It is looked up when the library is loaded: the name
// that it was loaded by may be relative, and the working directory may be another one later.
char own_path[PATH_MAX];

__attribute__((constructor)) void find_own_path() {
  Dl_info self;
  if (::dladdr(reinterpret_cast<const void*>(&tfanet_open), &self) == 0) return;
  // A name without a slash is that of a program which was found through PATH.
  if (std::strchr(self.dli_fname, '/') == nullptr) return;
  if (::realpath(self.dli_fname, own_path) == nullptr) own_path[0] = '\0';
}

// An absolute path without its last `levels` names; nothing where it has no more.
std::string above(std::string path, int levels) {
  for (; levels > 0 && !path.empty(); --levels) path.erase(path.rfind('/'));
  return path;
}

// A library of the operators, which lies beside this one where both are installed. In a checkout
// and in the Python package, each has its folder; nowhere else is one looked for there.
std::string find_plugin(const char* name) {
  if (std::string path = find_beside(name); !path.empty()) return path;
  const std::string own = own_path, root = above(own, 3);
  if (root.empty() || above(own, 1) != root + "/runtime/lib") return "";
  for (const char* part : {"/runtime/__init__.py", "/plugins/__init__.py"}) {
    if (!is_file(root + part)) return "";
  }
  const std::string path = root + "/plugins/lib/" + name;
  return is_file(path) ? path : "";
}

// A file that was named by the caller, as an absolute path: without a slash, a name would be looked
// for elsewhere when it is loaded.
std::string chosen(const char* kind, const char* path) {
  if (!is_file(path)) {
    fail(TFANET_MISSING_DEPENDENCY, "the ", kind, " library ", path,
         " does not exist: check its path");
  }
  char absolute[PATH_MAX];
  return ::realpath(path, absolute) != nullptr ? absolute : path;
}

}  // namespace

const char* setting(const char* name) {
  const char* value = ::secure_getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

std::string find_beside(const char* name) {
  const std::string folder = above(own_path, 1);
  const std::string path = folder + "/" + name;
  return !folder.empty() && is_file(path) ? path : "";
}

std::string find_op_library(const char* choice) {
  if (choice == nullptr) choice = setting("TFANET_OP_LIBRARY");
  if (choice == nullptr || *choice == '\0') return find_plugin("libtfanet_ort.so");
  return std::string_view(choice) == "none" ? "" : chosen("operator", choice);
}

std::string find_plugin_library(const char* choice) {
  if (choice != nullptr && *choice != '\0') return chosen("plugin", choice);
  const std::string path = find_plugin("libtfanet_trt.so");
  if (path.empty()) {
    fail(TFANET_MISSING_DEPENDENCY, "libtfanet_trt.so does not lie beside libtfanet_runtime.so: ",
         "build it with the headers of TensorRT (TENSORRT_ROOT=DIR make native), or name it in ",
         "options.plugin_library");
  }
  return path;
}

}  // namespace tfanet
