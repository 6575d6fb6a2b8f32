#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

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

// 16-bit values are loaded as floats and stored from floats, rounded to nearest, ties to even.
template <typename V>
DCN_HOST_DEVICE V load_vector(const at::BFloat16* from) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  const auto bits = __builtin_convertvector(
      load_vector<vector_t<uint16_t, kLanes>>(reinterpret_cast<const uint16_t*>(from)),
      vector_t<uint32_t, kLanes>);
  return reinterpret_cast<V>(bits << 16);  // a bfloat16 is the upper half of a float
}

template <typename V>
DCN_HOST_DEVICE void store_vector(at::BFloat16* to, V v) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  using Bits = vector_t<uint32_t, kLanes>;
  Bits bits = reinterpret_cast<Bits>(v);
  bits += 0x7fff + (bits >> 16 & 1);
  bits = v == v ? bits : 0x7fc00000 + Bits{};
  store_vector(reinterpret_cast<uint16_t*>(to),
               __builtin_convertvector(bits >> 16, vector_t<uint16_t, kLanes>));
}

// A half has 5 bits of exponent with bias 15 and 10 of fraction, a float 8 with bias 127 and 23.
template <typename V>
DCN_HOST_DEVICE V load_vector(const at::Half* from) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  using Bits = vector_t<uint32_t, kLanes>;
  const Bits half = __builtin_convertvector(
      load_vector<vector_t<uint16_t, kLanes>>(reinterpret_cast<const uint16_t*>(from)), Bits);
  // Scaling by the difference of the biases also makes subnormal numbers right.
  const Bits finite = reinterpret_cast<Bits>(reinterpret_cast<V>((half & 0x7fff) << 13) * 0x1p112f);
  const Bits special = 0x7f800000 | (half & 0x3ff) << 13;
  return reinterpret_cast<V>(((half & 0x7c00) == 0x7c00 ? special : finite) | (half & 0x8000)
                                                                                  << 16);
}

template <typename V>
DCN_HOST_DEVICE void store_vector(at::Half* to, V v) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  using Bits = vector_t<uint32_t, kLanes>;
  const Bits sign = reinterpret_cast<Bits>(v) >> 16 & 0x8000;
  const Bits bits = reinterpret_cast<Bits>(v) & 0x7fffffff;
  const Bits normal = (bits - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
  // Below 2^-14 the addition rounds at the last bit that a subnormal half has.
  const Bits subnormal = reinterpret_cast<Bits>(reinterpret_cast<V>(bits) + 0.5f) - (126 << 23);
  const Bits infinite = (bits > 0x7f800000 ? Bits{} + 0x7e00 : Bits{} + 0x7c00);
  const Bits half = bits >= (143 << 23) ? infinite : (bits < (113 << 23) ? subnormal : normal);
  store_vector(reinterpret_cast<uint16_t*>(to),
               __builtin_convertvector(half | sign, vector_t<uint16_t, kLanes>));
}

// The type in which values go from S to T: float, where one is 16-bit.
template <typename S, typename T>
using wider_t = std::conditional_t<(sizeof(S) > sizeof(T)), S, T>;

#if defined(__has_builtin) && !defined(DCN_PLAIN)
#if __has_builtin(__builtin_shufflevector)
#define DCN_HAS_SHUFFLE
#endif
#endif

// to[k] = the sum of the elements of v[k].
template <typename T>
DCN_HOST_DEVICE void sum_each(const vector_t<T> (&v)[4], T* to) {
  constexpr int kHalf = 32 / sizeof(T);
  vector_t<T, kHalf / 2> quarter[4];
  for (int k = 0; k < 4; ++k) {
    vector_t<T, kHalf> half[2];
    std::memcpy(half, &v[k], sizeof(v[k]));
    half[0] += half[1];
    vector_t<T, kHalf / 2> quarters[2];
    std::memcpy(quarters, half, sizeof(half[0]));
    quarter[k] = quarters[0] + quarters[1];
  }
#ifdef DCN_HAS_SHUFFLE
  if constexpr (kHalf == 8) {
    const auto pairs = [](auto a, auto b) {
      return __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
    };
    const auto low = pairs(quarter[0], quarter[1]), high = pairs(quarter[2], quarter[3]);
    store_vector(to, __builtin_shufflevector(low, high, 0, 1, 4, 5) +
                         __builtin_shufflevector(low, high, 2, 3, 6, 7));
    return;
  }
#endif
  for (int k = 0; k < 4; ++k) {
    to[k] = 0;
    for (int i = 0; i < kHalf / 2; ++i) to[k] += quarter[k][i];
  }
}

// to[j * to_stride + i] = from[i * from_stride + j] for an 8 x 8 square.
template <typename S, typename T>
DCN_HOST_DEVICE void transpose_square(const S* from, int64_t from_stride, T* to,
                                      int64_t to_stride) {
#ifdef DCN_HAS_SHUFFLE
  using V = vector_t<wider_t<S, T>, 8>;
  V row[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = load_vector<V>(from + i * from_stride);
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
  for (int j = 0; j < 8; ++j) store_vector(to + j * to_stride, row[j]);
#else
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 8; ++i) to[j * to_stride + i] = static_cast<T>(from[i * from_stride + j]);
  }
#endif
}

}  // namespace dcn_projects
