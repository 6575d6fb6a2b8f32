#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/target_clones.h"
#include "../common/vector.h"
#include "deform_conv.h"

// The memory layout of the CPU kernels: maps and weights are cut into blocks of channels, in each
// of which the channels of a pixel or of a tap lie side by side.

namespace dcn_projects {

struct Strides {
  int64_t row, col;
};

// to[i][j] = from[i][j]. In each of the matrices one of the strides is 1.
template <typename S, typename T>
DCN_HOST_DEVICE void copy_matrix_body(int64_t rows, int64_t cols, const S* from, Strides f, T* to,
                                      Strides t) {
  if (f.col != 1) {
    std::swap(rows, cols);
    std::swap(f.row, f.col);
    std::swap(t.row, t.col);
  }
  if (t.col == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      int64_t j = 0;
      for (; j + 8 <= cols; j += 8) {
        store_vector(to + i * t.row + j,
                     load_vector<vector_t<wider_t<S, T>, 8>>(from + i * f.row + j));
      }
      for (; j < cols; ++j) to[i * t.row + j] = static_cast<T>(from[i * f.row + j]);
    }
    return;
  }
  const int64_t whole_rows = rows / 8 * 8, whole_cols = cols / 8 * 8;
  for (int64_t j = 0; j < whole_cols; j += 8) {
    for (int64_t i = 0; i < whole_rows; i += 8) {
      transpose_square(from + i * f.row + j, f.row, to + j * t.col + i, t.col);
    }
  }
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = j < whole_cols ? whole_rows : 0; i < rows; ++i) {
      to[j * t.col + i] = static_cast<T>(from[i * f.row + j]);
    }
  }
}

#define DCN_COPY_MATRIX(S, T)                                                                  \
  DCN_TARGET_CLONES static void copy_matrix(int64_t rows, int64_t cols, const S* from,         \
                                            Strides from_strides, T* to, Strides to_strides) { \
    copy_matrix_body(rows, cols, from, from_strides, to, to_strides);                          \
  }
DCN_COPY_MATRIX(float, float)
DCN_COPY_MATRIX(double, double)
DCN_COPY_MATRIX(at::Half, float)
DCN_COPY_MATRIX(at::BFloat16, float)
DCN_COPY_MATRIX(float, at::Half)
DCN_COPY_MATRIX(float, at::BFloat16)
DCN_COPY_MATRIX(int16_t, int16_t)
#undef DCN_COPY_MATRIX

inline void copy_matrix(int64_t rows, int64_t cols, const at::BFloat16* from, Strides from_strides,
                        at::BFloat16* to, Strides to_strides) {
  copy_matrix(rows, cols, reinterpret_cast<const int16_t*>(from), from_strides,
              reinterpret_cast<int16_t*>(to), to_strides);
}

// Neighbouring channels of one deformable group; `index` counts the blocks of the group.
struct ChannelBlock {
  int64_t begin, size, index;
  int deformable_group;
};

// Cuts each deformable group into equal blocks of up to `largest` channels.
inline std::vector<ChannelBlock> channel_blocks(const ConvGeometry& g, int64_t largest) {
  const int64_t group_size = g.channels / g.deformable_groups;
  const int64_t size = at::divup(group_size, at::divup(group_size, largest));
  std::vector<ChannelBlock> blocks;
  for (int group = 0; group < g.deformable_groups; ++group) {
    for (int64_t c = 0; c < group_size; c += size) {
      blocks.push_back({group * group_size + c, std::min(size, group_size - c), c / size, group});
    }
  }
  return blocks;
}

// The channels of a block that belong to one group of the convolution.
struct Segment {
  int64_t begin, size, group;
};

inline std::vector<Segment> segments(const ConvGeometry& g, const ChannelBlock& b) {
  const int64_t group_size = g.channels / g.groups;
  std::vector<Segment> result;
  for (int64_t c = b.begin; c < b.begin + b.size; c += result.back().size) {
    const int64_t group = c / group_size;
    result.push_back({c, std::min((group + 1) * group_size, b.begin + b.size) - c, group});
  }
  return result;
}

