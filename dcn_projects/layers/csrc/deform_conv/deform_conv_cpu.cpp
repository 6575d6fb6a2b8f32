// The CPU side works on tiles of output pixels and blocks of channels, in three steps kept apart:
// where a tile reads, vectorised over its pixels; the reads themselves, vectorised over the
// channels of a block; and a matrix product of the column that they form with the weights. A column
// exists for one tile and one block only, so that it stays in the cache of its core. 16-bit tensors
// are computed in float32 and rounded once.
//
// Results do not depend on the number of threads: how the work is divided follows from the shapes
// alone, and whatever several threads contribute to is summed afterwards in a fixed order.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/target_clones.h"
#include "channel_blocks.h"
#include "deform_conv.h"

namespace dcn_projects {
namespace {

constexpr int64_t kColumnBytes = 1 << 20;  // half of a usual L2 cache
constexpr int64_t kMinTile = 32, kMaxTile = 512;
constexpr int64_t kMinUnits = 16;  // of backward work, where there are images enough

// Blocks [begin, end) of one deformable group, together up to 64 channels. In the backward pass one
// thread owns their slices of all gradients. They write the share-th part of the gradients of
// offset and mask, to which all owners in a deformable group contribute.
struct Owner {
  size_t begin, end;
  int64_t share;
};

std::vector<Owner> channel_owners(const std::vector<ChannelBlock>& blocks) {
  std::vector<Owner> owners;
  int64_t channels = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const bool same = b > 0 && blocks[b].deformable_group == blocks[b - 1].deformable_group;
    if (same && channels + blocks[b].size <= kBlockChannels) {
      owners.back().end = b + 1;
    } else {
      owners.push_back({b, b + 1, same ? owners.back().share + 1 : 0});
      channels = 0;
    }
    channels += blocks[b].size;
  }
  return owners;
}

// The output pixels of an image in tiles of equal size, the last perhaps shorter.
struct Tiling {
  int64_t pixels, count, size;

