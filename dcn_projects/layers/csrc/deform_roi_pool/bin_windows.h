#pragma once

// What the bins of deformable RoI pooling read, for the CPU. A bin is not summed sample by sample.
// Its samples form a grid, so that it is
//   sum_r rows.weight[r] * sum_c cols.weight[c] * x[rows.first + r][cols.first + c] / samples,
// where the weight of a row or column is that of all samples beside it: usually there are 2 or
// 3 for 4 samples.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/target_clones.h"
#include "deform_roi_pool.h"

namespace dcn_projects {
namespace {

constexpr int kLanes = 16;  // RoIs whose windows are found together

// One axis of kLanes bins.
template <typename T>
struct AxisWindows {
  T start[kLanes], step[kLanes];  // of the samples, set before find(); NaN to read nothing
  int first[kLanes], last[kLanes];
  T samples[kLanes];                  // how many count
  std::vector<T> weight, slope;       // (cells, kLanes)
  std::vector<T> position, fraction;  // (sampling_ratio, kLanes)

  void set(int lane, const SampleLine<T>& line) {
    start[lane] = line.start;
    step[lane] = line.step;
  }
  void find(int sampling_ratio, int size);
};

// Clamps the positions and splits them into whole part and fraction. Finds the first and last cell
// that is read.
template <typename T>
DCN_HOST_DEVICE void clamp_samples_body(AxisWindows<T>& w, int size) {
  const T beyond = static_cast<T>(size);
  T lowest[kLanes], highest[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    lowest[lane] = beyond;
    highest[lane] = -1;
    w.samples[lane] = 0;
  }
  for (size_t k = 0; k < w.position.size(); k += kLanes) {
    T *position = w.position.data() + k, *fraction = w.fraction.data() + k;
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) position[lane] = clamp_sample(position[lane], size);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const T p = position[lane], kept = p < 0 ? beyond : p;
      lowest[lane] = lowest[lane] < kept ? lowest[lane] : kept;
      highest[lane] = highest[lane] < p ? p : highest[lane];
      w.samples[lane] += p < 0 ? T(0) : T(1);
      position[lane] = static_cast<T>(static_cast<int>(p));
      fraction[lane] = p - position[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    w.first[lane] = static_cast<int>(lowest[lane]);
    const int last = static_cast<int>(highest[lane]);
    w.last[lane] = last + (static_cast<T>(last) < highest[lane]);
  }
}

// A sample weighs 1 - fraction on the cell of its whole part and fraction on the next. slope is the
// derivative by the position of the samples: 0 for a sample on a whole coordinate, thus also for
// one that was clamped.
template <typename T>
DCN_HOST_DEVICE void weigh_cells_body(AxisWindows<T>& w) {
  std::fill(w.weight.begin(), w.weight.end(), T(0));
  std::fill(w.slope.begin(), w.slope.end(), T(0));
  for (size_t c = 0; c < w.weight.size(); c += kLanes) {
    T *weight = w.weight.data() + c, *slope = w.slope.data() + c;
    for (size_t k = 0; k < w.position.size(); k += kLanes) {
      const T *whole = w.position.data() + k, *fraction = w.fraction.data() + k;
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const T f = fraction[lane];
        const T ahead = static_cast<T>(w.first[lane] + static_cast<int>(c / kLanes)) - whole[lane];
        const T is_low = ahead == 0 ? T(1) : T(0), is_high = ahead == 1 ? T(1) : T(0);
        weight[lane] += is_low * (1 - f) + is_high * f;
        slope[lane] += (f > 0 ? T(1) : T(0)) * (is_high - is_low);
      }
    }
  }
}

// The clones may fuse a product and a sum. All products above are exact, so that this changes
// nothing.
DCN_TARGET_CLONES void clamp_samples(AxisWindows<float>& w, int size) {
  clamp_samples_body(w, size);
}
DCN_TARGET_CLONES void clamp_samples(AxisWindows<double>& w, int size) {
  clamp_samples_body(w, size);
}
DCN_TARGET_CLONES void weigh_cells(AxisWindows<float>& w) { weigh_cells_body(w); }
DCN_TARGET_CLONES void weigh_cells(AxisWindows<double>& w) { weigh_cells_body(w); }

template <typename T>
void AxisWindows<T>::find(int sampling_ratio, int size) {
  position.resize(sampling_ratio * kLanes);
  fraction.resize(sampling_ratio * kLanes);
  for (int k = 0; k < sampling_ratio; ++k) {
    T* row = position.data() + k * kLanes;
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      row[lane] = multiply_add(static_cast<T>(k), step[lane], start[lane]);
    }
  }
  clamp_samples(*this, size);
  int cells = 0;
  for (int lane = 0; lane < kLanes; ++lane) cells = std::max(cells, last[lane] - first[lane] + 1);
  weight.resize(static_cast<int64_t>(cells) * kLanes);
  slope.resize(static_cast<int64_t>(cells) * kLanes);
  weigh_cells(*this);
}

// What a bin reads of a map: rows x cols cells, of which `first` is the first. Weights and slopes
// are kLanes apart.
template <typename T>
struct BinWindow {
  int rows, cols;
  int64_t first;
  T samples;
  const T *row_weight, *col_weight, *row_slope, *col_slope;
};

// Bin (i, j) of RoIs n, ..., n + kLanes - 1 for offset class k.
template <typename T>
class BinWindows {
 public:
  void find(const std::vector<RoiRegion<T>>& regions, const T* offset, int64_t n, int64_t k, int i,
            int j, const DeformRoiPoolGeometry& g) {
    constexpr T kNowhere = std::numeric_limits<T>::quiet_NaN();
    const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w, part = g.part_of_bin(i, j);
    const T gamma = static_cast<T>(g.gamma);
    for (int lane = 0; lane < kLanes; ++lane) {
      rows_.set(lane, {kNowhere, 0});
      cols_.set(lane, {kNowhere, 0});
      if (n + lane >= g.R || regions[n + lane].image < 0) continue;
      const RoiRegion<T>& region = regions[n + lane];
      const int64_t at = ((n + lane) * g.classes + k) * 2 * plane + part;
      const T dx = offset ? offset[at] : T(0), dy = offset ? offset[at + plane] : T(0);
      rows_.set(lane,
                sample_line(region.y, region.height, i, g.pooled_h, g.sampling_ratio, dy, gamma));
      cols_.set(lane,
                sample_line(region.x, region.width, j, g.pooled_w, g.sampling_ratio, dx, gamma));
    }
    rows_.find(g.sampling_ratio, g.H);
    cols_.find(g.sampling_ratio, g.W);
    width_ = g.W;
  }

  BinWindow<T> operator[](int lane) const {
    return {rows_.last[lane] - rows_.first[lane] + 1,
            cols_.last[lane] - cols_.first[lane] + 1,
            static_cast<int64_t>(rows_.first[lane]) * width_ + cols_.first[lane],
            rows_.samples[lane] * cols_.samples[lane],
            rows_.weight.data() + lane,
            cols_.weight.data() + lane,
            rows_.slope.data() + lane,
            cols_.slope.data() + lane};
  }

 private:
  AxisWindows<T> rows_, cols_;
  int width_;
};

}  // namespace
}  // namespace dcn_projects
