#pragma once

// What the RoI pooling operators share: the numbers of a call with their checks, and the region
// that a RoI covers in cells of the map.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>

#include "check_pair.h"
#include "host_device.h"

namespace dcn_projects {

// Along one axis, bin k of `pooled` belongs to this one of `group` cells.
DCN_HOST_DEVICE int group_of_bin(int k, int pooled, int group) { return k * group / pooled; }

// The numbers of a call. What lies within one map fits into int, whole tensors do not.
struct RoiPoolGeometry {
  int64_t N, C, R, D;  // images, input channels, RoIs, output channels
  int H, W;
  int pooled_h, pooled_w, group_h, group_w;
  double spatial_scale;

  DCN_HOST_DEVICE int bins() const { return pooled_h * pooled_w; }
  DCN_HOST_DEVICE int group_cells() const { return group_h * group_w; }
  DCN_HOST_DEVICE int group_cell_of_bin(int i, int j) const {
    return group_of_bin(i, pooled_h, group_h) * group_w + group_of_bin(j, pooled_w, group_w);
  }
};

inline RoiPoolGeometry check_roi_pool(const char* op, at::IntArrayRef input_shape,
                                      at::ScalarType input_dtype, const at::Device& input_device,
                                      const at::Tensor& rois, at::IntArrayRef output_size,
                                      double spatial_scale, at::IntArrayRef group_size) {
  // Below this, every cell index is exact in float32 and every product of two sides fits into int.
  constexpr int64_t kLargestMap = 1 << 24, kLargestGrid = 1 << 15;
  TORCH_CHECK(input_shape.size() == 4 && input_shape[0] >= 0, op,
              ": input must be (N, C, H, W), got ", input_shape);
  const int64_t C = input_shape[1], H = input_shape[2], W = input_shape[3];
  TORCH_CHECK(C > 0 && H > 0 && W > 0 && H <= kLargestMap && W <= kLargestMap && H * W <= INT32_MAX,
              op,
              ": input needs channels, and a map of 1 to 2^31 - 1 cells whose sides are at most ",
              "2^24, got ", input_shape);
  const bool wide = input_dtype == at::kFloat || input_dtype == at::kDouble;
  TORCH_CHECK(wide || input_dtype == at::kHalf || input_dtype == at::kBFloat16, op,
              ": input must be float16, bfloat16, float32 or float64, got ", input_dtype);
  TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, op,
              ": rois must be (R, 5): image index, x0, y0, x1, y1; got ", rois.sizes());
  TORCH_CHECK(rois.scalar_type() == input_dtype || (!wide && rois.scalar_type() == at::kFloat), op,
              ": rois must have the dtype of input (", input_dtype,
              "), or float32 where input has 16 bits, got ", rois.scalar_type());
  TORCH_CHECK(rois.device() == input_device, op, ": rois must be on the device of input (",
              input_device, "), got ", rois.device());
  check_pair(op, "output_size", output_size, 1, kLargestGrid);
  check_pair(op, "group_size", group_size, 1, kLargestGrid);
  TORCH_CHECK(C % (group_size[0] * group_size[1]) == 0, op, ": the ", C,
              " channels of input do not divide into groups of ", group_size[0], " x ",
              group_size[1]);
  TORCH_CHECK(spatial_scale > 0, op, ": spatial_scale must be positive, got ", spatial_scale);
  RoiPoolGeometry g;
  g.N = input_shape[0];
  g.C = C;
  g.R = rois.size(0);
  g.D = C / (group_size[0] * group_size[1]);
  g.H = static_cast<int>(H);
  g.W = static_cast<int>(W);
  g.pooled_h = static_cast<int>(output_size[0]);
  g.pooled_w = static_cast<int>(output_size[1]);
  g.group_h = static_cast<int>(group_size[0]);
  g.group_w = static_cast<int>(group_size[1]);
  g.spatial_scale = spatial_scale;
  return g;
}

inline void check_grad(const char* op, const at::Tensor& grad, at::ScalarType input_dtype,
                       const at::Device& input_device, const RoiPoolGeometry& g) {
  TORCH_CHECK(grad.sizes() == at::IntArrayRef({g.R, g.D, g.pooled_h, g.pooled_w}) &&
                  grad.scalar_type() == input_dtype && grad.device() == input_device,
              op, ": grad must be (", g.R, ", ", g.D, ", ", g.pooled_h, ", ", g.pooled_w, ") ",
              input_dtype, " on ", input_device, ", got ", grad.sizes(), " ", grad.scalar_type(),
              " on ", grad.device());
}

// The index is data, so only the CPU can afford to look at it before the work is done.
template <typename T>
void check_image_index(const char* op, const T* rois, const RoiPoolGeometry& g) {
  for (int64_t n = 0; n < g.R; ++n) {
    TORCH_CHECK(rois[5 * n] >= 0 && rois[5 * n] < g.N, op, ": RoI ", n, " is on image ",
                rois[5 * n], " of a batch of ", g.N);
  }
}

// a * b + c with two roundings. nvcc would fuse them, and an edge that falls on a whole cell would
// then fall beside it on one of the two devices.
template <typename T>
DCN_HOST_DEVICE T multiply_add(T a, T b, T c) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) {
    return __fadd_rn(__fmul_rn(a, b), c);
  } else {
    return __dadd_rn(__dmul_rn(a, b), c);
  }
#else
  return a * b + c;
#endif
}

// A RoI in cells of the map. `image` is -1 where nothing can be pooled: the index is not one of the
// batch, or a corner is not finite (or too large to multiply).
template <typename T>
struct RoiRegion {
  int64_t image;
  T y, x, height, width;
};

// Corners are rounded first, halves away from zero, and scaled then. `shift` is in cells.
template <typename T>
DCN_HOST_DEVICE RoiRegion<T> roi_region(const T* roi, const RoiPoolGeometry& g, T shift) {
  const T scale = static_cast<T>(g.spatial_scale), smallest = static_cast<T>(0.1);
  const T x0 = multiply_add(std::round(roi[1]), scale, -shift);
  const T y0 = multiply_add(std::round(roi[2]), scale, -shift);
  const T width = multiply_add(std::round(roi[3]), scale, -shift) - x0;
  const T height = multiply_add(std::round(roi[4]), scale, -shift) - y0;
  const bool usable = roi[0] >= 0 && roi[0] < g.N && std::isfinite(x0) && std::isfinite(y0) &&
                      std::isfinite(width) && std::isfinite(height);
  return {usable ? static_cast<int64_t>(roi[0]) : -1, y0, x0, height > smallest ? height : smallest,
          width > smallest ? width : smallest};
}

// begin, ..., end - 1 along one axis.
struct CellRange {
  int begin, end;
};

// The bins that belong to one cell of the group, along one axis.
DCN_HOST_DEVICE CellRange bins_of_group(int cell, int pooled, int group) {
  return {(cell * pooled + group - 1) / group, ((cell + 1) * pooled + group - 1) / group};
}

}  // namespace dcn_projects
