// How many threads run the scan: shared by the kernel and the C++ libraries, and proved equal to
// tfanet.plugins.kernels.geometry.scan_geometry by a test. Needs no header.
#ifndef TFANET_SCAN_LAUNCH_H
#define TFANET_SCAN_LAUNCH_H

#ifdef __CUDACC__
#define TFANET_HOST_DEVICE __host__ __device__
#else
#define TFANET_HOST_DEVICE
#endif

namespace tfanet {

constexpr int kMaxScanStates = 64;    // kMaxStatesCuda of ../operands.h
constexpr int kMaxScanLanes = 256;    // threads along time, and threads of a block
constexpr int kMaxScanRows = 8;       // rows of a block
constexpr int kScanThreads = 131072;  // wanted at a time: 31 warps on each of 132 multiprocessors
constexpr int kScanBlocks = 256;      // wanted at least, before a block takes more than one row

// Steps that one thread takes in a tile: one 16-byte access, or 8 where several states share what
// is loaded and the exchange between threads is paid for by more steps.
TFANET_HOST_DEVICE constexpr int scan_items(int element_bytes, int states) {
  return states == 1 ? 16 / element_bytes : 8;
}

// Blocks of kMaxScanLanes threads that a multiprocessor must hold, that is, 65536 / 256 / blocks
// registers for a thread. N = 1 is bound by memory and wants many loads under way.
TFANET_HOST_DEVICE constexpr int scan_blocks(int states, bool gate) {
  return states != 1 ? 2 : gate ? 3 : 4;
}

// The grid is (grid, 1, 1), a block (lanes, rows, 1); shared memory is static.
struct ScanLaunch {
  long long grid;
  int lanes, rows;
};

// `rows` is batch x dim. The results are right for every `lanes` that is a multiple of 32 and every
// `rows` of a block within the limits above; this is the choice that is fast. A row gets no more
// lanes than it has steps for, nor than are needed to fill the machine: fewer lanes take more
// tiles, and while one tile is computed the next one is on its way.
TFANET_HOST_DEVICE constexpr ScanLaunch scan_launch(long long rows, long long length,
                                                    int element_bytes, int states) {
  const int items = scan_items(element_bytes, states), vector = 16 / element_bytes;
  const long long steps = length + (length % vector != 0 ? vector - 1 : 0);
  int lanes = 32;
  while (lanes < kMaxScanLanes && lanes * rows < kScanThreads && lanes * items < steps) lanes *= 2;
  int block_rows = 1;
  while (block_rows < kMaxScanRows && 2 * block_rows * lanes <= kMaxScanLanes &&
         rows >= 2LL * block_rows * kScanBlocks) {
    block_rows *= 2;
  }
  return {(rows + block_rows - 1) / block_rows, lanes, block_rows};
}

}  // namespace tfanet

#endif