// Strides of a dense map, NCHW or channels-last.
struct MapStrides {
  explicit MapStrides(const at::Tensor& map)
      : image(map.size(1) * map.size(2) * map.size(3)),
        channel(format_like(map) == at::MemoryFormat::Contiguous ? map.size(2) * map.size(3) : 1),
        pixel(format_like(map) == at::MemoryFormat::Contiguous ? 1 : map.size(1)) {}
  int64_t image, channel, pixel;
};

// The tensor itself, or a copy that MapStrides can describe.
inline at::Tensor dense(const at::Tensor& map) { return map.contiguous(format_like(map)); }

// Where the channels of a block are for one image: those of pixel p from data + p * stride on.
template <typename T>
struct BlockView {
  T* data;
  int64_t stride;
};

// A map as the kernels read it: channels-last as it is, or copied block by block, each (H*W, size)
// and starting at begin * H*W.
template <typename T>
class BlockedMap {
 public:
  // Does not copy a channels-last map in T where `may_alias`.
  template <typename S>
  static BlockedMap copy(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                         const at::Tensor& map, bool may_alias) {
    const at::Tensor source = dense(map);
    const MapStrides strides(source);
    const S* from = source.const_data_ptr<S>();
    if constexpr (std::is_same_v<S, T>) {
      // Is not written to.
      if (may_alias && strides.channel == 1) return {g, source, const_cast<T*>(from), true};
    }
    BlockedMap result(g, at::empty({g.batch, g.channels, g.pixels()}, options(map)));
    result.for_each_part(blocks, [&](int64_t n, ChannelBlock b, int64_t pixel, int64_t pixels) {
      copy_matrix(b.size, pixels,
                  from + n * strides.image + b.begin * strides.channel + pixel * strides.pixel,
                  {strides.channel, strides.pixel}, result.block(n, b).data + pixel * b.size,
                  {1, b.size});
    });
    return result;
  }
  static BlockedMap zeros(const ConvGeometry& g, const at::Tensor& map) {
    return {g, at::zeros({g.batch, g.channels, g.pixels()}, options(map))};
  }

  BlockView<T> block(int64_t n, const ChannelBlock& b) const {
    T* image = data_ + n * g_.channels * g_.pixels();
    return channels_last_ ? BlockView<T>{image + b.begin, g_.channels}
                          : BlockView<T>{image + b.begin * g_.pixels(), b.size};
  }

  template <typename S>
  void copy_to(const std::vector<ChannelBlock>& blocks, const at::Tensor& map) const {
    const MapStrides strides(map);
    S* to = map.mutable_data_ptr<S>();
    for_each_part(blocks, [&](int64_t n, ChannelBlock b, int64_t pixel, int64_t pixels) {
      copy_matrix(b.size, pixels, static_cast<const T*>(block(n, b).data) + pixel * b.size,
                  {1, b.size},
                  to + n * strides.image + b.begin * strides.channel + pixel * strides.pixel,
                  {strides.channel, strides.pixel});
    });
  }

 private:
  BlockedMap(const ConvGeometry& g, at::Tensor map, T* data, bool channels_last)
      : g_(g), map_(std::move(map)), data_(data), channels_last_(channels_last) {}
  BlockedMap(const ConvGeometry& g, const at::Tensor& map)
      : BlockedMap(g, map, map.mutable_data_ptr<T>(), false) {}

  static at::TensorOptions options(const at::Tensor& map) {
    return map.options().dtype(c10::CppTypeToScalarType<T>::value);
  }

  template <typename F>
  void for_each_part(const std::vector<ChannelBlock>& blocks, F copy) const {
    constexpr int64_t kPart = 1024;
    const int64_t parts = at::divup(g_.pixels(), kPart), count = blocks.size();
    at::parallel_for(0, g_.batch * count * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t pixel = i % parts * kPart;
        copy(i / (parts * count), blocks[i / parts % count], pixel,
             std::min(kPart, g_.pixels() - pixel));
      }
    });
  }

  ConvGeometry g_;
  at::Tensor map_;  // keeps data_
  T* data_;
  bool channels_last_;
};

// Calls body(segment, its place in the packed weights, its place in (O, C / groups, K)).
template <typename F>
void for_each_segment(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks, F body) {
  const int64_t outs = g.out_channels / g.groups, ins = g.channels / g.groups;
  for (const ChannelBlock& b : blocks) {
    for (const Segment& s : segments(g, b)) {
      body(s, s.begin * g.taps() * outs,
           (s.group * outs * ins + s.begin - s.group * ins) * g.taps());
    }
  }
}

