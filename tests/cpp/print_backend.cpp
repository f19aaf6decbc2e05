// Opens bundles, and prints what comes of it:
//
//   print_backend BUNDLE BACKEND [DEVICE [HOST_CODE [PLUGIN_LIBRARY [TENSORRT]]]]
//
// A line with the status; then the error, or the backend, its engine and GPU, the batches, and on
// the lines that follow the better backends that were passed over. "-" stands for nothing. Where it
// opens, a prediction is made too.

#include <cstdlib>
#include <iostream>
#include <string>

#include "tfanet.hpp"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const auto argument = [&](int at) {
    return at < argc && std::string(argv[at]) != "-" ? std::string(argv[at]) : std::string();
  };
  const auto text = [](const char* value) { return value != nullptr ? value : "-"; };
  tfanet::Options options;
  options.backend = argv[2];
  options.threads = 1;
  options.device = std::atoi(argument(3).c_str());
  options.host_code = argument(4);
  options.plugin_library = argument(5);
  options.tensorrt = argument(6);
  try {
    const tfanet::Runtime runtime(argv[1], options);
    const tfanet_info info = runtime.info();
    const unsigned char pixels[2 * 2 * 3] = {};
    runtime.predict(tfanet::Image(pixels, 2, 2), "red");
    std::cout << "OK\n"
              << info.backend << " " << text(info.engine) << " " << info.min_batch << " "
              << info.max_batch << " " << text(info.device) << "\n"
              << info.passed_over;
  } catch (const tfanet::Exception& error) {
    std::cout << tfanet_status_name(error.status()) << "\n" << error.what() << "\n";
  }
}
