// Drives libtfanet_trt.so as TensorRT would, through its two exported functions and TensorRT's
// public interfaces alone.
//
//   tensorrt_conformance LIBRARY            every virtual method, good and bad input
//   tensorrt_conformance LIBRARY CASES OUT  enqueue: reads cases, writes the bytes of every y
//
// A case is nine 32-bit integers (optional_inputs, delta_softplus, DataType of sequences and of
// weights, batch, dim, L, G, N), then the bytes of its inputs. With TFANET_ON_GPU tensors are on
// the device.
#include "tensorrt_stage.h"

namespace {

// --- A scan in the words of the operator ---------------------------------------------------------

enum Axis { kBatch, kDim, kLength, kGroups, kStates };
struct Operand {
  bool weight;
  std::vector<Axis> axes;
};
const std::array<Operand, 8> kOperands = {{
    {false, {kBatch, kDim, kLength}},
    {false, {kBatch, kDim, kLength}},
    {true, {kDim, kStates}},
    {false, {kBatch, kGroups, kStates, kLength}},
    {false, {kBatch, kGroups, kStates, kLength}},
    {true, {kDim}},
    {true, {kDim}},
    {false, {kBatch, kDim, kLength}},
}};
const std::array<DataType, 3> kTypes = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
using Sizes = std::array<std::int64_t, 5>;

std::vector<Operand> operands_of(int optional) {
  std::vector<Operand> list(kOperands.begin(), kOperands.begin() + 5);
  for (int i = 0; i < 3; ++i) {
    if ((optional >> i & 1) != 0) list.push_back(kOperands[5 + i]);
  }
  return list;
}

Dims dims_of(const Operand& operand, const Sizes& sizes) {
  Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(operand.axes.size());
  for (std::size_t i = 0; i < operand.axes.size(); ++i) dims.d[i] = sizes[operand.axes[i]];
  return dims;
}

// All inputs and y, in this order.
std::vector<PluginTensorDesc> tensors(int optional, const Sizes& sizes, DataType io,
                                      DataType weight) {
  std::vector<PluginTensorDesc> list;
  for (const Operand& operand : operands_of(optional)) {
    list.push_back(tensor(dims_of(operand, sizes), operand.weight ? weight : io));
  }
  list.push_back(tensor(dims_of(kOperands[0], sizes), io));
  return list;
}

Sizes random_sizes() {
  const std::int64_t groups = between(1, 4);
  return {between(1, 4), groups * between(1, 8), between(1, 4096), groups, between(1, 64)};
}

IPluginV3* create(std::int32_t optional, std::int32_t softplus,
                  TensorRTPhase phase = TensorRTPhase::kBUILD) {
  return create({{"delta_softplus", &softplus, PluginFieldType::kINT32, 1},
                 {"optional_inputs", &optional, PluginFieldType::kINT32, 1}},
                phase);
}

std::vector<std::pair<std::string, std::int32_t>> serialised(Plugin& plugin) {
  const PluginFieldCollection* const fields = plugin.runtime->getFieldsToSerialize();
  CHECK(fields != nullptr);
  std::vector<std::pair<std::string, std::int32_t>> values;
  for (int i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    CHECK(field.type == PluginFieldType::kINT32 && field.length == 1 && field.data != nullptr);
    values.emplace_back(field.name, *static_cast<const std::int32_t*>(field.data));
  }
  return values;
}

// --- The checks ----------------------------------------------------------------------------------

void check_creator() {
  CHECK(std::string(creator->getPluginName()) == "SelectiveScan");
  CHECK(std::string(creator->getPluginVersion()) == "1");
  CHECK(std::string(creator->getPluginNamespace()) == "tfanet");
  const PluginFieldCollection* const names = creator->getFieldNames();
  CHECK(names != nullptr && names->nbFields == 2);
  CHECK(std::string(names->fields[0].name) == "delta_softplus");
  CHECK(std::string(names->fields[1].name) == "optional_inputs");

  const std::int32_t one = 1, two = 2, eight = 8, minus = -1;
  const PluginField softplus{"delta_softplus", &one, PluginFieldType::kINT32, 1};
  const PluginField optional{"optional_inputs", &one, PluginFieldType::kINT32, 1};
  const auto bad = [&](const char* words, PluginField field) {
    fails(words, [&] { return create({field, optional}) != nullptr; });
    fails(words, [&] { return create({softplus, optional, field}) != nullptr; });
  };
  CHECK(std::unique_ptr<IPluginV3>(create({softplus, optional})) != nullptr);
  CHECK(std::unique_ptr<IPluginV3>(create({optional})) != nullptr);  // the node's default is 0
  fails("optional_inputs", [&] { return create({softplus}) != nullptr; });
  fails("plugin_graph", [&] { return create({}) != nullptr; });
  bad("'delta_softmax' is unknown", {"delta_softmax", &one, PluginFieldType::kINT32, 1});
  bad("'' is unknown", {nullptr, &one, PluginFieldType::kINT32, 1});
  bad("32-bit integer", {"delta_softplus", &one, PluginFieldType::kFLOAT32, 1});
  bad("32-bit integer", {"delta_softplus", &one, PluginFieldType::kINT32, 2});
  bad("32-bit integer", {"delta_softplus", &one, PluginFieldType::kINT32, 0});
  bad("32-bit integer", {"optional_inputs", nullptr, PluginFieldType::kINT32, 1});
  bad("is 2, expected 0 to 1", {"delta_softplus", &two, PluginFieldType::kINT32, 1});
  bad("is 8, expected 0 to 7", {"optional_inputs", &eight, PluginFieldType::kINT32, 1});
  bad("is -1", {"optional_inputs", &minus, PluginFieldType::kINT32, 1});
  const auto collection = [&](const PluginFieldCollection* fields) {
    fails("no fields", [&] {
      return creator->createPlugin("a node", fields, TensorRTPhase::kBUILD) != nullptr;
    });
  };
  const PluginFieldCollection negative{-1, &softplus}, nothing{2, nullptr};
  collection(nullptr);
  collection(&negative);
  collection(&nothing);
  fails("phase 5", [&] { return create(1, 1, static_cast<TensorRTPhase>(5)) != nullptr; });
  fails("optional_inputs", [&] {
    const PluginFieldCollection empty{0, nullptr};
    return creator->createPlugin(nullptr, &empty, TensorRTPhase::kBUILD) != nullptr;
  });
}

// serialise -> create -> the same; a clone lives on by itself.
void check_copies(int optional, int softplus) {
  Plugin first(create(optional, softplus));
  const auto fields = serialised(first);
  const std::vector<std::pair<std::string, std::int32_t>> expected = {
      {"delta_softplus", softplus}, {"optional_inputs", optional}};
  CHECK(fields == expected);
  CHECK(serialised(first) == expected);

  const PluginFieldCollection* const stored = first.runtime->getFieldsToSerialize();
  Plugin restored(creator->createPlugin("a node", stored, TensorRTPhase::kRUNTIME));
  Plugin copy(first.whole->clone());
  Resources resources;
  Plugin attached(first.runtime->attachToContext(&resources));
  CHECK(copy.whole != first.whole && attached.whole != first.whole);
  CHECK(copy.runtime->getFieldsToSerialize() != stored);
  const std::string timing = first.build->getTimingCacheID();
  const std::string metadata = first.build->getMetadataString();
  first.whole.reset();
  for (Plugin* plugin : {&restored, &copy, &attached}) {
    CHECK(serialised(*plugin) == expected);
    CHECK(std::string(plugin->core->getPluginName()) == creator->getPluginName());
    CHECK(std::string(plugin->core->getPluginVersion()) == creator->getPluginVersion());
    CHECK(std::string(plugin->core->getPluginNamespace()) == creator->getPluginNamespace());
    CHECK(plugin->build->getTimingCacheID() == timing);
    CHECK(plugin->build->getMetadataString() == metadata);
  }
  // Other settings are timed by themselves.
  Plugin other(create(optional, 1 - softplus));
  CHECK(other.build->getTimingCacheID() != timing);
}

void check_plain_facts(Plugin& plugin) {
  CHECK(plugin.build->getNbOutputs() == 1);
  CHECK(plugin.build->getNbTactics() == 0);
  CHECK(plugin.build->getValidTactics(nullptr, 0) == 0);
  CHECK(plugin.build->getFormatCombinationLimit() >= 5);
  CHECK(plugin.runtime->setTactic(0) == 0);
  fails("tactic 3", [&] { return plugin.runtime->setTactic(3) == 0; });
  fails("capability", [&] {
    return plugin.whole->getCapabilityInterface(static_cast<PluginCapabilityType>(9)) != nullptr;
  });
}

bool types_fit(const std::vector<Operand>& operands, const std::vector<DataType>& types) {
  bool known = false;
  for (DataType type : kTypes) known = known || types[0] == type;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    const bool wanted = !operands[i].weight ? types[i] == types[0]
                        : i == 2            ? types[i] == DataType::kFLOAT || types[i] == types[0]
                                            : types[i] == types[2];
    if (!wanted) return false;
  }
  return known;
}

