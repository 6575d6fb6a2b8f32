#pragma once

#include <cstdint>

namespace dcn_projects {

// V neighbouring channels, which one instruction loads or stores.
template <typename S, int V>
struct alignas(sizeof(S) * V) Channels {
  S value[V];
};

template <int V, typename S>
__device__ __forceinline__ Channels<S, V> load(const S* from) {
  return *reinterpret_cast<const Channels<S, V>*>(from);
}

template <int V, typename S>
__device__ __forceinline__ void store(S* to, const Channels<S, V>& channels) {
  *reinterpret_cast<Channels<S, V>*>(to) = channels;
}

// Each lane of a warp gets `value` of lane `from`. All lanes take part, whatever they work on.
template <typename T>
__device__ __forceinline__ T from_lane(T value, int from) {
  return __shfl_sync(0xffffffff, value, from);
}

// The sum over `lanes` neighbouring lanes, a power of two; in the same order in every run.
template <typename T>
__device__ __forceinline__ T sum_over_lanes(T value, int lanes) {
  for (int s = lanes / 2; s > 0; s /= 2) value += __shfl_xor_sync(0xffffffff, value, s);
  return value;
}

constexpr int kWarpSize = 32;

// How many lanes of a warp share `vectors` units of work: the fewest that take one each, or all.
inline int lanes_for(int64_t vectors) {
  int lanes = 1;
  while (lanes < kWarpSize && lanes < vectors) lanes *= 2;
  return lanes;
}

}  // namespace dcn_projects
