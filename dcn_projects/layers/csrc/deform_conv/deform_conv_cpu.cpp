// The CPU side works on tiles of output pixels and blocks of channels, in three steps kept apart:
// where a tile reads, once for all channels; the reads themselves, vectorised over the channels of
// a block; and a matrix product of the column that they form with the weights. A column exists for
// one tile, one block and a few taps only, so that it stays in the cache of its core. 16-bit
// tensors are computed in float32 and rounded once, but see forward_bfloat16().
//
// Results do not depend on the number of threads: how the work is divided follows from the shapes
// alone, and whatever several threads contribute to is summed afterwards in a fixed order.

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "cpu_backward.h"
#include "cpu_forward.h"
#include "deform_conv.h"

namespace dcn_projects {
namespace {

// Narrower products gain nothing.
bool prefers_bfloat16(const ConvGeometry& g, at::ScalarType dtype, int64_t narrowest) {
  return dtype == at::kBFloat16 && g.groups == 1 &&
         std::min(g.channels, g.out_channels) >= narrowest && has_bfloat16_product();
}

at::Tensor deform_conv_cpu(const at::Tensor& input, const at::Tensor& offset,
                           const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                           const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, bias, stride, padding,
                                           dilation, legacy_border);
  if (prefers_bfloat16(g, input.scalar_type(), 64)) {
    return forward_bfloat16(g, input, offset, weight, mask, bias);
  }
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "deform_conv",
      [&] { result = ForwardPass<scalar_t>(g, input, offset, weight, mask, bias).run(); });
  return result;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv_backward_cpu(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, std::nullopt, stride,
                                           padding, dilation, legacy_border);
  check_grad(g, grad, input);
  if (prefers_bfloat16(g, input.scalar_type(), 128)) {
    return BackwardPass<at::BFloat16, at::BFloat16>(g, grad, input, offset, weight, mask).run();
  }
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "_deform_conv_backward",
      [&] { result = BackwardPass<scalar_t>(g, grad, input, offset, weight, mask).run(); });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CPU, m) {
  m.impl("deform_conv", &deform_conv_cpu);
  m.impl("_deform_conv_backward", &deform_conv_backward_cpu);
}

}  // namespace dcn_projects
