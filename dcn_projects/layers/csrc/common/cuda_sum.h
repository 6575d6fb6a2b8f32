#pragma once

// Sums that many threads add to: the gradient of a map that is read anywhere.
//
// FloatSum adds floating-point numbers. That is fast, but the result depends on the order, which
// differs from run to run. FixedSum, for torch.use_deterministic_algorithms(True), adds integers of
// 64 bits, which come to the same in any order. They count a quantum, the power of two that keeps
// every sum below 2^62: where at most n terms, none above m, meet in a sum, the quantum is between
// 2^-62 and 2^-61 of n * m. Each term is off by half a quantum at most. With n = 2^20, more than a
// convolution of 3 x 3 has on 300 x 300 pixels, that is 2^-42 of m. A sum of float32 is off by
// 2^-24 of itself or more, which is the larger error unless the sum is below 2^-18 of m. In
// float64, too, this is the precision, about that of 40 bits.
//
// m is found on the device. If it is not finite, a gradient, weight or mask being Inf or NaN, all
// of the result is NaN: integers cannot carry such a value to the place where it belongs.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "cuda_launch.h"

namespace dcn_projects {

template <typename T>
struct FloatSum {
  T* sums;

  // Adds V terms to the sums from `at` on.
  template <int V>
  __device__ __forceinline__ void add(int64_t at, const T (&terms)[V]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr bool kAtOnce = V == 4 && sizeof(T) == sizeof(float);
#else
    constexpr bool kAtOnce = false;
#endif
    if constexpr (kAtOnce) {
      atomicAdd(reinterpret_cast<float4*>(sums + at),
                make_float4(terms[0], terms[1], terms[2], terms[3]));
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) atomicAdd(sums + at + v, terms[v]);
    }
  }
};

// Two powers of two, each the inverse of the other, or NaN where nothing can be summed.
struct Quantum {
  double per_one, size;
};

template <typename T>
struct FixedSum {
  unsigned long long* sums;
  const Quantum* quantum;

  template <int V>
  __device__ __forceinline__ void add(int64_t at, const T (&terms)[V]) const {
    const double per_one = __ldg(&quantum->per_one);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const long long count = __double2ll_rn(static_cast<double>(terms[v]) * per_one);
      atomicAdd(sums + at + v, static_cast<unsigned long long>(count));
    }
  }
};

// `static`: each source that includes this file has its own.
static __global__ void choose_quantum_kernel(const double* largest_term, double terms,
                                             Quantum* quantum) {
  const double bound = *largest_term * terms;
  const bool finite = bound < std::numeric_limits<double>::infinity();
  // The least keeps both powers within the range of float64.
  const int exponent = finite && bound > 1e-200 ? std::ilogb(bound) + 1 : -700;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  quantum->per_one = finite ? std::ldexp(1.0, 62 - exponent) : nan;
  quantum->size = finite ? std::ldexp(1.0, exponent - 62) : nan;
}

template <typename T>
__global__ void settle_kernel(const unsigned long long* sums, int64_t count, const Quantum* quantum,
                              T* result) {
  const double size = quantum->size;
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    result[i] = static_cast<T>(static_cast<double>(static_cast<long long>(sums[i])) * size);
  }
}

// Calls run(sum), which launches kernels that add to `sum`, a FloatSum or FixedSum, and returns the
// result, of type T. `terms` is how many at most meet in a sum; largest_term() gives their largest
// absolute value (or more), one float64 on the device.
template <typename T, typename Bound, typename Run>
at::Tensor sum_up(at::IntArrayRef shape, const at::TensorOptions& options, int64_t terms,
                  Bound largest_term, Run run) {
  if (terms == 0 || !at::globalContext().deterministicAlgorithms()) {
    const at::Tensor result = at::zeros(shape, options);
    run(FloatSum<T>{result.mutable_data_ptr<T>()});
    return result;
  }
  const at::Tensor largest = largest_term(), quantum = at::empty({2}, largest.options());
  const at::Tensor sums = at::zeros(shape, options.dtype(at::kLong));
  Quantum* const quantum_at = static_cast<Quantum*>(quantum.mutable_data_ptr());
  auto* const sums_at = static_cast<unsigned long long*>(sums.mutable_data_ptr());
  launch(choose_quantum_kernel, 1, largest.const_data_ptr<double>(), static_cast<double>(terms),
         quantum_at);
  run(FixedSum<T>{sums_at, quantum_at});
  const at::Tensor result = at::empty(shape, options);
  launch(settle_kernel<T>, result.numel(), sums_at, result.numel(), quantum_at,
         result.mutable_data_ptr<T>());
  return result;
}

}  // namespace dcn_projects
