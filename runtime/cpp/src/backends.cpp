#include "backends.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <future>
#include <vector>

#include "cores.h"
#include "engine_session.h"
#include "error.h"
#include "integer.h"
#include "libraries.h"
#include "onnxruntime.h"
#include "python_text.h"

namespace tfanet {
namespace {

constexpr int64_t kMaxBatch = 1024;  // of a graph whose batch is open
constexpr const char* kTargets[] = {"tensorrt", "tensorrt-rtx"};

// Backends of ONNX Runtime, the best first. Those that build engines of their own when a bundle is
// opened, for minutes, run where they are asked for by name.
struct Provider {
  const char *backend, *name;  // null: the CPU
  bool by_name_only;
};
constexpr Provider kProviders[] = {
    {"onnxruntime-tensorrt", "TensorrtExecutionProvider", true},
    {"onnxruntime-tensorrt-rtx", "NvTensorRTRTXExecutionProvider", true},
    {"onnxruntime-cuda", "CUDAExecutionProvider", false},
    {"onnxruntime-cpu", nullptr, false},
};

// A string of an engine's record, or nothing.
std::string text_of(const Json& record, const char* field) {
  const auto found = record.find(field);
  return found != record.end() && found->is_string() ? found->get<std::string>() : "";
}

// The strings of a list in an engine's record.
std::vector<std::string> list_of(const Json& record, const char* field) {
  std::vector<std::string> out;
  const auto found = record.find(field);
  if (found == record.end() || !found->is_array()) return out;
  for (const Json& one : *found) {
    if (one.is_string()) out.push_back(one.get<std::string>());
  }
  return out;
}

bool holds(const std::vector<std::string>& list, const std::string& one) {
  return std::find(list.begin(), list.end(), one) != list.end();
}

// A compute capability as a number that can be compared.
int compute_number(const std::string& compute) {
  int major = 0, minor = 0;
  std::sscanf(compute.c_str(), "%d.%d", &major, &minor);
  return 100 * major + minor;
}

// That an engine can run here, from what the manifest says of it.
void check_record(const Json& record, const Device& device, const std::string& version) {
  const std::string name = text_of(record, "name"), target = text_of(record, "target");
  const std::string again = join("build it again here with `tfanet engine --bundle DIR --target ",
                                 target, " --precision ", text_of(record, "precision"), "`");
  if (const std::string built = text_of(record, "version"); built != version) {
    fail(TFANET_BAD_BUNDLE, "engine ", name, " was built by ", text_of(record, "library"), " ",
         built, ", here is ", version, ": install that version, or ", again);
  }
  if (holds(list_of(record, "flags"), "STRIP_PLAN")) {
    fail(TFANET_BAD_BUNDLE, "engine ", name, " holds no weights: fill them in with `tfanet refit ",
         "--bundle DIR --engine ", name, "`");
  }
  const std::vector<std::string> wanted = list_of(record, "compute");
  if (!wanted.empty() && !holds(wanted, device.compute())) {
    std::string all;
    for (const std::string& one : wanted) all += (all.empty() ? "" : " and ") + one;
    fail(TFANET_BAD_BUNDLE, "engine ", name, " was built for compute capability ", all, ", ",
         device.name(), " has ", device.compute(), ": ", again);
  }
  // An engine of TensorRT-RTX that names no compute capability.
  if (wanted.empty() && target == "tensorrt-rtx" &&
      compute_number(device.compute()) < compute_number("8.0")) {
    fail(TFANET_BAD_BUNDLE, "engine ", name, " runs on compute capability 8.0 and later, ",
         device.name(), " has ", device.compute(), ": ", again, " --compute ", device.compute());
  }
}

class Opener {
 public:
  Opener(const Bundle& bundle, const tfanet_options& options, const std::string& op_library)
      : bundle_(bundle), options_(options), op_library_(op_library) {}

  Running open(const std::string& backend);

 private:
  enum class Kind { kEngine, kProvider, kByNameOnly };

  // Opens this one where it is asked for and can run. True: it is open.
  bool consider(Kind kind, const std::string& backend, const std::string& name,
                const std::function<Running()>& open);
  Running open_engine(const Json& record) const;
  Running open_provider(const Provider& provider);

