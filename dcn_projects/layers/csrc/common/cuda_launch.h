#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

namespace dcn_projects {

constexpr int kThreadsPerBlock = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

// Starts `kernel` with at least one thread for each of `threads` units of work, or as many as are
// sensible: kernels walk their work with grid_index() and grid_stride(). The caller holds the
// device guard. No work, no launch (a grid of zero blocks is an error).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), int64_t threads, const Args&... args) {
  if (threads == 0) return;
  const int64_t blocks = std::min((threads + kThreadsPerBlock - 1) / kThreadsPerBlock, kMaxBlocks);
  kernel<<<static_cast<unsigned>(blocks), kThreadsPerBlock, 0, c10::cuda::getCurrentCUDAStream()>>>(
      args...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// 64-bit, since a map can hold more than 2^31 elements.
__device__ __forceinline__ int64_t grid_index() {
  return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}

__device__ __forceinline__ int64_t grid_stride() {
  return gridDim.x * static_cast<int64_t>(blockDim.x);
}

}  // namespace dcn_projects
