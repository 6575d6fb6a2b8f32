#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <optional>

#include "../common/bilinear.h"
#include "../common/check_pair.h"
#include "../common/host_device.h"

// Deformable convolution (arXiv 1703.06211, Eq. 2), with a mask its modulated form (arXiv
// 1811.11168, Eq. 1): for output pixel o, tap k and a channel c of deformable group g,
//
//   y[n,f,o] = bias[f] + sum over c of f's group, k:  weight[f,c,k] * mask[n,g,k,o] * x[n,c](p)
//   p        = o * stride - padding + k * dilation + offset[n,g,k,o]
//
//   input   (N, C, H, W)
//   offset  (N, G*K*2, Ho, Wo)   channel (g*K + k)*2 is dy, the next dx, in pixels of the input
//   weight  (O, C/groups, kernel_h, kernel_w), K = kernel_h * kernel_w
//   mask    (N, G*K, Ho, Wo) or none, bias (O) or none
//   result  (N, O, Ho, Wo)
//
// groups and G, the number of deformable groups, follow from the shapes.

namespace dcn_projects {

struct ConvGeometry {
  int64_t batch, channels, out_channels;
  int height, width, out_height, out_width;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int groups, deformable_groups;
  bool legacy_border;

  DCN_HOST_DEVICE int taps() const { return kernel_h * kernel_w; }
  DCN_HOST_DEVICE int64_t pixels() const { return static_cast<int64_t>(height) * width; }
  DCN_HOST_DEVICE int64_t out_pixels() const {
    return static_cast<int64_t>(out_height) * out_width;
  }
};

// One read of the map: the pixels around it and what their values are worth.
template <typename T>
struct Sample {
  BilinearTap<T> tap;
  T slope_y, slope_x;  // derivative of the coordinate that is read by the one that was asked for
};

// Where tap (tap_y, tap_x) of output pixel (out_y, out_x) reads when it is displaced by (dy, dx).
//
// The map continues with zeros: a sample counts within the open band -1 < y < H and fades towards
// its ends. The legacy rule, that of the operator of 2017, counts 0 <= y < H only and repeats the
// last row from H-1 on, where the slope is 0. A sample that does not count, be it far away,
// infinite or NaN, reads only pixels `outside`, and so do its derivatives: at -1 itself it would
// still see row 0, so it is sent to -2.
template <typename T>
DCN_HOST_DEVICE Sample<T> locate(const ConvGeometry& g, int out_y, int out_x, int tap_y, int tap_x,
                                 T dy, T dx, int outside) {
  const T H = static_cast<T>(g.height), W = static_cast<T>(g.width);
  T y = static_cast<T>(out_y * g.stride_h - g.pad_h + tap_y * g.dilation_h) + dy;
  T x = static_cast<T>(out_x * g.stride_w - g.pad_w + tap_x * g.dilation_w) + dx;
  T slope_y = 1, slope_x = 1;
  if (g.legacy_border) {
    const bool counts = y >= 0 && y < H && x >= 0 && x < W;  // false for NaN
    slope_y = y < H - 1 ? T(1) : T(0);
    slope_x = x < W - 1 ? T(1) : T(0);
    y = counts ? (y < H - 1 ? y : H - 1) : T(-2);
    x = counts ? (x < W - 1 ? x : W - 1) : T(-2);
  } else {
    y = y > -1 ? (y < H ? y : H) : T(-2);  // -2 for NaN
    x = x > -1 ? (x < W ? x : W) : T(-2);
  }
  return {bilinear_tap(y, x, g.height, g.width, outside), slope_y, slope_x};
}

template <typename T>
struct SampleGrad {
  T offset_y, offset_x, mask;
};

// Gradients of one sample from the dot products d, over the channels of its deformable group, of
// the column's gradient with the four pixels.
template <typename T>
DCN_HOST_DEVICE SampleGrad<T> sample_grad(const Sample<T>& s, T mask, const T (&d)[4]) {
  const T ly = s.tap.ly, lx = s.tap.lx;
  return {mask * s.slope_y * ((1 - lx) * (d[2] - d[0]) + lx * (d[3] - d[1])),
          mask * s.slope_x * ((1 - ly) * (d[1] - d[0]) + ly * (d[3] - d[2])),
          (1 - ly) * ((1 - lx) * d[0] + lx * d[1]) + ly * ((1 - lx) * d[2] + lx * d[3])};
}

// True if the result should be channels-last in memory, as the input is.
inline at::MemoryFormat format_like(const at::Tensor& input) {
  return !input.is_contiguous() && input.is_contiguous(at::MemoryFormat::ChannelsLast)
             ? at::MemoryFormat::ChannelsLast
             : at::MemoryFormat::Contiguous;
}

// Throws if shapes, dtypes or devices do not fit together.
inline ConvGeometry check_deform_conv(const at::Tensor& input, const at::Tensor& offset,
                                      const at::Tensor& weight,
                                      const std::optional<at::Tensor>& mask,
                                      const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                      at::IntArrayRef padding, at::IntArrayRef dilation,
                                      bool legacy_border) {
  TORCH_CHECK(input.dim() == 4, "deform_conv: input must be (N, C, H, W), got ", input.sizes());
  TORCH_CHECK(weight.dim() == 4, "deform_conv: weight must be (O, C/groups, kh, kw), got ",
              weight.sizes());
  const at::ScalarType dtype = input.scalar_type();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      "deform_conv: input must be float16, bfloat16, float32 or float64, got ", dtype);
  const auto check = [&](const at::Tensor& tensor, const char* name, bool may_be_float32) {
    TORCH_CHECK(tensor.device() == input.device(), "deform_conv: input is on ", input.device(),
                " but ", name, " on ", tensor.device());
    const bool is_16_bit = input.element_size() == 2;
    TORCH_CHECK(tensor.scalar_type() == input.scalar_type() ||
                    (may_be_float32 && is_16_bit && tensor.scalar_type() == at::kFloat),
                "deform_conv: input is ", input.scalar_type(), " but ", name, " ",
                tensor.scalar_type());
  };
  check(offset, "offset", true);
  check(weight, "weight", false);
  if (mask) check(*mask, "mask", true);
  if (bias) check(*bias, "bias", false);

  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t O = weight.size(0), kernel_h = weight.size(2), kernel_w = weight.size(3);
  TORCH_CHECK(weight.numel() > 0, "deform_conv: weight is empty, ", weight.sizes());
  TORCH_CHECK(C > 0 && C % weight.size(1) == 0, "deform_conv: input has ", C,
              " channels, which is no multiple of the ", weight.size(1), " of weight ",
              weight.sizes());
  const int64_t groups = C / weight.size(1);
  TORCH_CHECK(O % groups == 0, "deform_conv: the ", O, " output channels of weight ",
              weight.sizes(), " do not divide into ", groups, " groups");
  // What follows fits into 64 bits then.
  constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
  check_pair("deform_conv", "stride", stride, 1, kMaxInt);
  check_pair("deform_conv", "padding", padding, 0, kMaxInt);
  check_pair("deform_conv", "dilation", dilation, 1, kMaxInt);
  for (const int64_t value : {H, W, kernel_h, kernel_w}) {
    TORCH_CHECK(value <= kMaxInt,
                "deform_conv: the sides of input and weight must be less than 2^31, got ",
                input.sizes(), " and ", weight.sizes());
  }

