#pragma once

#include <cstring>

#include "host_device.h"

namespace dcn_projects {

// Four neighbours on a row of a map, for the CPU: most bins are no wider, and so read a row at
// once. Who needs fewer reads beyond them, which is why such maps are copied to where kBeyond more
// elements may be touched.
template <typename T>
struct Four;
template <>
struct Four<float> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct Four<double> {
  typedef double type __attribute__((vector_size(32)));
};
constexpr int kBeyond = 3;

// By reference, since how such types are passed by value depends on the instruction set.
template <typename T, typename Cells>
DCN_HOST_DEVICE void load_four(const T* from, Cells& cells) {
  std::memcpy(&cells, from, sizeof(cells));
}

template <typename T, typename Cells>
DCN_HOST_DEVICE void store_four(const Cells& cells, T* to) {
  std::memcpy(to, &cells, sizeof(cells));
}

}  // namespace dcn_projects
