#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../common/cuda_launch.h"
#include "deform_roi_pool.h"

// In the kernels S is the type of the values in memory, T the type that computes.

namespace dcn_projects {
namespace {

constexpr char kName[] = "deform_roi_pool";

// A sample on one axis: cell `low` weighs 1 - fraction, cell `high` fraction. On a whole
// coordinate, and thus where it was clamped, both are the same cell and the derivative is 0.
template <typename T>
struct AxisSample {
  bool counts;
  int low, high;
  T fraction;
};

template <typename T>
__device__ AxisSample<T> axis_sample(const SampleLine<T>& line, int k, int size) {
  const T position = clamp_sample(multiply_add(static_cast<T>(k), line.step, line.start), size);
  const int low = static_cast<int>(position);
  const T fraction = position - static_cast<T>(low);
  return {position >= 0, low, low + (fraction > 0), fraction};
}

template <typename T>
__device__ int count_samples(const SampleLine<T>& line, int sampling_ratio, int size) {
  int count = 0;
  for (int k = 0; k < sampling_ratio; ++k) count += axis_sample(line, k, size).counts;
  return count;
}

// Bin (i, j) of RoI n for offset class k.
template <typename T>
struct Bin {
  int64_t image;
  T samples;  // how many count; 0 if there is nothing to pool
  SampleLine<T> y, x;
  T roi_height, roi_width;
};

template <typename T>
__device__ Bin<T> find_bin(const T* rois, const T* offset, const DeformRoiPoolGeometry& g,
                           int64_t n, int64_t k, int i, int j) {
  const RoiRegion<T> region = roi_region(rois + 5 * n, g, T(0.5));
  T dx = 0, dy = 0;
  if (offset) {
    const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w;
    const T* at = offset + (n * g.classes + k) * 2 * plane + g.part_of_bin(i, j);
    dx = at[0];
    dy = at[plane];
  }
  const T gamma = static_cast<T>(g.gamma);
  Bin<T> bin;
  bin.image = region.image;
  bin.roi_height = region.height;
  bin.roi_width = region.width;
  bin.y = sample_line(region.y, region.height, i, g.pooled_h, g.sampling_ratio, dy, gamma);
  bin.x = sample_line(region.x, region.width, j, g.pooled_w, g.sampling_ratio, dx, gamma);
  bin.samples = region.image < 0 ? T(0)
                                 : static_cast<T>(count_samples(bin.y, g.sampling_ratio, g.H)) *
                                       static_cast<T>(count_samples(bin.x, g.sampling_ratio, g.W));
  return bin;
}

// One thread per output element.
template <typename S, typename T>
__global__ void pool_kernel(const S* input, const T* rois, const T* offset, DeformRoiPoolGeometry g,
                            S* output) {
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  for (int64_t index = grid_index(); index < g.R * g.D * g.bins(); index += grid_stride()) {
    const int j = index % g.pooled_w, i = index / g.pooled_w % g.pooled_h;
    const int64_t d = index / g.bins() % g.D, n = index / g.bins() / g.D;
    const Bin<T> bin = find_bin(rois, offset, g, n, d / g.per_class, i, j);
    T sum = 0;
    if (bin.samples > 0) {
      const int64_t channel = d * g.group_cells() + g.group_cell_of_bin(i, j);
      const S* map = input + (bin.image * g.C + channel) * map_size;
      for (int a = 0; a < g.sampling_ratio; ++a) {
        const AxisSample<T> y = axis_sample(bin.y, a, g.H);
        if (!y.counts) continue;
        const S *low = map + y.low * g.W, *high = map + y.high * g.W;
        for (int b = 0; b < g.sampling_ratio; ++b) {
          const AxisSample<T> x = axis_sample(bin.x, b, g.W);
          if (!x.counts) continue;
          const T top = (1 - x.fraction) * static_cast<T>(low[x.low]) +
                        x.fraction * static_cast<T>(low[x.high]);
          const T bottom = (1 - x.fraction) * static_cast<T>(high[x.low]) +
                           x.fraction * static_cast<T>(high[x.high]);
          sum += (1 - y.fraction) * top + y.fraction * bottom;
        }
      }
      sum /= bin.samples;
    }
    output[index] = static_cast<S>(sum);
  }
}

// One thread per output element; samples of many bins meet in a cell, hence atomics.
template <typename S, typename T>
__global__ void grad_input_kernel(const S* grad, const T* rois, const T* offset,
                                  DeformRoiPoolGeometry g, T* grad_input) {
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  for (int64_t index = grid_index(); index < g.R * g.D * g.bins(); index += grid_stride()) {
    const int j = index % g.pooled_w, i = index / g.pooled_w % g.pooled_h;
    const int64_t d = index / g.bins() % g.D, n = index / g.bins() / g.D;
    const Bin<T> bin = find_bin(rois, offset, g, n, d / g.per_class, i, j);
    if (!(bin.samples > 0)) continue;
    const int64_t channel = d * g.group_cells() + g.group_cell_of_bin(i, j);
    T* map = grad_input + (bin.image * g.C + channel) * map_size;
    const T share = static_cast<T>(grad[index]) / bin.samples;
    for (int a = 0; a < g.sampling_ratio; ++a) {
      const AxisSample<T> y = axis_sample(bin.y, a, g.H);
      if (!y.counts) continue;
      T *low = map + y.low * g.W, *high = map + y.high * g.W;
      for (int b = 0; b < g.sampling_ratio; ++b) {
        const AxisSample<T> x = axis_sample(bin.x, b, g.W);
        if (!x.counts) continue;
        atomicAdd(low + x.low, (1 - y.fraction) * (1 - x.fraction) * share);
        atomicAdd(low + x.high, (1 - y.fraction) * x.fraction * share);
        atomicAdd(high + x.low, y.fraction * (1 - x.fraction) * share);
        atomicAdd(high + x.high, y.fraction * x.fraction * share);
      }
    }
  }
}

// One thread per RoI, class and part: it alone sums over the bins and channels that share the
// offset, so that this gradient is the same in every run.
template <typename S, typename T>
__global__ void grad_offset_kernel(const S* grad, const S* input, const T* rois, const T* offset,
                                   DeformRoiPoolGeometry g, T* grad_offset) {
  const int64_t map_size = static_cast<int64_t>(g.H) * g.W;
  const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w;
  for (int64_t index = grid_index(); index < g.R * g.classes * plane; index += grid_stride()) {
    const int64_t part = index % plane, k = index / plane % g.classes;
    const int64_t n = index / plane / g.classes;
    const CellRange is = bins_of_group(part / g.part_w, g.pooled_h, g.part_h);
    const CellRange js = bins_of_group(part % g.part_w, g.pooled_w, g.part_w);
    T sum_x = 0, sum_y = 0;
    for (int i = is.begin; i < is.end; ++i) {
      for (int j = js.begin; j < js.end; ++j) {
        const Bin<T> bin = find_bin(rois, offset, g, n, k, i, j);
        if (!(bin.samples > 0)) continue;
        for (int64_t d = k * g.per_class; d < (k + 1) * g.per_class; ++d) {
          const int64_t channel = d * g.group_cells() + g.group_cell_of_bin(i, j);
          const S* map = input + (bin.image * g.C + channel) * map_size;
          T slope_x = 0, slope_y = 0;
          for (int a = 0; a < g.sampling_ratio; ++a) {
            const AxisSample<T> y = axis_sample(bin.y, a, g.H);
            if (!y.counts) continue;
            const S *low = map + y.low * g.W, *high = map + y.high * g.W;
            for (int b = 0; b < g.sampling_ratio; ++b) {
              const AxisSample<T> x = axis_sample(bin.x, b, g.W);
              if (!x.counts) continue;
              const T v00 = low[x.low], v01 = low[x.high], v10 = high[x.low], v11 = high[x.high];
              slope_x += (1 - y.fraction) * (v01 - v00) + y.fraction * (v11 - v10);
              slope_y += (1 - x.fraction) * (v10 - v00) + x.fraction * (v11 - v01);
            }
          }
          const int64_t output = ((n * g.D + d) * g.pooled_h + i) * g.pooled_w + j;
          const T scale = static_cast<T>(grad[output]) / bin.samples * static_cast<T>(g.gamma);
          sum_x += scale * bin.roi_width * slope_x;
          sum_y += scale * bin.roi_height * slope_y;
        }
      }
    }
    T* at = grad_offset + (n * g.classes + k) * 2 * plane + part;
    at[0] = sum_x;
    at[plane] = sum_y;
  }
}

at::Tensor deform_roi_pool_cuda(const at::Tensor& input, const at::Tensor& rois,
                                const std::optional<at::Tensor>& offset,
                                at::IntArrayRef output_size, double spatial_scale,
                                int64_t sampling_ratio, double gamma, at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor x = input.contiguous(), boxes = rois.to(dtype).contiguous();
  const at::Tensor moves = offset ? offset->to(dtype).contiguous() : at::Tensor();
  at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, input.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), kName, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    launch(pool_kernel<scalar_t, compute_t>, output.numel(), x.const_data_ptr<scalar_t>(),
           boxes.const_data_ptr<compute_t>(), data_or_null<compute_t>(moves), g,
           output.mutable_data_ptr<scalar_t>());
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cuda(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma, at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  check_grad(kName, grad, g);
  at::globalContext().alertNotDeterministic("deform_roi_pool backward on CUDA");
  const c10::cuda::CUDAGuard guard(input.device());
  const at::ScalarType dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor top = grad.contiguous(), boxes = rois.to(dtype).contiguous();
  at::Tensor grad_input = at::zeros(input.sizes(), input.options().dtype(dtype));
  at::Tensor x, moves, grad_offset = at::empty({0}, input.options());
  if (offset) {
    x = input.contiguous();
    moves = offset->to(dtype).contiguous();
    grad_offset = at::empty(moves.sizes(), moves.options());
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), kName, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    launch(grad_input_kernel<scalar_t, compute_t>, top.numel(), top.const_data_ptr<scalar_t>(),
           boxes.const_data_ptr<compute_t>(), data_or_null<compute_t>(moves), g,
           grad_input.mutable_data_ptr<compute_t>());
    if (!offset) return;
    launch(grad_offset_kernel<scalar_t, compute_t>, grad_offset.numel() / 2,
           top.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
           boxes.const_data_ptr<compute_t>(), moves.const_data_ptr<compute_t>(), g,
           grad_offset.mutable_data_ptr<compute_t>());
  });
  return {grad_input.to(input.scalar_type()),
          offset ? grad_offset.to(offset->scalar_type()) : grad_offset};
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CUDA, m) {
  m.impl("deform_roi_pool", &deform_roi_pool_cuda);
  m.impl("_deform_roi_pool_backward", &deform_roi_pool_backward_cuda);
}

}  // namespace dcn_projects
