#include "contract.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>
#include <string_view>

#include "error.h"

namespace tfanet {
namespace {

constexpr char kStretch[] = "pillow-bilinear", kLetterbox[] = "letterbox-area";
constexpr int64_t kMaxSide = 16384, kMaxAxis = std::numeric_limits<int32_t>::max(),
                  kMaxInstances = 1024;

struct RoleFacts {
  const char* name;
  size_t rank;  // behind the batch
};
constexpr RoleFacts kRoleFacts[kRoles] = {
    {"mask", 3}, {"no_target", 1}, {"relevance", 1}, {"instances", 3}, {"alignment", 2}};

// What a manifest quotes, cut to this many characters.
std::string quoted(const Json& value, size_t characters) {
  return first_characters(repr(value), characters);
}

bool is_text(const Json& value, std::string_view text) {
  return value.is_string() && value.get_ref<const std::string&>() == text;
}

// A list of that many finite numbers.
bool are_numbers(const Json& values, size_t count) {
  return values.is_array() && values.size() == count &&
         std::all_of(values.begin(), values.end(), [](const Json& value) {
           return value.is_number() && std::isfinite(value.get<double>());
         });
}

bool are_integers(const Json& values, size_t count) {
  return are_numbers(values, count) &&
         std::all_of(values.begin(), values.end(),
                     [](const Json& value) { return value.is_number_integer(); });
}

// What is too large for 64 bits with a sign is below all that are asked for.
bool within(const Json& integer, int64_t lowest, int64_t highest) {
  const auto value = integer.get<int64_t>();
  return value >= lowest && value <= highest;
}

int64_t clamped(const Json& integer) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  const bool above = integer.is_number_unsigned() && integer.get<uint64_t>() > kMax;
  return above ? static_cast<int64_t>(kMax) : integer.get<int64_t>();
}

// What does not fit together.
struct Unfit {};

void must(bool condition) {
  if (!condition) throw Unfit();
}

// Names and shapes of a graph's inputs or outputs.
std::vector<NamedShape> named_shapes(const Json& values) {
  must(values.is_array());
  std::vector<NamedShape> found;
  std::set<std::string> names;
  for (const Json& value : values) {
    must(value.is_object());
    const Json &name = member(value, "name"), &shape = member(value, "shape");
    must(name.is_string() && !name.get_ref<const std::string&>().empty());
    must(shape.is_array() && shape.size() > 1);
    NamedShape one{name.get<std::string>(), {}};
    for (size_t axis = 1; axis < shape.size(); ++axis) {  // the batch may be a name
      must(shape[axis].is_number_integer() && within(shape[axis], 1, kMaxAxis));
      one.shape.push_back(shape[axis].get<int64_t>());
    }
    must(names.insert(one.name).second);
    found.push_back(std::move(one));
  }
  return found;
}

const Shape* shape_of(const std::vector<NamedShape>& values, const std::string& name) {
  for (const NamedShape& value : values) {
    if (value.name == name) return &value.shape;
  }
  return nullptr;
}

bool names_both_graphs(const Json& values) {
  return values.size() == 2 && values.contains(kText) && values.contains(kImage);
}

Role role_of(const Json& output) {
  const Json& name = member(output, "role");
  const auto* found =
      std::find_if(std::begin(kRoleFacts), std::end(kRoleFacts),
                   [&](const RoleFacts& facts) { return is_text(name, facts.name); });
  must(found != std::end(kRoleFacts));
  return static_cast<Role>(found - std::begin(kRoleFacts));
}

void check_instances(const Interface& found, int64_t length) {
  const ImageOutput *relevance = found.output(Role::kRelevance),
                    *instances = found.output(Role::kInstances),
                    *alignment = found.output(Role::kAlignment);
  must((relevance == nullptr) == (instances == nullptr));
  must(alignment == nullptr || instances != nullptr);
  if (instances == nullptr) return;
  const int64_t count = relevance->shape[0];
  must(instances->shape[0] == count && count <= kMaxInstances);
  must(alignment == nullptr || alignment->shape == Shape{count, length});
}

Interface fitted_interface(const Json& inputs, const Json& outputs, const Tokenization& text,
                           const Preprocessing& picture) {
  must(names_both_graphs(inputs) && names_both_graphs(outputs));
  Interface found;
  found.text_outputs = named_shapes(outputs[kText]);
  must(!found.text_outputs.empty());
  std::vector<NamedShape> known = {{kPicture, {3, picture.height, picture.width}},
                                   {kWordMask, {text.length}}};
  for (const NamedShape& feature : found.text_outputs) {
    must(shape_of(known, feature.name) == nullptr && feature.shape.size() <= 2);
    known.push_back(feature);
  }
  const std::vector<NamedShape> tokens = named_shapes(inputs[kText]);
  must(tokens.size() == 1 && tokens[0].name == kTokenIds && tokens[0].shape == Shape{text.length});
  found.image_inputs = named_shapes(inputs[kImage]);
  must(shape_of(found.image_inputs, kPicture) != nullptr);
  for (const NamedShape& input : found.image_inputs) {
    const Shape* shape = shape_of(known, input.name);
    must(shape != nullptr && *shape == input.shape);
  }
  const std::vector<NamedShape> given = named_shapes(outputs[kImage]);
  for (size_t i = 0; i < given.size(); ++i) {
    const Role role = role_of(outputs[kImage][i]);
    must(found.output(role) == nullptr);
    const Shape& shape = given[i].shape;
    must(shape.size() == kRoleFacts[static_cast<size_t>(role)].rank);
    if (role == Role::kMask || role == Role::kInstances) {
      must(shape[1] <= picture.height && shape[2] <= picture.width);
    }
    found.image_outputs.push_back({given[i], role});
  }
  must(!found.image_outputs.empty() && found.image_outputs[0].role == Role::kMask);
  must(found.image_outputs[0].shape[0] == 1);
  const ImageOutput* no_target = found.output(Role::kNoTarget);
  must(no_target == nullptr || no_target->shape == Shape{1});
  check_instances(found, text.length);
  return found;
}

}  // namespace