void check_types(Plugin& plugin, int optional) {
  const auto operands = operands_of(optional);
  const int count = static_cast<int>(operands.size());
  const auto output_type = [&](const std::vector<DataType>& types, DataType& result) {
    return plugin.build->getOutputDataTypes(&result, 1, types.data(), count);
  };
  for (int io = 0; io < EnumMax<DataType>(); ++io) {
    for (int weight = 0; weight < EnumMax<DataType>(); ++weight) {
      std::vector<DataType> types;
      for (const Operand& operand : operands) {
        types.push_back(static_cast<DataType>(operand.weight ? weight : io));
      }
      DataType result = DataType::kINT8;
      CHECK((output_type(types, result) == 0) == types_fit(operands, types));
      if (types_fit(operands, types)) CHECK(result == types[0]);
      for (int i = 0; i < count; ++i) {  // one input of another type
        for (int other = 0; other < EnumMax<DataType>(); ++other) {
          auto changed = types;
          changed[i] = static_cast<DataType>(other);
          CHECK((output_type(changed, result) == 0) == types_fit(operands, changed));
        }
      }
    }
  }
  const std::vector<DataType> floats(9, DataType::kFLOAT);
  DataType result[2];
  const auto call = [&](DataType* out, int outputs, const DataType* in, int inputs) {
    return plugin.build->getOutputDataTypes(out, outputs, in, inputs) == 0;
  };
  fails("null array", [&] { return call(nullptr, 1, floats.data(), count); });
  fails("null array", [&] { return call(result, 1, nullptr, count); });
  fails("inputs", [&] { return call(result, 1, floats.data(), count + 1); });
  fails("inputs", [&] { return call(result, 1, floats.data(), count - 1); });
  fails("outputs", [&] { return call(result, 2, floats.data(), count); });
}

