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

#include "class_bins.h"
#include "plane_bins.h"

// There are two ways. Where each channel has offsets of its own, or there is but one, planes of the
// map are read as they come. Else the channels of an offset class are innermost inside, because
// they share all positions:
//   maps   (N, classes, group cells, H * W, per_class)
//   bins   (classes, bins, R, per_class)

namespace dcn_projects {
namespace {

constexpr char kName[] = "deform_roi_pool";

std::vector<std::pair<int, int>> bins_of_group_cell(int cell, const RoiPoolGeometry& g) {
  const CellRange rows = bins_of_group(cell / g.group_w, g.pooled_h, g.group_h);
  const CellRange cols = bins_of_group(cell % g.group_w, g.pooled_w, g.group_w);
  std::vector<std::pair<int, int>> bins;
  for (int i = rows.begin; i < rows.end; ++i) {
    for (int j = cols.begin; j < cols.end; ++j) bins.emplace_back(i, j);
  }
  return bins;
}

// Calls run(n, lane) for the RoIs of a block.
template <typename T, typename F>
void for_each_lane(const RoiBlocks<T>& blocks, int64_t block, F run) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t n = blocks.roi[block * kLanes + lane];
    if (n >= 0) run(n, lane);
  }
}

template <typename T>
std::vector<T> offsets_to_lanes(const T* offset, const RoiBlocks<T>& blocks,
                                const DeformRoiPoolGeometry& g) {
  if (!offset) return {};
  return rois_to_lanes(offset, 2 * g.classes * g.part_h * g.part_w, blocks);
}

// One plane after the other, because it stays in the cache for all RoIs.
template <typename T>
void pool_planes(const T* input, const T* rois, const T* offset, const DeformRoiPoolGeometry& g,
                 T* output) {
  const RoiBlocks<T> blocks = find_blocks(kName, rois, g);
  const std::vector<T> moves = offsets_to_lanes(offset, blocks, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  at::parallel_for(0, g.N * g.C, 1, [&](int64_t begin, int64_t end) {
    BinWindows<T> windows;
    std::vector<T> map(map_size + kRowsBeyond * g.W + kBeyond), scratch;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t image = plane / g.C, d = plane % g.C / g.group_cells();
      if (blocks.first[image] == blocks.first[image + 1]) continue;
      std::copy_n(input + plane * map_size, map_size, map.begin());
      for (const auto& [i, j] : bins_of_group_cell(plane % g.group_cells(), g)) {
        const int64_t bin = d * g.bins() + i * g.pooled_w + j;
        for (int64_t block = blocks.first[image]; block < blocks.first[image + 1]; ++block) {
          windows.find(blocks, block, offset ? moves.data() : nullptr, d / g.per_class, i, j, false,
                       g);
          scratch.resize(windows.cols.weight.size());
          T out[kLanes];
          read_bins(windows, map.data(), g.W, scratch.data(), out);
          for_each_lane(blocks, block,
                        [&](int64_t n, int lane) { output[n * g.D * g.bins() + bin] = out[lane]; });
        }
      }
    }
  });
}

// Each plane is written by one thread. grad_shares, (1, R, classes, bins, 2), takes the part of
// each bin in the gradient of the offset (x, y), unless it is null.
template <typename T>
void pool_planes_backward(const T* grad, const T* input, const T* rois, const T* offset,
                          const DeformRoiPoolGeometry& g, T* grad_input, T* grad_shares) {
  const RoiBlocks<T> blocks = find_blocks(kName, rois, g);
  const std::vector<T> moves = offsets_to_lanes(offset, blocks, g);
  const std::vector<T> tops = rois_to_lanes(grad, g.D * g.bins(), blocks);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  const T gamma = static_cast<T>(g.gamma);
  at::parallel_for(0, g.N * g.C, 1, [&](int64_t begin, int64_t end) {
    BinWindows<T> windows;
    std::vector<T> map(map_size + kRowsBeyond * g.W + kBeyond),
        grad_map(map_size + kRowsBeyond * g.W + kBeyond), scratch;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t image = plane / g.C, d = plane % g.C / g.group_cells();
      std::copy_n(input + plane * map_size, map_size, map.begin());
      std::fill(grad_map.begin(), grad_map.end(), T(0));
      for (const auto& [i, j] : bins_of_group_cell(plane % g.group_cells(), g)) {
        const int64_t bin = d * g.bins() + i * g.pooled_w + j;
        for (int64_t block = blocks.first[image]; block < blocks.first[image + 1]; ++block) {
          windows.find(blocks, block, offset ? moves.data() : nullptr, d / g.per_class, i, j, true,
                       g);
          scratch.resize(2 * windows.cols.weight.size());
          T grad_y[kLanes], grad_x[kLanes];
          spread_bins(windows, tops.data() + (bin * blocks.first.back() + block) * kLanes,
                      map.data(), g.W, scratch.data(), grad_map.data(), grad_y, grad_x);
          if (!grad_shares) continue;
          for_each_lane(blocks, block, [&](int64_t n, int lane) {
            if (windows.rows.samples[lane] * windows.cols.samples[lane] == 0) return;
            T* share = grad_shares + (n * g.D * g.bins() + bin) * 2;
            share[0] = grad_x[lane] * gamma * blocks.x.length[block * kLanes + lane];
            share[1] = grad_y[lane] * gamma * blocks.y.length[block * kLanes + lane];
          });
        }
      }
      std::copy_n(grad_map.begin(), map_size, grad_input + plane * map_size);
    }
  });
}

