#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>

namespace dcn_projects {

// A list int[2] of a schema may have any length, also none, and any numbers: the 2 only says that
// one number may stand for two. Throws unless it is two numbers from `smallest` to `largest`.
inline void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t smallest,
                       int64_t largest) {
  const auto fits = [&](int64_t value) { return value >= smallest && value <= largest; };
  TORCH_CHECK(pair.size() == 2 && std::all_of(pair.begin(), pair.end(), fits), op, ": ", name,
              " must be two numbers from ", smallest, " to ", largest, ", got ", pair);
}

}  // namespace dcn_projects