// Goes through all types and formats position by position, as TensorRT does.
void check_formats(Plugin& plugin, int optional) {
  const auto operands = operands_of(optional);
  const int count = static_cast<int>(operands.size());
  std::vector<DynamicPluginTensorDesc> list(count + 1);
  const auto supports = [&](int position) {
    return plugin.build->supportsFormatCombination(position, list.data(), count, 1);
  };
  int combinations = 0;
  const std::function<void(int)> visit = [&](int position) {
    if (position > count) {
      ++combinations;
      std::vector<DataType> types;
      for (int i = 0; i < count; ++i) types.push_back(list[i].desc.type);
      CHECK(types_fit(operands, types) && list[count].desc.type == types[0]);
      return;
    }
    for (int type = 0; type < EnumMax<DataType>(); ++type) {
      for (int format = 0; format < EnumMax<TensorFormat>(); ++format) {
        list[position].desc.type = static_cast<DataType>(type);
        list[position].desc.format = static_cast<TensorFormat>(format);
        if (!supports(position)) continue;
        CHECK(list[position].desc.format == TensorFormat::kLINEAR);
        visit(position + 1);
        list[position].desc.format = static_cast<TensorFormat>(format);
      }
    }
  };
  visit(0);
  CHECK(combinations == 5);  // float32; float16 and bfloat16, with weights alike or float32
  for (auto& entry : list) entry.desc = tensor({}, DataType::kFLOAT);
  CHECK(supports(0) && supports(count));
  CHECK(!supports(-1) && !supports(count + 1));
  CHECK(!plugin.build->supportsFormatCombination(0, nullptr, count, 1));
  CHECK(!plugin.build->supportsFormatCombination(0, list.data(), count - 1, 1));
}

