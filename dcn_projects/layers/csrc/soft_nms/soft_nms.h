#pragma once

// Soft-NMS (arXiv 1704.04503, Sec. 3). Within each class, again and again: the box with the highest
// score is taken (of several the first), and every other box loses score by its overlap with it.
//
//   boxes   (B, 4), x0, y0, x1, y1, far corners exclusive; B divides N
//   scores  (N,), the classes one after another; box p % B belongs to score p, so that classes that
//           share their boxes need them once
//   starts  (S + 1,) int64: class s is scores starts[s], ..., starts[s + 1] - 1
//   output  (N,), what each score was when its box was taken; 0 if it was not, because its score
//           was not above the threshold, fell to it, or the class had its share of boxes

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>

#include "../common/host_device.h"

namespace dcn_projects {

enum class SoftNmsMethod { kLinear, kGaussian, kHard };

// The numbers of a call.
struct SoftNmsGeometry {
  int64_t N, B, S;
  int64_t max_per_class;
  SoftNmsMethod method;
  double sigma, iou_threshold, score_threshold;
};

inline SoftNmsGeometry check_soft_nms(const at::Tensor& boxes, const at::Tensor& scores,
                                      const at::Tensor& starts, c10::string_view method,
                                      double sigma, double iou_threshold, double score_threshold,
                                      std::optional<int64_t> max_per_class) {
  const at::ScalarType dtype = scores.scalar_type();
  TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4,
              "soft_nms: boxes must be (B, 4): x0, y0, x1, y1; got ", boxes.sizes());
  TORCH_CHECK(scores.dim() == 1, "soft_nms: scores must be (N,), got ", scores.sizes());
  const int64_t N = scores.size(0), B = boxes.size(0);
  TORCH_CHECK(B > 0 ? N % B == 0 : N == 0, "soft_nms: the ", N,
              " scores are no multiple of the number of boxes, ", B);
  TORCH_CHECK(N <= 1 << 30, "soft_nms: takes at most 2^30 scores, got ", N);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble,
              "soft_nms: scores must be float32 or float64, got ", dtype);
  TORCH_CHECK(boxes.scalar_type() == dtype, "soft_nms: boxes must have the dtype of scores (",
              dtype, "), got ", boxes.scalar_type());
  TORCH_CHECK(starts.dim() == 1 && starts.size(0) > 0 && starts.scalar_type() == at::kLong,
              "soft_nms: starts must be (S + 1,) and int64, got ", starts.sizes(), " and ",
              starts.scalar_type());
  TORCH_CHECK(boxes.device() == scores.device() && starts.device() == scores.device(),
              "soft_nms: boxes and starts must be on the device of scores (", scores.device(),
              "), got ", boxes.device(), " and ", starts.device());
  TORCH_CHECK(method == "linear" || method == "gaussian" || method == "hard",
              "soft_nms: method must be 'linear', 'gaussian' or 'hard', got '", method, "'");
  TORCH_CHECK(sigma > 0 && std::isfinite(sigma), "soft_nms: sigma must be positive, got ", sigma);
  TORCH_CHECK(iou_threshold >= 0 && iou_threshold <= 1,
              "soft_nms: iou_threshold must be from 0 to 1, got ", iou_threshold);
  TORCH_CHECK(score_threshold >= 0 && std::isfinite(score_threshold),
              "soft_nms: score_threshold must not be negative, got ", score_threshold);
  TORCH_CHECK(!max_per_class || *max_per_class > 0,
              "soft_nms: max_per_class must be positive or None, got ", *max_per_class);
  SoftNmsGeometry g;
  g.N = N;
  g.B = B;
  g.S = starts.size(0) - 1;
  g.max_per_class = max_per_class.value_or(N);
  g.method = method == "linear"     ? SoftNmsMethod::kLinear
             : method == "gaussian" ? SoftNmsMethod::kGaussian
                                    : SoftNmsMethod::kHard;
  g.sigma = sigma;
  g.iou_threshold = iou_threshold;
  g.score_threshold = score_threshold;
  return g;
}

template <typename T>
struct Box {
  T x0, y0, x1, y1;
};

template <typename T>
DCN_HOST_DEVICE T box_area(const Box<T>& box) {
  return (box.x1 - box.x0) * (box.y1 - box.y0);
}

// Intersection over union. 0 where the union has no area, is infinite or is not a number.
template <typename T>
DCN_HOST_DEVICE T box_iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T width = (a.x1 < b.x1 ? a.x1 : b.x1) - (a.x0 > b.x0 ? a.x0 : b.x0);
  const T height = (a.y1 < b.y1 ? a.y1 : b.y1) - (a.y0 > b.y0 ? a.y0 : b.y0);
  const T zero = 0, shared = (width > zero ? width : zero) * (height > zero ? height : zero);
  const T iou = shared / (area_a + area_b - shared);
  return iou > zero ? iou : zero;
}

DCN_HOST_DEVICE double exp_of_negative(double x) { return std::exp(x); }

// exp(x) for x <= 0, to 2 units in the last place. Unlike the library's it becomes vector code.
DCN_HOST_DEVICE float exp_of_negative(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  // x = n ln 2 + r with |r| <= ln(2) / 2. ln 2 in two parts, of which n times the first is exact.
  const float clamped = x > -88.f ? x : -88.f;
  const int n = static_cast<int>(clamped * 1.44269504f - 0.5f);
  const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  float power = 1 / 5040.f;  // Taylor's series
  power = power * r + 1 / 720.f;
  power = power * r + 1 / 120.f;
  power = power * r + 1 / 24.f;
  power = power * r + 1 / 6.f;
  power = power * r + 0.5f;
  power = power * r + 1;
  power = power * r + 1;
  const int bits = (n + 127) << 23;  // of 2^n, and of 0 for the smallest n, -127
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return power * scale;
#endif
}

// What a call does to a score, in the type that is computed in.
template <typename T>
struct Rescoring {
  T rate, iou_threshold, score_threshold;

  explicit Rescoring(const SoftNmsGeometry& g)
      // Finite, so that boxes which do not overlap lose nothing however small sigma is.
      : rate(static_cast<T>(std::max<double>(-1 / g.sigma, std::numeric_limits<T>::lowest()))),
        iou_threshold(static_cast<T>(g.iou_threshold)),
        score_threshold(static_cast<T>(g.score_threshold)) {}

  // The score of a box, 0 once it takes no part any more, after one that overlaps it was taken. A
  // score that became NaN (infinity times 0) is not above the threshold.
  template <SoftNmsMethod method>
  DCN_HOST_DEVICE T apply(T score, T iou) const {
    T factor = 1;
    if constexpr (method == SoftNmsMethod::kLinear) {
      factor = iou < iou_threshold ? T(1) : 1 - iou;
    } else if constexpr (method == SoftNmsMethod::kGaussian) {
      factor = exp_of_negative(iou * iou * rate);
    } else {
      factor = iou > iou_threshold ? T(0) : T(1);
    }
    score *= factor;
    return score > score_threshold ? score : T(0);
  }
};

}  // namespace dcn_projects