  const Bundle& bundle_;
  const tfanet_options& options_;
  const std::string& op_library_;
  std::string asked_;
  std::shared_ptr<const OnnxRuntime> onnxruntime_;
  std::string passed_over_;
  Running running_;
};

bool Opener::consider(Kind kind, const std::string& backend, const std::string& name,
                      const std::function<Running()>& open) {
  const bool any = asked_ == "auto" && kind != Kind::kByNameOnly;
  if (!any && asked_ != backend && asked_ != name) return false;
  const bool last = backend == "onnxruntime-cpu";
  try {
    running_ = open();
  } catch (const Error& error) {
    const bool unfit = error.status == TFANET_BAD_BUNDLE || error.status == TFANET_OUT_OF_MEMORY;
    const bool cannot_run =
        error.status == TFANET_MISSING_DEPENDENCY || (kind == Kind::kEngine && unfit);
    if (!any || last || !cannot_run) throw;
    passed_over_ += join(visible(name), ": ", error.what(), "\n");
    return false;
  }
  running_.passed_over = passed_over_;
  return true;
}

Running Opener::open(const std::string& backend) {
  asked_ = backend;
  std::string names, choices;
  for (const std::string target : kTargets) {
    std::vector<const Json*> engines;
    for (const Json& record : bundle_.manifest.engines) {
      if (text_of(record, "target") == target) engines.push_back(&record);
    }
    const auto rank = [](const Json* record) {
      return std::find(kPrecisions.begin(), kPrecisions.end(), text_of(*record, "precision"));
    };
    std::stable_sort(engines.begin(), engines.end(),
                     [&](const Json* a, const Json* b) { return rank(a) < rank(b); });
    const auto refuse = [&]() -> Running {
      fail(TFANET_MISSING_DEPENDENCY, "the bundle holds no ", target,
           " engine: `tfanet engine --bundle ", bundle_.path, " --target ", target, "` builds one");
    };
    if (engines.empty() && consider(Kind::kEngine, target, target, refuse))
      return std::move(running_);
    for (const Json* record : engines) {
      if (consider(Kind::kEngine, target, text_of(*record, "name"),
                   [&] { return open_engine(*record); })) {
        return std::move(running_);
      }
    }
    choices += join(", ", target);
  }
  for (const Provider& provider : kProviders) {
    if (consider(provider.by_name_only ? Kind::kByNameOnly : Kind::kProvider, provider.backend,
                 provider.backend, [&] { return open_provider(provider); })) {
      return std::move(running_);
    }
    choices += join(", ", provider.backend);
  }
  for (const Json& record : bundle_.manifest.engines) {
    names +=
        join(names.empty() ? ", or an engine of this bundle: " : ", ", text_of(record, "name"));
  }
  fail(TFANET_INVALID_ARGUMENT, "backend is ", repr(std::string_view(backend)), ": choose auto",
       choices, names);
}

Running Opener::open_engine(const Json& record) const {
  Running running;
  running.backend = text_of(record, "target");
  const std::string name = text_of(record, "name");
  running.engine = visible(name);
  running.device = std::make_shared<const Device>(options_.device);
  const auto library = std::make_shared<const EngineLibrary>(running.backend, options_.tensorrt);
  running.version = library->version();
  check_record(record, *running.device, running.version);
  if (text_of(record, "plugin") == "library") {
    library->load_plugins(find_plugin_library(options_.plugin_library));
  }
  EngineChoice choice{library, running.device, name, false};
  choice.host_code = options_.host_code != nullptr && options_.host_code == name;
  const auto load = [&](const char* graph) {
    const FileBytes plan = read_engine(bundle_, record["files"][graph].get<std::string>());
    return std::make_unique<const EngineSession>(choice, plan, join(bundle_.path, "/", graph));
  };
  running.text = load(kText);
  auto image = load(kImage);
  running.batches = image->batches();
  running.image = std::move(image);
  return running;
}

Running Opener::open_provider(const Provider& provider) {
  if (onnxruntime_ == nullptr) {
    onnxruntime_ = std::make_shared<const OnnxRuntime>(options_.onnxruntime);
  }
  Running running;
  running.backend = provider.backend;
  running.version = onnxruntime_->version();
  if (provider.name != nullptr) {
    onnxruntime_->require_provider(provider.name);
    running.device = std::make_shared<const Device>(options_.device);
  }
  if (!op_library_.empty()) note_operators(onnxruntime_, op_library_);
  const OnnxChoice choice{provider.name, running.device, op_library_, options_.threads, false};
  const auto in_floats = [](const FileBytes& file) {
    return needs_floats(file.data.get(), file.size);
  };
  const bool text_in_floats = in_floats(bundle_.text), image_in_floats = in_floats(bundle_.image);
  const auto load = [&](const FileBytes& file, bool as_floats) {
    OnnxChoice its_own = choice;
    its_own.as_floats = as_floats;
    return std::make_unique<const OnnxSession>(onnxruntime_, file, its_own);
  };
  // On the CPU one graph is made beside the other; what is wrong with the text's is reported first.
  const auto when =
      provider.name != nullptr ? std::launch::deferred : std::launch::async | std::launch::deferred;
  auto text = std::async(when, load, std::cref(bundle_.text), text_in_floats);
  try {
    running.image = load(bundle_.image, image_in_floats);
  } catch (...) {
    text.get();
    throw;
  }
  running.text = text.get();
  running.batches = {1, bundle_.manifest.dynamic_batch ? kMaxBatch : 1};
  if (bundle_.manifest.precision == "int8") {
    running.int8 = text_in_floats || image_in_floats ? "floating point" : "integers";
  }
  return running;
}

}  // namespace

Running open_backend(const Bundle& bundle, const tfanet_options& options,
                     const std::string& op_library) {
  if (options.threads < 0) {
    fail(TFANET_INVALID_ARGUMENT, "threads is ", options.threads,
         ": give 1 or more, or 0 for all cores");
  }
  if (options.threads > kMaxThreads) {
    fail(TFANET_INVALID_ARGUMENT, "threads is ", options.threads, ", the limit is ",
         grouped(kMaxThreads), ": give the number of cores, or 0 for all of them");
  }
  return Opener(bundle, options, op_library)
      .open(options.backend != nullptr ? options.backend : "auto");
}

}  // namespace tfanet