void check_output_shapes(Plugin& plugin, int optional) {
  const auto operands = operands_of(optional);
  const int count = static_cast<int>(operands.size());
  for (int round = 0; round < 200; ++round) {
    const Sizes sizes = random_sizes();
    Builder builder;
    std::vector<DimsExprs> inputs(count);
    bool known[5] = {};
    for (int i = 0; i < count; ++i) {
      inputs[i].nbDims = static_cast<std::int32_t>(operands[i].axes.size());
      for (int k = 0; k < inputs[i].nbDims; ++k) {
        const Axis axis = operands[i].axes[k];
        const bool constant = between(0, 2) == 0;
        known[axis] = known[axis] || constant;
        inputs[i].d[k] = builder.make(sizes[axis], constant);
      }
    }
    const auto call = [&](DimsExprs* output, const std::vector<DimsExprs>& from, int shapes) {
      return plugin.build->getOutputShapes(from.data(), count, nullptr, shapes, output, 1,
                                           builder) == 0;
    };
    DimsExprs output{};
    CHECK(call(&output, inputs, 0));
    CHECK(output.nbDims == 3);
    for (int k = 0; k < 3; ++k) {
      const Axis axis = kOperands[0].axes[k];
      CHECK(static_cast<const Size*>(output.d[k])->value == sizes[axis]);
      CHECK(output.d[k]->isConstant() == known[axis]);
      if (!known[axis]) CHECK(output.d[k] == inputs[0].d[k]);
    }
    // A constant that contradicts another one.
    const int i = static_cast<int>(between(1, count - 1)), k = inputs[i].nbDims - 1;
    const Axis axis = operands[i].axes[k];
    auto changed = inputs;
    for (int j = 0; j < count; ++j) {
      for (int m = 0; m < changed[j].nbDims; ++m) {
        if (operands[j].axes[m] == axis) changed[j].d[m] = builder.make(sizes[axis], true);
      }
    }
    changed[i].d[k] = builder.make(sizes[axis] + 1, true);
    fails(" in ", [&] { return call(&output, changed, 0); });
    changed = inputs;
    changed[i].nbDims += 1;
    changed[i].d[changed[i].nbDims - 1] = builder.make(1, true);
    fails("rank", [&] { return call(&output, changed, 0); });
    fails("shape inputs", [&] { return call(&output, inputs, 1); });
  }
  Builder builder;
  DimsExprs output{};
  fails("null array", [&] {
    return plugin.build->getOutputShapes(nullptr, count, nullptr, 0, &output, 1, builder) == 0;
  });
  fails("inputs", [&] {
    return plugin.build->getOutputShapes(&output, 1, nullptr, 0, &output, 1, builder) == 0;
  });
}

