#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "host_device.h"

// Vectors of the compiler's own, which it maps to whatever registers the processor has: no
// instruction set is named, and in a function marked DCN_TARGET_CLONES each clone uses its own.

namespace dcn_projects {

// N values of T, 64 bytes unless said otherwise. + - * act by element, also with a T.
template <typename T, int N = 64 / static_cast<int>(sizeof(T))>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T, int N = 64 / static_cast<int>(sizeof(T))>
using vector_t = typename Vector<T, N>::type;

template <typename V, typename T>
DCN_HOST_DEVICE V load_vector(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename T>
DCN_HOST_DEVICE void store_vector(T* to, V v) {
  std::memcpy(to, &v, sizeof(V));
}

// The sum of the elements.
template <typename T>
DCN_HOST_DEVICE T sum(vector_t<T> v) {
  constexpr int kHalf = 32 / sizeof(T);
  vector_t<T, kHalf> half[2];
  std::memcpy(half, &v, sizeof(v));
  half[0] += half[1];
  vector_t<T, kHalf / 2> quarter[2];
  std::memcpy(quarter, half, sizeof(half[0]));
  quarter[0] += quarter[1];
  T total = 0;
  for (int i = 0; i < kHalf / 2; ++i) total += quarter[0][i];
  return total;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DCN_HAS_SHUFFLE
#endif
#endif

// to[j * to_stride + i] = from[i * from_stride + j] for an 8 x 8 square.
template <typename S, typename T>
DCN_HOST_DEVICE void transpose_square(const S* from, int64_t from_stride, T* to,
                                      int64_t to_stride) {
#ifdef DCN_HAS_SHUFFLE
  using Wide = std::conditional_t<(sizeof(S) > sizeof(T)), S, T>;  // float, where one is 16-bit
  vector_t<Wide, 8> row[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    Wide values[8];
    for (int j = 0; j < 8; ++j) values[j] = static_cast<Wide>(from[i * from_stride + j]);
    row[i] = load_vector<vector_t<Wide, 8>>(values);
  }
  // Swap the two squares off the diagonal, of 4 x 4, then of 2 x 2 in each, then the elements.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto a = row[i], b = row[i + 4];
    row[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    row[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const int i = k / 2 * 4 + k % 2;
    const auto a = row[i], b = row[i + 2];
    row[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    row[i + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    const auto a = row[i], b = row[i + 1];
    row[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    row[i + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    if constexpr (std::is_same_v<Wide, T>) {
      store_vector(to + j * to_stride, row[j]);
    } else {
      for (int i = 0; i < 8; ++i) to[j * to_stride + i] = static_cast<T>(row[j][i]);
    }
  }
#else
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 8; ++i) to[j * to_stride + i] = static_cast<T>(from[i * from_stride + j]);
  }
#endif
}

}  // namespace dcn_projects
