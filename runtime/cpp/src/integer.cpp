#include "integer.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "error.h"
#include "onnx_file.h"

namespace tfanet {
namespace {

constexpr int kPair = 128;  // 255 * 128 is the largest multiple of 255 within 16 bits
constexpr uint64_t kInt8 = 3;

constexpr std::array<std::pair<std::string_view, bool>, 9> kInstructions = {{{"avx512-vnni", true},
                                                                             {"avx-vnni", true},
                                                                             {"avx512", false},
                                                                             {"avx2", false},
                                                                             {"sse", false},
                                                                             {"i8mm", true},
                                                                             {"dotprod", true},
                                                                             {"neon", true},
                                                                             {"unknown", false}}};

bool processor_is_exact() {
#ifdef __aarch64__
  return true;
#else
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; flags.empty() && std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) flags.insert(word);
  }
  const auto has = [&](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(), [&](auto name) { return flags.count(name); });
  };
  return has({"avx512_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"}) ||
         has({"avx_vnni", "avx2"});
#endif
}

// An initializer as far as it matters: int8 weights in raw bytes.
struct Tensor {
  std::vector<uint64_t> dims;
  uint64_t type = 0;
  std::string_view raw;
};

Tensor read_tensor(Fields fields, std::string_view& name) {
  Tensor tensor;
  while (fields.next()) {
    if (fields.number == 1 && fields.is_number()) tensor.dims.push_back(fields.value);
    if (fields.number == 1 && fields.is_bytes()) {
      for (Fields packed = fields.inside(); !packed.done();) {
        tensor.dims.push_back(packed.varint());
      }
    }
    if (fields.number == 2 && fields.is_number()) tensor.type = fields.value;
    if (fields.number == 8 && fields.is_bytes()) name = fields.bytes();
    if (fields.number == 9 && fields.is_bytes()) tensor.raw = fields.bytes();
  }
  return tensor;
}

struct Node {
  std::string_view op, output;
  std::vector<std::string_view> inputs;
  std::vector<Fields> attributes;

  int64_t axis() const {
    int64_t axis = 1;
    for (Fields attribute : attributes) {
      std::string_view name;
      uint64_t value = 0;
      while (attribute.next()) {
        if (attribute.number == 1 && attribute.is_bytes()) name = attribute.bytes();
        if (attribute.number == 3 && attribute.is_number()) value = attribute.value;
      }
      if (name == "axis") axis = static_cast<int64_t>(value);
    }
    return axis;
  }
};

Node read_node(Fields fields) {
  Node node;
  while (fields.next()) {
    if (!fields.is_bytes()) continue;
    if (fields.number == 1) node.inputs.push_back(fields.bytes());
    if (fields.number == 2) node.output = fields.bytes();
    if (fields.number == 4) node.op = fields.bytes();
    if (fields.number == 5) node.attributes.push_back(fields.inside());
  }
  return node;
}

// Whether of each channel the two largest elements of either sign sum to kPair at most.
bool pairs_fit(const Tensor& tensor, int64_t axis) {
  const auto* values = reinterpret_cast<const signed char*>(tensor.raw.data());
  const size_t size = tensor.raw.size();
  const auto rank = static_cast<int64_t>(tensor.dims.size());
  if (axis < 0) axis += rank;
  uint64_t inner = 1, count = 1;
  for (int64_t i = 0; i < rank; ++i) {
    const uint64_t dim = tensor.dims[static_cast<size_t>(i)];
    if (dim == 0 || count > size / dim) return false;
    count *= dim;
    if (i > axis) inner *= dim;
  }
  if (count != size) return false;
  const auto small = [](signed char v) { return v <= kPair / 2 && v >= -kPair / 2; };
  if (std::all_of(values, values + size, small)) return true;
  if (axis < 0 || axis >= rank) return false;
  const uint64_t channels = tensor.dims[static_cast<size_t>(axis)];
  struct Largest {
    int first = 0, second = 0;
    void see(int value) {
      second = std::max(second, std::min(first, value));
      first = std::max(first, value);
    }
    bool fits() const { return first + second <= kPair; }
  };
  std::vector<std::array<Largest, 2>> largest(channels);
  for (size_t i = 0; i < size; ++i) {
    const int value = values[i];
    largest[i / inner % channels][value < 0].see(std::abs(value));
  }
  return std::all_of(largest.begin(), largest.end(),
                     [](const auto& both) { return both[0].fits() && both[1].fits(); });
}

// Whether kernels add products of any INT8 graph without saturation.
bool integers_are_exact() {
  static const bool exact = processor_is_exact();
  const char* chosen = ::secure_getenv("TFANET_INTEGER");
  if (chosen == nullptr) return exact;
  std::string choices;
  for (const auto& [name, is_exact] : kInstructions) {
    if (name == chosen) return is_exact;
    choices += join(choices.empty() ? "" : ", ", std::string(name));
  }
  fail(TFANET_INVALID_ARGUMENT, "TFANET_INTEGER is ", "'", chosen, "'", ": choose one of ",
       choices);
}

// Whether a pair of products with a weight of an integer layer can leave 16 bits.
bool overflows(const unsigned char* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  if (all.find("DequantizeLinear") == all.npos) return false;
  std::map<std::string_view, std::pair<std::string_view, int64_t>> dequantised;
  std::vector<std::vector<std::string_view>> layers;
  std::map<std::string_view, Tensor> tensors;
  for (Fields model(data, 0, size); model.next();) {
    if (model.number != 7 || !model.is_bytes()) continue;
    for (Fields graph = model.inside(); graph.next();) {
      if (!graph.is_bytes()) continue;
      if (graph.number == 5) {
        std::string_view name;
        const Tensor tensor = read_tensor(graph.inside(), name);
        tensors[name] = tensor;
      } else if (graph.number == 1) {
        Node node = read_node(graph.inside());
        if (node.op == "DequantizeLinear" && !node.inputs.empty()) {
          dequantised[node.output] = {node.inputs[0], node.axis()};
        } else if ((node.op == "Conv" || node.op == "MatMul" || node.op == "Gemm") &&
                   node.inputs.size() >= 2) {
          node.inputs.resize(2);
          layers.push_back(std::move(node.inputs));
        }
      }
    }
  }
  for (const auto& inputs : layers) {
    const auto one = dequantised.find(inputs[0]), two = dequantised.find(inputs[1]);
    if (one == dequantised.end() || two == dequantised.end()) continue;
    for (const auto& [name, axis] : {one->second, two->second}) {
      const auto tensor = tensors.find(name);
      if (tensor == tensors.end() || tensor->second.type != kInt8) continue;
      const bool raw = !tensor->second.raw.empty();  // another form is not ours: not proved
      if (!raw || !pairs_fit(tensor->second, axis)) return true;
    }
  }
  return false;
}

}  // namespace

bool needs_floats(const unsigned char* data, size_t size) {
  if (integers_are_exact()) return false;
  try {
    return overflows(data, size);
  } catch (const NotOnnx&) {
    return true;  // ONNX Runtime says what is wrong with it
  }
}

}  // namespace tfanet
