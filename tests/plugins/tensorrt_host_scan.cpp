// launch_selective_scan on the processor, for conformance tests where there is no GPU: the plugin
// is linked with this in place of the kernel, and its tensors are in ordinary memory. The
// arithmetic is double and one step after the other.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "selective_scan_cuda.h"

namespace {

using tfanet::ScanType;

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

double load(const void* data, long long i, ScanType type) {
  if (type == ScanType::kFloat32) return static_cast<const float*>(data)[i];
  const std::uint32_t bits = static_cast<const std::uint16_t*>(data)[i];
  if (type == ScanType::kBFloat16) return from_bits(bits << 16);
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

// To nearest, ties to even; the values of the tests are far from overflow.
std::uint16_t narrow(double value, ScanType type) {
  if (type == ScanType::kBFloat16) {
    const float single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  const double magnitude = std::fabs(value);
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const int exponent = magnitude < std::ldexp(1, -14) ? -14 : std::ilogb(magnitude);
  const double units = std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // of the last place
  return static_cast<std::uint16_t>(sign + ((exponent + 14) << 10) + static_cast<int>(units));
}

void store(void* data, long long i, ScanType type, double value) {
  if (type == ScanType::kFloat32) {
    static_cast<float*>(data)[i] = static_cast<float>(value);
  } else {
    static_cast<std::uint16_t*>(data)[i] = narrow(value, type);
  }
}

void run_row(const tfanet::ScanCall& call, long long b, long long c) {
  const long long group = c / (call.dim / call.groups), row = b * call.dim + c;
  std::vector<double> h(call.states);
  const double bias = call.delta_bias == nullptr ? 0 : load(call.delta_bias, c, call.weight);
  for (long long t = 0; t < call.length; ++t) {
    const long long at = row * call.length + t;
    double delta = load(call.delta, at, call.io) + bias;
    if (call.softplus) delta = delta > 20 ? delta : std::log1p(std::exp(delta));
    const double u = load(call.u, at, call.io);
    double y = 0;
    for (long long n = 0; n < call.states; ++n) {
      const long long shared = ((b * call.groups + group) * call.states + n) * call.length + t;
      h[n] = std::exp(delta * load(call.A, c * call.states + n, call.weight)) * h[n] +
             delta * load(call.B, shared, call.io) * u;
      y += load(call.C, shared, call.io) * h[n];
    }
    if (call.D != nullptr) y += load(call.D, c, call.weight) * u;
    if (call.z != nullptr) {
      const double z = load(call.z, at, call.io);
      y *= z / (1 + std::exp(-z));
    }
    store(call.y, at, call.io, y);
  }
}

}  // namespace

const char* tfanet::launch_selective_scan(const ScanCall& call, cudaStream_t stream) noexcept {
  if (stream != nullptr) return "the processor has no streams";
  for (long long b = 0; b < call.batch; ++b) {
    for (long long c = 0; c < call.dim; ++c) run_row(call, b, c);
  }
  return nullptr;
}
