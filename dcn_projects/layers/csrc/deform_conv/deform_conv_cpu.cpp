// The CPU side works on tiles of output pixels and blocks of channels, in three steps kept apart:
// where a tile reads, once for all channels; the reads themselves, vectorised over the channels of
// a block; and a matrix product of the column that they form with the weights. A column exists for
// one tile, one block and a few taps only, so that it stays in the cache of its core. 16-bit
// tensors are computed in float32 and rounded once, but see forward_bfloat16().
//
// Results do not depend on the number of threads: how the work is divided follows from the shapes
// alone, and whatever several threads contribute to is summed afterwards in a fixed order.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "channel_blocks.h"
#include "column.h"
#include "deform_conv.h"
#include "tile_gemm.h"

namespace dcn_projects {
namespace {

constexpr int64_t kTileBytes = 512 << 10;  // half of a usual L2 cache
constexpr int64_t kMinTile = 48, kMaxTile = 384;
constexpr int64_t kMinUnits = 16;  // of work for the threads, where there is enough
constexpr int64_t kDepth = 256;    // of a matrix product
constexpr int64_t kOwnedChannels = 64;

// The output pixels of an image in tiles of equal size, the last perhaps shorter. Sizes are
// multiples of 16, and products are computed for so many pixels: the sizes of matrices that ever
// meet the library are few.
struct Tiling {
  Tiling(const ConvGeometry& g, int64_t bytes_per_pixel, int64_t units) : pixels(g.out_pixels()) {
    const int64_t wanted = at::divup(pixels * std::max<int64_t>(g.batch, 1), units);
    const int64_t largest =
        std::clamp(std::min(kTileBytes / bytes_per_pixel, wanted), kMinTile, kMaxTile);
    size = round_up(at::divup(pixels, at::divup(pixels, largest)));
    count = at::divup(pixels, size);
  }
  int64_t begin(int64_t tile) const { return tile * size; }
  int64_t length(int64_t tile) const { return std::min(size, pixels - begin(tile)); }
  static int64_t round_up(int64_t length) { return at::divup(length, 16) * 16; }
  int64_t pixels, count, size;
};

template <typename T>
at::Tensor scratch(int64_t size, const at::TensorOptions& options) {
  return at::empty({size}, options.dtype(c10::CppTypeToScalarType<T>::value));
}

// What both passes read besides the map, in the type that they compute in.
template <typename T>
struct Modulation {
  at::Tensor offset, mask;  // mask may be undefined

  Modulation(const at::Tensor& offset_, const std::optional<at::Tensor>& mask_)
      : offset(offset_.to(c10::CppTypeToScalarType<T>::value).contiguous()) {
    if (mask_) mask = mask_->to(c10::CppTypeToScalarType<T>::value).contiguous();
  }

