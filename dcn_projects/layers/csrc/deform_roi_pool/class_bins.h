#pragma once

// Bins of a RoI on all channels of an offset class, which share a window: channels are innermost.

#include "bin_windows.h"

namespace dcn_projects {
namespace {

// What a bin reads of a map: rows x cols cells, of which `first` is the first. Weights and slopes
// are kLanes apart.
template <typename T>
struct BinWindow {
  BinWindow(const BinWindows<T>& windows, int lane, int W)
      : rows(windows.rows.cells[lane]),
        cols(windows.cols.cells[lane]),
        first(static_cast<int64_t>(windows.rows.first[lane]) * W + windows.cols.first[lane]),
        samples(windows.rows.samples[lane] * windows.cols.samples[lane]),
        row_weight(windows.rows.weight.data() + lane),
        col_weight(windows.cols.weight.data() + lane),
        row_slope(windows.rows.slope.data() + lane),
        col_slope(windows.cols.slope.data() + lane) {}

  int rows, cols;
  int64_t first;
  T samples;
  const T *row_weight, *col_weight, *row_slope, *col_slope;
};

template <typename T>
DCN_HOST_DEVICE void read_window_body(const BinWindow<T>& bin, const T* map, int W,
                                      int64_t channels, T* __restrict__ out) {
  for (int r = 0; r < bin.rows; ++r) {
    const T row_weight = bin.row_weight[r * kLanes] / bin.samples;
    for (int c = 0; c < bin.cols; ++c) {
      const T weight = row_weight * bin.col_weight[c * kLanes];
      if (weight == 0) continue;
      const T* cell = map + (static_cast<int64_t>(r) * W + c) * channels;
      for (int64_t p = 0; p < channels; ++p) out[p] += weight * cell[p];
    }
  }
}

DCN_TARGET_CLONES void read_window(const BinWindow<float>& bin, const float* map, int W,
                                   int64_t channels, float* out) {
  read_window_body(bin, map, W, channels, out);
}
DCN_TARGET_CLONES void read_window(const BinWindow<double>& bin, const double* map, int W,
                                   int64_t channels, double* out) {
  read_window_body(bin, map, W, channels, out);
}

// What a bin's share of the loss gains when its samples move by a cell.
template <typename T>
struct PositionGrad {
  T x = 0, y = 0;
};

// The reverse of read_window, for `channels` of the `stride` channels of a map: adds to grad_map,
// and returns the gradient of the position unless map is null.
template <typename T>
PositionGrad<T> spread_window(const BinWindow<T>& bin, const T* grad, const T* map, int W,
                              int64_t stride, int64_t channels, T* __restrict__ grad_map) {
  PositionGrad<T> result;
  for (int r = 0; r < bin.rows; ++r) {
    const T row_weight = bin.row_weight[r * kLanes] / bin.samples;
    const T row_slope = bin.row_slope[r * kLanes] / bin.samples;
    for (int c = 0; c < bin.cols; ++c) {
      const T weight = bin.col_weight[c * kLanes];
      if (row_weight * weight == 0) continue;
      const int64_t cell = (static_cast<int64_t>(r) * W + c) * stride;
      for (int64_t p = 0; p < channels; ++p) grad_map[cell + p] += row_weight * weight * grad[p];
      if (map) {
        T product = 0;
#pragma omp simd reduction(+ : product)
        for (int64_t p = 0; p < channels; ++p) product += grad[p] * map[cell + p];
        result.x += row_weight * bin.col_slope[c * kLanes] * product;
        result.y += row_slope * weight * product;
      }
    }
  }
  return result;
}

}  // namespace
}  // namespace dcn_projects