  Tiling(const ConvGeometry& g, int64_t element_size) : pixels(g.out_pixels()) {
    const int64_t row_bytes = g.taps() * std::min(kBlockChannels, g.channels) * element_size;
    const int64_t largest = std::clamp(kColumnBytes / row_bytes, kMinTile, kMaxTile);
    count = at::divup(pixels, largest);
    size = at::divup(pixels, count);
  }
  int64_t begin(int64_t tile) const { return std::min(tile * size, pixels); }
  int64_t length(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

// The samples of one tap over the pixels of a tile, field by field. See Sample.
template <typename T>
struct SampleRow {
  int* index[4];
  T *ly, *lx, *slope_y, *slope_x, *mask;
};

// ... and of all taps of one deformable group.
template <typename T>
class SampleTile {
 public:
  SampleTile(const ConvGeometry& g, int64_t size)
      : size_(size), out_(2 * size), indices_(4 * g.taps() * size), values_(5 * g.taps() * size) {}

  int* out_y() { return out_.data(); }
  int* out_x() { return out_.data() + size_; }
  SampleRow<T> row(int tap) {
    int* index = indices_.data() + 4 * tap * size_;
    T* value = values_.data() + 5 * tap * size_;
    return {{index, index + size_, index + 2 * size_, index + 3 * size_},
            value,
            value + size_,
            value + 2 * size_,
            value + 3 * size_,
            value + 4 * size_};
  }

 private:
  int64_t size_;
  std::vector<int> out_, indices_;
  std::vector<T> values_;
};

// The three loops that take the time. Each is a template and two functions that are cloned for the
// processors of today.

template <typename T>
DCN_HOST_DEVICE void locate_row_body(const ConvGeometry& g, int tap, const int* out_y,
                                     const int* out_x, const T* offset_y, const T* offset_x,
                                     int64_t length, SampleRow<T> row) {
  const int tap_y = tap / g.kernel_w, tap_x = tap % g.kernel_w;
  const int zero_pixel = g.height * g.width;
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) {
    const Sample<T> s =
        locate(g, out_y[t], out_x[t], tap_y, tap_x, offset_y[t], offset_x[t], zero_pixel);
    row.index[0][t] = s.tap.index[0];
    row.index[1][t] = s.tap.index[1];
    row.index[2][t] = s.tap.index[2];
    row.index[3][t] = s.tap.index[3];
    row.ly[t] = s.tap.ly;
    row.lx[t] = s.tap.lx;
    row.slope_y[t] = s.slope_y;
    row.slope_x[t] = s.slope_x;
  }
}

// column[t] = mask * value of sample t, for the `channels` of a block.
template <typename T>
DCN_HOST_DEVICE void gather_body(const T* map, SampleRow<T> row, int64_t length, int64_t channels,
                                 T* column, int64_t column_stride) {
  for (int64_t t = 0; t < length; ++t, column += column_stride) {
    const T ly = row.ly[t], lx = row.lx[t], low = row.mask[t] * (1 - ly), high = row.mask[t] * ly;
    const T w0 = low * (1 - lx), w1 = low * lx, w2 = high * (1 - lx), w3 = high * lx;
    const T* x0 = map + row.index[0][t] * channels;
    const T* x1 = map + row.index[1][t] * channels;
    const T* x2 = map + row.index[2][t] * channels;
    const T* x3 = map + row.index[3][t] * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      column[c] = w0 * x0[c] + w1 * x1[c] + w2 * x2[c] + w3 * x3[c];
    }
  }
}

// Where the gradients of the offsets and the mask of a tap go, over the pixels of a tile.
template <typename T>
struct SampleGradRow {
  T *offset_y, *offset_x, *mask;  // mask may be null
};

// Takes the gradient of a column and leaves the column in its place, so that one pass over the four
// pixels of a sample serves all gradients. Adds to grad_map, and to `grad`. Two of the four pixels
// can be the same only if they are the pixel of zeros, whose gradient nobody wants.
template <typename T>
DCN_HOST_DEVICE void sweep_body(const T* map, T* grad_map, SampleRow<T> row, int64_t length,
                                int64_t channels, T* column, int64_t column_stride,
                                SampleGradRow<T> grad) {
  for (int64_t t = 0; t < length; ++t, column += column_stride) {
    const T ly = row.ly[t], lx = row.lx[t], mask = row.mask[t];
    const T w0 = (1 - ly) * (1 - lx), w1 = (1 - ly) * lx, w2 = ly * (1 - lx), w3 = ly * lx;
    const int64_t i0 = row.index[0][t] * channels, i1 = row.index[1][t] * channels;
    const int64_t i2 = row.index[2][t] * channels, i3 = row.index[3][t] * channels;
    const T *x0 = map + i0, *x1 = map + i1, *x2 = map + i2, *x3 = map + i3;
    T *g0 = grad_map + i0, *g1 = grad_map + i1, *g2 = grad_map + i2, *g3 = grad_map + i3;
    T d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
    for (int64_t c = 0; c < channels; ++c) {
      const T g = column[c], masked = mask * g;
      const T v0 = x0[c], v1 = x1[c], v2 = x2[c], v3 = x3[c];
      d0 += g * v0;
      d1 += g * v1;
      d2 += g * v2;
      d3 += g * v3;
      g0[c] += w0 * masked;
      g1[c] += w1 * masked;
      g2[c] += w2 * masked;
      g3[c] += w3 * masked;
      column[c] = mask * (w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3);
    }
    const Sample<T> sample{{{}, ly, lx}, row.slope_y[t], row.slope_x[t]};
    const SampleGrad<T> part = sample_grad(sample, mask, {d0, d1, d2, d3});
    grad.offset_y[t] += part.offset_y;
    grad.offset_x[t] += part.offset_x;
    if (grad.mask) grad.mask[t] += part.mask;
  }
}

#define DCN_CLONED_LOOPS(T)                                                                       \
  DCN_TARGET_CLONES void locate_row(const ConvGeometry& g, int tap, const int* out_y,             \
                                    const int* out_x, const T* offset_y, const T* offset_x,       \
                                    int64_t length, SampleRow<T> row) {                           \
    locate_row_body(g, tap, out_y, out_x, offset_y, offset_x, length, row);                       \
  }                                                                                               \
  DCN_TARGET_CLONES void gather(const T* map, SampleRow<T> row, int64_t length, int64_t channels, \
                                T* column, int64_t column_stride) {                               \
    gather_body(map, row, length, channels, column, column_stride);                               \
  }                                                                                               \
  DCN_TARGET_CLONES void sweep(const T* map, T* grad_map, SampleRow<T> row, int64_t length,       \
                               int64_t channels, T* column, int64_t column_stride,                \
                               SampleGradRow<T> grad) {                                           \
    sweep_body(map, grad_map, row, length, channels, column, column_stride, grad);                \
  }

DCN_CLONED_LOOPS(float)
DCN_CLONED_LOOPS(double)
#undef DCN_CLONED_LOOPS

// c = a b, or c += a b. The only place that knows which library multiplies. Called by one thread of
// several, each with matrices of its own.
void tile_gemm(const at::Tensor& a, const at::Tensor& b, at::Tensor c, bool accumulate) {
  if (accumulate) {
    at::addmm_out(c, c, a, b);
  } else {
    at::mm_out(c, a, b);
  }
}

// What both passes read besides the map, in the type that they compute in.
template <typename T>
struct Modulation {
  at::Tensor offset, mask;  // mask may be undefined

