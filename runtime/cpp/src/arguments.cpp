#include "arguments.h"

namespace tfanet {

void require(const void* pointer, const char* name) {
  if (pointer == nullptr) {
    fail(TFANET_INVALID_ARGUMENT, name, " is a null pointer: give an address");
  }
}

void require_length(size_t given, size_t expected, const char* name) {
  if (given != expected) {
    fail(TFANET_INVALID_ARGUMENT, name, " is ", given, ", expected ", expected,
         ": see tfanet_get_info");
  }
}

tfanet_image taken_image(const tfanet_image* image) {
  return taken(image, sizeof(tfanet_image), "image");
}

std::string_view text_of(const char* text, size_t bytes) {
  require(text, "text");
  return bytes == TFANET_STRLEN ? std::string_view(text) : std::string_view(text, bytes);
}

std::vector<SharedSentence> sentences_of(const tfanet_sentence* const* sentences, size_t count) {
  if (count == 0) {
    fail(TFANET_INVALID_ARGUMENT, "the list of sentences is empty: pass one or more");
  }
  require(sentences, "sentences");
  std::vector<SharedSentence> out;
  for (size_t i = 0; i < count; ++i) {
    require(sentences[i], "a sentence");
    out.push_back(sentences[i]->sentence);
  }
  return out;
}

Array taken_array(const Predictor& predictor, const tfanet_array* given, const char* name) {
  require(given, name);
  const tfanet_array array = taken(given, sizeof(tfanet_array), "array");
  const std::string prefix = name;
  require(array.data, (prefix + ".data").c_str());
  if (array.memory != TFANET_HOST && array.memory != TFANET_DEVICE) {
    fail(TFANET_INVALID_ARGUMENT, prefix, ".memory is ", array.memory,
         ": give TFANET_HOST or TFANET_DEVICE");
  }
  const Running& running = predictor.running();
  const bool on_device = array.memory == TFANET_DEVICE;
  if (on_device && running.device == nullptr) {
    fail(TFANET_INVALID_ARGUMENT, prefix, ".memory is TFANET_DEVICE, and ", running.backend,
         " runs on the CPU: give TFANET_HOST, or open the bundle with a backend on a GPU");
  }
  if (on_device) running.device->require_memory(array.data, (prefix + ".data").c_str());
  return {array.data, array.count, on_device};
}

}  // namespace tfanet
