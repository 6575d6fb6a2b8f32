#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#include "ps_roi_pool.h"

namespace dcn_projects {
namespace {

constexpr char kName[] = "ps_roi_pool";

// The cells of all bins, which every channel shares: (pooled_h, R) rows and (pooled_w, R) columns.
struct AllBins {
  std::vector<int64_t> image;
  std::vector<CellRange> rows, cols;
};

template <typename T>
AllBins find_bins(const T* rois, const RoiPoolGeometry& g) {
  check_image_index(kName, rois, g);
  AllBins bins{std::vector<int64_t>(g.R), std::vector<CellRange>(g.pooled_h * g.R),
               std::vector<CellRange>(g.pooled_w * g.R)};
  for (int64_t n = 0; n < g.R; ++n) {
    const RoiRegion<T> region = roi_region(rois + 5 * n, g, T(0));
    if (region.image < 0) continue;  // leaves its bins empty
    bins.image[n] = region.image;
    for (int i = 0; i < g.pooled_h; ++i) {
      bins.rows[i * g.R + n] = bin_cells(region.y, region.height, i, g.pooled_h, g.H);
    }
    for (int j = 0; j < g.pooled_w; ++j) {
      bins.cols[j * g.R + n] = bin_cells(region.x, region.width, j, g.pooled_w, g.W);
    }
  }
  return bins;
}

// One input channel at a time, because its map stays in the cache for all RoIs.
// output is (D, bins, R).
template <typename T>
void pool(const T* input, const T* rois, const RoiPoolGeometry& g, T* output) {
  const AllBins bins = find_bins(rois, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  at::parallel_for(0, g.D * g.bins(), 1, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int i = plane % g.bins() / g.pooled_w, j = plane % g.pooled_w;
      const int64_t channel = plane / g.bins() * g.group_cells() + g.group_cell_of_bin(i, j);
      for (int64_t n = 0; n < g.R; ++n) {
        const CellRange rows = bins.rows[i * g.R + n], cols = bins.cols[j * g.R + n];
        const T* map = input + (bins.image[n] * g.C + channel) * map_size;
        T sum = 0;
        for (int r = rows.begin; r < rows.end; ++r) {
          for (int c = cols.begin; c < cols.end; ++c) sum += map[r * g.W + c];
        }
        const T area = static_cast<T>(rows.end - rows.begin) * (cols.end - cols.begin);
        output[plane * g.R + n] = area > 0 ? sum / area : 0;
      }
    }
  });
}

// Each input channel is written by one thread, in a fixed order. grad is (D, bins, R).
template <typename T>
void pool_backward(const T* grad, const T* rois, const RoiPoolGeometry& g, T* grad_input) {
  const AllBins bins = find_bins(rois, g);
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  at::parallel_for(0, g.C, 1, [&](int64_t first, int64_t last) {
    for (int64_t channel = first; channel < last; ++channel) {
      const int64_t d = channel / g.group_cells();
      const int gi = channel % g.group_cells() / g.group_w, gj = channel % g.group_w;
      const CellRange rows_of_bins = bins_of_group(gi, g.pooled_h, g.group_h);
      const CellRange cols_of_bins = bins_of_group(gj, g.pooled_w, g.group_w);
      for (int i = rows_of_bins.begin; i < rows_of_bins.end; ++i) {
        for (int j = cols_of_bins.begin; j < cols_of_bins.end; ++j) {
          const T* grad_bin = grad + ((d * g.pooled_h + i) * g.pooled_w + j) * g.R;
          for (int64_t n = 0; n < g.R; ++n) {
            const CellRange rows = bins.rows[i * g.R + n], cols = bins.cols[j * g.R + n];
            T* map = grad_input + (bins.image[n] * g.C + channel) * map_size;
            const T area = static_cast<T>(rows.end - rows.begin) * (cols.end - cols.begin);
            const T share = grad_bin[n] / area;
            for (int r = rows.begin; r < rows.end; ++r) {
              for (int c = cols.begin; c < cols.end; ++c) map[r * g.W + c] += share;
            }
          }
        }
      }
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
  at::Tensor by_channel = at::empty({g.D, g.bins(), g.R}, x.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    pool(x.const_data_ptr<scalar_t>(), boxes.const_data_ptr<scalar_t>(), g,
         by_channel.mutable_data_ptr<scalar_t>());
  });
  at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, input.options());
  output.view({g.R, g.D, g.bins()}).copy_(by_channel.permute({2, 0, 1}));
  return output;
}

at::Tensor ps_roi_pool_backward_cpu(const at::Tensor& grad, const at::Tensor& rois,
                                    at::IntArrayRef output_size, double spatial_scale,
                                    at::IntArrayRef group_size, at::IntArrayRef input_shape) {
  const RoiPoolGeometry g = check_roi_pool(kName, input_shape, grad.scalar_type(), grad.device(),
                                           rois, output_size, spatial_scale, group_size);
  check_grad(kName, grad, g);
  const at::ScalarType dtype = at::toOpMathType(grad.scalar_type());
  const at::Tensor boxes = rois.to(dtype).contiguous();
  const at::Tensor by_channel =
      grad.to(dtype).reshape({g.R, g.D, g.bins()}).permute({1, 2, 0}).contiguous();
  at::Tensor grad_input = at::zeros(input_shape, by_channel.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, kName, [&] {
    pool_backward(by_channel.const_data_ptr<scalar_t>(), boxes.const_data_ptr<scalar_t>(), g,
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