  // Fills a row with the samples of a tap and a deformable group, from output pixel `begin` on.
  void fill(const ConvGeometry& g, int64_t n, int64_t deformable_group, int tap, int64_t begin,
            int64_t length, SampleRow<T> row) const {
    const int64_t plane = (n * g.deformable_groups + deformable_group) * g.taps() + tap;
    const T* dy = offset.const_data_ptr<T>() + 2 * plane * g.out_pixels() + begin;
    if (mask.defined()) {
      std::copy_n(mask.const_data_ptr<T>() + plane * g.out_pixels() + begin, length, row.mask);
    } else {
      std::fill_n(row.mask, length, T(1));
    }
    locate(g, tap, dy, dy + g.out_pixels(), length, row);
  }
};

template <typename S>
at::Tensor forward(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& offset,
                   const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                   const std::optional<at::Tensor>& bias) {
  using T = at::opmath_type<S>;
  const auto blocks = channel_blocks(g, kDepth);
  const int64_t outs = g.out_channels / g.groups, width = blocks[0].size;
  const int chunk = at::divup(g.taps(), at::divup(g.taps(), std::max<int64_t>(kDepth / width, 1)));
  const Tiling tiling(g, (g.out_channels + chunk * width) * sizeof(T), kMinUnits);
  const Modulation<T> modulation(offset, mask);
  const auto x = BlockedMap<T>::template copy<S>(g, blocks, input, true);
  const at::Tensor packed = pack_forward<S, T>(g, blocks, weight);
  const at::Tensor shift = bias ? bias->to(packed.scalar_type()).contiguous()
                                : at::zeros({g.out_channels}, packed.options());
  const at::Tensor outside = at::zeros({width}, packed.options());
  const at::Tensor result = at::empty({g.batch, g.out_channels, g.out_height, g.out_width},
                                      input.options(), format_like(input));
  const MapStrides to(result);

  at::parallel_for(0, g.batch * tiling.count, 1, [&](int64_t begin, int64_t end) {
    const SampleBuffer<T> samples(tiling.size);
    const SampleRow<T> row = samples.row();
    const at::Tensor columns = scratch<T>(tiling.size * chunk * width, packed.options());
    const at::Tensor sums = scratch<T>(tiling.size * g.out_channels, packed.options());
    T* column = columns.mutable_data_ptr<T>();
    // (outputs / kOuts, pixels, kOuts) for each group
    T* sum = sums.mutable_data_ptr<T>();
    const auto for_each_outs = [&](int64_t group, auto body) {
      for (int64_t out = 0; out < outs; out += kOuts) {
        body(out, std::min(kOuts, outs - out), sum + (group * outs + out) * tiling.size);
      }
    };
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiling.count, pixel = tiling.begin(unit % tiling.count);
      const int64_t length = tiling.length(unit % tiling.count);
      const int64_t rows = Tiling::round_up(length);
      set_pixels(g, pixel, length, row);
      for (int64_t group = 0; group < g.groups; ++group) {
        for_each_outs(group, [&](int64_t out, int64_t size, T* to) {
          const T* from = shift.const_data_ptr<T>() + group * outs + out;
          for (int64_t t = 0; t < rows; ++t) std::copy_n(from, size, to + t * size);
        });
      }
      for (int tap = 0; tap < g.taps(); tap += chunk) {
        const int taps = std::min(chunk, g.taps() - tap);
        for (const ChannelBlock& b : blocks) {
          const int64_t stride = taps * b.size;
          const BlockView<T> map = x.block(n, b);
          for (int k = 0; k < taps; ++k) {
            modulation.fill(g, n, b.deformable_group, tap + k, pixel, length, row);
            gather(map.data, map.stride, outside.const_data_ptr<T>(), row, length, b.size,
                   column + k * b.size, stride);
          }
          for (const Segment& s : segments(g, b)) {
            // Where all channels are of one group, the taps are one product.
            const int together = s.size == b.size ? taps : 1;
            for (int k = 0; k < taps; k += together) {
              for_each_outs(s.group, [&](int64_t out, int64_t size, T* to) {
                const T* w = packed.const_data_ptr<T>() +
                             (s.begin * outs + out * s.size) * g.taps() + (tap + k) * s.size * size;
                tile_gemm(rows, size, together * s.size,
                          Matrix<const T>{column + k * b.size + s.begin - b.begin, stride},
                          Matrix<const T>{w, size}, Matrix<T>{to, size}, true);
              });
            }
          }
        }
      }
      S* image = result.mutable_data_ptr<S>() + n * to.image + pixel * to.pixel;
      for (int64_t group = 0; group < g.groups; ++group) {
        for_each_outs(group, [&](int64_t out, int64_t size, T* from) {
          copy_matrix(size, length, const_cast<const T*>(from), {1, size},
                      image + (group * outs + out) * to.channel, {to.channel, to.pixel});
        });
      }
    }
    tile_gemm_done();
  });
  return result;
}

// The same for bfloat16 on a processor that multiplies it, without groups: the column of a tile is
// kept whole, so that one product sums all and rounds once.
at::Tensor forward_bfloat16(const ConvGeometry& g, const at::Tensor& input,
                            const at::Tensor& offset, const at::Tensor& weight,
                            const std::optional<at::Tensor>& mask,
                            const std::optional<at::Tensor>& bias) {
  using S = at::BFloat16;
  const auto blocks = channel_blocks(g, kDepth);
  const std::vector<ChannelBlock> all{{0, g.channels, 0, 0}};
  const int64_t depth = g.taps() * g.channels;
  const Tiling tiling(g, depth * sizeof(S), kMinUnits);
  const Modulation<float> modulation(offset, mask);
  const auto x = BlockedMap<S>::copy<S>(g, blocks, input, true);
  const at::Tensor w =
      pack_backward<S, S>(g, all, weight, /*output_first=*/true).view({g.out_channels, depth});
  const at::Tensor outside = at::zeros({blocks[0].size}, w.options());
  const at::Tensor result = at::empty({g.batch, g.out_channels, g.out_height, g.out_width},
                                      input.options(), format_like(input));
  const MapStrides to(result);

  at::parallel_for(0, g.batch * tiling.count, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const SampleBuffer<float> samples(tiling.size);
    const SampleRow<float> row = samples.row();
    const at::Tensor columns = at::empty({tiling.size, depth}, w.options());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiling.count, pixel = tiling.begin(unit % tiling.count);
      const int64_t length = tiling.length(unit % tiling.count);
      set_pixels(g, pixel, length, row);
      for (int tap = 0; tap < g.taps(); ++tap) {
        for (const ChannelBlock& b : blocks) {
          const BlockView<S> map = x.block(n, b);
          modulation.fill(g, n, b.deformable_group, tap, pixel, length, row);
          gather(map.data, map.stride, outside.const_data_ptr<S>(), row, length, b.size,
                 columns.mutable_data_ptr<S>() + tap * g.channels + b.begin, depth);
        }
      }
      at::Tensor tile = result.as_strided({g.out_channels, length}, {to.channel, to.pixel},
                                          n * to.image + pixel * to.pixel);
      const at::Tensor column = columns.narrow(0, 0, length).t();
      if (bias) {
        at::addmm_out(tile, bias->view({-1, 1}).expand_as(tile), w, column);
      } else {
        at::mm_out(tile, w, column);
      }
    }
  });
  return result;
}

