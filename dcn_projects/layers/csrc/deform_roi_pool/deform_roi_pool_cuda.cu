#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../common/cuda_sum.h"
#include "../common/cuda_transpose.h"
#include "cuda_bins.h"

namespace dcn_projects {
namespace {

constexpr char kName[] = "deform_roi_pool";

// With group_size 1 all bins of a channel read the same map.
bool wants_channels_last(const DeformRoiPoolGeometry& g) { return g.group_cells() == 1; }

// Calls run(std::integral_constant<int, V>(), std::bool_constant<channels_last>()). The V channels
// of a thread share their offset.
template <int wide, typename F>
void with_layout(const DeformRoiPoolGeometry& g, F run) {
  if (!wants_channels_last(g)) {
    run(std::integral_constant<int, 1>(), std::false_type());
  } else if (g.per_class % wide == 0) {
    run(std::integral_constant<int, wide>(), std::true_type());
  } else {
    run(std::integral_constant<int, 1>(), std::true_type());
  }
}

template <typename S>
at::Tensor forward(const DeformRoiPoolGeometry& g, const at::Tensor& input, const at::Tensor& rois,
                   const std::optional<at::Tensor>& offset) {
  using T = at::opmath_type<S>;
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  Transposes<S> transposes;
  const bool last = wants_channels_last(g);
  const at::Tensor x = last ? transposes.channels_last(input) : input.contiguous();
  transposes.run();
  const at::Tensor boxes = rois.to(kType).contiguous();
  const at::Tensor moves = offset ? offset->to(kType).contiguous() : at::Tensor();
  const at::Tensor output = at::empty({g.R, g.D, g.pooled_h, g.pooled_w}, input.options());
  const at::Tensor pooled =
      last ? at::empty({g.R, g.pooled_h, g.pooled_w, g.D}, input.options()) : output;
  with_layout<16 / sizeof(S)>(g, [&](auto V, auto channels_last) {
    launch(pool_kernel<S, V, channels_last>, output.numel() / V, x.const_data_ptr<S>(),
           boxes.const_data_ptr<T>(), data_or_null<T>(moves), g, pooled.mutable_data_ptr<S>());
  });
  if (last) transposes.add(pooled, output, g.R, g.bins(), g.D);
  transposes.run();
  return output;
}

template <typename S>
std::tuple<at::Tensor, at::Tensor> backward(const DeformRoiPoolGeometry& g, const at::Tensor& grad,
                                            const at::Tensor& input, const at::Tensor& rois,
                                            const std::optional<at::Tensor>& offset) {
  using T = at::opmath_type<S>;
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  constexpr int kWide = std::min<int>(16 / sizeof(S), 4);  // as many as one addition takes
  Transposes<S> transposes;
  const bool last = wants_channels_last(g);
  const auto arrange = [&](const at::Tensor& map) {
    return last ? transposes.channels_last(map) : map.contiguous();
  };
  const at::Tensor top = arrange(grad), x = offset ? arrange(input) : at::Tensor();
  transposes.run();
  const at::Tensor boxes = rois.to(kType).contiguous();
  const at::Tensor moves = offset ? offset->to(kType).contiguous() : at::Tensor();

  const at::TensorOptions options = input.options().dtype(kType);
  const at::DimVector shape =
      last ? at::DimVector({g.N, g.H, g.W, g.C}) : at::DimVector(input.sizes());
  // A bin takes part in a cell once, with a share of its gradient.
  const auto largest_term = [&] {
    return at::linalg_vector_norm(grad, std::numeric_limits<double>::infinity(), std::nullopt,
                                  false, at::kDouble);
  };
  const at::Tensor grad_x = sum_up<T>(shape, options, g.R * g.bins(), largest_term, [&](auto sum) {
    with_layout<kWide>(g, [&](auto V, auto channels_last) {
      launch(grad_input_kernel<S, V, channels_last, decltype(sum)>, top.numel() / V,
             top.const_data_ptr<S>(), boxes.const_data_ptr<T>(), data_or_null<T>(moves), g, sum);
    });
  });
  at::Tensor grad_offset = at::empty({0}, input.options());
  if (offset) {
    grad_offset = at::empty(moves.sizes(), moves.options());
    with_layout<kWide>(g, [&](auto V, auto channels_last) {
      const int lanes = lanes_for(g.per_class / V);
      launch(grad_offset_kernel<S, V, channels_last>, grad_offset.numel() / 2 * lanes,
             top.const_data_ptr<S>(), x.const_data_ptr<S>(), boxes.const_data_ptr<T>(),
             moves.const_data_ptr<T>(), g, lanes, grad_offset.mutable_data_ptr<T>());
    });
    grad_offset = grad_offset.to(offset->scalar_type());
  }
  if (!last) return {grad_x.to(input.scalar_type()), grad_offset};
  const at::Tensor grad_input = at::empty(input.sizes(), input.options());
  Transposes<T, S> back;
  back.add(grad_x, grad_input, g.N, static_cast<int64_t>(g.H) * g.W, g.C);
  back.run();
  return {grad_input, grad_offset};
}

at::Tensor deform_roi_pool_cuda(const at::Tensor& input, const at::Tensor& rois,
                                const std::optional<at::Tensor>& offset,
                                at::IntArrayRef output_size, double spatial_scale,
                                int64_t sampling_ratio, double gamma, at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), kName,
                                  [&] { output = forward<scalar_t>(g, input, rois, offset); });
  return output;
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cuda(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma, at::IntArrayRef group_size) {
  const DeformRoiPoolGeometry g = check_deform_roi_pool(
      kName, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size);
  check_grad(kName, grad, input.scalar_type(), input.device(), g);
  const c10::cuda::CUDAGuard guard(input.device());
  std::tuple<at::Tensor, at::Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), kName, [&] {
    result = backward<scalar_t>(g, grad, input, rois, offset);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CUDA, m) {
  m.impl("deform_roi_pool", &deform_roi_pool_cuda);
  m.impl("_deform_roi_pool_backward", &deform_roi_pool_backward_cuda);
}

}  // namespace dcn_projects
