// Whatever a file of a bundle holds, the readers take it or say why not: manifest.json, *.onnx and
// tokenizer.json, by the first byte.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "bundle.h"
#include "error.h"
#include "integer.h"
#include "onnx_file.h"
#include "sha256.h"
#include "tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto* text = reinterpret_cast<const char*>(data + 1);
  try {
    switch (data[0] % 4) {
      case 0: {
        const tfanet::Manifest manifest = tfanet::read_manifest(text, size - 1, "manifest.json");
        const tfanet::Preprocessing& pre = manifest.preprocessing;
        const tfanet::Interface& interface = manifest.interface;
        if (pre.height < 1 || pre.width < 1 || pre.std[0] == 0 || manifest.text.length < 1 ||
            interface.logits_height() < 1 || interface.logits_width() < 1 ||
            (interface.output(tfanet::Role::kInstances) == nullptr) !=
                (interface.output(tfanet::Role::kRelevance) == nullptr)) {
          std::abort();
        }
        break;
      }
      case 1:
        tfanet::check_self_contained("image.onnx", data + 1, size - 1);
        tfanet::needs_floats(data + 1, size - 1);
        break;
      case 2: {
        tfanet::TokenizerRules rules;
        rules.kind = data[0] < 128 ? "clip-bpe" : "bert-wordpiece";
        rules.length = 77;
        tfanet::Tokenizer("tokenizer.json", text, size - 1, rules);
        break;
      }
      default: {
        // In one piece or in two, the checksum is the same.
        tfanet::Sha256 whole, parts;
        whole.update(data, size);
        const size_t cut = size * data[0] / 256;
        parts.update(data, cut);
        parts.update(data + cut, size - cut);
        if (whole.hex() != parts.hex()) std::abort();
      }
    }
  } catch (const tfanet::Error& error) {
    if (error.what()[0] == '\0') std::abort();
  }
  return 0;
}