  const int64_t free_h = H + 2 * padding[0] - (dilation[0] * (kernel_h - 1) + 1);
  const int64_t free_w = W + 2 * padding[1] - (dilation[1] * (kernel_w - 1) + 1);
  const int64_t out_h = free_h < 0 ? 0 : free_h / stride[0] + 1;
  const int64_t out_w = free_w < 0 ? 0 : free_w / stride[1] + 1;
  TORCH_CHECK(H > 0 && W > 0 && out_h > 0 && out_w > 0,
              "deform_conv: convolution input is too small (output would be ", out_h, " x ", out_w,
              ") for input ", input.sizes(), " and weight ", weight.sizes());
  // Positions inside one image are 32-bit; a frame of two pixels must fit as well.
  TORCH_CHECK(H + 2 * padding[0] + 2 < kMaxInt / (W + 2 * padding[1] + 2),
              "deform_conv: one padded map must have less than 2^31 pixels, got ", input.sizes(),
              " with padding ", padding);

  const int64_t taps = kernel_h * kernel_w;
  TORCH_CHECK(offset.dim() == 4 && offset.size(0) == N && offset.size(1) > 0 &&
                  offset.size(1) % (2 * taps) == 0 && offset.size(2) == out_h &&
                  offset.size(3) == out_w,
              "deform_conv: offset must be (", N, ", 2*G*", taps, ", ", out_h, ", ", out_w,
              "), got ", offset.sizes());
  const int64_t deformable_groups = offset.size(1) / (2 * taps);
  TORCH_CHECK(C % deformable_groups == 0, "deform_conv: offset ", offset.sizes(), " stands for ",
              deformable_groups, " deformable groups, into which ", C,
              " channels cannot be divided");
  if (mask) {
    TORCH_CHECK(mask->sizes() == at::IntArrayRef({N, deformable_groups * taps, out_h, out_w}),
                "deform_conv: mask must be (", N, ", ", deformable_groups * taps, ", ", out_h, ", ",
                out_w, ") to fit offset ", offset.sizes(), ", got ", mask->sizes());
  }
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == O, "deform_conv: bias must be (", O, "), got ",
                bias->sizes());
  }
  const auto to_int = [](int64_t value) { return static_cast<int>(value); };
  return {N,
          C,
          O,
          to_int(H),
          to_int(W),
          to_int(out_h),
          to_int(out_w),
          to_int(kernel_h),
          to_int(kernel_w),
          to_int(stride[0]),
          to_int(stride[1]),
          to_int(padding[0]),
          to_int(padding[1]),
          to_int(dilation[0]),
          to_int(dilation[1]),
          to_int(groups),
          to_int(deformable_groups),
          legacy_border};
}

inline void check_grad(const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input) {
  TORCH_CHECK(
      grad.sizes() == at::IntArrayRef({g.batch, g.out_channels, g.out_height, g.out_width}) &&
          grad.scalar_type() == input.scalar_type() && grad.device() == input.device(),
      "_deform_conv_backward: grad must be (", g.batch, ", ", g.out_channels, ", ", g.out_height,
      ", ", g.out_width, ") ", input.scalar_type(), " on ", input.device(), ", got ", grad.sizes(),
      " ", grad.scalar_type(), " on ", grad.device());
}

}  // namespace dcn_projects
