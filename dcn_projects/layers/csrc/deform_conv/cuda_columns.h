#pragma once

// The kernels of deformable convolution on CUDA: columns from maps, and back. Maps are
// channels-last, (N, H, W, C), so that one read of a sample is a row of consecutive channels for
// consecutive lanes. 16-bit tensors are blended, and their gradients are summed, in float32.

#include <ATen/OpMathType.h>

#include "../common/cuda_launch.h"
#include "../common/cuda_vector.h"
#include "deform_conv.h"

namespace dcn_projects {
namespace {

// The output pixels whose columns are made at a time, (groups, pixels, taps, channels of a group),
// so that each group's is a matrix: `images` whole images, or `places` pixels of one.
struct Chunk {
  int64_t image;   // the first
  unsigned place;  // the first in each image
  unsigned images, places;

  DCN_HOST_DEVICE unsigned pixels() const { return images * places; }
};

// Offsets, masks or their gradients: (N, planes, Ho * Wo), of type S, or of that which computes.
template <typename S>
struct Planes {
  using T = at::opmath_type<S>;
  void* data;  // null: there are none
  int64_t image_stride, plane_stride, place_stride;
  bool wide;

  __device__ __forceinline__ int64_t at(int64_t image, int plane, int place) const {
    return image * image_stride + plane * plane_stride + place * place_stride;
  }
  __device__ __forceinline__ T get(int64_t image, int plane, int place) const {
    const int64_t i = at(image, plane, place);
    return wide ? static_cast<const T*>(data)[i] : static_cast<T>(static_cast<const S*>(data)[i]);
  }
  __device__ __forceinline__ void set(int64_t image, int plane, int place, T value) const {
    const int64_t i = at(image, plane, place);
    if (wide) {
      static_cast<T*>(data)[i] = value;
    } else {
      static_cast<S*>(data)[i] = static_cast<S>(value);
    }
  }
};

// A unit of work is one tap of one deformable group at one pixel, in the order (pixel, tap, group).
// A warp takes several neighbouring units: first each lane locates one, then `lanes` lanes together
// fetch its channels. So a position is computed once, and stays in registers.
template <typename S>
struct Units {
  ConvGeometry g;
  Planes<S> offset, mask;
  Chunk chunk;
  int lanes;     // per unit, a power of two
  int per_warp;  // at a time, a multiple of how many fit beside each other

  DCN_HOST_DEVICE int64_t count() const {
    return static_cast<int64_t>(chunk.pixels()) * g.taps() * g.deformable_groups;
  }
  DCN_HOST_DEVICE int channels() const {
    return static_cast<int>(g.channels) / g.deformable_groups;
  }
};

template <typename T>
struct Unit {
  Sample<T> sample;  // pixels outside have the index -1
  T mask;
  int image;                // of the batch
  int tap_of_image, place;  // deformable group * taps + tap, output pixel
};

template <typename S, typename T = at::opmath_type<S>>
__device__ __forceinline__ Unit<T> locate_unit(const Units<S>& units, int64_t index) {
  Unit<T> unit{{{{-1, -1, -1, -1}, 0, 0}, 0, 0}, 0, 0, 0, 0};
  if (index >= units.count()) return unit;
  const ConvGeometry& g = units.g;
  const unsigned row = static_cast<unsigned>(index) / g.deformable_groups;
  const int group = static_cast<unsigned>(index) % g.deformable_groups;
  const int tap = row % g.taps();
  const unsigned pixel = row / g.taps();
  unit.image = static_cast<int>(units.chunk.image + pixel / units.chunk.places);
  unit.place = static_cast<int>(units.chunk.place + pixel % units.chunk.places);
  unit.tap_of_image = group * g.taps() + tap;
  const T dy = units.offset.get(unit.image, 2 * unit.tap_of_image, unit.place);
  const T dx = units.offset.get(unit.image, 2 * unit.tap_of_image + 1, unit.place);
  unit.sample = locate(g, unit.place / g.out_width, unit.place % g.out_width, tap / g.kernel_w,
                       tap % g.kernel_w, dy, dx, -1);
  unit.mask = units.mask.data ? units.mask.get(unit.image, unit.tap_of_image, unit.place) : T(1);
  return unit;
}

// What the lanes that work on a unit know of it.
template <typename T>
struct SharedUnit {
  int index[4];
  T weight[4], mask;
  int image;
};

template <typename T>
__device__ __forceinline__ SharedUnit<T> unit_of_lane(const Unit<T>& unit, int lane) {
  const BilinearTap<T>& tap = unit.sample.tap;
  const T weight[4] = {(1 - tap.ly) * (1 - tap.lx), (1 - tap.ly) * tap.lx, tap.ly * (1 - tap.lx),
                       tap.ly * tap.lx};
  SharedUnit<T> shared;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    shared.index[q] = from_lane(tap.index[q], lane);
    shared.weight[q] = from_lane(weight[q], lane);
  }
  shared.mask = from_lane(unit.mask, lane);
  shared.image = from_lane(unit.image, lane);
  return shared;
}

// Where a unit's channels begin in the columns; c counts within its deformable group.
template <typename S>
__device__ __forceinline__ int64_t column_at(const Units<S>& units, int64_t index, int c) {
  const ConvGeometry& g = units.g;
  if (g.groups == 1) return index * units.channels() + c;
  const unsigned row = static_cast<unsigned>(index) / g.deformable_groups;
  const int group_size = static_cast<int>(g.channels) / g.groups;
  const int channel =
      static_cast<int>(static_cast<unsigned>(index) % g.deformable_groups) * units.channels() + c;
  const int64_t rows = static_cast<int64_t>(units.chunk.pixels()) * g.taps();
  return (channel / group_size * rows + row) * group_size + channel % group_size;
}

// Of V channels from `at` on, the values at four pixels: all loads before the first use.
template <int V, typename S>
struct Corners {
  Channels<S, V> pixel[4];

