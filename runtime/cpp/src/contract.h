// What a bundle says about its graphs: how pictures and sentences go in, and how masks come out.
// The checks, their order and their words are those of runtime/bundle/contract.py, which also says
// what each field means; no model is known by name.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "python_text.h"

namespace tfanet {

inline constexpr char kText[] = "text.onnx", kImage[] = "image.onnx";  // files of the two graphs
// Inputs of the image graph beside the text graph's outputs, and the text graph's own.
inline constexpr char kPicture[] = "image", kWordMask[] = "word_mask", kTokenIds[] = "token_ids";

struct Preprocessing {
  int32_t height = 0, width = 0;  // of the model's input
  std::array<double, 3> mean{}, std{};
  bool letterbox = false;
  std::array<uint8_t, 3> padding{};  // RGB; of a letterbox
};

struct Tokenization {
  int64_t length = 0, pad_id = 0, sos_id = 0, eos_id = 0;
  std::string kind, truncation;  // see TokenizerRules
};

// From values that are resized to the picture, logits or probabilities, to a mask.
struct Postprocessing {
  bool probability = false;
  double threshold = 0;

  double logit_threshold() const;
};

using Shape = std::vector<int64_t>;  // behind the batch
size_t numbers_in(const Shape& shape);

struct NamedShape {
  std::string name;
  Shape shape;
};

// Of an output of the image graph.
enum class Role { kMask, kNoTarget, kRelevance, kInstances, kAlignment };
inline constexpr size_t kRoles = 5;

struct ImageOutput : NamedShape {
  Role role = Role::kMask;
};

struct Interface {
  std::vector<NamedShape> text_outputs, image_inputs;
  std::vector<ImageOutput> image_outputs;  // the mask comes first

  const ImageOutput* output(Role role) const;  // null: the graph does not give it
  int32_t logits_height() const { return static_cast<int32_t>(image_outputs[0].shape[1]); }
  int32_t logits_width() const { return static_cast<int32_t>(image_outputs[0].shape[2]); }
};

// These throw BAD_BUNDLE for what no runtime can do. `path`: of the manifest, for the message.
Preprocessing read_preprocessing(const Json& data, const std::string& path);
Tokenization read_tokenization(const Json& data, const std::string& path);
Postprocessing read_postprocessing(const Json& data, const std::string& path);
// `inputs` and `outputs`: objects with the values of each graph.
Interface read_interface(const Json& inputs, const Json& outputs, const Tokenization& text,
                         const Preprocessing& picture, const std::string& path);

// A member of a JSON object, or null.
const Json& member(const Json& object, const char* name);

}  // namespace tfanet