// One (class, group cell) map after the other, since such a map stays in the cache for all RoIs.
template <typename T>
void pool_classes(const T* maps, const T* rois, const T* offset, const DeformRoiPoolGeometry& g,
                  T* bins) {
  const RoiBlocks<T> blocks = find_blocks(kName, rois, g);
  const std::vector<T> moves = offsets_to_lanes(offset, blocks, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W, count = blocks.first.back();
  at::parallel_for(0, g.classes * g.bins() * count, 4, [&](int64_t begin, int64_t end) {
    BinWindows<T> windows;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t block = index % count, bin = index / count % g.bins();
      const int64_t k = index / count / g.bins();
      const int i = bin / g.pooled_w, j = bin % g.pooled_w;
      windows.find(blocks, block, offset ? moves.data() : nullptr, k, i, j, false, g);
      for_each_lane(blocks, block, [&](int64_t n, int lane) {
        T* out = bins + ((k * g.bins() + bin) * g.R + n) * g.per_class;
        std::fill_n(out, g.per_class, T(0));
        const BinWindow<T> window(windows, lane, g.W);
        if (window.samples == 0) return;
        const int64_t image = static_cast<int64_t>(rois[5 * n]);
        const int64_t map = (image * g.classes + k) * g.group_cells() + g.group_cell_of_bin(i, j);
        read_window(window, maps + (map * map_size + window.first) * g.per_class, g.W, g.per_class,
                    out);
      });
    }
  });
}

// In the backward a thread owns up to so many channels of a map, which nobody else writes. Thus
// nothing depends on the number of threads.
constexpr int64_t kChannelBlock = 64;

int64_t channel_blocks(const DeformRoiPoolGeometry& g) {
  return (g.per_class + kChannelBlock - 1) / kChannelBlock;
}