// Copies the gradients of neighbouring outputs over a tile twice: as (outputs, pixels), for the
// gradient of the weights, and as (outputs / depth, pixels, depth), for that of the column.
template <typename S, typename T, typename P>
void copy_grad(const S* from, const MapStrides& strides, int64_t outs, int64_t length, int64_t rows,
               int64_t stride, T* by_output, P* by_pixel, int64_t depth) {
  copy_matrix(outs, length, from, {strides.channel, strides.pixel}, by_output, {stride, 1});
  for (int64_t out = 0; out < outs; ++out) {
    std::fill(by_output + out * stride + length, by_output + out * stride + rows, T(0));
  }
  for (int64_t out = 0; out < outs; out += depth) {
    const int64_t size = std::min(depth, outs - out);
    copy_matrix(size, rows, const_cast<const T*>(by_output) + out * stride, {stride, 1},
                by_pixel + out * stride, {1, size});
  }
}

// P is the type that the gradient of the column is computed in: T, or S where the processor
// multiplies it, and there are no groups then.
template <typename S, typename P = at::opmath_type<S>>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
    const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& mask) {
  using T = at::opmath_type<S>;
  constexpr bool kWhole =
      !std::is_same_v<P, T>;  // the products with the weights of all taps in one
  // One thread owns the slices of a block in all gradients.
  const auto blocks = channel_blocks(g, kOwnedChannels);
  const int64_t outs = g.out_channels / g.groups, width = blocks[0].size, taps = g.taps();
  const int64_t count = blocks.size(), shares = count / g.deformable_groups;
  const int64_t owned_outs =
      outs * std::min<int64_t>(g.groups, at::divup(width, g.channels / g.groups) + 1);
  const int64_t depth = kWhole ? outs : kDepth, grad_width = kWhole ? taps * width : width;
  const Tiling tiling(
      g, owned_outs * (sizeof(T) + sizeof(P)) + width * sizeof(T) + grad_width * sizeof(P), 1);
  const Modulation<T> modulation(offset, mask);
  const auto x = BlockedMap<P>::template copy<S>(g, blocks, input, false);
  const auto grad_x = BlockedMap<T>::zeros(g, input);
  const at::Tensor packed = pack_backward<S, P>(g, blocks, weight, kWhole);
  const at::Tensor grad_dense = dense(grad);
  const MapStrides from(grad_dense);
  const auto options = input.options().dtype(c10::CppTypeToScalarType<T>::value);

  // A block may be divided further by images; then each part has its own gradient of the weights.
  const int64_t parts =
      std::clamp<int64_t>(at::divup(kMinUnits, count), 1, std::max<int64_t>(g.batch, 1));
  const at::Tensor grad_w = at::zeros({parts, packed.numel()}, options);
  const at::Tensor grad_offset = at::zeros({shares, modulation.offset.numel()}, options);
  const at::Tensor grad_mask = at::zeros({shares, mask ? modulation.mask.numel() : 0}, options);
  const at::Tensor outside = at::zeros({width}, packed.options());

  at::parallel_for(0, parts * count, 1, [&](int64_t begin, int64_t end) {
    const SampleBuffer<T> samples(tiling.size);
    const SampleRow<T> row = samples.row();
    const at::Tensor buffer = at::empty({tiling.size * (width + owned_outs) + width}, options);
    const at::Tensor grad_buffer =
        at::empty({tiling.size * (grad_width + owned_outs)}, packed.options());
    T* column = buffer.mutable_data_ptr<T>();
    T* by_output = column + tiling.size * width;
    T* nowhere = by_output + tiling.size * owned_outs;
    P* grad_column = grad_buffer.mutable_data_ptr<P>();
    P* by_pixel = grad_column + tiling.size * grad_width;
    std::fill_n(nowhere, width, T(0));
    for (int64_t unit = begin; unit < end; ++unit) {
      const ChannelBlock& b = blocks[unit % count];
      const auto parts_of_block = segments(g, b);
      const int64_t part = unit / count, first_group = parts_of_block[0].group;
      T* to_weight = grad_w.mutable_data_ptr<T>() + part * packed.numel();
      T* to_offset = grad_offset.mutable_data_ptr<T>() + b.index * modulation.offset.numel();
      T* to_mask =
          mask ? grad_mask.mutable_data_ptr<T>() + b.index * modulation.mask.numel() : nullptr;
      for (int64_t n = g.batch * part / parts; n < g.batch * (part + 1) / parts; ++n) {
        for (int64_t tile = 0; tile < tiling.count; ++tile) {
          const int64_t pixel = tiling.begin(tile), length = tiling.length(tile);
          const int64_t rows = Tiling::round_up(length);
          set_pixels(g, pixel, length, row);
          for (const Segment& s : parts_of_block) {
            const int64_t at = (s.group - first_group) * outs * tiling.size;
            copy_grad(grad_dense.const_data_ptr<S>() + n * from.image +
                          s.group * outs * from.channel + pixel * from.pixel,
                      from, outs, length, rows, tiling.size, by_output + at, by_pixel + at, depth);
          }
          if constexpr (kWhole) {
            const P* w = packed.const_data_ptr<P>() + b.begin * taps * outs;
            tile_gemm(rows, taps * b.size, outs, Matrix<const P>{by_pixel, outs},
                      Matrix<const P>{w, taps * b.size}, Matrix<P>{grad_column, taps * b.size},
                      false);
          }
          for (int tap = 0; tap < taps; ++tap) {
            if constexpr (!kWhole) {
              for (const Segment& s : parts_of_block) {
                const int64_t at = (s.group - first_group) * outs * tiling.size;
                const T* w = packed.const_data_ptr<T>() + (s.begin * taps + tap * s.size) * outs;
                for (int64_t out = 0; out < outs; out += depth) {
                  const int64_t size = std::min(depth, outs - out);
                  tile_gemm(rows, s.size, size,
                            Matrix<const T>{by_pixel + at + out * tiling.size, size},
                            Matrix<const T>{w + out * s.size, s.size},
                            Matrix<T>{grad_column + s.begin - b.begin, b.size}, out > 0);
                }
              }
            }
            modulation.fill(g, n, b.deformable_group, tap, pixel, length, row);
            const int64_t plane = (n * g.deformable_groups + b.deformable_group) * taps + tap;
            T* offset_y = to_offset + 2 * plane * g.out_pixels() + pixel;
            sweep(const_cast<const P*>(x.block(n, b).data), grad_x.block(n, b).data,
                  outside.const_data_ptr<P>(), nowhere, row, length, b.size,
                  const_cast<const P*>(grad_column) + (kWhole ? tap * b.size : 0),
                  kWhole ? taps * b.size : b.size, column);
            add_sample_grads(
                row, length,
                SampleGradRow<T>{offset_y, offset_y + g.out_pixels(),
                                 mask ? to_mask + plane * g.out_pixels() + pixel : nullptr});
            std::fill(column + length * b.size, column + rows * b.size, T(0));
            for (const Segment& s : parts_of_block) {
              const int64_t at = (s.group - first_group) * outs * tiling.size;
              T* to = to_weight + (s.begin * taps + tap * s.size) * outs;
              tile_gemm(outs, s.size, rows, Matrix<const T>{by_output + at, tiling.size},
                        Matrix<const T>{column + s.begin - b.begin, b.size}, Matrix<T>{to, s.size},
                        true);
            }
          }
        }
      }
    }
    tile_gemm_done();
  });

  const auto sum_in_order = [](const at::Tensor& shares) {
    at::Tensor sum = shares.select(0, 0);
    for (int64_t i = 1; i < shares.size(0); ++i) sum.add_(shares.select(0, i));
    return sum;
  };
  at::Tensor grad_input = at::empty(input.sizes(), input.options(), format_like(input));
  grad_x.template copy_to<S>(blocks, grad_input);
  return {grad_input, sum_in_order(grad_offset).view(offset.sizes()).to(offset.scalar_type()),
          unpack_backward<S, T>(g, blocks, sum_in_order(grad_w), weight),
          mask ? sum_in_order(grad_mask).view(mask->sizes()).to(mask->scalar_type())
               : at::empty({0}, input.options())};
}

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
      [&] { result = forward<scalar_t>(g, input, offset, weight, mask, bias); });
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
    return backward<at::BFloat16, at::BFloat16>(g, grad, input, offset, weight, mask);
  }
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "_deform_conv_backward",
      [&] { result = backward<scalar_t>(g, grad, input, offset, weight, mask); });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CPU, m) {
  m.impl("deform_conv", &deform_conv_cpu);
  m.impl("_deform_conv_backward", &deform_conv_backward_cpu);
}

}  // namespace dcn_projects
