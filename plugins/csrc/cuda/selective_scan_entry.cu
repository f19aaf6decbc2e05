// One kernel for one kind of call, compiled by NVRTC to PTX or to machine code: the element types,
// N and the optional operands are macros. Parameters are the tensors that are there, then the
// sizes, then y: the order of TensorRT's ahead-of-time plugins, which pass inputs, scalars and
// outputs.
#include "selective_scan.cuh"

#if !defined(TFANET_IO) || !defined(TFANET_STATES) || !defined(TFANET_NARROW_WEIGHTS) ||   \
    !defined(TFANET_HAS_D) || !defined(TFANET_HAS_DELTA_BIAS) || !defined(TFANET_HAS_Z) || \
    !defined(TFANET_SOFTPLUS)
#error "define TFANET_IO, _STATES, _NARROW_WEIGHTS, _HAS_D, _HAS_DELTA_BIAS, _HAS_Z and _SOFTPLUS"
#endif

extern "C" __global__ void __launch_bounds__(tfanet::kMaxScanLanes,
                                             tfanet::scan_blocks(TFANET_STATES, TFANET_HAS_Z))
    tfanet_selective_scan(const TFANET_IO* u, const TFANET_IO* delta, const void* A,
                          const TFANET_IO* B, const TFANET_IO* C,
#if TFANET_HAS_D
                          const void* D,
#endif
#if TFANET_HAS_DELTA_BIAS
                          const void* delta_bias,
#endif
#if TFANET_HAS_Z
                          const TFANET_IO* z,
#endif
                          int batch, int dim, int length, int groups, TFANET_IO* y) {
  tfanet::ScanOperands<TFANET_IO> operands{};
  operands.u = u;
  operands.delta = delta;
  operands.A = A;
  operands.B = B;
  operands.C = C;
#if TFANET_HAS_D
  operands.D = D;
#endif
#if TFANET_HAS_DELTA_BIAS
  operands.delta_bias = delta_bias;
#endif
#if TFANET_HAS_Z
  operands.z = z;
#endif
  operands.y = y;
  operands.batch = batch;
  operands.dim = dim;
  operands.length = length;
  operands.groups = groups;
  operands.states = TFANET_STATES;
  operands.narrow_weights = TFANET_NARROW_WEIGHTS;
  operands.softplus = TFANET_SOFTPLUS;
  tfanet::selective_scan<TFANET_IO, TFANET_STATES, TFANET_HAS_Z != 0>(operands);
}
