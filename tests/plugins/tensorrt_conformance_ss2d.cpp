// Drives the plugin SS2D of libtfanet_trt.so as TensorRT would.
//
//   tensorrt_conformance_ss2d LIBRARY            every virtual method, good and bad input
//   tensorrt_conformance_ss2d LIBRARY CASES OUT  enqueue: reads cases, writes the bytes of every y
//
// A case is seven 32-bit integers (DataType of the maps, batch, E, H, W, R, N), then the bytes of
// its inputs. With TFANET_ON_GPU tensors are on the device.
#include "tensorrt_stage.h"

namespace {

constexpr int kInputs = 6;
using Sizes = std::array<std::int64_t, 6>;  // batch, E, H, W, R, N

IPluginV3* create(TensorRTPhase phase = TensorRTPhase::kBUILD) {
  return create(std::vector<PluginField>{}, phase);
}

// All inputs and y, in this order.
std::vector<PluginTensorDesc> tensors(const Sizes& sizes, DataType io,
                                      DataType weight = DataType::kFLOAT) {
  const auto [batch, channels, height, width, rank, states] = sizes;
  const Dims map{4, {batch, channels, height, width}};
  return {tensor(map, io),
          tensor(Dims{3, {4, rank + 2 * states, channels}}, weight),
          tensor(Dims{3, {4, channels, rank}}, weight),
          tensor(Dims{2, {4, channels}}, weight),
          tensor(Dims{2, {4 * channels, states}}, weight),
          tensor(Dims{1, {4 * channels}}, weight),
          tensor(map, io)};
}

bool changes(Plugin& plugin, const std::vector<PluginTensorDesc>& list) {
  return plugin.runtime->onShapeChange(list.data(), kInputs, list.data() + kInputs, 1) == 0;
}

bool configures(Plugin& plugin, const std::vector<DynamicPluginTensorDesc>& list) {
  return plugin.build->configurePlugin(list.data(), kInputs, list.data() + kInputs, 1) == 0;
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& list) {
  std::vector<DynamicPluginTensorDesc> result;
  for (const PluginTensorDesc& desc : list) result.push_back(dynamic(desc));
  return result;
}

std::size_t workspace(Plugin& plugin, const std::vector<DynamicPluginTensorDesc>& list) {
  return plugin.build->getWorkspaceSize(list.data(), kInputs, list.data() + kInputs, 1);
}

void check_creator() {
  CHECK(std::string(creator->getPluginName()) == "SS2D");
  CHECK(std::string(creator->getPluginVersion()) == "1");
  CHECK(std::string(creator->getPluginNamespace()) == "tfanet");
  CHECK(creator->getFieldNames() != nullptr && creator->getFieldNames()->nbFields == 0);
  CHECK(std::unique_ptr<IPluginV3>(
            creator->createPlugin("a node", nullptr, TensorRTPhase::kBUILD)) != nullptr);
  const std::int32_t one = 1;
  fails("1 fields",
        [&] { return create({{"delta_softplus", &one, PluginFieldType::kINT32, 1}}) != nullptr; });
  fails("phase 5", [&] { return create(static_cast<TensorRTPhase>(5)) != nullptr; });
}

void check_copies() {
  Plugin first(create());
  const PluginFieldCollection* const stored = first.runtime->getFieldsToSerialize();
  CHECK(stored != nullptr && stored->nbFields == 0);
  Plugin restored(creator->createPlugin("a node", stored, TensorRTPhase::kRUNTIME));
  Plugin copy(first.whole->clone());
  Resources resources;
  Plugin attached(first.runtime->attachToContext(&resources));
  first.whole.reset();
  const auto list = tensors({1, 8, 5, 6, 2, 1}, DataType::kFLOAT);
  for (Plugin* plugin : {&restored, &copy, &attached}) {
    CHECK(std::string(plugin->core->getPluginName()) == "SS2D");
    CHECK(plugin->build->getNbOutputs() == 1 && plugin->runtime->setTactic(0) == 0);
    CHECK(changes(*plugin, list));
  }
  fails("tactic 3", [&] { return copy.runtime->setTactic(3) == 0; });
}

void check_types(Plugin& plugin) {
  int fitting = 0;
  for (int io = 0; io < EnumMax<DataType>(); ++io) {
    for (int weight = 0; weight < EnumMax<DataType>(); ++weight) {
      auto list = dynamic(
          tensors({1, 8, 5, 6, 2, 1}, static_cast<DataType>(io), static_cast<DataType>(weight)));
      std::array<DataType, kInputs> types;
      bool supported = true;
      for (int i = 0; i <= kInputs; ++i) {
        if (i < kInputs) types[i] = list[i].desc.type;
        supported =
            supported && plugin.build->supportsFormatCombination(i, list.data(), kInputs, 1);
      }
      DataType y = DataType::kINT8;
      const bool known = plugin.build->getOutputDataTypes(&y, 1, types.data(), kInputs) == 0;
      const bool map = io == static_cast<int>(DataType::kFLOAT) ||
                       io == static_cast<int>(DataType::kHALF) ||
                       io == static_cast<int>(DataType::kBF16);
      CHECK(known == (map && weight == static_cast<int>(DataType::kFLOAT)) && known == supported);
      if (!known) continue;
      ++fitting;
      CHECK(y == types[0]);
      for (int i = 0; i <= kInputs; ++i) {
        auto other = list;
        other[i].desc.format = TensorFormat::kCHW32;
        CHECK(!plugin.build->supportsFormatCombination(i, other.data(), kInputs, 1));
      }
      list[kInputs].desc.type = DataType::kINT32;
      CHECK(!plugin.build->supportsFormatCombination(kInputs, list.data(), kInputs, 1));
    }
  }
  CHECK(fitting == 3);
  CHECK(!plugin.build->supportsFormatCombination(0, nullptr, kInputs, 1));
}

void check_output_shapes(Plugin& plugin) {
  for (int round = 0; round < 100; ++round) {
    Builder builder;
    const auto list = tensors({between(1, 4), between(1, 99), between(1, 99), between(1, 99),
                               between(1, 9), between(1, 64)},
                              DataType::kHALF);
    std::vector<DimsExprs> inputs(kInputs);
    for (int i = 0; i < kInputs; ++i) {
      inputs[i].nbDims = list[i].dims.nbDims;
      for (int k = 0; k < inputs[i].nbDims; ++k) {
        // The batch, height and width are open, and E in u; weights tell it.
        inputs[i].d[k] = builder.make(list[i].dims.d[k], i > 0);
      }
    }
    DimsExprs y{};
    const auto call = [&](const std::vector<DimsExprs>& from) {
      return plugin.build->getOutputShapes(from.data(), kInputs, nullptr, 0, &y, 1, builder) == 0;
    };
    CHECK(call(inputs) && y.nbDims == 4);
    for (int k = 0; k < 4; ++k) {
      CHECK(static_cast<const Size*>(y.d[k])->value == list[0].dims.d[k]);
      CHECK(y.d[k]->isConstant() == (k == 1));
    }
    inputs[0].d[1] = builder.make(list[0].dims.d[1] + 1, true);
    fails("E is", [&] { return call(inputs); });
    inputs[0].nbDims = 3;
    fails("u has rank 3, expected 4", [&] { return call(inputs); });
  }
}

void check_shapes(Plugin& plugin) {
  const Sizes sizes = {2, 24, 40, 30, 3, 2};
  const auto list = tensors(sizes, DataType::kHALF);
  CHECK(changes(plugin, list));
  auto build = dynamic(list);
  CHECK(configures(plugin, build));
  const std::size_t needed = workspace(plugin, build);
  CHECK(needed > 0 && needed % 16 == 0);
  // A profile is planned for its largest sizes, of open batch, height and width.
  for (int i : {0, kInputs}) {
    for (int k : {0, 2, 3}) {
      build[i].desc.dims.d[k] = -1;
      build[i].min.d[k] = 1;
      build[i].max.d[k] *= 2;
    }
  }
  CHECK(configures(plugin, build));
  const auto largest = dynamic(tensors({4, 24, 80, 60, 3, 2}, DataType::kHALF));
  CHECK(workspace(plugin, build) == workspace(plugin, largest));
  CHECK(workspace(plugin, largest) > 4 * needed);
  auto open = list;
  open[0].dims = build[0].desc.dims;
  fails("batch is not known", [&] { return changes(plugin, open); });
  for (int i = 0; i < kInputs; ++i) {
    for (int k = 0; k < list[i].dims.nbDims; ++k) {
      auto wrong = list;
      wrong[i].dims.d[k] += 1;
      // Only u has these; y is of the same shape.
      if (i == 0 && k != 1) {
        fails("y has another shape", [&] { return changes(plugin, wrong); });
      } else {
        const int before = logger.errors;
        CHECK(!changes(plugin, wrong) && !configures(plugin, dynamic(wrong)));
        CHECK(logger.errors == before + 2);
      }
    }
    auto wrong = list;
    wrong[i].dims.nbDims = 0;
    fails("rank 0", [&] { return changes(plugin, wrong); });
  }
  const auto refuses = [&](const char* words, int input, int axis, std::int64_t size) {
    auto wrong = list;
    wrong[input].dims.d[axis] = size;
    fails(words, [&] { return changes(plugin, wrong); });
  };
  refuses("rows of x_proj_weight is 8, expected R + 2N", 1, 1, 8);
  refuses("K is 3 in dt_weight, but 4 in x_proj_weight", 2, 0, 3);
  fails("N is 65, expected 1 to 64",
        [&] { return changes(plugin, tensors({2, 24, 40, 30, 3, 65}, DataType::kHALF)); });
  fails("R is 0, expected 1",
        [&] { return changes(plugin, tensors({2, 24, 40, 30, 0, 1}, DataType::kHALF)); });
  auto three = list;
  for (int i : {1, 2, 3}) three[i].dims.d[0] = 3;
  fails("K is 3, expected 4", [&] { return changes(plugin, three); });
  auto rows = list;
  rows[4].dims.d[0] = rows[5].dims.d[0] = 90;
  fails("rows of A is 90, expected 4E", [&] { return changes(plugin, rows); });
  fails("inputs", [&] {
    return plugin.runtime->onShapeChange(list.data(), 5, list.data() + kInputs, 1) == 0;
  });
  fails("null array",
        [&] { return plugin.runtime->onShapeChange(nullptr, kInputs, list.data(), 1) == 0; });
}

void check_bad_calls(Plugin& plugin) {
  char memory[64];  // never read: every call is refused before, or has nothing to do
  const std::vector<const void*> inputs(kInputs, memory);
  void* const outputs[] = {memory};
  const auto enqueue = [&](const std::vector<PluginTensorDesc>& list, const void* const* in,
                           void* const* out) {
    return plugin.runtime->enqueue(list.data(), list.data() + kInputs, in, out, nullptr, nullptr) ==
           0;
  };
  const auto good = tensors({1, 8, 5, 6, 2, 1}, DataType::kFLOAT);
  fails("null array", [&] { return enqueue(good, nullptr, outputs); });
  fails("null array", [&] { return enqueue(good, inputs.data(), nullptr); });
  for (int i = 0; i < kInputs; ++i) {
    auto hole = inputs;
    hole[i] = nullptr;
    fails("has no memory", [&] { return enqueue(good, hole.data(), outputs); });
  }
  void* const nowhere[] = {nullptr};
  fails("y has no memory", [&] { return enqueue(good, inputs.data(), nowhere); });
  fails("workspace is missing", [&] { return enqueue(good, inputs.data(), outputs); });
  const auto integers = tensors({1, 8, 5, 6, 2, 1}, DataType::kINT8);
  fails("is not supported", [&] { return enqueue(integers, inputs.data(), outputs); });
  for (const Sizes& empty : {Sizes{0, 8, 5, 6, 2, 1}, Sizes{1, 8, 0, 6, 2, 1}}) {
    CHECK(enqueue(tensors(empty, DataType::kFLOAT), inputs.data(), outputs));
  }
}

void run_cases(const char* cases, const char* results) {
  std::ifstream in(cases, std::ios::binary);
  std::ofstream out(results, std::ios::binary);
  std::array<std::int32_t, 7> head;
  while (in.read(reinterpret_cast<char*>(head.data()), sizeof head)) {
    const auto list = tensors({head[1], head[2], head[3], head[4], head[5], head[6]},
                              static_cast<DataType>(head[0]));
    // As an engine does: built, created again, attached to a context.
    Plugin built(create());
    Plugin restored(creator->createPlugin("a node", built.runtime->getFieldsToSerialize(),
                                          TensorRTPhase::kRUNTIME));
    Resources resources;
    Plugin plugin(restored.runtime->attachToContext(&resources));
    CHECK(changes(plugin, list));
    Memory scratch(workspace(built, dynamic(list)));
    run_case(plugin, list, scratch.data, in, out);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4) return 2;
  open_library(argv[1], "SS2D");
  if (argc == 4) {
    run_cases(argv[2], argv[3]);
    return 0;
  }
  check_creator();
  check_copies();
  Plugin plugin(create());
  check_types(plugin);
  check_output_shapes(plugin);
  check_shapes(plugin);
  check_bad_calls(plugin);
  std::printf("%d checks with TensorRT %d.%d headers\n", checks, NV_TENSORRT_MAJOR,
              NV_TENSORRT_MINOR);
  return 0;
}
