#pragma once

// What the bins of deformable RoI pooling read, for the CPU. A bin is not summed sample by sample.
// Its samples form a grid, so that it is
//   sum_r rows.weight[r] * sum_c cols.weight[c] * x[rows.first + r][cols.first + c] / samples,
// where the weight of a row or column is that of all samples beside it: usually there are 2 or
// 3 for 4 samples. The windows of kLanes RoIs are found together.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/target_clones.h"
#include "deform_roi_pool.h"

namespace dcn_projects {
namespace {

constexpr int kLanes = 16;

// One axis of RoIs: where they start, how long they and their bins are, and how far apart samples.
template <typename T>
struct RoiAxis {
  std::vector<T> start, length, bin, step;
  void set(int64_t lane, T first, T size, int pooled, int sampling_ratio) {
    start[lane] = first;
    length[lane] = size;
    bin[lane] = size / static_cast<T>(pooled);
    step[lane] = bin[lane] / static_cast<T>(sampling_ratio);
  }
};

// RoIs in the order of their images. Those of an image fill blocks of kLanes lanes, of which the
// last may stay empty: then roi is -1, and nothing is read there since start is NaN.
template <typename T>
struct RoiBlocks {
  std::vector<int64_t> roi;    // (blocks, kLanes), as are the vectors of both axes
  std::vector<int64_t> first;  // block of each image, and the number of all blocks
  RoiAxis<T> y, x;
};

template <typename T>
RoiBlocks<T> find_blocks(const char* op, const T* rois, const DeformRoiPoolGeometry& g) {
  check_image_index(op, rois, g);
  const auto image_of = [&](int64_t n) { return static_cast<int64_t>(rois[5 * n]); };
  std::vector<int64_t> next(g.N);
  for (int64_t n = 0; n < g.R; ++n) ++next[image_of(n)];
  RoiBlocks<T> blocks;
  blocks.first.push_back(0);
  for (int64_t& count : next) {
    const int64_t first = blocks.first.back();
    blocks.first.push_back(first + (count + kLanes - 1) / kLanes);
    count = first * kLanes;  // from now on the next free lane
  }
  const int64_t lanes = blocks.first.back() * kLanes;
  blocks.roi.assign(lanes, -1);
  for (RoiAxis<T>* axis : {&blocks.y, &blocks.x}) {
    axis->start.assign(lanes, std::numeric_limits<T>::quiet_NaN());
    axis->length.assign(lanes, T(0));
    axis->bin.assign(lanes, T(0));
    axis->step.assign(lanes, T(0));
  }
  for (int64_t n = 0; n < g.R; ++n) {
    const int64_t lane = next[image_of(n)]++;
    blocks.roi[lane] = n;
    const RoiRegion<T> region = roi_region(rois + 5 * n, g, T(0.5));
    if (region.image < 0) continue;
    blocks.y.set(lane, region.y, region.height, g.pooled_h, g.sampling_ratio);
    blocks.x.set(lane, region.x, region.width, g.pooled_w, g.sampling_ratio);
  }
  return blocks;
}

// (R, columns) to (columns, blocks, kLanes), 0 in empty lanes. In squares that stay in the L1
// cache.
template <typename T>
std::vector<T> rois_to_lanes(const T* from, int64_t columns, const RoiBlocks<T>& blocks) {
  constexpr int64_t kSquare = 64;
  const int64_t lanes = blocks.first.back() * kLanes, parts = at::divup(columns, kSquare);
  std::vector<T> to(columns * lanes);
  at::parallel_for(0, blocks.first.back() * parts, 4, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % parts * kSquare, last = std::min(first + kSquare, columns);
      for (int64_t lane = index / parts * kLanes; lane < (index / parts + 1) * kLanes; ++lane) {
        const int64_t n = blocks.roi[lane];
        for (int64_t c = first; n >= 0 && c < last; ++c) {
          to[c * lanes + lane] = from[n * columns + c];
        }
      }
    }
  });
  return to;
}

// One axis of kLanes bins.
template <typename T>
struct AxisWindows {
  int first[kLanes], cells[kLanes];   // cells <= 0 reads nothing
  int most_cells;                     // of all lanes, at least 0
  T samples[kLanes];                  // how many count
  std::vector<T> weight, slope;       // (up to a multiple of 4 cells, kLanes)
  std::vector<T> position, fraction;  // (up to a multiple of 4 samples, kLanes)
};

// Not in the clones, because those may fuse the products and sums.
template <typename T>
void place_samples(const RoiAxis<T>& axis, int64_t block, int bin, int sampling_ratio,
                   const T* offset, T gamma, AxisWindows<T>& w) {
  const T *start = &axis.start[block * kLanes], *length = &axis.length[block * kLanes];
  const T *bins = &axis.bin[block * kLanes], *step = &axis.step[block * kLanes];
  const int samples = (sampling_ratio + 3) / 4 * 4;
  w.position.resize(samples * kLanes);
  w.fraction.resize(samples * kLanes);
  T first[kLanes];
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    first[lane] = sample_start(start[lane], length[lane], bins[lane], bin, offset[lane], gamma);
  }
  for (int k = 0; k < sampling_ratio; ++k) {
    T* position = w.position.data() + k * kLanes;
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      position[lane] = multiply_add(static_cast<T>(k), step[lane], first[lane]);
    }
  }
  // Samples that fill the last four do not count.
  std::fill(w.position.begin() + sampling_ratio * kLanes, w.position.end(),
            std::numeric_limits<T>::quiet_NaN());
}

