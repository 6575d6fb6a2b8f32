#pragma once

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "channel_blocks.h"
#include "cpu_tiles.h"
#include "tile_gemm.h"

namespace dcn_projects {

// A unit of work is a tile. S is the type of the tensors, T that of the computation.
template <typename S>
class ForwardPass {
  using T = at::opmath_type<S>;

 public:
  ForwardPass(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& offset,
              const at::Tensor& weight, const std::optional<at::Tensor>& mask,
              const std::optional<at::Tensor>& bias)
      : g_(g),
        outs_(g.out_channels / g.groups),
        blocks_(channel_blocks(g, kDepth)),
        width_(blocks_[0].size),
        chunk_(at::divup(g.taps(), at::divup(g.taps(), std::max<int64_t>(kDepth / width_, 1)))),
        tiling_(g, (g.out_channels + chunk_ * width_) * sizeof(T), kMinUnits),
        modulation_(offset, mask),
        x_(BlockedMap<T>::template copy<S>(g, blocks_, input, true)),
        packed_(pack_forward<S, T>(g, blocks_, weight)),
        shift_(bias ? bias->to(packed_.scalar_type()).contiguous()
                    : at::zeros({g.out_channels}, packed_.options())),
        outside_(at::zeros({width_}, packed_.options())),
        result_(at::empty({g.batch, g.out_channels, g.out_height, g.out_width}, input.options(),
                          format_like(input))),
        to_(result_) {}

  at::Tensor run() const {
    at::parallel_for(0, g_.batch * tiling_.count, 1, [&](int64_t begin, int64_t end) {
      const SampleBuffer<T> samples(tiling_.size);
      const at::Tensor buffer =
          at::empty({tiling_.size * (chunk_ * width_ + g_.out_channels)}, packed_.options());
      T* column = buffer.mutable_data_ptr<T>();
      T* sums = column + tiling_.size * chunk_ * width_;
      for (int64_t unit = begin; unit < end; ++unit) {
        const Tile tile(tiling_, unit / tiling_.count, unit % tiling_.count);
        set_pixels(g_, tile.begin, tile.length, samples.row());
        start_sums(tile, sums);
        for (int tap = 0; tap < g_.taps(); tap += chunk_) {
          const int taps = std::min(chunk_, g_.taps() - tap);
          for (const ChannelBlock& b : blocks_) {
            gather_column(tile, b, tap, taps, samples.row(), column);
            add_products(tile, b, tap, taps, column, sums);
          }
        }
        write(tile, sums);
      }
      tile_gemm_done();
    });
    return result_;
  }

 private:
  // The sums of a tile are (outputs / kOuts, pixels, kOuts) for each group. Calls body(output in
  // the group, outputs, their sums).
  template <typename F>
  void for_each_outs(int64_t group, T* sums, F body) const {
    for (int64_t out = 0; out < outs_; out += kOuts) {
      body(out, std::min(kOuts, outs_ - out), sums + (group * outs_ + out) * tiling_.size);
    }
  }

  void start_sums(const Tile& tile, T* sums) const {
    for (int64_t group = 0; group < g_.groups; ++group) {
      for_each_outs(group, sums, [&](int64_t out, int64_t size, T* to) {
        const T* from = shift_.const_data_ptr<T>() + group * outs_ + out;
        for (int64_t t = 0; t < tile.rows; ++t) std::copy_n(from, size, to + t * size);
      });
    }
  }

  // column (pixels, taps, channels of the block)
  void gather_column(const Tile& tile, const ChannelBlock& b, int tap, int taps, SampleRow<T> row,
                     T* column) const {
    const BlockView<T> map = x_.block(tile.n, b);
    for (int k = 0; k < taps; ++k) {
      modulation_.fill(g_, tile, b.deformable_group, tap + k, row);
      gather(map.data, map.stride, outside_.const_data_ptr<T>(), row, tile.length, b.size,
             column + k * b.size, taps * b.size);
    }
  }

  void add_products(const Tile& tile, const ChannelBlock& b, int tap, int taps, const T* column,
                    T* sums) const {
    for (const Segment& s : segments(g_, b)) {
      // Where all channels are of one group, the taps are one product.
      const int together = s.size == b.size ? taps : 1;
      for (int k = 0; k < taps; k += together) {
        for_each_outs(s.group, sums, [&](int64_t out, int64_t size, T* to) {
          const T* w = packed_.const_data_ptr<T>() + (s.begin * outs_ + out * s.size) * g_.taps() +
                       (tap + k) * s.size * size;
          tile_gemm(tile.rows, size, together * s.size,
                    Matrix<const T>{column + k * b.size + s.begin - b.begin, taps * b.size},
                    Matrix<const T>{w, size}, Matrix<T>{to, size}, true);
        });
      }
    }
  }

  void write(const Tile& tile, T* sums) const {
    S* image = result_.mutable_data_ptr<S>() + tile.n * to_.image + tile.begin * to_.pixel;
    for (int64_t group = 0; group < g_.groups; ++group) {
      for_each_outs(group, sums, [&](int64_t out, int64_t size, const T* from) {
        copy_matrix(size, tile.length, from, {1, size}, image + (group * outs_ + out) * to_.channel,
                    {to_.channel, to_.pixel});
      });
    }
  }

  const ConvGeometry g_;
  const int64_t outs_;  // of a group
  const std::vector<ChannelBlock> blocks_;
  const int64_t width_;  // of the widest block
  const int chunk_;      // taps in a column
  const Tiling tiling_;
  const Modulation<T> modulation_;
  const BlockedMap<T> x_;
  const at::Tensor packed_, shift_, outside_, result_;
  const MapStrides to_;
};

// The same for bfloat16 on a processor that multiplies it, without groups: the column of a tile is
// kept whole, so that one product sums all and rounds once.
inline at::Tensor forward_bfloat16(const ConvGeometry& g, const at::Tensor& input,
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
    at::AutoDispatchBelowADInplaceOrView guard;  // this thread has not the caller's grad mode
    const SampleBuffer<float> samples(tiling.size);
    const at::Tensor columns = at::empty({tiling.size, depth}, w.options());
    for (int64_t unit = begin; unit < end; ++unit) {
      const Tile tile(tiling, unit / tiling.count, unit % tiling.count);
      set_pixels(g, tile.begin, tile.length, samples.row());
      for (int tap = 0; tap < g.taps(); ++tap) {
        for (const ChannelBlock& b : blocks) {
          const BlockView<S> map = x.block(tile.n, b);
          modulation.fill(g, tile, b.deformable_group, tap, samples.row());
          gather(map.data, map.stride, outside.const_data_ptr<S>(), samples.row(), tile.length,
                 b.size, columns.mutable_data_ptr<S>() + tap * g.channels + b.begin, depth);
        }
      }
      at::Tensor out = result.as_strided({g.out_channels, tile.length}, {to.channel, to.pixel},
                                         tile.n * to.image + tile.begin * to.pixel);
      const at::Tensor column = columns.narrow(0, 0, tile.length).t();
      if (bias) {
        at::addmm_out(out, bias->view({-1, 1}).expand_as(out), w, column);
      } else {
        at::mm_out(out, w, column);
      }
    }
  });
  return result;
}

}  // namespace dcn_projects
