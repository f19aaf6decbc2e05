// Runs the kernel on numbers from standard input, for machines on which there is no Python:
// y of both scans, one after the other, of float32 operands in the order of the structures.
//   run_scan batch dim length state groups   height width rank < u delta A B C D u x_proj ...
// The 2-D scan has maps of `dim` channels, and the same batch and state.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "selective_scan.h"
#include "ss2d.h"

namespace {

std::vector<float> read(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  if (std::fread(values.data(), sizeof(float), values.size(), stdin) != values.size()) std::exit(2);
  return values;
}

void require(const char* wrong) {
  if (wrong == nullptr) return;
  std::fprintf(stderr, "%s\n", wrong);
  std::exit(1);
}

void write(const std::vector<float>& y) { std::fwrite(y.data(), sizeof(float), y.size(), stdout); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  std::int64_t n[8];
  for (int i = 0; i < 8; ++i) n[i] = std::atoll(argv[i + 1]);
  const std::int64_t batch = n[0], dim = n[1], length = n[2], state = n[3], groups = n[4];
  const std::int64_t height = n[5], width = n[6], rank = n[7];

  tfanet::ScanArgs scan{};
  scan.batch = batch, scan.dim = dim, scan.length = length;
  scan.state = state, scan.groups = groups, scan.delta_softplus = 1;
  const auto u = read(batch * dim * length), delta = read(batch * dim * length);
  const auto A = read(dim * state), B = read(batch * groups * state * length);
  const auto C = read(batch * groups * state * length), D = read(dim);
  std::vector<float> y(u.size());
  scan.u = u.data(), scan.delta = delta.data(), scan.A = A.data(), scan.B = B.data();
  scan.C = C.data(), scan.D = D.data(), scan.y = y.data();
  tfanet::set_contiguous(scan);
  require(tfanet::check(scan));
  tfanet::run_forward(scan, 0, tfanet::forward_units(scan));
  write(y);

  tfanet::SS2DArgs ss2d{};
  ss2d.batch = batch, ss2d.channels = dim, ss2d.state = state;
  ss2d.height = height, ss2d.width = width, ss2d.rank = rank;
  const auto map = read(batch * dim * height * width), x_proj = read(4 * (rank + 2 * state) * dim);
  const auto dt_weight = read(4 * dim * rank), dt_bias = read(4 * dim);
  const auto decay = read(4 * dim * state), skip = read(4 * dim);
  std::vector<float> merged(map.size());
  ss2d.u = map.data(), ss2d.x_proj_weight = x_proj.data(), ss2d.dt_weight = dt_weight.data();
  ss2d.dt_bias = dt_bias.data(), ss2d.A = decay.data(), ss2d.D = skip.data();
  ss2d.y = merged.data();
  require(tfanet::check(ss2d));
  ss2d.workspace = std::aligned_alloc(
      64, static_cast<std::size_t>((tfanet::ss2d_workspace(ss2d, 1) + 63) / 64 * 64));
  for (const auto phase : {tfanet::kProject, tfanet::kScan}) {
    for (std::int64_t unit = 0; unit < tfanet::ss2d_units(ss2d, phase); ++unit) {
      tfanet::run_ss2d(ss2d, phase, unit, 0);
    }
  }
  write(merged);
  std::free(ss2d.workspace);
}
