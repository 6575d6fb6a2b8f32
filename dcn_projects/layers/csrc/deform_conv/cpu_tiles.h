#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "column.h"
#include "deform_conv.h"

// What the two passes of the CPU share: how they divide the work, and what they read besides the
// map.

namespace dcn_projects {

constexpr int64_t kTileBytes = 512 << 10;  // half of a usual L2 cache
constexpr int64_t kMinTile = 48, kMaxTile = 384;
constexpr int64_t kMinUnits = 16;  // of work for the threads, where there is enough
constexpr int64_t kDepth = 256;    // of a matrix product

// The output pixels of an image in tiles of equal size, the last perhaps shorter. Sizes are
// multiples of 16, and products are computed for so many pixels: the sizes of matrices that ever
// meet the library are few.
struct Tiling {
  // At least `units` tiles in the batch, where there are pixels enough.
  Tiling(const ConvGeometry& g, int64_t bytes_per_pixel, int64_t units) : pixels(g.out_pixels()) {
    const int64_t wanted = at::divup(pixels * std::max<int64_t>(g.batch, 1), units);
    const int64_t largest =
        std::clamp(std::min(kTileBytes / bytes_per_pixel, wanted), kMinTile, kMaxTile);
    size = round_up(at::divup(pixels, at::divup(pixels, largest)));
    count = at::divup(pixels, size);
  }
  static int64_t round_up(int64_t length) { return at::divup(length, 16) * 16; }
  int64_t pixels, count, size;
};

// Output pixels [begin, begin + length) of image n; `rows` is the length rounded up.
struct Tile {
  Tile(const Tiling& tiling, int64_t n_, int64_t index)
      : n(n_),
        begin(index * tiling.size),
        length(std::min(tiling.size, tiling.pixels - begin)),
        rows(Tiling::round_up(length)) {}
  int64_t n, begin, length, rows;
};

// Offset and mask in the type that they are computed in.
template <typename T>
struct Modulation {
  at::Tensor offset, mask;  // mask may be undefined

  Modulation(const at::Tensor& offset_, const std::optional<at::Tensor>& mask_)
      : offset(offset_.to(c10::CppTypeToScalarType<T>::value).contiguous()) {
    if (mask_) mask = mask_->to(c10::CppTypeToScalarType<T>::value).contiguous();
  }

  // Fills a row, whose pixels are set, with the samples of a tap and a deformable group.
  void fill(const ConvGeometry& g, const Tile& tile, int64_t deformable_group, int tap,
            SampleRow<T> row) const {
    const int64_t plane = (tile.n * g.deformable_groups + deformable_group) * g.taps() + tap;
    const T* dy = offset.const_data_ptr<T>() + 2 * plane * g.out_pixels() + tile.begin;
    if (mask.defined()) {
      std::copy_n(mask.const_data_ptr<T>() + plane * g.out_pixels() + tile.begin, tile.length,
                  row.mask);
    } else {
      std::fill_n(row.mask, tile.length, T(1));
    }
    locate(g, tap, dy, dy + g.out_pixels(), tile.length, row);
  }
};

}  // namespace dcn_projects