// Clamps the positions and splits them into whole part and fraction. Finds the first and the number
// of the cells that are read.
template <typename T>
DCN_HOST_DEVICE void clamp_samples_body(AxisWindows<T>& w, int size) {
  T *positions = w.position.data(), *fractions = w.fraction.data();
  const int64_t end = static_cast<int64_t>(w.position.size());
  const T beyond = static_cast<T>(size);
  T lowest[kLanes], highest[kLanes], samples[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    lowest[lane] = beyond;
    highest[lane] = -1;
    samples[lane] = 0;
  }
  for (int64_t k = 0; k < end; k += 4 * kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int q = 0; q < 4; ++q) {
        const int64_t at = k + q * kLanes + lane;
        const T p = clamp_sample(positions[at], size), kept = p < 0 ? beyond : p;
        lowest[lane] = lowest[lane] < kept ? lowest[lane] : kept;
        highest[lane] = highest[lane] < p ? p : highest[lane];
        samples[lane] += p < 0 ? T(0) : T(1);
        positions[at] = static_cast<T>(static_cast<int>(p));
        fractions[at] = p - positions[at];
      }
    }
  }
  int most = 0;
#pragma omp simd reduction(max : most)
  for (int lane = 0; lane < kLanes; ++lane) {
    const int first = static_cast<int>(lowest[lane]), last = static_cast<int>(highest[lane]);
    const int cells = last + (static_cast<T>(last) < highest[lane] ? 1 : 0) - first + 1;
    w.first[lane] = first;
    w.cells[lane] = cells;
    w.samples[lane] = samples[lane];
    most = std::max(most, cells);
  }
  w.most_cells = most;
}

// A sample weighs 1 - fraction on the cell of its whole part and fraction on the next. slope is the
// derivative by the position of the samples: 0 for a sample on a whole coordinate, thus also for
// one that was clamped.
template <bool kSlopes, typename T>
DCN_HOST_DEVICE void weigh_cells_body(AxisWindows<T>& w) {
  const T *positions = w.position.data(), *fractions = w.fraction.data();
  const int64_t cells = static_cast<int64_t>(w.weight.size());
  const int64_t samples = static_cast<int64_t>(w.position.size());
  std::fill(w.weight.begin(), w.weight.end(), T(0));
  if (kSlopes) std::fill(w.slope.begin(), w.slope.end(), T(0));
  for (int64_t c = 0; c < cells; c += kLanes) {
    T *weight = w.weight.data() + c, *slope = w.slope.data() + c;
    const T cell = static_cast<T>(c / kLanes);
    for (int64_t k = 0; k < samples; k += 4 * kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const T first = cell + static_cast<T>(w.first[lane]);
        T weight_sum = weight[lane], slope_sum = slope[lane];
        for (int q = 0; q < 4; ++q) {
          const T f = fractions[k + q * kLanes + lane];
          const T ahead = first - positions[k + q * kLanes + lane];
          const T is_low = ahead == 0 ? T(1) : T(0), is_high = ahead == 1 ? T(1) : T(0);
          weight_sum += is_low * (1 - f) + is_high * f;
          if (kSlopes) slope_sum += (f > 0 ? T(1) : T(0)) * (is_high - is_low);
        }
        weight[lane] = weight_sum;
        if (kSlopes) slope[lane] = slope_sum;
      }
    }
  }
}

DCN_TARGET_CLONES void clamp_samples(AxisWindows<float>& w, int size) {
  clamp_samples_body(w, size);
}
DCN_TARGET_CLONES void clamp_samples(AxisWindows<double>& w, int size) {
  clamp_samples_body(w, size);
}
DCN_TARGET_CLONES void weigh_cells(AxisWindows<float>& w) { weigh_cells_body<false>(w); }
DCN_TARGET_CLONES void weigh_cells(AxisWindows<double>& w) { weigh_cells_body<false>(w); }
DCN_TARGET_CLONES void weigh_cells_and_slopes(AxisWindows<float>& w) { weigh_cells_body<true>(w); }
DCN_TARGET_CLONES void weigh_cells_and_slopes(AxisWindows<double>& w) { weigh_cells_body<true>(w); }

// Bin (i, j) of a block of RoIs for offset class k.
template <typename T>
struct BinWindows {
  AxisWindows<T> rows, cols;

  // offset is (classes, 2, parts, blocks, kLanes), or null.
  void find(const RoiBlocks<T>& blocks, int64_t block, const T* offset, int64_t k, int i, int j,
            bool slopes, const DeformRoiPoolGeometry& g) {
    const int64_t plane = static_cast<int64_t>(g.part_h) * g.part_w, part = g.part_of_bin(i, j);
    const int64_t lanes = blocks.first.back() * kLanes;
    const T none[kLanes] = {};
    const T* dx = offset ? offset + (2 * k * plane + part) * lanes + block * kLanes : none;
    const T* dy = offset ? dx + plane * lanes : none;
    // Both axes are placed first, since what is stored by narrow vectors cannot be loaded by wide
    // ones at once.
    place_samples(blocks.y, block, i, g.sampling_ratio, dy, static_cast<T>(g.gamma), rows);
    place_samples(blocks.x, block, j, g.sampling_ratio, dx, static_cast<T>(g.gamma), cols);
    weigh(g.H, slopes, rows);
    weigh(g.W, slopes, cols);
  }

 private:
  static void weigh(int size, bool slopes, AxisWindows<T>& w) {
    clamp_samples(w, size);
    w.weight.resize(static_cast<int64_t>((w.most_cells + 3) / 4) * 4 * kLanes);
    w.slope.resize(w.weight.size());
    slopes ? weigh_cells_and_slopes(w) : weigh_cells(w);
  }
};

}  // namespace
}  // namespace dcn_projects