// The weights of a segment are needed as matrices that multiply from the right. Going forward they
// take channels to outputs, up to kOuts of them at a time: (outputs / kOuts, taps, channels,
// kOuts), the last part perhaps narrower.
constexpr int64_t kOuts = 64;

template <typename S, typename T>
at::Tensor pack_forward(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                        const at::Tensor& weight) {
  const at::Tensor source = weight.contiguous();
  const S* from = source.const_data_ptr<S>();
  at::Tensor result =
      at::empty({weight.numel()}, weight.options().dtype(c10::CppTypeToScalarType<T>::value));
  T* to = result.mutable_data_ptr<T>();
  const int64_t outs = g.out_channels / g.groups, taps = g.taps();
  const int64_t row = g.channels / g.groups * taps;
  constexpr int64_t kChannels = 16;  // at a time
  for_each_segment(g, blocks, [&](const Segment& s, int64_t packed, int64_t dense) {
    const int64_t parts = at::divup(s.size, kChannels);
    at::parallel_for(0, at::divup(outs, kOuts) * parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> rows(kChannels * taps * kOuts);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t out = i / parts * kOuts, width = std::min(kOuts, outs - out);
        const int64_t c = i % parts * kChannels, channels = std::min(kChannels, s.size - c);
        copy_matrix(width, channels * taps, from + dense + out * row + c * taps, {row, 1},
                    rows.data(), {1, width});
        for (int64_t j = 0; j < channels * taps; ++j) {
          std::copy_n(
              rows.data() + j * width, width,
              to + packed + out * taps * s.size + (j % taps * s.size + c + j / taps) * width);
        }
      }
    });
  });
  return result;
}

// Going backward they take outputs to channels: (taps, outputs, channels), or (outputs, taps,
// channels) with `output_first`.
struct PackedStrides {
  PackedStrides(const ConvGeometry& g, const Segment& s, bool output_first)
      : output(s.size * (output_first ? g.taps() : 1)),
        tap(s.size * (output_first ? 1 : g.out_channels / g.groups)) {}
  int64_t output, tap;
};

template <typename S, typename T>
at::Tensor pack_backward(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                         const at::Tensor& weight, bool output_first) {
  const at::Tensor source = weight.contiguous();
  const S* from = source.const_data_ptr<S>();
  at::Tensor result =
      at::empty({weight.numel()}, weight.options().dtype(c10::CppTypeToScalarType<T>::value));
  T* to = result.mutable_data_ptr<T>();
  const int64_t row = g.channels / g.groups * g.taps();
  for_each_segment(g, blocks, [&](const Segment& s, int64_t packed, int64_t dense) {
    const PackedStrides strides(g, s, output_first);
    at::parallel_for(0, g.out_channels / g.groups, 16, [&](int64_t begin, int64_t end) {
      for (int64_t out = begin; out < end; ++out) {
        copy_matrix(s.size, g.taps(), from + dense + out * row, {g.taps(), 1},
                    to + packed + out * strides.output, {1, strides.tap});
      }
    });
  });
  return result;
}

// Their gradient, (O, C / groups, K), from (taps, outputs, channels).
template <typename S, typename T>
at::Tensor unpack_backward(const ConvGeometry& g, const std::vector<ChannelBlock>& blocks,
                           const at::Tensor& packed_weight, const at::Tensor& like) {
  at::Tensor result = at::empty(like.sizes(), like.options());
  const T* from = packed_weight.const_data_ptr<T>();
  S* to = result.mutable_data_ptr<S>();
  const int64_t row = g.channels / g.groups * g.taps();
  for_each_segment(g, blocks, [&](const Segment& s, int64_t packed, int64_t dense) {
    const PackedStrides strides(g, s, false);
    at::parallel_for(0, g.out_channels / g.groups, 16, [&](int64_t begin, int64_t end) {
      for (int64_t out = begin; out < end; ++out) {
        copy_matrix(s.size, g.taps(), from + packed + out * strides.output, {1, strides.tap},
                    to + dense + out * row, {g.taps(), 1});
      }
    });
  });
  return result;
}

}  // namespace dcn_projects
