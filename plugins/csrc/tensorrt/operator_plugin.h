// What the plugins of libtfanet_trt.so share: an operator of several inputs whose one output has
// the shape and the type of the first of them, as an IPluginV3. Tensors are linear. No function
// throws or aborts; what is wrong goes to TensorRT's logger.
#ifndef TFANET_OPERATOR_PLUGIN_H
#define TFANET_OPERATOR_PLUGIN_H

#include <NvInferRuntime.h>

#include <atomic>

#include "operand_sizes.h"
#include "selective_scan_cuda.h"

namespace tfanet {

constexpr const char* kVersion = "1";
constexpr const char* kNamespace = operands::kDomain;
constexpr int kFail = -1;

extern std::atomic<nvinfer1::ILoggerFinder*> logger_finder;

// "tfanet::<name>: <message>", one line to TensorRT's logger, or to stderr where TensorRT gave
// none. Returns kFail.
__attribute__((format(printf, 2, 3))) int fail_in(const char* name, const char* format,
                                                  ...) noexcept;

// Sets the type of the kernels for one of TensorRT, if there is one.
bool scan_type(nvinfer1::DataType type, ScanType& result) noexcept;

class OperatorPlugin : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  OperatorPlugin(const operands::Operator& table, SizesFit fit) : table_(table), fit_(fit) {}

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* clone() noexcept final;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept final { return table_.op_type; }
  const char* getPluginVersion() const noexcept final { return kVersion; }
  const char* getPluginNamespace() const noexcept final { return kNamespace; }

  // IPluginV3OneBuild
  std::int32_t getNbOutputs() const noexcept final { return 1; }
  std::int32_t getOutputDataTypes(nvinfer1::DataType* output_types, std::int32_t outputs,
                                  const nvinfer1::DataType* input_types,
                                  std::int32_t inputs) const noexcept final;
  // y has u's shape. Where another input knows a size that u leaves open, y takes it from there.
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs*, std::int32_t shape_inputs,
                               nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                               nvinfer1::IExprBuilder&) noexcept final;
  bool supportsFormatCombination(std::int32_t position,
                                 const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t inputs, std::int32_t outputs) noexcept final;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                               std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept final;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs,
                               std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) const noexcept final;

  // IPluginV3OneRuntime
  std::int32_t setTactic(std::int32_t tactic) noexcept final;
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs,
                             std::int32_t output_count) noexcept final;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs,
                       const nvinfer1::PluginTensorDesc* outputs, const void* const* input_data,
                       void* const* output_data, void* workspace,
                       cudaStream_t stream) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept final {
    return clone();
  }

 protected:
  // A new plugin of the same settings, or null.
  virtual OperatorPlugin* copy() const noexcept = 0;
  virtual int inputs() const noexcept = 0;
  virtual const operands::Operand& input(int i) const noexcept = 0;
  // Whether these are the numbers of inputs and outputs that the settings mean; says if not.
  virtual bool counts_fit(std::int32_t inputs, std::int32_t outputs) const noexcept = 0;
  // Which types fit, in words.
  virtual const char* types_that_fit() const noexcept = 0;
  // Bytes for a call of these sizes, all of them known.
  virtual std::size_t workspace_bytes(const OperandSizes&, ScanType) const noexcept { return 0; }
  // Enqueues a call that is checked and not empty; null or what is wrong.
  virtual const char* launch(const OperandSizes& sizes, const nvinfer1::PluginTensorDesc* inputs,
                             const void* const* input_data, void* y, void* workspace,
                             cudaStream_t stream) const noexcept = 0;

 private:
  // Whether input `i` may have its type, given those before it.
  bool type_fits(int i, const nvinfer1::DataType* types) const noexcept;
  // Reads the shapes of all inputs, -1 where a size is open.
  template <typename DimsOf>
  bool read(OperandSizes& sizes, DimsOf dims_of) const noexcept;
  // Reads the sizes of a call, all of them known, and compares y with u.
  bool read_call(OperandSizes& sizes, const nvinfer1::PluginTensorDesc* inputs,
                 const nvinfer1::PluginTensorDesc* outputs) const noexcept;

  const operands::Operator& table_;
  const SizesFit fit_;
};

// Each makes its plugin's creator, which lives as long as the process.
nvinfer1::IPluginCreatorInterface* selective_scan_creator();
nvinfer1::IPluginCreatorInterface* ss2d_creator();

}  // namespace tfanet

#endif
