// A bundle: a directory with a manifest, two ONNX graphs and a tokenizer, and every check on it.
// The checks, their order and their words are those of runtime/bundle/read.py, manifest.py and
// contract.py.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "contract.h"
#include "python_text.h"

namespace tfanet {

inline constexpr int kSchemaVersion = 2;  // the newest that is read
inline constexpr char kTokenizer[] = "tokenizer.json";
inline constexpr int64_t kMaxManifestBytes = 1 << 20;
// Of engines, the fastest first.
inline constexpr std::array<std::string_view, 5> kPrecisions = {"int8", "fp8", "fp16", "bf16",
                                                                "fp32"};

// What the runtime computes with.
struct Manifest {
  std::string family, preset, precision;
  Preprocessing preprocessing;
  Tokenization text;
  Postprocessing postprocessing;
  Interface interface;
  bool dynamic_batch = false;
  Json files;    // size and sha256 by name, unchecked
  Json engines;  // their records; name, target, precision, library, version and files are checked
};

// Throws BAD_BUNDLE, naming the field. `path` is for the message only.
Manifest read_manifest(const char* data, size_t size, const std::string& path);

// The contents of a file, read once, so that what was checked is what is used.
struct FileBytes {
  std::string path;
  std::unique_ptr<unsigned char[]> data;
  size_t size = 0;
};

struct Bundle {
  std::string path;    // absolute, without links
  std::string digest;  // of the manifest: its SHA-256
  Manifest manifest;
  FileBytes image, text, tokenizer;
};

// Throws BAD_BUNDLE, naming the file or field and what to do. `digest`: of the bundle that is
// meant, or null; throws INVALID_ARGUMENT where it is none.
Bundle open_bundle(const char* path, const char* digest);

// An engine file of an open bundle. Throws BAD_BUNDLE where it was altered since.
FileBytes read_engine(const Bundle& bundle, const std::string& name);

}  // namespace tfanet
