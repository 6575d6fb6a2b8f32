#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../common/four_cells.h"
#include "ps_roi_pool.h"

namespace dcn_projects {
namespace {

constexpr char kName[] = "ps_roi_pool";

// The cells of all bins, which every channel shares: (pooled_h, R) rows and (pooled_w, R) columns.
// For each row of bins, `order` holds the RoIs by image, then by number of rows and of columns: the
// processor foresees the ends of loops that are of the same length many times over.
struct AllBins {
  std::vector<CellRange> rows, cols;
  std::vector<int64_t> order;  // (pooled_h, R)
  std::vector<int64_t> first;  // of each image in each row of order, and their end
};

// Writes `from` ordered by key(n), which is from 0 to keys - 1. RoIs of one key keep their order.
template <typename Key>
void sort_rois(const int64_t* from, int64_t R, int64_t keys, Key key, int64_t* to) {
  std::vector<int64_t> next(keys + 1);
  for (int64_t k = 0; k < R; ++k) ++next[key(from[k]) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int64_t k = 0; k < R; ++k) to[next[key(from[k])]++] = from[k];
}

template <typename T>
int64_t image_of(const T* rois, int64_t n) {
  return static_cast<int64_t>(rois[5 * n]);
}

template <typename T>
AllBins find_bins(const T* rois, const RoiPoolGeometry& g) {
  check_image_index(kName, rois, g);
  AllBins bins{std::vector<CellRange>(g.pooled_h * g.R), std::vector<CellRange>(g.pooled_w * g.R),
               std::vector<int64_t>(g.pooled_h * g.R), std::vector<int64_t>(g.N + 1)};
  for (int64_t n = 0; n < g.R; ++n) {
    ++bins.first[image_of(rois, n) + 1];
    const RoiRegion<T> region = roi_region(rois + 5 * n, g, T(0));
    if (region.image < 0) continue;  // leaves its bins empty
    for (int i = 0; i < g.pooled_h; ++i) {
      bins.rows[i * g.R + n] = bin_cells(region.y, region.height, i, g.pooled_h, g.H);
    }
    for (int j = 0; j < g.pooled_w; ++j) {
      bins.cols[j * g.R + n] = bin_cells(region.x, region.width, j, g.pooled_w, g.W);
    }
  }
  std::partial_sum(bins.first.begin(), bins.first.end(), bins.first.begin());
  std::vector<int64_t> all(g.R), by_width(g.R);
  std::iota(all.begin(), all.end(), 0);
  const CellRange* middle = bins.cols.data() + g.pooled_w / 2 * g.R;
  const auto width = [&](int64_t n) { return middle[n].end - middle[n].begin; };
  sort_rois(all.data(), g.R, g.W + 1, width, by_width.data());
  for (int i = 0; i < g.pooled_h; ++i) {
    const CellRange* rows = bins.rows.data() + i * g.R;
    const auto image_and_height = [&](int64_t n) {
      return image_of(rois, n) * (g.H + 1) + rows[n].end - rows[n].begin;
    };
    sort_rois(by_width.data(), g.R, g.N * (g.H + 1), image_and_height, bins.order.data() + i * g.R);
  }
  return bins;
}

// Calls run(rows, cols, index of the bin in the output) for all bins that read a channel.
template <typename F>
void for_each_bin(const AllBins& bins, const RoiPoolGeometry& g, int64_t image, int64_t channel,
                  F run) {
  const int cell = channel % g.group_cells();
  const CellRange is = bins_of_group(cell / g.group_w, g.pooled_h, g.group_h);
  const CellRange js = bins_of_group(cell % g.group_w, g.pooled_w, g.group_w);
  const int64_t d = channel / g.group_cells(), first = bins.first[image];
  for (int i = is.begin; i < is.end; ++i) {
    for (int j = js.begin; j < js.end; ++j) {
      const int64_t at = (d * g.pooled_h + i) * g.pooled_w + j;
      const CellRange *rows = bins.rows.data() + i * g.R, *cols = bins.cols.data() + j * g.R;
      const int64_t* order = bins.order.data() + i * g.R;
      for (int64_t k = first; k < bins.first[image + 1]; ++k) {
        const int64_t n = order[k];
        run(rows[n], cols[n], n * g.D * g.bins() + at);
      }
    }
  }
}

template <typename T>
T area(const CellRange& rows, const CellRange& cols) {
  return static_cast<T>(rows.end - rows.begin) * static_cast<T>(cols.end - cols.begin);
}

template <typename T>
T mean_of_bin(const T* map, int W, const CellRange& rows, const CellRange& cols) {
  using Cells = FourCells<T>;
  Cells sum = {};
  for (int c = cols.begin; c < cols.end; c += 4) {
    Cells all = {};
    for (int r = rows.begin; r < rows.end; ++r) {
      const Cells cells = load_vector<Cells>(map + static_cast<int64_t>(r) * W + c);
      all += cells;
    }
    for (int q = 0; q < 4; ++q) sum[q] += q < cols.end - c ? all[q] : T(0);
  }
  const T size = area<T>(rows, cols);
  return size > 0 ? ((sum[0] + sum[1]) + (sum[2] + sum[3])) / size : T(0);
}

template <typename T>
void spread_over_bin(T grad, int W, const CellRange& rows, const CellRange& cols, T* grad_map) {
  using Cells = FourCells<T>;
  const T share = grad / area<T>(rows, cols);
  for (int c = cols.begin; c < cols.end; c += 4) {
    Cells shares;
    for (int q = 0; q < 4; ++q) shares[q] = q < cols.end - c ? share : T(0);
    for (int r = rows.begin; r < rows.end; ++r) {
      T* at = grad_map + static_cast<int64_t>(r) * W + c;
      const Cells cells = load_vector<Cells>(at) + shares;
      store_vector(at, cells);
    }
  }
}

// One channel at a time, because its map stays in the cache for all RoIs.
template <typename T>
void pool(const T* input, const T* rois, const RoiPoolGeometry& g, T* output) {
  const AllBins bins = find_bins(rois, g);
  const int64_t size = static_cast<int64_t>(g.H) * g.W;
  at::parallel_for(0, g.N * g.C, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> map(size + kBeyond);
    for (int64_t plane = begin; plane < end; ++plane) {
      std::copy_n(input + plane * size, size, map.begin());
      for_each_bin(bins, g, plane / g.C, plane % g.C,
                   [&](const CellRange& rows, const CellRange& cols, int64_t at) {
                     output[at] = mean_of_bin(map.data(), g.W, rows, cols);
                   });
    }
  });
}

// Each channel is written by one thread, in a fixed order.
template <typename T>
void pool_backward(const T* grad, const T* rois, const RoiPoolGeometry& g, T* grad_input) {
  const AllBins bins = find_bins(rois, g);
  const int64_t size = static_cast<int64_t>(g.H) * g.W;
  at::parallel_for(0, g.N * g.C, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> grad_map(size + kBeyond);
    for (int64_t plane = begin; plane < end; ++plane) {
      std::fill(grad_map.begin(), grad_map.end(), T(0));
      for_each_bin(bins, g, plane / g.C, plane % g.C,
                   [&](const CellRange& rows, const CellRange& cols, int64_t at) {
                     spread_over_bin(grad[at], g.W, rows, cols, grad_map.data());
                   });
      std::copy_n(grad_map.begin(), size, grad_input + plane * size);
    }
  });
}