// configurePlugin and onShapeChange: the sizes that fit, open sizes, bounds, and one size wrong.
void check_shapes(Plugin& plugin, int optional) {
  const auto operands = operands_of(optional);
  const int count = static_cast<int>(operands.size());
  for (int round = 0; round < 100; ++round) {
    const Sizes sizes = random_sizes();
    auto list = tensors(optional, sizes, DataType::kHALF, DataType::kFLOAT);
    const auto changes = [&](const std::vector<PluginTensorDesc>& from) {
      return plugin.runtime->onShapeChange(from.data(), count, from.data() + count, 1) == 0;
    };
    const auto configures = [&](const std::vector<DynamicPluginTensorDesc>& from) {
      return plugin.build->configurePlugin(from.data(), count, from.data() + count, 1) == 0;
    };
    CHECK(changes(list));
    std::vector<DynamicPluginTensorDesc> build;
    for (const PluginTensorDesc& desc : list) build.push_back(dynamic(desc));
    CHECK(configures(build));
    CHECK(plugin.build->getWorkspaceSize(build.data(), count, build.data() + count, 1) == 0);

    // An open batch and length, within bounds of a profile.
    const auto open = [&](const Dims& dims, const Operand& operand, std::int64_t batch) {
      Dims result = dims;
      for (int k = 0; k < dims.nbDims; ++k) {
        if (operand.axes[k] == kBatch) result.d[k] = batch;
      }
      return result;
    };
    for (int i = 0; i < count; ++i) {
      build[i].desc.dims = open(list[i].dims, operands[i], -1);
      build[i].min = open(list[i].dims, operands[i], 1);
      build[i].max = open(list[i].dims, operands[i], 8);
    }
    CHECK(configures(build));
    auto bounds = build;
    bounds[1].max.d[0] = 7;
    fails("batch is 7 in delta, but 8 in u", [&] { return configures(bounds); });
    for (auto& entry : bounds) entry.min = entry.opt = entry.max = Dims{};
    CHECK(configures(bounds));
    auto unknown = list;
    for (int i = 0; i < count; ++i) unknown[i].dims = build[i].desc.dims;
    fails("batch is not known", [&] { return changes(unknown); });

    for (int i = 0; i < count; ++i) {
      for (int k = 0; k < list[i].dims.nbDims; ++k) {
        auto wrong = list;
        wrong[i].dims.d[k] += 1;
        const auto dynamic_wrong = [&] {
          std::vector<DynamicPluginTensorDesc> result;
          for (const PluginTensorDesc& desc : wrong) result.push_back(dynamic(desc));
          return result;
        }();
        fails(" in ", [&] { return changes(wrong); });
        fails(" in ", [&] { return configures(dynamic_wrong); });
      }
      auto wrong = list;
      wrong[i].dims.nbDims = 0;
      fails("rank 0", [&] { return changes(wrong); });
    }
    auto y = list;
    y[count].dims.d[2] += 1;
    fails("y has another shape", [&] { return changes(y); });
  }
  const auto refuses = [&](const char* words, const Sizes& sizes) {
    const auto list = tensors(optional, sizes, DataType::kFLOAT, DataType::kFLOAT);
    fails(words, [&] {
      return plugin.runtime->onShapeChange(list.data(), count, list.data() + count, 1) == 0;
    });
  };
  refuses("N is 65", {1, 8, 16, 2, 65});
  refuses("N is 0", {1, 8, 16, 2, 0});
  refuses("dim 8 is not a multiple of G 3", {1, 8, 16, 3, 1});
  refuses("G 0", {1, 8, 16, 0, 1});
  const auto list = tensors(optional, {1, 8, 16, 2, 4}, DataType::kFLOAT, DataType::kFLOAT);
  const PluginTensorDesc* const in = list.data();
  const PluginTensorDesc* const out = in + count;
  fails("null array", [&] { return plugin.runtime->onShapeChange(nullptr, count, out, 1) == 0; });
  fails("null array", [&] { return plugin.runtime->onShapeChange(in, count, nullptr, 1) == 0; });
  fails("inputs", [&] { return plugin.runtime->onShapeChange(in, count - 1, out, 1) == 0; });
  const DynamicPluginTensorDesc some[9] = {};
  fails("null array", [&] { return plugin.build->configurePlugin(nullptr, count, some, 1) == 0; });
  fails("null array", [&] { return plugin.build->configurePlugin(some, count, nullptr, 1) == 0; });
  fails("outputs", [&] { return plugin.build->configurePlugin(some, count, some, 2) == 0; });
}

