#pragma once

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>
#include <type_traits>
#include <vector>

#include "channel_blocks.h"
#include "cpu_tiles.h"
#include "tile_gemm.h"

namespace dcn_projects {

// A unit of work is a block of channels and some of the images: it alone writes its slices of the
// gradients of input and weights. S is the type of the tensors, T that of the computation, and P
// that of the gradient of the column: T, or S where the processor multiplies it, without groups.
template <typename S, typename P = at::opmath_type<S>>
class BackwardPass {
  using T = at::opmath_type<S>;
  // Whether the gradient of the column is one product for all taps, rather than one for each.
  static constexpr bool kWhole = !std::is_same_v<P, T>;
  static constexpr int64_t kBlockChannels = 64;

 public:
  BackwardPass(const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
               const at::Tensor& offset, const at::Tensor& weight,
               const std::optional<at::Tensor>& mask)
      : g_(g),
        input_(input),
        offset_(offset),
        weight_(weight),
        mask_(mask),
        outs_(g.out_channels / g.groups),
        blocks_(channel_blocks(g, kBlockChannels)),
        width_(blocks_[0].size),
        block_outs_(outs_ *
                    std::min<int64_t>(g.groups, at::divup(width_, g.channels / g.groups) + 1)),
        depth_(kWhole ? outs_ : kDepth),
        grad_width_(kWhole ? g.taps() * width_ : width_),
        tiling_(
            g, block_outs_ * (sizeof(T) + sizeof(P)) + width_ * sizeof(T) + grad_width_ * sizeof(P),
            1),
        // With few blocks they are divided by images, each part with a gradient of the weights.
        parts_(std::clamp<int64_t>(at::divup(kMinUnits, blocks_.size()), 1,
                                   std::max<int64_t>(g.batch, 1))),
        modulation_(offset, mask),
        x_(BlockedMap<P>::template copy<S>(g, blocks_, input, false)),
        grad_x_(BlockedMap<T>::zeros(g, input)),
        packed_(pack_backward<S, P>(g, blocks_, weight, kWhole)),
        outside_(at::zeros({width_}, packed_.options())),
        grad_(dense(grad)),
        from_(grad_) {
    const auto options = input.options().dtype(c10::CppTypeToScalarType<T>::value);
    // Each block of a deformable group has a share in the gradients of its offsets and masks.
    const int64_t shares = blocks_.size() / g.deformable_groups;
    grad_offset_ = at::zeros({shares, offset.numel()}, options);
    grad_mask_ = at::zeros({shares, mask ? mask->numel() : 0}, options);
    grad_w_ = at::zeros({parts_, weight.numel()}, options);
  }

  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> run() const {
    const int64_t count = blocks_.size();
    at::parallel_for(0, parts_ * count, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t part = unit / count;
        for (int64_t n = g_.batch * part / parts_; n < g_.batch * (part + 1) / parts_; ++n) {
          for (int64_t i = 0; i < tiling_.count; ++i) {
            add_tile(Tile(tiling_, n, i), blocks_[unit % count], part, scratch);
          }
        }
      }
      tile_gemm_done();
    });

