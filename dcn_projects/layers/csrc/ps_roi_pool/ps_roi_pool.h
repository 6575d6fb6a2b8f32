#pragma once

// Position-sensitive RoI pooling (R-FCN, arXiv 1605.06409, Eq. 1). The region of a RoI is cut into
// pooled_h x pooled_w bins; each bin of output channel d is the plain mean of the cells it touches
// in one input channel, which the position of the bin selects.
//
//   input   (N, C, H, W), C = D * group_h * group_w; group cell (gi, gj) of output channel d is
//           input channel (d * group_h + gi) * group_w + gj
//   rois    (R, 5): image index, x0, y0, x1, y1 in input pixels, far corners exclusive
//   output  (R, D, pooled_h, pooled_w)

#include "../common/roi_region.h"

namespace dcn_projects {

// What bin k of `pooled` bins touches, where the region starts at `start` and is `length` long.
// Clipped to the map before it becomes an integer: the region may be larger than any int.
template <typename T>
DCN_HOST_DEVICE CellRange bin_cells(T start, T length, int k, int pooled, int size) {
  const T bin = length / static_cast<T>(pooled), zero = 0, limit = static_cast<T>(size);
  const T begin = std::floor(multiply_add(static_cast<T>(k), bin, start));
  const T end = std::ceil(multiply_add(static_cast<T>(k + 1), bin, start));
  return {static_cast<int>(begin < zero ? zero : (begin < limit ? begin : limit)),
          static_cast<int>(end < zero ? zero : (end < limit ? end : limit))};
}

}  // namespace dcn_projects
