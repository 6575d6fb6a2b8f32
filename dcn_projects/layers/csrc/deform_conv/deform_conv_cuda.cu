// The CUDA side gathers the columns of as many output pixels as fit in the L2 cache and leaves
// their products to the matrix library.

#include <ATen/Dispatch.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../common/cuda_sum.h"
#include "../common/cuda_transpose.h"
#include "cuda_columns.h"

namespace dcn_projects {
namespace {

constexpr int64_t kColumnBytes = 32 << 20;
// With 8 units a warp shares the cost of finding their positions, as long as enough warps are left
// to occupy a large device.
constexpr int kUnitsPerWarp = 8;
constexpr int64_t kManyWarps = 2048;

// Of a tensor that is contiguous or channels-last.
template <typename S>
Planes<S> planes(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const int64_t count = tensor.size(1), places = tensor.size(2) * tensor.size(3);
  const bool along_planes = !tensor.is_contiguous();
  return {const_cast<void*>(tensor.const_data_ptr()), count * places, along_planes ? 1 : places,
          along_planes ? count : 1, tensor.scalar_type() != c10::CppTypeToScalarType<S>::value};
}

at::Tensor planes_in_order(const std::optional<at::Tensor>& tensor) {
  if (!tensor) return at::Tensor();
  return tensor->is_contiguous(at::MemoryFormat::ChannelsLast) ? *tensor : tensor->contiguous();
}

// Calls run(chunk, columns) for all output pixels of the batch: as many whole images as fit at a
// time, or parts of one, all of about the same size.
template <typename F>
void for_each_chunk(const ConvGeometry& g, const at::TensorOptions& options, F run) {
  const int64_t width = g.taps() * g.channels, all = g.out_pixels();
  const int64_t most = kColumnBytes / (width * static_cast<int64_t>(options.dtype().itemsize()));
  const auto split = [](int64_t count, int64_t limit) {
    limit = std::max<int64_t>(limit, 1);
    const int64_t parts = (count + limit - 1) / limit;
    return parts ? (count + parts - 1) / parts : 0;
  };
  const int64_t images = split(g.batch, most / all), places = split(all, most);
  const at::Tensor buffer = at::empty({images * places * width}, options);
  for (int64_t image = 0; image < g.batch; image += images) {
    for (int64_t place = 0; place < all; place += places) {
      const Chunk chunk{image, static_cast<unsigned>(place),
                        static_cast<unsigned>(std::min(images, g.batch - image)),
                        static_cast<unsigned>(std::min(places, all - place))};
      const int64_t pixels = chunk.pixels();
      run(chunk, buffer.narrow(0, 0, pixels * width).view({g.groups, pixels, width / g.groups}));
    }
  }
}

// Calls run(std::integral_constant<int, V>(), units) with V = wide if groups of channels divide by
// it, else 1.
template <int wide, typename S, typename F>
void with_vector_size(Units<S> units, F run) {
  const auto call = [&](auto V) {
    units.lanes = lanes_for(units.channels() / V);
    units.per_warp = kWarpSize / units.lanes;
    while (units.per_warp < kUnitsPerWarp && units.count() / units.per_warp >= 2 * kManyWarps) {
      units.per_warp *= 2;
    }
    run(V, units);
  };
  if (units.g.channels / units.g.groups % wide == 0 && units.channels() % wide == 0) {
    call(std::integral_constant<int, wide>());
  } else {
    call(std::integral_constant<int, 1>());
  }
}

template <typename S>
int64_t threads(const Units<S>& units) {
  return (units.count() + units.per_warp - 1) / units.per_warp * kWarpSize;
}

// out = a b, summed in float32 at least and rounded to the type of out, + out if `accumulate`.
// Batches of matrices.
void product_in_full(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (out.scalar_type() == a.scalar_type()) {
    accumulate ? at::baddbmm_out(out, out, a, b) : at::bmm_out(out, a, b);
    return;
  }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
  if (accumulate) {
    at::baddbmm_out(out, out, a, b, out.scalar_type());
  } else {
    at::bmm_out(out, a, b, out.scalar_type());
  }
#else
  // Here the product of each chunk is rounded to 16 bits before the sum: an error like that of the
  // last rounding once more, and none if there is but one chunk.
  at::Tensor product = at::empty(out.sizes(), a.options());
  at::bmm_out(product, a, b);
  accumulate ? out.add_(product) : out.copy_(product);
#endif
}

template <typename S>
at::Tensor forward(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& offset,
                   const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                   const std::optional<at::Tensor>& bias) {
  const int64_t outs = g.out_channels / g.groups;
  Transposes<S> transposes;
  const at::Tensor x = transposes.channels_last(input);
  const at::Tensor w = transposes.channels_last(weight).view({g.groups, outs, -1});
  transposes.run();
  const at::Tensor offset_ = planes_in_order(offset), mask_ = planes_in_order(mask);
  const at::Tensor result = at::empty({g.batch, g.out_channels, g.out_height, g.out_width},
                                      input.options(), format_like(input));
  const at::Tensor out = result.view({g.batch, g.groups, outs, g.out_pixels()});

  for_each_chunk(g, x.options(), [&](Chunk chunk, const at::Tensor& column) {
    with_vector_size<16 / sizeof(S)>(Units<S>{g, planes<S>(offset_), planes<S>(mask_), chunk},
                                     [&](auto V, const auto& units) {
                                       launch(gather_kernel<S, V>, threads(units), units,
                                              x.const_data_ptr<S>(), column.mutable_data_ptr<S>());
                                     });
    const auto product = [&](at::Tensor to, const at::Tensor& a, const at::Tensor& b) {
      if (bias) {
        at::baddbmm_out(to, bias->view({g.groups, outs, 1}), a, b);
      } else {
        at::bmm_out(to, a, b);
      }
    };
    // (images, groups, outs, places)
    const at::Tensor part =
        out.narrow(0, chunk.image, chunk.images).narrow(3, chunk.place, chunk.places);
    if (g.groups == 1) {
      product(part.select(1, 0), w.expand({chunk.images, -1, -1}),
              column.view({chunk.images, chunk.places, -1}).transpose(1, 2));
    } else {
      for (int64_t i = 0; i < chunk.images; ++i) {
        product(part[i], w, column.narrow(1, i * chunk.places, chunk.places).transpose(1, 2));
      }
    }
  });
  return result;
}

template <typename S>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
    const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& mask) {
  using T = at::opmath_type<S>;
  const int64_t outs = g.out_channels / g.groups;
  const at::TensorOptions options = input.options().dtype(c10::CppTypeToScalarType<T>::value);
  const at::Tensor grad_offset = at::empty(offset.sizes(), offset.options());
  const at::Tensor grad_mask =
      mask ? at::empty(mask->sizes(), mask->options()) : at::empty({0}, input.options());
  at::Tensor grad_x, grad_w;
  {
    Transposes<S> transposes;
    const at::Tensor x = transposes.channels_last(input);
    const at::Tensor w = transposes.channels_last(weight).view({g.groups, outs, -1});
    // (groups, pixels, outs)
    const at::Tensor rows =
        transposes.channels_last(grad).view({-1, g.groups, outs}).transpose(0, 1);
    transposes.run();
    const at::Tensor offset_ = planes_in_order(offset), mask_ = planes_in_order(mask);
    grad_w = g.batch ? at::empty(w.sizes(), options) : at::zeros(w.sizes(), options);

    // A pixel of the map takes part in a tap of an output pixel once at most, and a column's
    // gradient is a sum over the output channels of gradient times weight.
    const int64_t terms = g.batch ? g.taps() * g.out_pixels() : 0;
    const auto largest_term = [&] {
      const double inf = std::numeric_limits<double>::infinity();
      const auto norm = [](const at::Tensor& of, double order, at::OptionalIntArrayRef dims) {
        return at::linalg_vector_norm(of, order, dims, false, at::kDouble);
      };
      at::Tensor largest = norm(norm(rows, 1, at::IntArrayRef({2})), inf, std::nullopt);
      largest.mul_(norm(w, inf, std::nullopt));
      return mask ? largest.mul_(norm(*mask, inf, std::nullopt)) : largest;
    };
    grad_x = sum_up<T>(x.sizes(), options, terms, largest_term, [&](auto sum) {
      for_each_chunk(g, x.options(), [&](Chunk chunk, at::Tensor column) {
        const int64_t first = chunk.image * g.out_pixels() + chunk.place;
        const at::Tensor grad_rows = rows.narrow(1, first, chunk.pixels());
        at::bmm_out(column, grad_rows, w);
        // Four channels at most, as many as one addition to the gradient of x can take: with eight
        // neighbouring lanes would leave gaps.
        with_vector_size<std::min<int>(16 / sizeof(S), 4)>(
            Units<S>{g, planes<S>(offset_), planes<S>(mask_), chunk},
            [&](auto V, const auto& units) {
              launch(scatter_kernel<S, V, decltype(sum)>, threads(units), units,
                     x.const_data_ptr<S>(), column.mutable_data_ptr<S>(), sum,
                     planes<S>(grad_offset), planes<S>(mask ? grad_mask : at::Tensor()));
            });
        product_in_full(grad_w, grad_rows.transpose(1, 2), column, first > 0);
      });
    });
  }  // The copies are not needed any more, the results take their memory.

  Transposes<T, S> transposes;
  const int64_t pixels = g.pixels(), taps = g.taps();
  at::Tensor grad_input;
  if (format_like(input) == at::MemoryFormat::ChannelsLast) {
    grad_input = grad_x.to(input.scalar_type()).permute({0, 3, 1, 2});
  } else {
    grad_input = at::empty(input.sizes(), input.options());
    transposes.add(grad_x, grad_input, g.batch, pixels, g.channels);
  }
  const at::Tensor grad_weight = at::empty(weight.sizes(), weight.options());
  transposes.add(grad_w, grad_weight, g.out_channels, taps, weight.size(1));
  transposes.run();
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

at::Tensor deform_conv_cuda(const at::Tensor& input, const at::Tensor& offset,
                            const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                            const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, bias, stride, padding,
                                           dilation, legacy_border);
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "deform_conv",
      [&] { result = forward<scalar_t>(g, input, offset, weight, mask, bias); });
  return result;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv_backward_cuda(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, std::nullopt, stride,
                                           padding, dilation, legacy_border);
  check_grad(g, grad, input);
  const c10::cuda::CUDAGuard guard(input.device());
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "_deform_conv_backward",
      [&] { result = backward<scalar_t>(g, grad, input, offset, weight, mask); });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CUDA, m) {
  m.impl("deform_conv", &deform_conv_cuda);
  m.impl("_deform_conv_backward", &deform_conv_backward_cuda);
}

}  // namespace dcn_projects