// grad_bins is laid out like bins, grad_maps like maps. grad_shares, (blocks, R, classes, bins, 2),
// takes the part of each block of channels and bin in the gradient of the offset (x, y). maps,
// offset and grad_shares are null without offset.
template <typename T>
void pool_classes_backward(const T* grad_bins, const T* maps, const T* rois, const T* offset,
                           const DeformRoiPoolGeometry& g, T* grad_maps, T* grad_shares) {
  const RoiBlocks<T> blocks = find_blocks(kName, rois, g);
  const std::vector<T> moves = offsets_to_lanes(offset, blocks, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  const int64_t maps_of_image = g.classes * g.group_cells();
  const T gamma = static_cast<T>(g.gamma);
  at::parallel_for(0, channel_blocks(g) * maps_of_image, 1, [&](int64_t begin, int64_t end) {
    BinWindows<T> windows;
    for (int64_t owner = begin; owner < end; ++owner) {
      const int64_t channel = owner / maps_of_image * kChannelBlock, map = owner % maps_of_image;
      const int64_t k = map / g.group_cells();
      const int64_t channels = std::min(kChannelBlock, g.per_class - channel);
      T* block_shares = grad_shares + owner / maps_of_image * g.R * g.classes * g.bins() * 2;
      for (const auto& [i, j] : bins_of_group_cell(map % g.group_cells(), g)) {
        const int64_t bin = i * g.pooled_w + j;
        for (int64_t block = 0; block < blocks.first.back(); ++block) {
          windows.find(blocks, block, offset ? moves.data() : nullptr, k, i, j, maps, g);
          for_each_lane(blocks, block, [&](int64_t n, int lane) {
            const BinWindow<T> window(windows, lane, g.W);
            if (window.samples == 0) return;
            const int64_t image = static_cast<int64_t>(rois[5 * n]);
            const int64_t at =
                ((image * maps_of_image + map) * map_size + window.first) * g.per_class + channel;
            const PositionGrad<T> position = spread_window(
                window, grad_bins + ((k * g.bins() + bin) * g.R + n) * g.per_class + channel,
                maps ? maps + at : nullptr, g.W, g.per_class, channels, grad_maps + at);
            if (!grad_shares) return;
            T* share = block_shares + ((n * g.classes + k) * g.bins() + bin) * 2;
            share[0] = position.x * gamma * blocks.x.length[block * kLanes + lane];
            share[1] = position.y * gamma * blocks.y.length[block * kLanes + lane];
          });
        }
      }
    }
  });
}

// Bins that share a part, and blocks of channels, are added up in a fixed order.
template <typename T>
void sum_offset_shares(const T* grad_shares, int64_t channel_blocks, const DeformRoiPoolGeometry& g,
                       T* grad_offset) {
  const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w, rows = g.R * g.classes;
  at::parallel_for(0, rows, 64, [&](int64_t first, int64_t last) {
    std::vector<T> sums(2 * plane);
    for (int64_t row = first; row < last; ++row) {
      std::fill(sums.begin(), sums.end(), T(0));
      for (int64_t block = 0; block < channel_blocks; ++block) {
        const T* share = grad_shares + (block * rows + row) * g.bins() * 2;
        for (int i = 0; i < g.pooled_h; ++i) {
          for (int j = 0; j < g.pooled_w; ++j, share += 2) {
            const int64_t part = g.part_of_bin(i, j);
            sums[part] += share[0];
            sums[plane + part] += share[1];
          }
        }
      }
      std::copy(sums.begin(), sums.end(), grad_offset + row * 2 * plane);
    }
  });
}

// to[c * to_stride + r] = from[r * from_stride + c], in squares that stay in the L1 cache. Where
// rows lie far apart, they may well compete for the same place in the cache: each is done with at
// once.
template <typename T>
void transpose(int64_t rows, int64_t cols, const T* from, int64_t from_stride, T* to,
               int64_t to_stride) {
  constexpr int64_t kSquare = 16;
  const auto copy = [&](int64_t r, int64_t c) {
    to[c * to_stride + r] = from[r * from_stride + c];
  };
  for (int64_t r0 = 0; r0 < rows; r0 += kSquare) {
    const int64_t r1 = std::min(r0 + kSquare, rows);
    for (int64_t c0 = 0; c0 < cols; c0 += kSquare) {
      const int64_t c1 = std::min(c0 + kSquare, cols);
      if (rows < kSquare) {
        for (int64_t r = r0; r < r1; ++r) {
          for (int64_t c = c0; c < c1; ++c) copy(r, c);
        }
      } else {
        for (int64_t c = c0; c < c1; ++c) {
          for (int64_t r = r0; r < r1; ++r) copy(r, c);
        }
      }
    }
  }
}

// Calls run(cells, offset in an input, stride of its channels, offset in maps) for parts of all
// maps, each (per_class, cells) in the input and (cells, per_class) in maps.
template <typename F>
void for_each_map(const DeformRoiPoolGeometry& g, F run) {
  constexpr int64_t kPart = 512;
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W, parts = at::divup(map_size, kPart);
  at::parallel_for(
      0, g.N * g.classes * g.group_cells() * parts, 4, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
          const int64_t part = index % parts * kPart, map = index / parts;
          const int64_t first = map / g.group_cells() * g.per_class * g.group_cells();
          run(std::min(kPart, map_size - part), (first + map % g.group_cells()) * map_size + part,
              g.group_cells() * map_size, (map * map_size + part) * g.per_class);
        }
      });
}

// Calls run(offset in an output, offset in bins, stride of bins) for all RoIs and classes, each
// (per_class, bins) in the output and (bins, per_class) in bins.
template <typename F>
void for_each_roi(const DeformRoiPoolGeometry& g, F run) {
  at::parallel_for(0, g.R * g.classes, 4, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / g.classes, k = index % g.classes;
      run(index * g.per_class * g.bins(), (k * g.bins() * g.R + n) * g.per_class,
          g.R * g.per_class);
    }
  });
}

