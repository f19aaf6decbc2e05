// libtfanet_ort.so in a process with two ONNX Runtimes, each of which is a table of a few functions
// that end the program where they meet what belongs to the other.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      std::printf("line %d: %s does not hold\n", __LINE__, #condition); \
      std::exit(1);                                                     \
    }                                                                   \
  } while (false)

namespace {

// Every object of a runtime is its number.
template <class Object>
Object* object(int runtime) {
  static int numbers[] = {0, 1};
  return reinterpret_cast<Object*>(&numbers[runtime]);
}

template <class Object>
bool is_of(const Object* found, int runtime) {
  return found == object<Object>(runtime);
}

std::vector<const OrtCustomOp*> operators[2];
int registered[2], inferred[2];

template <int kRuntime>
struct Fake {
  static const OrtApi* api() {
    static OrtApi api{};
    api.CreateStatus = [](OrtErrorCode, const char*) noexcept {
      return object<OrtStatus>(kRuntime);
    };
    api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** made) noexcept -> OrtStatus* {
      *made = object<OrtCustomOpDomain>(kRuntime);
      return nullptr;
    };
    api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain,
                                const OrtCustomOp* op) noexcept -> OrtStatus* {
      CHECK(is_of(domain, kRuntime));
      operators[kRuntime].push_back(op);
      return nullptr;
    };
    api.HasSessionConfigEntry = [](const OrtSessionOptions* options, const char*,
                                   int* found) noexcept -> OrtStatus* {
      CHECK(is_of(options, kRuntime));
      *found = 0;
      return nullptr;
    };
    api.AddSessionConfigEntry = [](OrtSessionOptions* options, const char*,
                                   const char*) noexcept -> OrtStatus* {
      CHECK(is_of(options, kRuntime));
      return nullptr;
    };
    api.AddCustomOpDomain = [](OrtSessionOptions* options,
                               OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
      CHECK(is_of(options, kRuntime) && is_of(domain, kRuntime));
      ++registered[kRuntime];
      return nullptr;
    };
    api.ShapeInferContext_GetInputTypeShape =
        [](const OrtShapeInferContext* context, size_t,
           OrtTensorTypeAndShapeInfo** info) noexcept -> OrtStatus* {
      CHECK(is_of(context, kRuntime));
      *info = object<OrtTensorTypeAndShapeInfo>(kRuntime);
      return nullptr;
    };
    api.ShapeInferContext_SetOutputTypeShape =
        [](const OrtShapeInferContext* context, size_t,
           const OrtTensorTypeAndShapeInfo* info) noexcept -> OrtStatus* {
      CHECK(is_of(context, kRuntime) && is_of(info, kRuntime));
      ++inferred[kRuntime];
      return nullptr;
    };
    api.KernelContext_GetInputCount = [](const OrtKernelContext* context,
                                         size_t* count) noexcept -> OrtStatus* {
      CHECK(is_of(context, kRuntime));
      *count = 0;  // too few: the status that says so is this runtime's
      return nullptr;
    };
    api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char*,
                                          int64_t* value) noexcept -> OrtStatus* {
      CHECK(is_of(info, kRuntime));
      *value = 1;
      return nullptr;
    };
    return &api;
  }

  static const OrtApiBase* base() {
    static const OrtApiBase base{[](uint32_t) noexcept { return api(); },
                                 []() noexcept { return "two"; }};
    return &base;
  }

  static void use() {
    CHECK(!operators[kRuntime].empty());
    const int before = inferred[kRuntime];
    for (const OrtCustomOp* op : operators[kRuntime]) {
      CHECK(op->InferOutputShapeFn(op, object<OrtShapeInferContext>(kRuntime)) == nullptr);
      void* kernel = nullptr;
      CHECK(op->CreateKernelV2(op, api(), object<OrtKernelInfo>(kRuntime), &kernel) == nullptr);
      CHECK(is_of(op->KernelComputeV2(kernel, object<OrtKernelContext>(kRuntime)), kRuntime));
      op->KernelDestroy(kernel);
    }
    CHECK(inferred[kRuntime] - before == static_cast<int>(operators[kRuntime].size()));
  }
};

}  // namespace

int main(int, char** arguments) {
  void* library = ::dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  CHECK(library != nullptr);
  using Register = OrtStatus* (*)(OrtSessionOptions*, const OrtApiBase*);
  const auto add = reinterpret_cast<Register>(::dlsym(library, "RegisterCustomOps"));
  for (int round = 0; round < 3; ++round) {
    CHECK(add(object<OrtSessionOptions>(0), Fake<0>::base()) == nullptr);
    Fake<0>::use();
    CHECK(add(object<OrtSessionOptions>(1), Fake<1>::base()) == nullptr);
    Fake<1>::use();
    Fake<0>::use();
  }
  CHECK(registered[0] == 3 && registered[1] == 3);
  CHECK(operators[0].size() == operators[1].size());  // made once
  ::dlclose(library);
  Fake<0>::use();  // it stays loaded: operators live as long as the process
  Fake<1>::use();
  std::printf("each met its own\n");
}
