#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "bin_windows.h"

// Inside, the channels of an offset class are innermost, because they share all positions:
//   maps   (N, classes, group cells, H * W, per_class)
//   bins   (classes, bins, R, per_class)

namespace dcn_projects {
namespace {

constexpr char kName[] = "deform_roi_pool";

template <typename T>
std::vector<RoiRegion<T>> find_regions(const T* rois, const DeformRoiPoolGeometry& g) {
  check_image_index(kName, rois, g);
  std::vector<RoiRegion<T>> regions(g.R);
  for (int64_t n = 0; n < g.R; ++n) regions[n] = roi_region(rois + 5 * n, g, T(0.5));
  return regions;
}

// A window of one channel. Cells that no sample reads are left out, here and below: an Inf between
// two samples that lie far apart is none of the bin's business.
template <typename T>
T read_window(const BinWindow<T>& bin, const T* map, int W) {
  T sum = 0;
  for (int r = 0; r < bin.rows; ++r, map += W) {
    const T row_weight = bin.row_weight[r * kLanes];
    if (row_weight == 0) continue;
    T row_sum = 0;
    for (int c = 0; c < bin.cols; ++c) {
      const T weight = bin.col_weight[c * kLanes];
      if (weight != 0) row_sum += weight * map[c];
    }
    sum += row_weight * row_sum;
  }
  return sum / bin.samples;
}

template <typename T>
void read_window(const BinWindow<T>& bin, const T* map, int W, int64_t channels,
                 T* __restrict__ out) {
  for (int r = 0; r < bin.rows; ++r) {
    const T row_weight = bin.row_weight[r * kLanes] / bin.samples;
    for (int c = 0; c < bin.cols; ++c) {
      const T weight = row_weight * bin.col_weight[c * kLanes];
      if (weight == 0) continue;
      const T* cell = map + (static_cast<int64_t>(r) * W + c) * channels;
      for (int64_t p = 0; p < channels; ++p) out[p] += weight * cell[p];
    }
  }
}

// One (class, group cell) map after the other, since such a map stays in the cache for all RoIs.
template <typename T>
void pool(const T* maps, const T* rois, const T* offset, const DeformRoiPoolGeometry& g, T* bins) {
  const auto regions = find_regions(rois, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W, blocks = (g.R + kLanes - 1) / kLanes;
  at::parallel_for(0, g.classes * g.bins() * blocks, 4, [&](int64_t begin, int64_t end) {
    BinWindows<T> windows;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index % blocks * kLanes, bin = index / blocks % g.bins();
      const int64_t k = index / blocks / g.bins();
      const int i = bin / g.pooled_w, j = bin % g.pooled_w;
      windows.find(regions, offset, n, k, i, j, g);
      T* out = bins + (index / blocks * g.R + n) * g.per_class;
      for (int lane = 0; lane < kLanes && n + lane < g.R; ++lane, out += g.per_class) {
        const BinWindow<T> window = windows[lane];
        std::fill_n(out, g.per_class, T(0));
        if (window.samples == 0) continue;
        const int64_t map =
            (regions[n + lane].image * g.classes + k) * g.group_cells() + g.group_cell_of_bin(i, j);
        const T* source = maps + (map * map_size + window.first) * g.per_class;
        if (g.per_class == 1) {
          *out = read_window(window, source, g.W);
        } else {
          read_window(window, source, g.W, g.per_class, out);
        }
      }
    }
  });
}

// What a bin's share of the loss gains when its samples move by a cell.
template <typename T>
struct PositionGrad {
  T x = 0, y = 0;
};

// The reverse of read_window: adds to grad_map, and returns the gradient of the position unless map
// is null.
template <typename T>
PositionGrad<T> spread_window(const BinWindow<T>& bin, T grad, const T* map, int W, T* grad_map) {
  PositionGrad<T> result;
  grad /= bin.samples;
  for (int r = 0; r < bin.rows; ++r) {
    const T row_weight = bin.row_weight[r * kLanes];
    if (row_weight == 0) continue;
    T row_sum = 0, row_slope = 0;
    for (int c = 0; c < bin.cols; ++c) {
      const int64_t cell = static_cast<int64_t>(r) * W + c;
      const T weight = bin.col_weight[c * kLanes];
      if (weight == 0) continue;
      grad_map[cell] += grad * row_weight * weight;
      if (map) {
        row_sum += weight * map[cell];
        row_slope += bin.col_slope[c * kLanes] * map[cell];
      }
    }
    result.x += grad * row_weight * row_slope;
    result.y += grad * bin.row_slope[r * kLanes] * row_sum;
  }
  return result;
}

// For `channels` of the `stride` channels of a map.
template <typename T>
PositionGrad<T> spread_window(const BinWindow<T>& bin, const T* grad, const T* map, int W,
                              int64_t stride, int64_t channels, T* __restrict__ grad_map) {
  PositionGrad<T> result;
  for (int r = 0; r < bin.rows; ++r) {
    const T row_weight = bin.row_weight[r * kLanes] / bin.samples;
    const T row_slope = bin.row_slope[r * kLanes] / bin.samples;
    for (int c = 0; c < bin.cols; ++c) {
      const T weight = bin.col_weight[c * kLanes];
      if (row_weight * weight == 0) continue;
      const int64_t cell = (static_cast<int64_t>(r) * W + c) * stride;
      for (int64_t p = 0; p < channels; ++p) grad_map[cell + p] += row_weight * weight * grad[p];
      if (map) {
        T product = 0;
#pragma omp simd reduction(+ : product)
        for (int64_t p = 0; p < channels; ++p) product += grad[p] * map[cell + p];
        result.x += row_weight * bin.col_slope[c * kLanes] * product;
        result.y += row_slope * weight * product;
      }
    }
  }
  return result;
}

// In the backward a thread owns up to so many channels of a map, which nobody else writes. Thus
// nothing depends on the number of threads.
constexpr int64_t kChannelBlock = 64;

int64_t channel_blocks(const DeformRoiPoolGeometry& g) {
  return (g.per_class + kChannelBlock - 1) / kChannelBlock;
}

std::vector<std::pair<int, int>> bins_of_group_cell(int cell, const RoiPoolGeometry& g) {
  const CellRange rows = bins_of_group(cell / g.group_w, g.pooled_h, g.group_h);
  const CellRange cols = bins_of_group(cell % g.group_w, g.pooled_w, g.group_w);
  std::vector<std::pair<int, int>> bins;
  for (int i = rows.begin; i < rows.end; ++i) {
    for (int j = cols.begin; j < cols.end; ++j) bins.emplace_back(i, j);
  }
  return bins;
}

// grad_bins is laid out like bins, grad_maps like maps. grad_shares, (blocks, classes, bins, R, 2),
// takes the part of each block and bin in the gradient of the offset (x, y). maps, offset and
// grad_shares are null without offset.
template <typename T>
void pool_backward(const T* grad_bins, const T* maps, const T* rois, const T* offset,
                   const DeformRoiPoolGeometry& g, T* grad_maps, T* grad_shares) {
  const auto regions = find_regions(rois, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  const int64_t maps_of_image = g.classes * g.group_cells();
  const T gamma = static_cast<T>(g.gamma);
  at::parallel_for(0, channel_blocks(g) * maps_of_image, 1, [&](int64_t begin, int64_t end) {
    BinWindows<T> windows;
    for (int64_t owner = begin; owner < end; ++owner) {
      const int64_t block = owner / maps_of_image, map = owner % maps_of_image;
      const int64_t k = map / g.group_cells();
      const int cell = map % g.group_cells();
      const int64_t channel = block * kChannelBlock;
      const int64_t channels = std::min(kChannelBlock, g.per_class - channel);
      for (const auto& [i, j] : bins_of_group_cell(cell, g)) {
        for (int64_t n = 0; n < g.R; ++n) {
          if (n % kLanes == 0) windows.find(regions, offset, n, k, i, j, g);
          const BinWindow<T> window = windows[n % kLanes];
          if (window.samples == 0) continue;
          const int64_t bin = (k * g.bins() + i * g.pooled_w + j) * g.R + n;
          const T* grad = grad_bins + bin * g.per_class + channel;
          const int64_t image_map = regions[n].image * maps_of_image + map;
          const int64_t at = (image_map * map_size + window.first) * g.per_class + channel;
          const T* source = maps ? maps + at : nullptr;
          const PositionGrad<T> position =
              g.per_class == 1
                  ? spread_window(window, *grad, source, g.W, grad_maps + at)
                  : spread_window(window, grad, source, g.W, g.per_class, channels, grad_maps + at);
          if (grad_shares) {
            T* share = grad_shares + (block * g.classes * g.bins() * g.R + bin) * 2;
            share[0] = position.x * gamma * regions[n].width;
            share[1] = position.y * gamma * regions[n].height;
          }
        }
      }
    }
  });
}

// Bins that share a part, and blocks, are added up in a fixed order.
template <typename T>
void sum_offset_shares(const T* grad_shares, const DeformRoiPoolGeometry& g, T* grad_offset) {
  const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w;
  at::parallel_for(0, g.classes, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      for (int bin = 0; bin < g.bins(); ++bin) {
        const int64_t part = g.part_of_bin(bin / g.pooled_w, bin % g.pooled_w);
        for (int64_t block = 0; block < channel_blocks(g); ++block) {
          const T* share = grad_shares + ((block * g.classes + k) * g.bins() + bin) * g.R * 2;
          for (int64_t n = 0; n < g.R; ++n) {
            T* out = grad_offset + (n * g.classes + k) * 2 * plane + part;
            out[0] += share[2 * n];
            out[plane] += share[2 * n + 1];
          }
        }
      }
    }
  });
}

at::Tensor maps_of(const at::Tensor& input, const DeformRoiPoolGeometry& g) {
  return input
      .reshape({g.N, g.classes, g.per_class, g.group_cells(), static_cast<int64_t>(g.H) * g.W})
      .permute({0, 1, 3, 4, 2})
      .contiguous();
}

at::Tensor bins_of(const at::Tensor& output, const DeformRoiPoolGeometry& g) {
  return output.reshape({g.R, g.classes, g.per_class, g.bins()}).permute({1, 3, 0, 2}).contiguous();
}

at::Tensor deform_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                               const std::optional<at::Tensor>& offset, at::IntArrayRef output_size,
                               double spatial_scale, int64_t sampling_ratio, double gamma,
                               at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  // 16-bit values are computed in float32 and rounded once.
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor maps = maps_of(input.to(dtype), g), boxes = rois.to(dtype).contiguous();
  const at::Tensor moves = offset ? offset->to(dtype).contiguous() : at::Tensor();
  const at::Tensor bins = at::empty({g.classes, g.bins(), g.R, g.per_class}, maps.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    pool(maps.const_data_ptr<scalar_t>(), boxes.const_data_ptr<scalar_t>(),
         data_or_null<scalar_t>(moves), g, bins.mutable_data_ptr<scalar_t>());
  });
  at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, input.options());
  output.view({g.R, g.classes, g.per_class, g.bins()}).copy_(bins.permute({2, 0, 3, 1}));
  return output;
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cpu(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma, at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  check_grad(kName, grad, g);
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor grad_bins = bins_of(grad.to(dtype), g), boxes = rois.to(dtype).contiguous();
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  at::Tensor grad_maps =
      at::zeros({g.N, g.classes, g.group_cells(), map_size, g.per_class}, grad_bins.options());
  at::Tensor maps, moves, shares, grad_offset;
  if (offset) {
    maps = maps_of(input.to(dtype), g);
    moves = offset->to(dtype).contiguous();
    shares = at::zeros({channel_blocks(g), g.classes, g.bins(), g.R, 2}, maps.options());
    grad_offset = at::zeros(offset->sizes(), maps.options());
  }
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    pool_backward(grad_bins.const_data_ptr<scalar_t>(), data_or_null<scalar_t>(maps),
                  boxes.const_data_ptr<scalar_t>(), data_or_null<scalar_t>(moves), g,
                  grad_maps.mutable_data_ptr<scalar_t>(),
                  offset ? shares.mutable_data_ptr<scalar_t>() : nullptr);
    if (offset) {
      sum_offset_shares(shares.const_data_ptr<scalar_t>(), g,
                        grad_offset.mutable_data_ptr<scalar_t>());
    }
  });
  at::Tensor grad_input = at::empty(input.sizes(), input.options());
  grad_input.view({g.N, g.classes, g.per_class, g.group_cells(), map_size})
      .copy_(grad_maps.permute({0, 1, 4, 2, 3}));
  return {grad_input,
          offset ? grad_offset.to(offset->scalar_type()) : at::empty({0}, input.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CPU, m) {
  m.impl("deform_roi_pool", &deform_roi_pool_cpu);
  m.impl("_deform_roi_pool_backward", &deform_roi_pool_backward_cpu);
}

}  // namespace dcn_projects
