#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/target_clones.h"
#include "../common/vector.h"
#include "deform_conv.h"

// The loops of the CPU kernels over the samples of a tap: where a tile of output pixels reads,
// found once for all channels, and the reads themselves, which form the column that the weights
// multiply, vectorised over the channels of a block.

namespace dcn_projects {

// The samples of one tap over the pixels of a tile, field by field. See Sample.
template <typename T>
struct SampleRow {
  int *out_y, *out_x;
  int* index[4];
  T *ly, *lx, *slope_y, *slope_x, *mask;
  T* weight[4];  // of the four pixels, mask included
  T* dot;        // (pixels of the tile, 4): see sample_grad()
};

// Memory for one.
template <typename T>
class SampleBuffer {
 public:
  explicit SampleBuffer(int64_t size) : indices_(6 * size), values_(13 * size) {
    const auto index = [&](int64_t i) { return indices_.data() + i * size; };
    const auto value = [&](int64_t i) { return values_.data() + i * size; };
    row_ = {
        index(0), index(1), {index(2), index(3), index(4), index(5)}, value(0), value(1), value(2),
        value(3), value(4), {value(5), value(6), value(7), value(8)}, value(9)};
  }
  SampleRow<T> row() const { return row_; }

 private:
  std::vector<int> indices_;
  std::vector<T> values_;
  SampleRow<T> row_;
};

template <typename T>
DCN_HOST_DEVICE void locate_body(ConvGeometry g, int tap, const T* offset_y, const T* offset_x,
                                 int64_t length, SampleRow<T> row) {
  const int tap_y = tap / g.kernel_w, tap_x = tap % g.kernel_w;
  for (int64_t t = 0; t < length; ++t) {
    const Sample<T> s =
        locate(g, row.out_y[t], row.out_x[t], tap_y, tap_x, offset_y[t], offset_x[t], -1);
    for (int k = 0; k < 4; ++k) row.index[k][t] = s.tap.index[k];
    const T ly = s.tap.ly, lx = s.tap.lx, mask = row.mask[t];
    row.weight[0][t] = mask * ((1 - ly) * (1 - lx));
    row.weight[1][t] = mask * ((1 - ly) * lx);
    row.weight[2][t] = mask * (ly * (1 - lx));
    row.weight[3][t] = mask * (ly * lx);
    row.ly[t] = ly;
    row.lx[t] = lx;
    row.slope_y[t] = s.slope_y;
    row.slope_x[t] = s.slope_x;
  }
}

// column[t] = mask * value of sample t, for the `channels` of a block. The pixel that the map lacks
// is `outside`, all zeros. S is T or a 16-bit type.
template <typename S, typename T>
DCN_HOST_DEVICE void gather_body(const S* map, int64_t map_stride, const S* outside,
                                 SampleRow<T> row, int64_t length, int64_t channels, S* column,
                                 int64_t column_stride) {
  using V = vector_t<T>;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  for (int64_t t = 0; t < length; ++t, column += column_stride) {
    const S* x[4];
    for (int k = 0; k < 4; ++k) {
      const int index = row.index[k][t];
      x[k] = index < 0 ? outside : map + index * map_stride;
    }
    const T w0 = row.weight[0][t], w1 = row.weight[1][t];
    const T w2 = row.weight[2][t], w3 = row.weight[3][t];
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      const V value = w0 * load_vector<V>(x[0] + c) + w1 * load_vector<V>(x[1] + c) +
                      w2 * load_vector<V>(x[2] + c) + w3 * load_vector<V>(x[3] + c);
      store_vector(column + c, value);
    }
    for (; c < channels; ++c) {
      column[c] =
          static_cast<S>(w0 * T(x[0][c]) + w1 * T(x[1][c]) + w2 * T(x[2][c]) + w3 * T(x[3][c]));
    }
  }
}

