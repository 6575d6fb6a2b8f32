#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "deform_conv.h"

// The memory layout of the CPU kernels: a map or a weight is cut into blocks of channels, in each
// of which the channels of a pixel or of a tap lie side by side.

namespace dcn_projects {

constexpr int64_t kBlockChannels = 64;

// Up to 64 channels of one group and one deformable group. In a map a block is (pixels + 1, size),
// the last pixel all zeros, and starts at begin * (pixels + 1). In the weights it is
// (O / groups, taps, size) and starts at begin * taps * O / groups.
struct ChannelBlock {
  int64_t begin, size;
  int group, deformable_group;
};

inline std::vector<ChannelBlock> channel_blocks(const ConvGeometry& g) {
  const int64_t group_size = g.channels / g.groups;
  const int64_t deformable_size = g.channels / g.deformable_groups;
  std::vector<ChannelBlock> blocks;
  for (int64_t c = 0; c < g.channels; c += blocks.back().size) {
    const int64_t group = c / group_size, deformable_group = c / deformable_size;
    const int64_t end =
        std::min((group + 1) * group_size, (deformable_group + 1) * deformable_size);
    blocks.push_back({c, std::min(kBlockChannels, end - c), static_cast<int>(group),
                      static_cast<int>(deformable_group)});
  }
  return blocks;
}

// A map in NCHW or channels-last order. slice() is a (channels, pixels) matrix out of one image.
class MapView {
 public:
  explicit MapView(const at::Tensor& map) : map_(map) {
    const int64_t pixels = map.size(2) * map.size(3);
    const bool channels_last = format_like(map) == at::MemoryFormat::ChannelsLast;
    image_stride = map.size(1) * pixels;
    channel_stride = channels_last ? 1 : pixels;
    pixel_stride = channels_last ? map.size(1) : 1;
  }
  at::Tensor slice(int64_t n, int64_t channel, int64_t channels, int64_t pixel,
                   int64_t pixels) const {
    return map_.as_strided(
        {channels, pixels}, {channel_stride, pixel_stride},
        map_.storage_offset() + n * image_stride + channel * channel_stride + pixel * pixel_stride);
  }
  int64_t image_stride, channel_stride, pixel_stride;

 private:
  at::Tensor map_;
};

// The tensor itself, or a copy of it that MapView can describe.
inline at::Tensor dense(const at::Tensor& map) { return map.contiguous(format_like(map)); }

struct Strides {
  int64_t row, col;
};

// to[i][j] = from[i][j], in squares that stay in the L1 cache whichever of the strides is 1.
template <typename From, typename To>
void copy_matrix(int64_t rows, int64_t cols, const From* from, Strides from_strides, To* to,
                 Strides to_strides) {
  constexpr int64_t kSquare = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kSquare) {
    for (int64_t j0 = 0; j0 < cols; j0 += kSquare) {
      for (int64_t i = i0; i < std::min(i0 + kSquare, rows); ++i) {
        for (int64_t j = j0; j < std::min(j0 + kSquare, cols); ++j) {
          to[i * to_strides.row + j * to_strides.col] =
              static_cast<To>(from[i * from_strides.row + j * from_strides.col]);
        }
      }
    }
  }
}

// Calls copy(n, block, first pixel, pixels) in parallel for all parts of a blocked map.
template <typename F>
void for_each_map_part(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks, F copy) {
  constexpr int64_t kPart = 1024;
  const int64_t parts = at::divup(g.pixels(), kPart), count = blocks.size();
  at::parallel_for(0, g.batch * count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pixel = i % parts * kPart;
      copy(i / (parts * count), blocks[i / parts % count], pixel,
           std::min(kPart, g.pixels() - pixel));
    }
  });
}

template <typename S, typename T>
at::Tensor map_to_blocks(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                         const at::Tensor& map) {
  const at::Tensor source = dense(map);
  const MapView view(source);
  const S* from = source.const_data_ptr<S>();
  at::Tensor result = at::empty({g.batch, g.channels * (g.pixels() + 1)},
                                map.options().dtype(c10::CppTypeToScalarType<T>::value));
  T* to = result.mutable_data_ptr<T>();
  for_each_map_part(g, blocks, [&](int64_t n, ChannelBlock b, int64_t pixel, int64_t pixels) {
    T* block = to + (n * g.channels + b.begin) * (g.pixels() + 1);
    copy_matrix(
        b.size, pixels,
        from + n * view.image_stride + b.begin * view.channel_stride + pixel * view.pixel_stride,
        {view.channel_stride, view.pixel_stride}, block + pixel * b.size, {1, b.size});
    if (pixel == 0) std::fill_n(block + g.pixels() * b.size, b.size, T(0));
  });
  return result;
}

template <typename S, typename T>
void blocks_to_map(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                   const at::Tensor& blocked, const at::Tensor& map) {
  const MapView view(map);
  const T* from = blocked.const_data_ptr<T>();
  S* to = map.mutable_data_ptr<S>();
  for_each_map_part(g, blocks, [&](int64_t n, ChannelBlock b, int64_t pixel, int64_t pixels) {
    const T* block = from + (n * g.channels + b.begin) * (g.pixels() + 1);
    copy_matrix(
        b.size, pixels, block + pixel * b.size, {1, b.size},
        to + n * view.image_stride + b.begin * view.channel_stride + pixel * view.pixel_stride,
        {view.channel_stride, view.pixel_stride});
  });
}

// Calls copy(offset of (channel, tap) in (O, C / groups, K), offset of (tap, channel) in the
// blocked weights, channels) in parallel for all blocks and output channels.
template <typename F>
void for_each_weight_part(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks, F copy) {
  const int64_t outs = g.out_channels / g.groups, ins = g.channels / g.groups, taps = g.taps();
  at::parallel_for(0, blocks.size() * outs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ChannelBlock& b = blocks[i / outs];
      const int64_t out = i % outs, in = b.begin - b.group * ins;
      copy(((b.group * outs + out) * ins + in) * taps, (b.begin * outs + out * b.size) * taps,
           b.size);
    }
  });
}

template <typename S, typename T>
at::Tensor weight_to_blocks(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                            const at::Tensor& weight) {
  const at::Tensor source = weight.contiguous();
  const S* from = source.const_data_ptr<S>();
  at::Tensor result =
      at::empty({weight.numel()}, weight.options().dtype(c10::CppTypeToScalarType<T>::value));
  T* to = result.mutable_data_ptr<T>();
  for_each_weight_part(g, blocks, [&](int64_t dense, int64_t blocked, int64_t size) {
    copy_matrix(size, g.taps(), from + dense, {g.taps(), 1}, to + blocked, {1, size});
  });
  return result;
}

template <typename S, typename T>
at::Tensor blocks_to_weight(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                            const at::Tensor& blocked, const at::Tensor& like) {
  at::Tensor result = at::empty(like.sizes(), like.options());
  const T* from = blocked.const_data_ptr<T>();
  S* to = result.mutable_data_ptr<S>();
  for_each_weight_part(g, blocks, [&](int64_t dense, int64_t blocked_at, int64_t size) {
    copy_matrix(size, g.taps(), from + blocked_at, {1, size}, to + dense, {g.taps(), 1});
  });
  return result;
}

// (O / groups, taps * size): the weights of a block.
inline at::Tensor block_matrix(const ConvGeometry& g, const ChannelBlock& b,
                               const at::Tensor& blocked) {
  const int64_t outs = g.out_channels / g.groups, width = g.taps() * b.size;
  return blocked.narrow(0, b.begin * g.taps() * outs, outs * width).view({outs, width});
}

}  // namespace dcn_projects