at::Tensor ps_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                           at::IntArrayRef output_size, double spatial_scale,
                           at::IntArrayRef group_size) {
  const RoiPoolGeometry g =
      check_roi_pool(kName, input.sizes(), input.scalar_type(), input.device(), rois, output_size,
                     spatial_scale, group_size);
  // 16-bit values are computed in float32 and rounded once.
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor x = input.to(dtype).contiguous(), boxes = rois.to(dtype).contiguous();
  at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, x.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    pool(x.const_data_ptr<scalar_t>(), boxes.const_data_ptr<scalar_t>(), g,
         output.mutable_data_ptr<scalar_t>());
  });
  return output.to(input.scalar_type());
}

at::Tensor ps_roi_pool_backward_cpu(const at::Tensor& grad, const at::Tensor& rois,
                                    at::IntArrayRef output_size, double spatial_scale,
                                    at::IntArrayRef group_size, at::IntArrayRef input_shape) {
  const RoiPoolGeometry g = check_roi_pool(kName, input_shape, grad.scalar_type(), grad.device(),
                                           rois, output_size, spatial_scale, group_size);
  check_grad(kName, grad, grad.scalar_type(), grad.device(), g);
  const at::ScalarType dtype = at::toOpMathType(grad.scalar_type());
  const at::Tensor top = grad.to(dtype).contiguous(), boxes = rois.to(dtype).contiguous();
  at::Tensor grad_input = at::empty(input_shape, top.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    pool_backward(top.const_data_ptr<scalar_t>(), boxes.const_data_ptr<scalar_t>(), g,
                  grad_input.mutable_data_ptr<scalar_t>());
  });
  return grad_input.to(grad.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CPU, m) {
  m.impl("ps_roi_pool", &ps_roi_pool_cpu);
  m.impl("_ps_roi_pool_backward", &ps_roi_pool_backward_cpu);
}

}  // namespace dcn_projects