void check_bad_calls(Plugin& plugin, int optional) {
  const int count = static_cast<int>(operands_of(optional).size());
  char memory[64];  // never read: every call is refused before, or has nothing to do
  const std::vector<const void*> inputs(count, memory);
  void* const outputs[] = {memory};
  const auto enqueue = [&](const std::vector<PluginTensorDesc>& list, const void* const* in,
                           void* const* out) {
    return plugin.runtime->enqueue(list.data(), list.data() + count, in, out, nullptr, nullptr) ==
           0;
  };
  const auto good = tensors(optional, {1, 8, 16, 2, 4}, DataType::kFLOAT, DataType::kFLOAT);
  fails("null array", [&] { return enqueue(good, nullptr, outputs); });
  fails("null array", [&] { return enqueue(good, inputs.data(), nullptr); });
  fails("null array", [&] {
    return plugin.runtime->enqueue(nullptr, good.data(), inputs.data(), outputs, nullptr,
                                   nullptr) == 0;
  });
  for (int i = 0; i < count; ++i) {
    auto hole = inputs;
    hole[i] = nullptr;
    fails("has no memory", [&] { return enqueue(good, hole.data(), outputs); });
  }
  void* const nowhere[] = {nullptr};
  fails("y has no memory", [&] { return enqueue(good, inputs.data(), nowhere); });
  const auto integers = tensors(optional, {1, 8, 16, 2, 4}, DataType::kINT8, DataType::kFLOAT);
  fails("are not supported", [&] { return enqueue(integers, inputs.data(), outputs); });
  auto wrong = good;
  wrong[1].dims.d[1] = 9;
  fails("dim is 9 in delta, but 8 in u", [&] { return enqueue(wrong, inputs.data(), outputs); });
  // Nothing to do is no error.
  for (const Sizes& empty : {Sizes{0, 8, 16, 2, 4}, Sizes{1, 8, 0, 2, 4}, Sizes{1, 0, 16, 2, 4}}) {
    CHECK(enqueue(tensors(optional, empty, DataType::kFLOAT, DataType::kFLOAT), inputs.data(),
                  outputs));
  }
}

void check_threads() {
  std::vector<std::thread> threads;
  std::array<bool, 8> same{};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      same[i] = true;
      for (int round = 0; round < 200; ++round) {
        const std::unique_ptr<IPluginV3> plugin(create(i, round % 2));
        const std::unique_ptr<IPluginV3> copy(plugin->clone());
        auto* const runtime = static_cast<IPluginV3OneRuntime*>(
            copy->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
        const PluginField field = runtime->getFieldsToSerialize()->fields[1];
        same[i] = same[i] && *static_cast<const std::int32_t*>(field.data) == i;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (bool ok : same) CHECK(ok);
}

// --- enqueue on given numbers --------------------------------------------------------------------

void run_cases(const char* cases, const char* results) {
  std::ifstream in(cases, std::ios::binary);
  std::ofstream out(results, std::ios::binary);
  std::array<std::int32_t, 9> head;
  while (in.read(reinterpret_cast<char*>(head.data()), sizeof head)) {
    const Sizes sizes = {head[4], head[5], head[6], head[7], head[8]};
    const auto list =
        tensors(head[0], sizes, static_cast<DataType>(head[2]), static_cast<DataType>(head[3]));
    const int count = static_cast<int>(list.size()) - 1;
    // As an engine does: built, stored, created again, attached to a context.
    Plugin built(create(head[0], head[1]));
    Plugin restored(creator->createPlugin("a node", built.runtime->getFieldsToSerialize(),
                                          TensorRTPhase::kRUNTIME));
    Resources resources;
    Plugin plugin(restored.runtime->attachToContext(&resources));
    CHECK(plugin.runtime->onShapeChange(list.data(), count, list.data() + count, 1) == 0);
    run_case(plugin, list, nullptr, in, out);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4) return 2;
  open_library(argv[1], "SelectiveScan");
  if (argc == 4) {
    run_cases(argv[2], argv[3]);
    return 0;
  }
  check_creator();
  for (int optional = 0; optional < 8; ++optional) {
    for (int softplus = 0; softplus < 2; ++softplus) check_copies(optional, softplus);
    Plugin plugin(create(optional, 1));
    check_plain_facts(plugin);
    check_types(plugin, optional);
    check_formats(plugin, optional);
    check_output_shapes(plugin, optional);
    check_shapes(plugin, optional);
    check_bad_calls(plugin, optional);
  }
  check_threads();
  std::printf("%d checks with TensorRT %d.%d headers\n", checks, NV_TENSORRT_MAJOR,
              NV_TENSORRT_MINOR);
  return 0;
}
