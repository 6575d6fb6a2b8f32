#pragma once

// The kernels of deformable RoI pooling on CUDA. A map is read where it lies with group_size > 1,
// one thread per output element, and channels-last, (N, H, W, C), with group_size 1: then
// neighbouring threads take neighbouring channels of one bin. S is the type of the values in
// memory, T the type that computes.

#include <ATen/OpMathType.h>

#include "../common/cuda_launch.h"
#include "../common/cuda_vector.h"
#include "deform_roi_pool.h"

namespace dcn_projects {
namespace {

// Walks over the cells that a bin's samples read along one axis, each cell once and in order: a bin
// is sum_r weight[r] * sum_c weight[c] * x[r][c] / samples. The 4 x 4 samples of a usual bin lie
// between 2 or 3 rows and columns.
template <typename T>
class CellWalk {
 public:
  int cell;
  T weight;  // of all samples beside the cell
  T slope;  // its derivative by their position; samples on a whole coordinate, thus also those that
            // were clamped, have none

  __device__ __forceinline__ CellWalk(const SampleLine<T>& line, int sampling_ratio, int size)
      : line_(line), sampling_ratio_(sampling_ratio), size_(size) {
    find_sample();
  }

  // Goes to the next cell, false if there is none.
  __device__ __forceinline__ bool next() {
    if (next_slope_ > 0) {
      ++cell;
    } else if (sample_ < sampling_ratio_) {
      cell = low_;
    } else {
      return false;
    }
    weight = next_weight_;
    slope = next_slope_;
    next_weight_ = next_slope_ = 0;
    while (sample_ < sampling_ratio_ && low_ == cell) {
      weight += 1 - fraction_;
      if (fraction_ > 0) {
        slope -= 1;
        next_weight_ += fraction_;
        next_slope_ += 1;
      }
      ++sample_;
      find_sample();
    }
    return true;
  }

 private:
  // The first one from sample_ on that counts.
  __device__ __forceinline__ void find_sample() {
    for (; sample_ < sampling_ratio_; ++sample_) {
      const T position =
          clamp_sample(multiply_add(static_cast<T>(sample_), line_.step, line_.start), size_);
      low_ = static_cast<int>(position);
      fraction_ = position - static_cast<T>(low_);
      if (position >= 0) return;
    }
  }

