// A picture and a sentence in, a mask out:
//
//   segment BUNDLE picture.jpg "the red circle" mask.png [BACKEND [DIGEST]]
//
// DIGEST is that of the bundle which is meant: another one is refused. It is printed in any case.

#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>

#include "picture.h"
#include "tfanet.hpp"

namespace {

void check(const char* problem) {
  if (problem != nullptr) throw std::runtime_error(problem);
}

tfanet_format format_of(const picture& file) {
  return file.channels == 1 ? TFANET_GREY : file.channels == 3 ? TFANET_RGB : TFANET_RGBA;
}

void segment(const char* bundle, const char* from, const char* text, const char* to,
             const char* backend, const char* digest) {
  picture file;
  check(picture_read(from, &file));
  const std::unique_ptr<uint8_t, decltype(&std::free)> owner(file.pixels, &std::free);

  tfanet::Options options;
  options.backend = backend;
  if (digest != nullptr) options.digest = digest;
  const tfanet::Runtime runtime(bundle, options);
  const tfanet::Image image(file.pixels, file.width, file.height, format_of(file));
  const tfanet::Prediction prediction = runtime.predict(image, text);

  check(picture_write_grey(to, prediction.mask().data(), prediction.width(), prediction.height()));
  std::cout << to << ": score " << prediction.score() << ", " << prediction.result().total_ms
            << " ms, bundle " << runtime.info().digest << "\n";
  const auto instances = prediction.instances();  // none, where the model does not tell them apart
  if (!instances) return;
  for (const tfanet::Instance& one : *instances) {
    std::cout << "object, relevance " << one.relevance;
    for (const tfanet::Word& word : one.words) std::cout << ", " << word.text << ' ' << word.share;
    std::cout << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5 || argc > 7) {
    std::cerr << "usage: " << argv[0] << " BUNDLE PICTURE TEXT MASK.png [BACKEND [DIGEST]]\n";
    return 1;
  }
  try {
    segment(argv[1], argv[2], argv[3], argv[4], argc > 5 ? argv[5] : "auto",
            argc > 6 ? argv[6] : nullptr);
  } catch (const tfanet::Exception& error) {
    std::cerr << error.what() << "\n";
    return error.status() == TFANET_MISSING_DEPENDENCY ? 3 : 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
