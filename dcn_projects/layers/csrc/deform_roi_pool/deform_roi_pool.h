#pragma once

// Deformable RoI pooling (arXiv 1703.06211, Eq. 5-6), plain or position-sensitive. A bin is the
// mean of sampling_ratio x sampling_ratio bilinear samples on a grid that an offset moves.
//
//   input   (N, C, H, W), C = D * group_h * group_w; group cell (gi, gj) of output channel d is
//           input channel (d * group_h + gi) * group_w + gj
//   rois    (R, 5): image index, x0, y0, x1, y1 in input pixels, far corners exclusive
//   offset  (R, 2 * classes, part_h, part_w), planes 2k and 2k + 1 are x and y of class k, in units
//           of gamma times the size of the RoI; class k owns output channels
//           [k, k + 1) * D / classes; without it nothing moves
//   output  (R, D, pooled_h, pooled_w)
//
// The samples of a bin form a grid, and whether they count, where they are clamped and what their
// two cells weigh is decided per axis. So all math here is about one axis.

#include <optional>

#include "../common/roi_region.h"

namespace dcn_projects {

struct DeformRoiPoolGeometry : RoiPoolGeometry {
  int sampling_ratio;
  int part_h, part_w;
  int64_t classes, per_class;  // offset classes, output channels of each
  double gamma;

  DCN_HOST_DEVICE int64_t part_of_bin(int i, int j) const {
    return static_cast<int64_t>(group_of_bin(i, pooled_h, part_h)) * part_w +
           group_of_bin(j, pooled_w, part_w);
  }
};

inline DeformRoiPoolGeometry check_deform_roi_pool(const char* op, const at::Tensor& input,
                                                   const at::Tensor& rois,
                                                   const std::optional<at::Tensor>& offset,
                                                   at::IntArrayRef output_size,
                                                   double spatial_scale, int64_t sampling_ratio,
                                                   double gamma, at::IntArrayRef group_size) {
  constexpr int64_t kLargestGrid = 1 << 15;
  DeformRoiPoolGeometry g;
  static_cast<RoiPoolGeometry&>(g) =
      check_roi_pool(op, input.sizes(), input.scalar_type(), input.device(), rois, output_size,
                     spatial_scale, group_size);
  TORCH_CHECK(sampling_ratio > 0 && sampling_ratio <= kLargestGrid, op,
              ": sampling_ratio must be from 1 to ", kLargestGrid, ", got ", sampling_ratio);
  g.sampling_ratio = static_cast<int>(sampling_ratio);
  g.gamma = gamma;
  g.classes = 1;
  g.part_h = g.part_w = 1;
  if (offset.has_value()) {
    const auto shape = offset->sizes();
    TORCH_CHECK(shape.size() == 4 && shape[0] == g.R && shape[1] > 0 && shape[1] % 2 == 0 &&
                    g.D % (shape[1] / 2) == 0 && shape[2] > 0 && shape[2] <= kLargestGrid &&
                    shape[3] > 0 && shape[3] <= kLargestGrid,
                op, ": offset must be (R, 2n, part_h, part_w) for ", g.R,
                " RoIs, where n divides the ", g.D, " output channels; got ", shape);
    TORCH_CHECK(offset->scalar_type() == input.scalar_type() ||
                    (offset->scalar_type() == at::kFloat && input.scalar_type() != at::kDouble),
                op, ": offset must have the dtype of input (", input.scalar_type(),
                "), or float32 where input has 16 bits, got ", offset->scalar_type());
    TORCH_CHECK(offset->device() == input.device(), op, ": offset must be on the device of input (",
                input.device(), "), got ", offset->device());
    g.classes = shape[1] / 2;
    g.part_h = static_cast<int>(shape[2]);
    g.part_w = static_cast<int>(shape[3]);
  }
  g.per_class = g.D / g.classes;
  return g;
}

template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// Samples start + k * step, k = 0, ..., sampling_ratio - 1, along one axis, in cells. They lie on
// the near edges of the sub-bins, not in their middles.
template <typename T>
struct SampleLine {
  T start, step;
};

// Where the samples of bin k start on a RoI that starts at `start`, is `length` long, and whose
// bins are `bin` long; offset is the raw value.
template <typename T>
DCN_HOST_DEVICE T sample_start(T start, T length, T bin, int k, T offset, T gamma) {
  return multiply_add(offset * gamma, length, multiply_add(static_cast<T>(k), bin, start));
}

// Bin k of `pooled`.
template <typename T>
DCN_HOST_DEVICE SampleLine<T> sample_line(T start, T length, int k, int pooled, int sampling_ratio,
                                          T offset, T gamma) {
  const T bin = length / static_cast<T>(pooled);
  return {sample_start(start, length, bin, k, offset, gamma), bin / static_cast<T>(sampling_ratio)};
}

// Where a sample reads: clamped to the cell centres of the map, or kOutside if it does not count,
// being more than half a cell beyond them (or NaN). Without branches, so that loops of it
// vectorise.
constexpr int kOutside = -2;

template <typename T>
DCN_HOST_DEVICE T clamp_sample(T position, int size) {
  const T half = static_cast<T>(0.5), last = static_cast<T>(size - 1);
  const bool counts = (position >= -half) & (position <= last + half);
  const T clamped = position > 0 ? (position < last ? position : last) : T(0);
  return counts ? clamped : static_cast<T>(kOutside);
}

}  // namespace dcn_projects
