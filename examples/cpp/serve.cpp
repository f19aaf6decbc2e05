// A server loop: one runtime, many workers. Requests come as lines on the standard input,
//
//   PICTURE <tab> TEXT <tab> MASK.png
//
// and each gets a line on the standard output, in the order in which they are done.
//
//   serve BUNDLE [WORKERS]

#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <mutex>
#include <queue>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "picture.h"
#include "tfanet.hpp"

namespace {

// Lines that wait for a worker.
class Requests {
 public:
  void add(std::string line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.push(std::move(line));
    changed_.notify_one();
  }

  void end() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  // Waits for a line; false when there will be no more.
  bool take(std::string& line) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return ended_ || !lines_.empty(); });
    if (lines_.empty()) return false;
    line = std::move(lines_.front());
    lines_.pop();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<std::string> lines_;
  bool ended_ = false;
};

// The answer to a request; what is wrong with one does not touch the others.
std::string answer(const tfanet::Runtime& runtime, const std::string& line) try {
  std::istringstream fields(line);
  std::string from, text, to;
  if (!std::getline(fields, from, '\t') || !std::getline(fields, text, '\t') ||
      !std::getline(fields, to)) {
    return "error: a request is PICTURE, TEXT and MASK.png with tabs in between";
  }
  picture file;
  if (const char* problem = picture_read(from.c_str(), &file)) {
    return std::string("error: ") + problem;
  }
  const std::unique_ptr<uint8_t, decltype(&std::free)> owner(file.pixels, &std::free);
  const tfanet_format format = file.channels == 1   ? TFANET_GREY
                               : file.channels == 3 ? TFANET_RGB
                                                    : TFANET_RGBA;
  const tfanet::Prediction prediction =
      runtime.predict(tfanet::Image(file.pixels, file.width, file.height, format), text);
  const char* problem = picture_write_grey(to.c_str(), prediction.mask().data(), prediction.width(),
                                           prediction.height());
  if (problem != nullptr) return std::string("error: ") + problem;
  return to + "\t" + std::to_string(prediction.score());
} catch (const std::exception& error) {
  return std::string("error: ") + error.what();
}

}  // namespace

int main(int argc, char** argv) try {
  const int workers = argc == 3 ? std::atoi(argv[2]) : 2;
  if (argc < 2 || argc > 3 || workers < 1) {
    std::cerr << "usage: " << argv[0] << " BUNDLE [WORKERS]\n";
    return 1;
  }
  tfanet::Options options;
  options.threads = 1;  // of each worker
  const tfanet::Runtime runtime(argv[1], options);

  Requests requests;
  std::mutex output;
  std::vector<std::thread> threads;
  for (int i = 0; i < workers; ++i) {
    threads.emplace_back([&] {
      for (std::string line; requests.take(line);) {
        const std::string result = answer(runtime, line);
        const std::lock_guard<std::mutex> lock(output);
        std::cout << result << std::endl;
      }
    });
  }
  for (std::string line; std::getline(std::cin, line);) requests.add(line);
  requests.end();
  for (std::thread& thread : threads) thread.join();
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