// One pass over the four pixels of each sample serves all gradients: reads the gradient of a
// column, adds to grad_map, sets row.dot, and writes the column. Two of the four pixels can be the
// same only if they are the one that the map lacks: it is read from `outside`, all zeros, and its
// gradient is written to `nowhere`.
template <typename S, typename T>
DCN_HOST_DEVICE void sweep_body(const S* map, T* grad_map, const S* outside, T* nowhere,
                                SampleRow<T> row, int64_t length, int64_t channels,
                                const S* grad_column, int64_t grad_stride, T* column) {
  using V = vector_t<T>;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  for (int64_t t = 0; t < length; ++t, column += channels, grad_column += grad_stride) {
    const S* x[4];
    T* gx[4];
    for (int k = 0; k < 4; ++k) {
      const int index = row.index[k][t];
      x[k] = index < 0 ? outside : map + index * channels;
      gx[k] = index < 0 ? nowhere : grad_map + index * channels;
    }
    const T m[4] = {row.weight[0][t], row.weight[1][t], row.weight[2][t], row.weight[3][t]};
    V sums[4] = {};
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      const V g = load_vector<V>(grad_column + c);
      const V v0 = load_vector<V>(x[0] + c), v1 = load_vector<V>(x[1] + c);
      const V v2 = load_vector<V>(x[2] + c), v3 = load_vector<V>(x[3] + c);
      const V s0 = load_vector<V>(gx[0] + c) + m[0] * g, s1 = load_vector<V>(gx[1] + c) + m[1] * g;
      const V s2 = load_vector<V>(gx[2] + c) + m[2] * g, s3 = load_vector<V>(gx[3] + c) + m[3] * g;
      sums[0] += g * v0;
      sums[1] += g * v1;
      sums[2] += g * v2;
      sums[3] += g * v3;
      store_vector(gx[0] + c, s0);
      store_vector(gx[1] + c, s1);
      store_vector(gx[2] + c, s2);
      store_vector(gx[3] + c, s3);
      const V value = m[0] * v0 + m[1] * v1 + m[2] * v2 + m[3] * v3;
      store_vector(column + c, value);
    }
    T* d = row.dot + 4 * t;
    sum_each<T>(sums, d);
    for (; c < channels; ++c) {
      const T g = grad_column[c];
      T value = 0;
      for (int k = 0; k < 4; ++k) {
        const T v = x[k][c];
        d[k] += g * v;
        value += m[k] * v;
        gx[k][c] += m[k] * g;
      }
      column[c] = value;
    }
  }
}

// The gradients of the offsets and the mask of a tap over the pixels of a tile.
template <typename T>
struct SampleGradRow {
  T *offset_y, *offset_x, *mask;  // mask may be null
};

// Adds to them what follows from the row.dot of sweep().
template <typename T>
DCN_HOST_DEVICE void add_sample_grads_body(SampleRow<T> row, int64_t length,
                                           SampleGradRow<T> grad) {
  const auto part = [&](int64_t t) {
    const Sample<T> sample{{{}, row.ly[t], row.lx[t]}, row.slope_y[t], row.slope_x[t]};
    const T* d = row.dot + 4 * t;
    return sample_grad(sample, row.mask[t], {d[0], d[1], d[2], d[3]});
  };
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) {
    grad.offset_y[t] += part(t).offset_y;
    grad.offset_x[t] += part(t).offset_x;
  }
  if (!grad.mask) return;
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) grad.mask[t] += part(t).mask;
}

#define DCN_CLONED_ROW_LOOPS(T)                                                               \
  DCN_TARGET_CLONES static void locate(const ConvGeometry& g, int tap, const T* offset_y,     \
                                       const T* offset_x, int64_t length, SampleRow<T> row) { \
    locate_body(g, tap, offset_y, offset_x, length, row);                                     \
  }                                                                                           \
  DCN_TARGET_CLONES static void add_sample_grads(SampleRow<T> row, int64_t length,            \
                                                 SampleGradRow<T> grad) {                     \
    add_sample_grads_body(row, length, grad);                                                 \
  }
DCN_CLONED_ROW_LOOPS(float)
DCN_CLONED_ROW_LOOPS(double)
#undef DCN_CLONED_ROW_LOOPS

#define DCN_CLONED_LOOPS(S, T)                                                                   \
  DCN_TARGET_CLONES static void gather(const S* map, int64_t map_stride, const S* outside,       \
                                       SampleRow<T> row, int64_t length, int64_t channels,       \
                                       S* column, int64_t column_stride) {                       \
    gather_body(map, map_stride, outside, row, length, channels, column, column_stride);         \
  }                                                                                              \
  DCN_TARGET_CLONES static void sweep(const S* map, T* grad_map, const S* outside, T* nowhere,   \
                                      SampleRow<T> row, int64_t length, int64_t channels,        \
                                      const S* grad_column, int64_t grad_stride, T* column) {    \
    sweep_body(map, grad_map, outside, nowhere, row, length, channels, grad_column, grad_stride, \
               column);                                                                          \
  }
DCN_CLONED_LOOPS(float, float)
DCN_CLONED_LOOPS(double, double)
DCN_CLONED_LOOPS(at::BFloat16, float)
#undef DCN_CLONED_LOOPS

// Sets which output pixels a row stands for.
template <typename T>
void set_pixels(const ConvGeometry& g, int64_t begin, int64_t length, SampleRow<T> row) {
  for (int64_t t = 0; t < length; ++t) {
    row.out_y[t] = static_cast<int>((begin + t) / g.out_width);
    row.out_x[t] = static_cast<int>((begin + t) % g.out_width);
  }
}

}  // namespace dcn_projects