  Modulation(const at::Tensor& offset_, const std::optional<at::Tensor>& mask_)
      : offset(offset_.to(c10::CppTypeToScalarType<T>::value).contiguous()) {
    if (mask_) mask = mask_->to(c10::CppTypeToScalarType<T>::value).contiguous();
  }

  // Fills `samples` with the taps of a deformable group over pixels [begin, begin + length).
  void locate(const ConvGeometry& g, int64_t n, int64_t deformable_group, int64_t begin,
              int64_t length, SampleTile<T>& samples) const {
    for (int64_t t = 0; t < length; ++t) {
      samples.out_y()[t] = static_cast<int>((begin + t) / g.out_width);
      samples.out_x()[t] = static_cast<int>((begin + t) % g.out_width);
    }
    for (int tap = 0; tap < g.taps(); ++tap) {
      const int64_t plane = (n * g.deformable_groups + deformable_group) * g.taps() + tap;
      const T* dy = offset.const_data_ptr<T>() + 2 * plane * g.out_pixels() + begin;
      SampleRow<T> row = samples.row(tap);
      locate_row(g, tap, samples.out_y(), samples.out_x(), dy, dy + g.out_pixels(), length, row);
      if (mask.defined()) {
        std::copy_n(mask.const_data_ptr<T>() + plane * g.out_pixels() + begin, length, row.mask);
      } else {
        std::fill_n(row.mask, length, T(1));
      }
    }
  }
};

template <typename S>
at::Tensor forward(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& offset,
                   const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                   const std::optional<at::Tensor>& bias) {
  using T = at::opmath_type<S>;
  const auto blocks = channel_blocks(g);
  const Tiling tiling(g, sizeof(T));
  const Modulation<T> modulation(offset, mask);
  const at::Tensor x = map_to_blocks<S, T>(g, blocks, input);
  const at::Tensor w = weight_to_blocks<S, T>(g, blocks, weight);
  at::Tensor result = at::empty({g.batch, g.out_channels, g.out_height, g.out_width}, x.options(),
                                format_like(input));
  if (bias) result.copy_(bias->view({1, -1, 1, 1}).expand_as(result));
  const MapView out(result);
  const int64_t outs = g.out_channels / g.groups, taps = g.taps();

  at::parallel_for(0, g.batch * tiling.count, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    SampleTile<T> samples(g, tiling.size);
    const at::Tensor buffer =
        at::empty({tiling.size * taps * std::min(kBlockChannels, g.channels)}, x.options());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / tiling.count, tile = unit % tiling.count;
      const int64_t pixel = tiling.begin(tile), length = tiling.length(tile);
      int located = -1;
      for (const ChannelBlock& b : blocks) {
        if (b.deformable_group != located) {
          located = b.deformable_group;
          modulation.locate(g, n, located, pixel, length, samples);
        }
        const T* map = x.const_data_ptr<T>() + (n * g.channels + b.begin) * (g.pixels() + 1);
        T* column = buffer.mutable_data_ptr<T>();
        for (int tap = 0; tap < taps; ++tap) {
          gather(map, samples.row(tap), length, b.size, column + tap * b.size, taps * b.size);
        }
        tile_gemm(block_matrix(g, b, w),
                  buffer.narrow(0, 0, length * taps * b.size).view({length, taps * b.size}).t(),
                  out.slice(n, b.group * outs, outs, pixel, length),
                  bias || b.begin % (g.channels / g.groups) != 0);
      }
    }
  });
  return result.to(input.scalar_type());
}