    at::Tensor grad_input = at::empty(input_.sizes(), input_.options(), format_like(input_));
    grad_x_.template copy_to<S>(blocks_, grad_input);
    return {grad_input, sum_in_order(grad_offset_).view(offset_.sizes()).to(offset_.scalar_type()),
            unpack_backward<S, T>(g_, blocks_, sum_in_order(grad_w_), weight_),
            mask_ ? sum_in_order(grad_mask_).view(mask_->sizes()).to(mask_->scalar_type())
                  : at::empty({0}, input_.options())};
  }

 private:
  // Memory of one thread. Gradients of a tile's outputs, of the groups that a block belongs to, are
  // kept as (outputs, pixels) and as (outputs / depth, pixels, depth).
  struct Scratch {
    explicit Scratch(const BackwardPass& p)
        : samples(p.tiling_.size),
          values(at::empty({p.tiling_.size * (p.width_ + p.block_outs_) + p.width_},
                           p.grad_w_.options())),
          grads(at::empty({p.tiling_.size * (p.grad_width_ + p.block_outs_)}, p.packed_.options())),
          column(values.mutable_data_ptr<T>()),
          by_output(column + p.tiling_.size * p.width_),
          nowhere(by_output + p.tiling_.size * p.block_outs_),
          grad_column(grads.mutable_data_ptr<P>()),
          by_pixel(grad_column + p.tiling_.size * p.grad_width_) {
      std::fill_n(nowhere, p.width_, T(0));
    }
    SampleBuffer<T> samples;
    at::Tensor values, grads;
    T *column, *by_output, *nowhere;
    P *grad_column, *by_pixel;
  };

  void add_tile(const Tile& tile, const ChannelBlock& b, int64_t part, Scratch& scratch) const {
    const SampleRow<T> row = scratch.samples.row();
    const auto parts_of_block = segments(g_, b);
    set_pixels(g_, tile.begin, tile.length, row);
    for (const Segment& s : parts_of_block) copy_grad(tile, s, outs_begin(b, s), scratch);
    if constexpr (kWhole) grad_of_whole_column(tile, b, scratch);
    for (int tap = 0; tap < g_.taps(); ++tap) {
      if constexpr (!kWhole) {
        for (const Segment& s : parts_of_block) grad_of_column(tile, b, s, tap, scratch);
      }
      modulation_.fill(g_, tile, b.deformable_group, tap, row);
      sweep(x_.block(tile.n, b).data, grad_x_.block(tile.n, b).data, outside_.const_data_ptr<P>(),
            scratch.nowhere, row, tile.length, b.size,
            scratch.grad_column + (kWhole ? tap * b.size : 0), (kWhole ? g_.taps() : 1) * b.size,
            scratch.column);
      add_sample_grads(row, tile.length, sample_grads(tile, b, tap));
      // The product for the weights runs over all rows.
      std::fill(scratch.column + tile.length * b.size, scratch.column + tile.rows * b.size, T(0));
      for (const Segment& s : parts_of_block) add_grad_of_weight(tile, b, s, tap, part, scratch);
    }
  }

  // Where the gradients of a segment's outputs begin in by_output and by_pixel.
  int64_t outs_begin(const ChannelBlock& b, const Segment& s) const {
    return (s.group - b.begin / (g_.channels / g_.groups)) * outs_ * tiling_.size;
  }

  void copy_grad(const Tile& tile, const Segment& s, int64_t begin, Scratch& scratch) const {
    const int64_t stride = tiling_.size;
    T* by_output = scratch.by_output + begin;
    copy_matrix(outs_, tile.length,
                grad_.const_data_ptr<S>() + tile.n * from_.image + s.group * outs_ * from_.channel +
                    tile.begin * from_.pixel,
                {from_.channel, from_.pixel}, by_output, {stride, 1});
    for (int64_t out = 0; out < outs_; ++out) {
      std::fill(by_output + out * stride + tile.length, by_output + out * stride + tile.rows, T(0));
    }
    for (int64_t out = 0; out < outs_; out += depth_) {
      const int64_t size = std::min(depth_, outs_ - out);
      copy_matrix(size, tile.rows, const_cast<const T*>(by_output) + out * stride, {stride, 1},
                  scratch.by_pixel + begin + out * stride, {1, size});
    }
  }

  // grad_column (pixels, channels) of one tap
  void grad_of_column(const Tile& tile, const ChannelBlock& b, const Segment& s, int tap,
                      Scratch& scratch) const {
    const P* w = packed_.const_data_ptr<P>() + (s.begin * g_.taps() + tap * s.size) * outs_;
    for (int64_t out = 0; out < outs_; out += depth_) {
      const int64_t size = std::min(depth_, outs_ - out);
      tile_gemm(tile.rows, s.size, size,
                Matrix<const P>{scratch.by_pixel + outs_begin(b, s) + out * tiling_.size, size},
                Matrix<const P>{w + out * s.size, s.size},
                Matrix<P>{scratch.grad_column + s.begin - b.begin, b.size}, out > 0);
    }
  }

  // grad_column (pixels, taps, channels)
  void grad_of_whole_column(const Tile& tile, const ChannelBlock& b, Scratch& scratch) const {
    const int64_t columns = g_.taps() * b.size;
    tile_gemm(tile.rows, columns, outs_, Matrix<const P>{scratch.by_pixel, outs_},
              Matrix<const P>{packed_.const_data_ptr<P>() + b.begin * g_.taps() * outs_, columns},
              Matrix<P>{scratch.grad_column, columns}, false);
  }

  SampleGradRow<T> sample_grads(const Tile& tile, const ChannelBlock& b, int tap) const {
    const int64_t plane = (tile.n * g_.deformable_groups + b.deformable_group) * g_.taps() + tap;
    T* offset = grad_offset_.mutable_data_ptr<T>() + b.index * offset_.numel() +
                2 * plane * g_.out_pixels() + tile.begin;
    return {offset, offset + g_.out_pixels(),
            mask_ ? grad_mask_.mutable_data_ptr<T>() + b.index * mask_->numel() +
                        plane * g_.out_pixels() + tile.begin
                  : nullptr};
  }

  void add_grad_of_weight(const Tile& tile, const ChannelBlock& b, const Segment& s, int tap,
                          int64_t part, Scratch& scratch) const {
    T* to = grad_w_.mutable_data_ptr<T>() + part * weight_.numel() +
            (s.begin * g_.taps() + tap * s.size) * outs_;
    tile_gemm(outs_, s.size, tile.rows,
              Matrix<const T>{scratch.by_output + outs_begin(b, s), tiling_.size},
              Matrix<const T>{scratch.column + s.begin - b.begin, b.size}, Matrix<T>{to, s.size},
              true);
  }

  static at::Tensor sum_in_order(const at::Tensor& shares) {
    at::Tensor sum = shares.select(0, 0);
    for (int64_t i = 1; i < shares.size(0); ++i) sum.add_(shares.select(0, i));
    return sum;
  }

  const ConvGeometry g_;
  const at::Tensor input_, offset_, weight_;
  const std::optional<at::Tensor> mask_;
  const int64_t outs_;  // of a group
  const std::vector<ChannelBlock> blocks_;
  const int64_t width_;       // of the widest block
  const int64_t block_outs_;  // of all groups that a block can belong to
  const int64_t depth_, grad_width_;
  const Tiling tiling_;
  const int64_t parts_;
  const Modulation<T> modulation_;
  const BlockedMap<P> x_;
  const BlockedMap<T> grad_x_;
  const at::Tensor packed_, outside_, grad_;
  const MapStrides from_;
  at::Tensor grad_offset_, grad_mask_, grad_w_;
};

}  // namespace dcn_projects
