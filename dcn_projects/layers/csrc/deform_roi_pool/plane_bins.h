#pragma once

// Bins of kLanes RoIs on a single channel: deformable RoI pooling where each output channel has
// offsets of its own, and so no two channels share a window. Windows are found in lanes, one RoI
// after the other then reads its own, by four rows and four columns: few windows are larger, so
// that the processor foresees where loops end. Hence maps need three more rows and kBeyond
// elements.

#include <vector>

#include "../common/four_cells.h"
#include "bin_windows.h"

namespace dcn_projects {
namespace {

constexpr int kRowsBeyond = 3;

// (4 q cells, kLanes) to (q, kLanes, 4 cells).
template <typename T>
DCN_HOST_DEVICE void cells_last(const T* from, int64_t size, T* to) {
  for (int64_t c = 0; c < size; c += 4 * kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int q = 0; q < 4; ++q) to[c + 4 * lane + q] = from[c + q * kLanes + lane];
    }
  }
}

template <typename T>
DCN_HOST_DEVICE void sum_fours(const T* fours, T* sums) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    const T* four = fours + 4 * lane;
    sums[lane] = (four[0] + four[1]) + (four[2] + four[3]);
  }
}

// Cells that no sample reads are left out, here and below: an Inf between two samples that lie far
// apart, or beside the window, is none of the bin's business.
template <typename T>
DCN_HOST_DEVICE void read_bins_body(const BinWindows<T>& w, const T* map, int W, T* scratch,
                                    T* out) {
  using Cells = FourCells<T>;
  const T* row_weights = w.rows.weight.data();
  cells_last(w.cols.weight.data(), w.cols.weight.size(), scratch);
  T fours[4 * kLanes], sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int rows = w.rows.cells[lane], cols = w.cols.cells[lane];
    const T* first = map + static_cast<int64_t>(w.rows.first[lane]) * W + w.cols.first[lane];
    Cells sum = {};
    for (int c = 0; c < cols; c += 4) {
      const Cells col_weight = load_vector<Cells>(scratch + c * kLanes + 4 * lane);
      for (int r0 = 0; r0 < rows; r0 += 4) {
        for (int r = r0; r < r0 + 4; ++r) {
          const Cells cells = load_vector<Cells>(first + static_cast<int64_t>(r) * W + c);
          const Cells weight = row_weights[r * kLanes + lane] * col_weight;
          sum += weight * (weight != 0 ? cells : Cells{});
        }
      }
    }
    store_vector(fours + 4 * lane, sum);
  }
  sum_fours(fours, sums);
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    const T samples = w.rows.samples[lane] * w.cols.samples[lane];
    out[lane] = samples > 0 ? sums[lane] / samples : T(0);
  }
}

// The reverse: adds to grad_map, and writes what the bins' shares of the loss gain when their
// samples move by a cell.
template <typename T>
DCN_HOST_DEVICE void spread_bins_body(const BinWindows<T>& w, const T* grad, const T* map, int W,
                                      T* scratch, T* grad_map, T* grad_y, T* grad_x) {
  using Cells = FourCells<T>;
  const T *row_weights = w.rows.weight.data(), *row_slopes = w.rows.slope.data();
  const int64_t size = w.cols.weight.size();
  cells_last(w.cols.weight.data(), size, scratch);
  cells_last(w.cols.slope.data(), size, scratch + size);
  T shares[kLanes], fours_y[4 * kLanes], fours_x[4 * kLanes];
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    const T samples = w.rows.samples[lane] * w.cols.samples[lane];
    shares[lane] = samples > 0 ? grad[lane] / samples : T(0);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int rows = w.rows.cells[lane], cols = w.cols.cells[lane];
    const int64_t first = static_cast<int64_t>(w.rows.first[lane]) * W + w.cols.first[lane];
    Cells sum_y = {}, sum_x = {};
    for (int c = 0; c < cols; c += 4) {
      const Cells col_weight = load_vector<Cells>(scratch + c * kLanes + 4 * lane);
      const Cells col_slope = load_vector<Cells>(scratch + size + c * kLanes + 4 * lane);
      for (int r0 = 0; r0 < rows; r0 += 4) {
        for (int r = r0; r < r0 + 4; ++r) {
          const int64_t at = first + static_cast<int64_t>(r) * W + c;
          const T row_weight = row_weights[r * kLanes + lane];
          const Cells weight = row_weight * col_weight;
          const auto reads = weight != 0;
          const Cells cells = reads ? load_vector<Cells>(map + at) : Cells{};
          const Cells grad_cells =
              load_vector<Cells>(grad_map + at) + (reads ? shares[lane] * weight : Cells{});
          store_vector(grad_map + at, grad_cells);
          sum_y += row_slopes[r * kLanes + lane] * col_weight * cells;
          sum_x += row_weight * col_slope * cells;
        }
      }
    }
    store_vector(fours_y + 4 * lane, sum_y);
    store_vector(fours_x + 4 * lane, sum_x);
  }
  sum_fours(fours_y, grad_y);
  sum_fours(fours_x, grad_x);
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    grad_y[lane] *= shares[lane];
    grad_x[lane] *= shares[lane];
  }
}

DCN_TARGET_CLONES void read_bins(const BinWindows<float>& w, const float* map, int W,
                                 float* scratch, float* out) {
  read_bins_body(w, map, W, scratch, out);
}
DCN_TARGET_CLONES void read_bins(const BinWindows<double>& w, const double* map, int W,
                                 double* scratch, double* out) {
  read_bins_body(w, map, W, scratch, out);
}
DCN_TARGET_CLONES void spread_bins(const BinWindows<float>& w, const float* grad, const float* map,
                                   int W, float* scratch, float* grad_map, float* grad_y,
                                   float* grad_x) {
  spread_bins_body(w, grad, map, W, scratch, grad_map, grad_y, grad_x);
}
DCN_TARGET_CLONES void spread_bins(const BinWindows<double>& w, const double* grad,
                                   const double* map, int W, double* scratch, double* grad_map,
                                   double* grad_y, double* grad_x) {
  spread_bins_body(w, grad, map, W, scratch, grad_map, grad_y, grad_x);
}

}  // namespace
}  // namespace dcn_projects