template <typename S>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
    const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& mask) {
  using T = at::opmath_type<S>;
  const auto blocks = channel_blocks(g);
  const auto owners = channel_owners(blocks);
  const Tiling tiling(g, sizeof(T));
  const Modulation<T> modulation(offset, mask);
  const at::Tensor x = map_to_blocks<S, T>(g, blocks, input);
  const at::Tensor w = weight_to_blocks<S, T>(g, blocks, weight);
  const at::Tensor grad_dense = dense(grad.to(x.scalar_type()));
  const MapView grad_out(grad_dense);
  const int64_t outs = g.out_channels / g.groups, taps = g.taps(), out_pixels = g.out_pixels();

  // An owner may be divided further by images; then each part has its own gradient of the weights.
  const int64_t owner_count = owners.size(), shares = owners.back().share + 1;
  const int64_t parts =
      std::clamp<int64_t>(at::divup(kMinUnits, owner_count), 1, std::max<int64_t>(g.batch, 1));
  const at::Tensor grad_x = at::zeros_like(x);
  const at::Tensor grad_w = at::zeros({parts, w.numel()}, w.options());
  const at::Tensor grad_offset = at::zeros({shares, modulation.offset.numel()}, x.options());
  const at::Tensor grad_mask = at::zeros({shares, mask ? modulation.mask.numel() : 0}, x.options());

  at::parallel_for(0, parts * owner_count, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    SampleTile<T> samples(g, tiling.size);
    const at::Tensor buffer =
        at::empty({tiling.size * taps * std::min(kBlockChannels, g.channels)}, x.options());
    for (int64_t unit = begin; unit < end; ++unit) {
      const Owner& owner = owners[unit % owner_count];
      const int64_t part = unit / owner_count,
                    deformable_group = blocks[owner.begin].deformable_group;
      const at::Tensor grad_w_part = grad_w.select(0, part);
      T* to_offset = grad_offset.mutable_data_ptr<T>() + owner.share * grad_offset.size(1);
      T* to_mask = grad_mask.mutable_data_ptr<T>() + owner.share * grad_mask.size(1);
      for (int64_t n = g.batch * part / parts; n < g.batch * (part + 1) / parts; ++n) {
        for (int64_t tile = 0; tile < tiling.count; ++tile) {
          const int64_t pixel = tiling.begin(tile), length = tiling.length(tile);
          modulation.locate(g, n, deformable_group, pixel, length, samples);
          for (size_t i = owner.begin; i < owner.end; ++i) {
            const ChannelBlock& b = blocks[i];
            const int64_t map_at = (n * g.channels + b.begin) * (g.pixels() + 1);
            const at::Tensor column =
                buffer.narrow(0, 0, length * taps * b.size).view({length, taps * b.size});
            const at::Tensor grad_tile = grad_out.slice(n, b.group * outs, outs, pixel, length);
            tile_gemm(grad_tile.t(), block_matrix(g, b, w), column, false);
            for (int tap = 0; tap < taps; ++tap) {
              const int64_t plane = (n * g.deformable_groups + deformable_group) * taps + tap;
              T* offset_y = to_offset + 2 * plane * out_pixels + pixel;
              sweep(x.const_data_ptr<T>() + map_at, grad_x.mutable_data_ptr<T>() + map_at,
                    samples.row(tap), length, b.size, column.mutable_data_ptr<T>() + tap * b.size,
                    taps * b.size,
                    SampleGradRow<T>{offset_y, offset_y + out_pixels,
                                     mask ? to_mask + plane * out_pixels + pixel : nullptr});
            }
            tile_gemm(grad_tile, column, block_matrix(g, b, grad_w_part), true);
          }
        }
      }
    }
  });

  const auto sum_in_order = [](const at::Tensor& shares) {
    at::Tensor sum = shares.select(0, 0);
    for (int64_t i = 1; i < shares.size(0); ++i) sum.add_(shares.select(0, i));
    return sum;
  };
  at::Tensor grad_input = at::empty(input.sizes(), input.options(), format_like(input));
  blocks_to_map<S, T>(g, blocks, grad_x, grad_input);
  return {grad_input, sum_in_order(grad_offset).view(offset.sizes()).to(offset.scalar_type()),
          blocks_to_weight<S, T>(g, blocks, sum_in_order(grad_w), weight),
          mask ? sum_in_order(grad_mask).view(mask->sizes()).to(mask->scalar_type())
               : at::empty({0}, input.options())};
}

at::Tensor deform_conv_cpu(const at::Tensor& input, const at::Tensor& offset,
                           const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                           const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, bias, stride, padding,
                                           dilation, legacy_border);
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
