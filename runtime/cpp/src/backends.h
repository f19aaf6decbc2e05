// Which backend runs a bundle's graphs: the best that can run here, or the one asked for. The rule
// and its words are those of runtime/backends/choose.py.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "cuda_driver.h"
#include "session.h"
#include "tfanet.h"

namespace tfanet {

// Both graphs on one backend.
struct Running {
  std::string backend, version;          // of the library that runs it
  std::string engine;                    // name of the bundle's engine, or empty
  std::shared_ptr<const Device> device;  // null: the CPU
  std::unique_ptr<const Session> text, image;
  Batches batches;             // of image.onnx
  const char* int8 = nullptr;  // what an INT8 bundle's graphs run in; null: they hold none
  std::string passed_over;     // better ones that cannot run here, and why: a line for each
};

// Throws INVALID_ARGUMENT for an unknown backend or GPU; MISSING_DEPENDENCY or BAD_BUNDLE where the
// one asked for cannot run here, with the next step.
Running open_backend(const Bundle& bundle, const tfanet_options& options,
                     const std::string& op_library);

}  // namespace tfanet
