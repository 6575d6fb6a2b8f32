#pragma once

#include "vector.h"

namespace dcn_projects {

// Four neighbours on a row of a map, for the CPU: most bins are no wider, and so read a row at
// once. Who needs fewer reads beyond them, which is why such maps are copied to where kBeyond more
// elements may be touched.
template <typename T>
using FourCells = vector_t<T, 4>;
constexpr int kBeyond = 3;

}  // namespace dcn_projects
