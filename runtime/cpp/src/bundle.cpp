#include "bundle.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>
#include <utility>
#include <vector>

#include "error.h"
#include "onnx_file.h"
#include "sha256.h"

namespace tfanet {
namespace {

constexpr char kManifest[] = "manifest.json";

// A path as Python's pathlib prints it: without doubled slashes, "." and a slash at the end.
std::string tidy(const std::string& path) {
  std::string out;
  for (size_t at = 0; at < path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string part = path.substr(at, end - at);
    if (!part.empty() && part != ".") {
      if (!out.empty() || path[0] == '/') out += '/';
      out += part;
    }
    at = end + 1;
  }
  if (out.empty()) return path.empty() || path[0] != '/' ? "." : "/";
  return out;
}

std::string resolved(const std::string& path) {
  char* real = ::realpath(path.c_str(), nullptr);
  if (real == nullptr) {
    fail(TFANET_BAD_BUNDLE, path, " cannot be opened (", std::strerror(errno), ")");
  }
  std::string out = real;
  ::free(real);
  return out;
}

// A file of the bundle's own, open for reading.
class OwnFile {
 public:
  OwnFile(const std::string& root, const std::string& name) : path_(root + "/" + name) {
    // Looked at before it is opened, for a device must not be opened at all; and again after,
    // for it may have been exchanged in between.
    struct stat facts;
    if (::lstat(path_.c_str(), &facts) != 0) fail_to_open();
    check(facts);
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0) fail_to_open();
    try {
      if (::fstat(descriptor_, &facts) != 0) fail_to_open();
      check(facts);
    } catch (...) {
      ::close(descriptor_);
      throw;
    }
    size_ = facts.st_size;
  }
  ~OwnFile() { ::close(descriptor_); }
  OwnFile(const OwnFile&) = delete;
  OwnFile& operator=(const OwnFile&) = delete;

  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // All bytes, and their checksum.
  FileBytes read(std::string& sha256) const {
    FileBytes bytes{path_, nullptr, static_cast<size_t>(size_)};
    bytes.data.reset(new unsigned char[bytes.size + 1]);
    Sha256 sum;
    // In parts, which are still in the cache when they are added up.
    for (size_t done = 0; done < bytes.size; done += kPart) {
      const size_t count = std::min(kPart, bytes.size - done);
      read_to(bytes.data.get() + done, count);
      sum.update(bytes.data.get() + done, count);
    }
    sha256 = sum.hex();
    return bytes;
  }

  // The checksum of a file that is not used itself, without room for all of it.
  std::string sha256() const {
    Sha256 sum;
    std::vector<unsigned char> part(kPart);
    for (int64_t left = size_; left > 0;) {
      const auto count = static_cast<size_t>(std::min<int64_t>(left, kPart));
      read_to(part.data(), count);
      sum.update(part.data(), count);
      left -= static_cast<int64_t>(count);
    }
    return sum.hex();
  }

 private:
  static constexpr size_t kPart = 1 << 17;

  void read_to(unsigned char* out, size_t size) const {
    for (size_t done = 0; done < size;) {
      const ssize_t count = ::read(descriptor_, out + done, size - done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        fail(TFANET_BAD_BUNDLE, path_, " cannot be read (",
             count < 0 ? std::strerror(errno) : "it became shorter", "): copy the bundle again");
      }
      done += static_cast<size_t>(count);
    }
  }

  [[noreturn]] void fail_to_open() const {
    if (errno == ENOENT) {
      fail(TFANET_BAD_BUNDLE, path_, " is missing: copy the bundle again, with all its files");
    }
    fail(TFANET_BAD_BUNDLE, path_, " cannot be opened (", std::strerror(errno),
         "): make it readable");
  }

