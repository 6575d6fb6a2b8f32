#pragma once

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <cstdint>
#include <type_traits>

// The matrix product of the CPU kernels. The only place that knows which library multiplies.

namespace dcn_projects {

template <typename T>
struct Matrix {
  T* data;
  int64_t stride;  // from row to row; a row is contiguous
};

template <typename T>
at::Tensor as_tensor(int64_t rows, int64_t cols, Matrix<T> matrix) {
  using Value = std::remove_const_t<T>;
  return at::from_blob(const_cast<Value*>(matrix.data), {rows, cols}, {matrix.stride, 1},
                       at::TensorOptions().dtype(c10::CppTypeToScalarType<Value>::value));
}

// c (m x n) = a (m x k) b (k x n), or c += a b. Called by one thread of several, each with matrices
// of its own. Fast with a narrow b, up to 64 columns, whose rows lie side by side.
template <typename T>
void tile_gemm(int64_t m, int64_t n, int64_t k, Matrix<const T> a, Matrix<const T> b, Matrix<T> c,
               bool accumulate) {
  at::AutoDispatchBelowADInplaceOrView guard;  // this thread has not the caller's grad mode
  at::Tensor result = as_tensor(m, n, c);
  if (accumulate) {
    at::addmm_out(result, result, as_tensor(m, k, a), as_tensor(k, n, b));
  } else {
    at::mm_out(result, as_tensor(m, k, a), as_tensor(k, n, b));
  }
}

#if defined(CPUBLAS_BRGEMM_F32F32F32) && !defined(DCN_PLAIN)
// Compiled for each size when it is first met. It reaches the rate of PyTorch's convolutions, which
// the product of whole tensors does not on every processor.
inline void tile_gemm(int64_t m, int64_t n, int64_t k, Matrix<const float> a, Matrix<const float> b,
                      Matrix<float> c, bool accumulate) {
  at::native::cpublas::brgemm(m, n, k, a.stride, b.stride, c.stride, accumulate, a.data, b.data,
                              c.data, /*is_vnni=*/false);
}
inline void tile_gemm_done() { at::native::cpublas::brgemm_release(/*is_vnni=*/false); }
#else
inline void tile_gemm_done() {}
#endif

// Whether the processor multiplies bfloat16 faster than float32. Only products whose result may be
// rounded to bfloat16 can profit, and they take at::mm: the blocked product wants AMX.
inline bool has_bfloat16_product() {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && \
    !defined(DCN_PLAIN)
  return __builtin_cpu_supports("avx512bf16") && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

}  // namespace dcn_projects