  __device__ __forceinline__ Corners(const S* at, const int (&index)[4], int64_t channels) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      pixel[q] = {};
      if (index[q] >= 0) pixel[q] = load<V>(at + index[q] * channels);
    }
  }
};

template <typename S>
__device__ __forceinline__ int64_t first_channel(const Units<S>& units, int image, int64_t index) {
  const int group = static_cast<int>(static_cast<unsigned>(index) % units.g.deformable_groups);
  return image * units.g.pixels() * units.g.channels + group * units.channels();
}

// The columns of a chunk.
template <typename S, int V>
__global__ void gather_kernel(Units<S> units, const S* x, S* column) {
  using T = at::opmath_type<S>;
  const int lane = threadIdx.x % kWarpSize, beside = kWarpSize / units.lanes;
  const int64_t step = grid_stride() / kWarpSize * units.per_warp;
  for (int64_t first = grid_index() / kWarpSize * units.per_warp; first < units.count();
       first += step) {
    const Unit<T> mine = locate_unit(units, lane < units.per_warp ? first + lane : units.count());
    for (int round = 0; round < units.per_warp; round += beside) {
      const int64_t index = first + round + lane / units.lanes;
      const SharedUnit<T> unit = unit_of_lane(mine, round + lane / units.lanes);
      if (index >= units.count()) continue;
      const S* const from = x + first_channel(units, unit.image, index);
      for (int c = lane % units.lanes * V; c < units.channels(); c += units.lanes * V) {
        const Corners<V, S> corners(from + c, unit.index, units.g.channels);
        Channels<S, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          T sum = 0;
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            sum += unit.weight[q] * static_cast<T>(corners.pixel[q].value[v]);
          }
          result.value[v] = static_cast<S>(unit.mask * sum);
        }
        store<V>(column + column_at(units, index, c), result);
      }
    }
  }
}

// Takes the gradients of the columns and leaves the columns in their place, so that one pass over
// the pixels of a sample serves all gradients. The lanes of a unit own its gradients of offset and
// mask; only the gradient of the map is shared with other warps.
template <typename S, int V, typename Sum>
__global__ void scatter_kernel(Units<S> units, const S* x, S* column, Sum grad_x,
                               Planes<S> grad_offset, Planes<S> grad_mask) {
  using T = at::opmath_type<S>;
  const int lane = threadIdx.x % kWarpSize, beside = kWarpSize / units.lanes;
  const int64_t step = grid_stride() / kWarpSize * units.per_warp;
  for (int64_t first = grid_index() / kWarpSize * units.per_warp; first < units.count();
       first += step) {
    const Unit<T> mine = locate_unit(units, lane < units.per_warp ? first + lane : units.count());
    T my_dot[4] = {};  // of the gradient with the four pixels of my unit
    for (int round = 0; round < units.per_warp; round += beside) {
      const int64_t index = first + round + lane / units.lanes;
      const SharedUnit<T> unit = unit_of_lane(mine, round + lane / units.lanes);
      T dot[4] = {};
      const int channels = index < units.count() ? units.channels() : 0;
      const int64_t map_at = first_channel(units, unit.image, index);
      for (int c = lane % units.lanes * V; c < channels; c += units.lanes * V) {
        S* const place = column + column_at(units, index, c);
        const Channels<S, V> grad = load<V>(place);
        const Corners<V, S> corners(x + map_at + c, unit.index, units.g.channels);
        T sum[V] = {};
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          if (unit.index[q] < 0) continue;
          T share[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const T value = static_cast<T>(corners.pixel[q].value[v]);
            const T slope = static_cast<T>(grad.value[v]);
            dot[q] += slope * value;
            sum[v] += unit.weight[q] * value;
            share[v] = unit.mask * unit.weight[q] * slope;
          }
          grad_x.add(map_at + c + unit.index[q] * units.g.channels, share);
        }
        Channels<S, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) result.value[v] = static_cast<S>(unit.mask * sum[v]);
        store<V>(place, result);
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const T total = sum_over_lanes(dot[q], units.lanes);
        // To the lane that located the unit.
        const T passed = from_lane(total, lane % beside * units.lanes);
        if (lane / beside * beside == round) my_dot[q] = passed;
      }
    }
    if (lane < units.per_warp && first + lane < units.count()) {
      const SampleGrad<T> grad = sample_grad(mine.sample, mine.mask, my_dot);
      grad_offset.set(mine.image, 2 * mine.tap_of_image, mine.place, grad.offset_y);
      grad_offset.set(mine.image, 2 * mine.tap_of_image + 1, mine.place, grad.offset_x);
      if (grad_mask.data) grad_mask.set(mine.image, mine.tap_of_image, mine.place, grad.mask);
    }
  }
}

}  // namespace
}  // namespace dcn_projects
