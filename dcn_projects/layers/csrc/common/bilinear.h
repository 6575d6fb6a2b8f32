#pragma once

#include <cmath>

#include "host_device.h"

namespace dcn_projects {

// The four pixels around (y, x), in pixel coordinates, in the order (y0, x0), (y0, x1), (y1, x0),
// (y1, x1) with y0 = floor(y), y1 = y0 + 1, and the fractions that weight them. A pixel that is not
// in the H x W map gets the index `outside`. The weight alone does not do, since 0 * Inf is NaN:
// `outside` is either a pixel of zeros that the caller keeps behind the map (H * W), or a value
// that he tests for (-1). y must lie in [-2, H] and x in [-2, W].
template <typename T>
struct BilinearTap {
  int index[4];
  T ly, lx;  // y - y0, x - x0
};

template <typename T>
DCN_HOST_DEVICE BilinearTap<T> bilinear_tap(T y, T x, int H, int W, int outside) {
  const T y_floor = std::floor(y), x_floor = std::floor(x);
  const int y0 = static_cast<int>(y_floor), x0 = static_cast<int>(x_floor);
  const bool top = y0 >= 0 && y0 < H, bottom = y0 >= -1 && y0 < H - 1;
  const bool left = x0 >= 0 && x0 < W, right = x0 >= -1 && x0 < W - 1;
  const int index = y0 * W + x0;
  return {{top && left ? index : outside, top && right ? index + 1 : outside,
           bottom && left ? index + W : outside, bottom && right ? index + W + 1 : outside},
          y - y_floor,
          x - x_floor};
}

}  // namespace dcn_projects
