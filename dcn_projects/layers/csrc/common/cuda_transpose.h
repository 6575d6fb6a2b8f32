#pragma once

// Turns maps between (C, H * W) and (H * W, C). What an operator needs to turn goes into one
// launch: for small maps a launch takes longer than the work.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "cuda_launch.h"
#include "host_device.h"

namespace dcn_projects {

constexpr int kTile = 32, kMostTransposes = 3;

// (batch, rows, cols) -> (batch, cols, rows)
template <typename From, typename To>
struct Transpose {
  const From* from;
  To* to;
  int64_t batch, rows, cols;

  DCN_HOST_DEVICE int64_t row_tiles() const { return (rows + kTile - 1) / kTile; }
  DCN_HOST_DEVICE int64_t col_tiles() const { return (cols + kTile - 1) / kTile; }
  DCN_HOST_DEVICE int64_t tiles() const { return batch * row_tiles() * col_tiles(); }
};

template <typename From, typename To>
struct TransposeList {
  Transpose<From, To> jobs[kMostTransposes];
  int count;
  int64_t tiles;
};

// A block moves a tile at a time through shared memory, so that it reads and writes along rows.
template <typename From, typename To>
__global__ void transpose_kernel(TransposeList<From, To> list) {
  __shared__ To tile[kTile][kTile + 1];
  const int lane = threadIdx.x % kTile, start = threadIdx.x / kTile;
  constexpr int kStep = kThreadsPerBlock / kTile;
  for (int64_t i = blockIdx.x; i < list.tiles; i += gridDim.x) {
    int64_t place = i;
    Transpose<From, To> job = list.jobs[0];
#pragma unroll
    for (int k = 1; k < kMostTransposes; ++k) {
      // Static indices keep the list out of local memory.
      if (k < list.count && place >= job.tiles()) {
        place -= job.tiles();
        job = list.jobs[k];
      }
    }
    const int64_t col = place % job.col_tiles() * kTile;
    const int64_t row = place / job.col_tiles() % job.row_tiles() * kTile;
    const int64_t matrix = place / job.col_tiles() / job.row_tiles() * job.rows * job.cols;
    for (int r = start; r < kTile; r += kStep) {
      if (row + r < job.rows && col + lane < job.cols) {
        tile[r][lane] = static_cast<To>(job.from[matrix + (row + r) * job.cols + col + lane]);
      }
    }
    __syncthreads();
    for (int c = start; c < kTile; c += kStep) {
      if (col + c < job.cols && row + lane < job.rows) {
        job.to[matrix + (col + c) * job.rows + row + lane] = tile[lane][c];
      }
    }
    __syncthreads();
  }
}

// Collects transposes, which happen when it runs.
template <typename From, typename To = From>
class Transposes {
 public:
  // (batch, rows, cols) -> (batch, cols, rows), both contiguous.
  void add(const at::Tensor& from, const at::Tensor& to, int64_t batch, int64_t rows,
           int64_t cols) {
    const Transpose<From, To> job{from.const_data_ptr<From>(), to.mutable_data_ptr<To>(), batch,
                                  rows, cols};
    if (job.tiles() == 0) return;
    TORCH_INTERNAL_ASSERT(list_.count < kMostTransposes);
    list_.jobs[list_.count++] = job;
    list_.tiles += job.tiles();
    alive_.push_back(from);
  }

  // (N, H, W, C) of a map (N, C, H, W): the map itself if it lies so in memory, at an address that
  // vectors can have, else a copy that is there after run().
  at::Tensor channels_last(const at::Tensor& map) {
    const at::Tensor view = map.permute({0, 2, 3, 1});
    if (view.is_contiguous()) {
      return reinterpret_cast<uintptr_t>(view.const_data_ptr()) % 16 == 0 ? view : view.clone();
    }
    const at::Tensor copy = at::empty(view.sizes(), view.options());
    add(map.contiguous(), copy, map.size(0), map.size(1), map.size(2) * map.size(3));
    return copy;
  }

  void run() {
    launch(transpose_kernel<From, To>, list_.tiles * kThreadsPerBlock, list_);
    list_ = {};
    alive_.clear();
  }

 private:
  TransposeList<From, To> list_{};
  std::vector<at::Tensor> alive_;
};

}  // namespace dcn_projects