const Json& member(const Json& object, const char* name) {
  static const Json null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

size_t numbers_in(const Shape& shape) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

double Postprocessing::logit_threshold() const {
  return probability ? std::log(threshold / (1 - threshold)) : threshold;
}

const ImageOutput* Interface::output(Role role) const {
  for (const ImageOutput& one : image_outputs) {
    if (one.role == role) return &one;
  }
  return nullptr;
}

Preprocessing read_preprocessing(const Json& data, const std::string& path) {
  Preprocessing pre;
  const Json &size = member(data, "size"), &mean = member(data, "mean"), &std = member(data, "std");
  if (!are_integers(size, 2) || !within(size[0], 1, kMaxSide) || !within(size[1], 1, kMaxSide)) {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing.size is ", quoted(size, 60),
         ", expected [H, W]");
  }
  pre.height = size[0].get<int32_t>();
  pre.width = size[1].get<int32_t>();
  if (!are_numbers(mean, 3) || !are_numbers(std, 3) ||
      std::any_of(std.begin(), std.end(),
                  [](const Json& value) { return value.get<double>() == 0; })) {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing.mean and std must be three numbers each");
  }
  for (size_t c = 0; c < 3; ++c) {
    pre.mean[c] = mean[c].get<double>();
    pre.std[c] = std[c].get<double>();
  }
  const Json& resize = member(data, "resize");
  if (!(is_text(resize, kStretch) || is_text(resize, kLetterbox)) ||
      !is_text(member(data, "color"), "RGB")) {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing is not RGB with the resize ", kStretch, " or ",
         kLetterbox);
  }
  pre.letterbox = is_text(resize, kLetterbox);
  const Json& padding = member(data, "padding");
  const bool colour = are_integers(padding, 3) &&
                      std::all_of(padding.begin(), padding.end(),
                                  [](const Json& value) { return within(value, 0, 255); });
  if (!(pre.letterbox ? colour : padding.is_null()) || data.size() != 6) {
    fail(TFANET_BAD_BUNDLE, path, ": preprocessing.padding is ", quoted(padding, 60),
         ", expected three numbers from 0 to 255 for a letterbox, and nothing else");
  }
  for (size_t c = 0; c < 3 && pre.letterbox; ++c) pre.padding[c] = padding[c].get<uint8_t>();
  return pre;
}

Tokenization read_tokenization(const Json& data, const std::string& path) {
  constexpr const char* kNames[] = {"length", "pad_id", "sos_id", "eos_id"};
  Json numbers = Json::array();
  for (const char* name : kNames) numbers.push_back(member(data, name));
  if (!are_integers(numbers, std::size(kNames))) {
    fail(TFANET_BAD_BUNDLE, path, ": text lacks length, pad_id, sos_id or eos_id");
  }
  const Json &tokenizer = member(data, "tokenizer"), &truncation = member(data, "truncation");
  if (!(is_text(tokenizer, "clip-bpe") || is_text(tokenizer, "bert-wordpiece")) ||
      !(is_text(truncation, "keep-end") || is_text(truncation, "cut")) || data.size() != 6) {
    fail(TFANET_BAD_BUNDLE, path, ": text.tokenizer is ", quoted(tokenizer, 40),
         " with the truncation ", quoted(truncation, 40),
         ", expected clip-bpe or bert-wordpiece with keep-end or cut, and nothing else");
  }
  return {clamped(numbers[0]), clamped(numbers[1]),          clamped(numbers[2]),
          clamped(numbers[3]), tokenizer.get<std::string>(), truncation.get<std::string>()};
}

Postprocessing read_postprocessing(const Json& data, const std::string& path) {
  const Json &value = member(data, "value"), &threshold = member(data, "threshold");
  Postprocessing post;
  post.probability = is_text(value, "probability");
  if (!(post.probability || is_text(value, "logit")) || !are_numbers(Json::array({threshold}), 1) ||
      data.size() != 2) {
    fail(TFANET_BAD_BUNDLE, path, ": postprocessing is ", quoted(value, 40), " above ",
         quoted(threshold, 40), ", expected logit or probability above a finite number");
  }
  post.threshold = threshold.get<double>();
  if (post.probability && !(post.threshold > 0 && post.threshold < 1)) {
    fail(TFANET_BAD_BUNDLE, path, ": postprocessing.threshold is ", quoted(threshold, 40),
         ", expected a probability between 0 and 1");
  }
  return post;
}

Interface read_interface(const Json& inputs, const Json& outputs, const Tokenization& text,
                         const Preprocessing& picture, const std::string& path) {
  try {
    return fitted_interface(inputs, outputs, text, picture);
  } catch (const Unfit&) {
    fail(TFANET_BAD_BUNDLE, path,
         ": inputs and outputs of the graphs do not fit together: ", "export the model again");
  }
}

}  // namespace tfanet
