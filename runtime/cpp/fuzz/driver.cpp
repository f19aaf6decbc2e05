// Runs a fuzz target where the compiler has no libFuzzer: TARGET [-max_total_time=N] [-seed=N]
// FILE_OR_FOLDER...
//
// Without a time, it runs the files as they are, to reproduce a crash. With one, it changes them at
// random; it is blind to coverage, so it stands in for libFuzzer in smoke tests only.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937_64;

size_t below(Random& random, size_t limit) { return limit == 0 ? 0 : random() % limit; }

void change(Bytes& bytes, const std::vector<Bytes>& corpus, Random& random) {
  const size_t at = below(random, bytes.size() + 1);
  const auto place = bytes.begin() + static_cast<ptrdiff_t>(at);
  const size_t rest = bytes.size() - at;
  switch (random() % 7) {
    case 0:
      if (rest > 0) *place ^= static_cast<uint8_t>(1u << random() % 8);
      break;
    case 1:
      if (rest > 0) *place = static_cast<uint8_t>(random());
      break;
    case 2:
      bytes.insert(place, 1 + below(random, 8), static_cast<uint8_t>(random()));
      break;
    case 3:
      bytes.erase(place, place + static_cast<ptrdiff_t>(std::min(rest, below(random, 40))));
      break;
    case 4: {  // numbers at the ends of their range
      constexpr int64_t kEnds[] = {0, -1, 1, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 0xFFFF};
      const int64_t value = kEnds[random() % std::size(kEnds)];
      const auto* from = reinterpret_cast<const uint8_t*>(&value);
      std::copy_n(from, std::min(rest, sizeof value), place);
      break;
    }
    case 5:
      bytes.resize(at);
      break;
    default: {  // a piece of another file
      const Bytes& other = corpus[below(random, corpus.size())];
      const size_t from = below(random, other.size());
      const size_t count = std::min(other.size() - from, below(random, 200));
      const auto begin = other.begin() + static_cast<ptrdiff_t>(from);
      bytes.insert(place, begin, begin + static_cast<ptrdiff_t>(count));
    }
  }
}

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes{std::istreambuf_iterator<char>(file), {}};
}

// What is about to run, for a crash to be reproduced.
void keep(const Bytes& bytes, const char* path) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 0;
  uint64_t seed = 1;
  std::vector<Bytes> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::string value = argument.substr(argument.find('=') + 1);
    if (argument.rfind("-max_total_time=", 0) == 0) {
      seconds = std::stod(value);
    } else if (argument.rfind("-seed=", 0) == 0) {
      seed = std::stoull(value);
    } else if (std::filesystem::is_directory(argument)) {
      for (const auto& entry : std::filesystem::directory_iterator(argument)) {
        corpus.push_back(read(entry.path()));
      }
    } else {
      corpus.push_back(read(argument));
    }
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "no input was named: give files or folders\n");
    return 2;
  }
  std::sort(corpus.begin(), corpus.end());
  for (const Bytes& bytes : corpus) LLVMFuzzerTestOneInput(bytes.data(), bytes.size());

  const char* last = std::getenv("FUZZ_LAST_INPUT");
  Random random(seed);
  size_t runs = corpus.size();
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    Bytes bytes = corpus[below(random, corpus.size())];
    for (size_t changes = 1 + below(random, 6); changes > 0; --changes) {
      change(bytes, corpus, random);
    }
    bytes.resize(std::min<size_t>(bytes.size(), 1 << 16));
    if (last != nullptr) keep(bytes, last);
    const Bytes exact(bytes);  // without spare room behind it, for a read beyond to be noticed
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
    ++runs;
  }
  std::printf("%zu runs without a crash\n", runs);
}