  void check(const struct stat& facts) const {
    if (!S_ISREG(facts.st_mode) || facts.st_nlink != 1) {
      fail(TFANET_BAD_BUNDLE, path_,
           " is a link or no regular file: a bundle holds its own files only");
    }
  }

  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Checks a file against its size and checksum. Its bytes are returned if they are `used`.
FileBytes verified(const std::string& root, const std::string& name, const Json& facts, bool used) {
  const bool leaves = name.empty() || name == "." || name == ".." ||
                      name.find_first_of(std::string_view("/\\\0", 3)) != name.npos;
  if (leaves) {
    fail(TFANET_BAD_BUNDLE, root, ": the file name ", repr(std::string_view(name)),
         " leaves the bundle");
  }
  const OwnFile file(root, name);
  if (facts["size"] != file.size()) {
    fail(TFANET_BAD_BUNDLE, file.path(), " has ", grouped(file.size()),
         " bytes, the manifest says ", repr(facts["size"]),
         ": it is truncated or altered, copy the bundle again");
  }
  FileBytes bytes;
  std::string found;
  if (used) {
    bytes = file.read(found);
  } else {
    found = file.sha256();
  }
  if (facts["sha256"] != found) {
    fail(TFANET_BAD_BUNDLE, file.path(),
         " does not match its SHA-256 in the manifest: it was altered or damaged, copy the bundle "
         "again");
  }
  if (used && ends_with(name, ".onnx")) {
    check_self_contained(file.path(), bytes.data.get(), bytes.size);
  }
  return bytes;
}

// The 64 digits in lower case.
std::string checked_digest(const char* given) {
  std::string digest = given;
  const bool good =
      digest.size() == 64 && digest.find_first_not_of("0123456789abcdefABCDEF") == digest.npos;
  if (!good) {
    fail(TFANET_INVALID_ARGUMENT, "digest is ",
         first_characters(repr(std::string_view(digest)), 80),
         ": give the 64 hexadecimal digits that `tfanet info` prints");
  }
  for (char& c : digest) c = static_cast<char>(c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c);
  return digest;
}

FileBytes read_manifest_file(const std::string& root, std::string& sha256) {
  const std::string path = root + "/" + kManifest;
  struct stat facts;
  if (::stat(path.c_str(), &facts) != 0 || !S_ISREG(facts.st_mode)) {
    fail(TFANET_BAD_BUNDLE, root, " holds no ", kManifest, ": it is not a bundle");
  }
  const OwnFile file(root, kManifest);
  if (file.size() > kMaxManifestBytes) {
    fail(TFANET_BAD_BUNDLE, path, " has ", grouped(file.size()), " bytes, the limit is ",
         grouped(kMaxManifestBytes));
  }
  return file.read(sha256);
}

// A bundle from its manifest's bytes. `expected`: its digest, or nothing.
Bundle read_bundle(const std::string& root, const FileBytes& content, const std::string& found,
                   const std::string& expected) {
  Bundle bundle;
  bundle.path = root;
  bundle.digest = found;
  if (!expected.empty() && found != expected) {
    fail(
        TFANET_BAD_BUNDLE, content.path, " has the digest ", found, ", expected ", expected,
        ": it is another bundle, or it was altered; take the bundle from where you got the digest");
  }
  const auto* text = reinterpret_cast<const char*>(content.data.get());
  bundle.manifest = read_manifest(text, content.size, content.path);
  // The files are read side by side, where there are cores for it; what is wrong with the first one
  // is reported, as in Python.
  std::vector<std::pair<FileBytes*, std::future<FileBytes>>> waiting;
  for (const auto& item : bundle.manifest.files.items()) {
    const std::string& name = item.key();
    FileBytes* place = name == kImage       ? &bundle.image
                       : name == kText      ? &bundle.text
                       : name == kTokenizer ? &bundle.tokenizer
                                            : nullptr;
    waiting.emplace_back(place,
                         std::async(verified, bundle.path, name, item.value(), place != nullptr));
  }
  for (auto& [place, file] : waiting) {
    FileBytes bytes = file.get();
    if (place != nullptr) *place = std::move(bytes);
  }
  return bundle;
}

}  // namespace

Bundle open_bundle(const char* given, const char* digest) {
  const std::string expected = digest != nullptr ? checked_digest(digest) : "";
  const std::string path = tidy(given);
  struct stat facts;
  if (::stat(path.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode)) {
    fail(TFANET_BAD_BUNDLE, path, " is not a bundle directory: make one with `tfanet export`");
  }
  const std::string root = resolved(path);
  for (int more = 2;; --more) {
    std::string found, now;
    const FileBytes content = read_manifest_file(root, found);
    try {
      return read_bundle(root, content, found, expected);
    } catch (const Error& error) {
      // Where an engine is added in this moment, its new manifest is read.
      if (more == 0 || error.status != TFANET_BAD_BUNDLE) throw;
      read_manifest_file(root, now);
      if (now == found) throw;
    }
  }
}

FileBytes read_engine(const Bundle& bundle, const std::string& name) {
  return verified(bundle.path, name, bundle.manifest.files[name], true);
}

}  // namespace tfanet