template <typename T>
at::Tensor maps_of(const at::Tensor& input, const DeformRoiPoolGeometry& g) {
  at::Tensor maps = at::empty(input.sizes(), input.options());
  const T* from = input.const_data_ptr<T>();
  T* to = maps.mutable_data_ptr<T>();
  for_each_map(g, [&](int64_t cells, int64_t at, int64_t stride, int64_t map) {
    transpose(g.per_class, cells, from + at, stride, to + map, g.per_class);
  });
  return maps;
}

at::Tensor deform_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                               const std::optional<at::Tensor>& offset, at::IntArrayRef output_size,
                               double spatial_scale, int64_t sampling_ratio, double gamma,
                               at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  // 16-bit values are computed in float32 and rounded once.
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor x = input.to(dtype).contiguous(), boxes = rois.to(dtype).contiguous();
  const at::Tensor moves = offset ? offset->to(dtype).contiguous() : at::Tensor();
  at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, x.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    const scalar_t* regions = boxes.const_data_ptr<scalar_t>();
    const scalar_t* shifts = data_or_null<scalar_t>(moves);
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    if (g.per_class == 1) {
      pool_planes(x.const_data_ptr<scalar_t>(), regions, shifts, g, out);
      return;
    }
    const at::Tensor maps = maps_of<scalar_t>(x, g);
    const at::Tensor bins = at::empty({g.classes, g.bins(), g.R, g.per_class}, x.options());
    scalar_t* from = bins.mutable_data_ptr<scalar_t>();
    pool_classes(maps.const_data_ptr<scalar_t>(), regions, shifts, g, from);
    for_each_roi(g, [&](int64_t at, int64_t bin, int64_t stride) {
      transpose(g.bins(), g.per_class, from + bin, stride, out + at, g.bins());
    });
  });
  return output.to(input.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cpu(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma, at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  check_grad(kName, grad, input.scalar_type(), input.device(), g);
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor top = grad.to(dtype).contiguous(), x = input.to(dtype).contiguous();
  const at::Tensor boxes = rois.to(dtype).contiguous();
  const int64_t share_blocks = g.per_class == 1 ? 1 : channel_blocks(g);
  at::Tensor moves, shares, grad_offset = at::empty({0}, x.options());
  if (offset) {
    moves = offset->to(dtype).contiguous();
    shares = at::zeros({share_blocks, g.R, g.classes, g.bins(), 2}, x.options());
    grad_offset = at::empty(offset->sizes(), x.options());
  }
  at::Tensor grad_input = at::empty(input.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    const scalar_t* grad_out = top.const_data_ptr<scalar_t>();
    const scalar_t* regions = boxes.const_data_ptr<scalar_t>();
    const scalar_t* shifts = data_or_null<scalar_t>(moves);
    scalar_t* grad_shares = offset ? shares.mutable_data_ptr<scalar_t>() : nullptr;
    scalar_t* grad_in = grad_input.mutable_data_ptr<scalar_t>();
    if (g.per_class == 1) {
      pool_planes_backward(grad_out, x.const_data_ptr<scalar_t>(), regions, shifts, g, grad_in,
                           grad_shares);
    } else {
      const at::Tensor grad_bins = at::empty({g.classes, g.bins(), g.R, g.per_class}, x.options());
      scalar_t* grad_bin = grad_bins.mutable_data_ptr<scalar_t>();
      for_each_roi(g, [&](int64_t at, int64_t bin, int64_t stride) {
        transpose(g.per_class, g.bins(), grad_out + at, g.bins(), grad_bin + bin, stride);
      });
      const at::Tensor maps = offset ? maps_of<scalar_t>(x, g) : at::Tensor();
      const at::Tensor grad_maps = at::zeros(input.sizes(), x.options());
      scalar_t* grad_map = grad_maps.mutable_data_ptr<scalar_t>();
      pool_classes_backward(grad_bin, data_or_null<scalar_t>(maps), regions, shifts, g, grad_map,
                            grad_shares);
      for_each_map(g, [&](int64_t cells, int64_t at, int64_t stride, int64_t map) {
        transpose(cells, g.per_class, grad_map + map, g.per_class, grad_in + at, stride);
      });
    }
    if (offset) {
      sum_offset_shares(grad_shares, share_blocks, g, grad_offset.mutable_data_ptr<scalar_t>());
    }
  });
  return {grad_input.to(input.scalar_type()),
          grad_offset.to(offset ? offset->scalar_type() : input.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CPU, m) {
  m.impl("deform_roi_pool", &deform_roi_pool_cpu);
  m.impl("_deform_roi_pool_backward", &deform_roi_pool_backward_cpu);
}

}  // namespace dcn_projects
