#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <torch/library.h>

#include <limits>

#include "../common/cuda_sum.h"
#include "ps_roi_pool.h"

namespace dcn_projects {
namespace {

constexpr char kName[] = "ps_roi_pool";

// The cells that an output element averages, and the map that they lie in.
struct OutputCells {
  int64_t map;  // index into (N, C), -1 if there is nothing to average
  CellRange rows, cols;
};

// T computes; index is that of an element of (R, D, pooled_h, pooled_w).
template <typename T>
__device__ OutputCells output_cells(int64_t index, const T* rois, const RoiPoolGeometry& g) {
  const int j = index % g.pooled_w, i = index / g.pooled_w % g.pooled_h;
  const int64_t d = index / g.bins() % g.D, n = index / g.bins() / g.D;
  const RoiRegion<T> region = roi_region(rois + 5 * n, g, T(0));
  const CellRange rows = bin_cells(region.y, region.height, i, g.pooled_h, g.H);
  const CellRange cols = bin_cells(region.x, region.width, j, g.pooled_w, g.W);
  const bool empty = region.image < 0 || rows.begin >= rows.end || cols.begin >= cols.end;
  const int64_t channel = d * g.group_cells() + g.group_cell_of_bin(i, j);
  return {empty ? -1 : region.image * g.C + channel, rows, cols};
}

// One thread per output element.
template <typename S, typename T>
__global__ void pool_kernel(const S* input, const T* rois, RoiPoolGeometry g, S* output) {
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  for (int64_t index = grid_index(); index < g.R * g.D * g.bins(); index += grid_stride()) {
    const OutputCells cells = output_cells(index, rois, g);
    T sum = 0, area = 1;
    if (cells.map >= 0) {
      const S* map = input + cells.map * map_size;
      for (int r = cells.rows.begin; r < cells.rows.end; ++r) {
        for (int c = cells.cols.begin; c < cells.cols.end; ++c) {
          sum += static_cast<T>(map[r * g.W + c]);
        }
      }
      area = static_cast<T>(cells.rows.end - cells.rows.begin) *
             static_cast<T>(cells.cols.end - cells.cols.begin);
    }
    output[index] = static_cast<S>(sum / area);
  }
}

// One thread per output element; bins of several RoIs meet in a cell.
template <typename S, typename T, typename Sum>
__global__ void pool_backward_kernel(const S* grad, const T* rois, RoiPoolGeometry g,
                                     Sum grad_input) {
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  for (int64_t index = grid_index(); index < g.R * g.D * g.bins(); index += grid_stride()) {
    const OutputCells cells = output_cells(index, rois, g);
    if (cells.map < 0) continue;
    const T area = static_cast<T>(cells.rows.end - cells.rows.begin) *
                   static_cast<T>(cells.cols.end - cells.cols.begin);
    const T share[1] = {static_cast<T>(grad[index]) / area};
    for (int r = cells.rows.begin; r < cells.rows.end; ++r) {
      for (int c = cells.cols.begin; c < cells.cols.end; ++c) {
        grad_input.add(cells.map * map_size + r * g.W + c, share);
      }
    }
  }
}

at::Tensor ps_roi_pool_cuda(const at::Tensor& input, const at::Tensor& rois,
                            at::IntArrayRef output_size, double spatial_scale,
                            at::IntArrayRef group_size) {
  const RoiPoolGeometry g =
      check_roi_pool(kName, input.sizes(), input.scalar_type(), input.device(), rois, output_size,
                     spatial_scale, group_size);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = input.contiguous();
  const at::Tensor boxes = rois.to(at::toOpMathType(input.scalar_type())).contiguous();
  at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, input.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), kName, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    launch(pool_kernel<scalar_t, compute_t>, output.numel(), x.const_data_ptr<scalar_t>(),
           boxes.const_data_ptr<compute_t>(), g, output.mutable_data_ptr<scalar_t>());
  });
  return output;
}

at::Tensor ps_roi_pool_backward_cuda(const at::Tensor& grad, const at::Tensor& rois,
                                     at::IntArrayRef output_size, double spatial_scale,
                                     at::IntArrayRef group_size, at::IntArrayRef input_shape) {
  const RoiPoolGeometry g = check_roi_pool(kName, input_shape, grad.scalar_type(), grad.device(),
                                           rois, output_size, spatial_scale, group_size);
  check_grad(kName, grad, grad.scalar_type(), grad.device(), g);
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::ScalarType dtype = at::toOpMathType(grad.scalar_type());
  const at::Tensor top = grad.contiguous(), boxes = rois.to(dtype).contiguous();
  // A bin takes part in a cell once, with a share of its gradient.
  const auto largest_term = [&] {
    return at::linalg_vector_norm(grad, std::numeric_limits<double>::infinity(), std::nullopt,
                                  false, at::kDouble);
  };
  at::Tensor grad_input;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), kName, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    grad_input = sum_up<compute_t>(
        input_shape, grad.options().dtype(dtype), g.R * g.bins(), largest_term, [&](auto sum) {
          launch(pool_backward_kernel<scalar_t, compute_t, decltype(sum)>, top.numel(),
                 top.const_data_ptr<scalar_t>(), boxes.const_data_ptr<compute_t>(), g, sum);
        });
  });
  return grad_input.to(grad.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CUDA, m) {
  m.impl("ps_roi_pool", &ps_roi_pool_cuda);
  m.impl("_ps_roi_pool_backward", &ps_roi_pool_backward_cuda);
}

}  // namespace dcn_projects