  SampleLine<T> line_;
  int sampling_ratio_, size_;
  int sample_ = 0, low_ = 0;
  T fraction_ = 0;
  T next_weight_ = 0, next_slope_ = 0;  // of the cell behind this one, from the samples so far
};

template <typename T>
__device__ __forceinline__ int count_samples(const SampleLine<T>& line, int sampling_ratio,
                                             int size) {
  int count = 0;
  for (int k = 0; k < sampling_ratio; ++k) {
    count += clamp_sample(multiply_add(static_cast<T>(k), line.step, line.start), size) >= 0;
  }
  return count;
}

// Bin (i, j) of RoI n for offset class k.
template <typename T>
struct Bin {
  int64_t image;
  T samples;  // how many count; 0 if there is nothing to pool
  SampleLine<T> y, x;
  T roi_height, roi_width;
};

template <typename T>
__device__ Bin<T> find_bin(const T* rois, const T* offset, const DeformRoiPoolGeometry& g,
                           int64_t n, int64_t k, int i, int j) {
  const RoiRegion<T> region = roi_region(rois + 5 * n, g, T(0.5));
  T dx = 0, dy = 0;
  if (offset) {
    const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w;
    const T* at = offset + (n * g.classes + k) * 2 * plane + g.part_of_bin(i, j);
    dx = at[0];
    dy = at[plane];
  }
  const T gamma = static_cast<T>(g.gamma);
  Bin<T> bin;
  bin.image = region.image;
  bin.roi_height = region.height;
  bin.roi_width = region.width;
  bin.y = sample_line(region.y, region.height, i, g.pooled_h, g.sampling_ratio, dy, gamma);
  bin.x = sample_line(region.x, region.width, j, g.pooled_w, g.sampling_ratio, dx, gamma);
  bin.samples = region.image < 0 ? T(0)
                                 : static_cast<T>(count_samples(bin.y, g.sampling_ratio, g.H)) *
                                       static_cast<T>(count_samples(bin.x, g.sampling_ratio, g.W));
  return bin;
}

// Where values lie. In a map channel d of image n has one cell each `step` elements; outputs are
// (R, D, bins), or (R, bins, D) beside a map that is channels-last.
template <bool channels_last>
struct Layout {
  static __device__ __forceinline__ int64_t map_at(const DeformRoiPoolGeometry& g, int64_t image,
                                                   int64_t d, int i, int j) {
    const int64_t size = static_cast<int64_t>(g.H) * g.W;
    return channels_last ? image * size * g.C + d
                         : (image * g.C + d * g.group_cells() + g.group_cell_of_bin(i, j)) * size;
  }
  static __device__ __forceinline__ int64_t step(const DeformRoiPoolGeometry& g) {
    return channels_last ? g.C : 1;
  }
  static __device__ __forceinline__ int64_t output_at(const DeformRoiPoolGeometry& g, int64_t n,
                                                      int64_t d, int i, int j) {
    const int bin = i * g.pooled_w + j;
    return channels_last ? (n * g.bins() + bin) * g.D + d : (n * g.D + d) * g.bins() + bin;
  }
};

// Unit `index` of V output channels, in the order in which they lie.
struct Output {
  int64_t n, d;
  int i, j;
};

template <int V, bool channels_last>
__device__ __forceinline__ Output find_output(const DeformRoiPoolGeometry& g, int64_t index) {
  const int64_t vectors = g.D / V, bins = g.bins();
  const int64_t inner = channels_last ? vectors : bins, outer = channels_last ? bins : vectors;
  const int64_t low = index % inner, high = index / inner % outer;
  const int bin = static_cast<int>(channels_last ? high : low);
  return {index / inner / outer, (channels_last ? low : high) * V, bin / g.pooled_w,
          bin % g.pooled_w};
}

// One thread per V output elements.
template <typename S, int V, bool channels_last, typename T = at::opmath_type<S>>
__global__ void pool_kernel(const S* input, const T* rois, const T* offset, DeformRoiPoolGeometry g,
                            S* output) {
  using L = Layout<channels_last>;
  const int64_t units = g.R * (g.D / V) * g.bins();
  for (int64_t index = grid_index(); index < units; index += grid_stride()) {
    const Output at = find_output<V, channels_last>(g, index);
    const Bin<T> bin = find_bin(rois, offset, g, at.n, at.d / g.per_class, at.i, at.j);
    T sum[V] = {};
    if (bin.samples > 0) {
      const S* map = input + L::map_at(g, bin.image, at.d, at.i, at.j);
      CellWalk<T> row(bin.y, g.sampling_ratio, g.H);
      while (row.next()) {
        T line[V] = {};
        CellWalk<T> col(bin.x, g.sampling_ratio, g.W);
        while (col.next()) {
          const auto values = load<V>(map + (row.cell * g.W + col.cell) * L::step(g));
#pragma unroll
          for (int v = 0; v < V; ++v) line[v] += col.weight * static_cast<T>(values.value[v]);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += row.weight * line[v];
      }
    }
    Channels<S, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      result.value[v] = static_cast<S>(bin.samples > 0 ? sum[v] / bin.samples : T(0));
    }
    store<V>(output + index * V, result);
  }
}

// One thread per V output elements.
template <typename S, int V, bool channels_last, typename Sum, typename T = at::opmath_type<S>>
__global__ void grad_input_kernel(const S* grad, const T* rois, const T* offset,
                                  DeformRoiPoolGeometry g, Sum grad_input) {
  using L = Layout<channels_last>;
  const int64_t units = g.R * (g.D / V) * g.bins();
  for (int64_t index = grid_index(); index < units; index += grid_stride()) {
    const Output at = find_output<V, channels_last>(g, index);
    const Bin<T> bin = find_bin(rois, offset, g, at.n, at.d / g.per_class, at.i, at.j);
    if (!(bin.samples > 0)) continue;
    const int64_t map_at = L::map_at(g, bin.image, at.d, at.i, at.j);
    const auto top = load<V>(grad + index * V);
    T share[V];
#pragma unroll
    for (int v = 0; v < V; ++v) share[v] = static_cast<T>(top.value[v]) / bin.samples;
    CellWalk<T> row(bin.y, g.sampling_ratio, g.H);
    while (row.next()) {
      CellWalk<T> col(bin.x, g.sampling_ratio, g.W);
      while (col.next()) {
        T terms[V];
#pragma unroll
        for (int v = 0; v < V; ++v) terms[v] = row.weight * col.weight * share[v];
        grad_input.add(map_at + (row.cell * g.W + col.cell) * L::step(g), terms);
      }
    }
  }
}

// `lanes` lanes, a power of two, per RoI, class and part: they alone sum over the bins and channels
// that share the offset, so that this gradient is the same in every run.
template <typename S, int V, bool channels_last, typename T = at::opmath_type<S>>
__global__ void grad_offset_kernel(const S* grad, const S* input, const T* rois, const T* offset,
                                   DeformRoiPoolGeometry g, int lanes, T* grad_offset) {
  using L = Layout<channels_last>;
  const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w;
  const int64_t units = g.R * g.classes * plane;
  const int lane = threadIdx.x % kWarpSize, beside = kWarpSize / lanes;
  for (int64_t first = grid_index() / kWarpSize * beside; first < units;
       first += grid_stride() / kWarpSize * beside) {
    const int64_t index = first + lane / lanes;
    const int64_t part = index % plane, k = index / plane % g.classes;
    const int64_t n = index / plane / g.classes;
    const CellRange is = bins_of_group(part / g.part_w, g.pooled_h, g.part_h);
    const CellRange js = bins_of_group(part % g.part_w, g.pooled_w, g.part_w);
    T sum_x = 0, sum_y = 0;
    for (int i = is.begin; i < is.end && index < units; ++i) {
      for (int j = js.begin; j < js.end; ++j) {
        const Bin<T> bin = find_bin(rois, offset, g, n, k, i, j);
        if (!(bin.samples > 0)) continue;
        const T scale = static_cast<T>(g.gamma) / bin.samples;
        for (int64_t d = k * g.per_class + lane % lanes * V; d < (k + 1) * g.per_class;
             d += lanes * V) {
          const S* map = input + L::map_at(g, bin.image, d, i, j);
          const auto top = load<V>(grad + L::output_at(g, n, d, i, j));
          T slope_x = 0, slope_y = 0;
          CellWalk<T> row(bin.y, g.sampling_ratio, g.H);
          while (row.next()) {
            CellWalk<T> col(bin.x, g.sampling_ratio, g.W);
            while (col.next()) {
              const auto values = load<V>(map + (row.cell * g.W + col.cell) * L::step(g));
              T dot = 0;
#pragma unroll
              for (int v = 0; v < V; ++v) {
                dot += static_cast<T>(top.value[v]) * static_cast<T>(values.value[v]);
              }
              slope_x += row.weight * col.slope * dot;
              slope_y += row.slope * col.weight * dot;
            }
          }
          // In this order a slope of 0 stays 0, be the region as large as numbers can be.
          sum_x += slope_x * scale * bin.roi_width;
          sum_y += slope_y * scale * bin.roi_height;
        }
      }
    }
    sum_x = sum_over_lanes(sum_x, lanes);
    sum_y = sum_over_lanes(sum_y, lanes);
    if (index < units && lane % lanes == 0) {
      T* at = grad_offset + (n * g.classes + k) * 2 * plane + part;
      at[0] = sum_x;
      at[plane] = sum_y;
    }
  }
}

}  // namespace
}  // namespace dcn_projects
