// The schemas of all operators. Kernels register themselves in <op>/<op>_cpu.cpp and
// <op>/<op>_cuda.cu.

#include <torch/library.h>

// clang-format off
TORCH_LIBRARY(dcn_projects, m) {
  m.def("deform_conv(Tensor input, Tensor offset, Tensor weight, Tensor? mask, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, bool legacy_border) -> Tensor");
  m.def("_deform_conv_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[2] stride, int[2] padding, int[2] dilation, bool legacy_border) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("ps_roi_pool(Tensor input, Tensor rois, int[2] output_size, float spatial_scale, int[2] group_size) -> Tensor");
  m.def("_ps_roi_pool_backward(Tensor grad, Tensor rois, int[2] output_size, float spatial_scale, int[2] group_size, SymInt[4] input_shape) -> Tensor");
  m.def("deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, int[2] output_size, float spatial_scale, int sampling_ratio, float gamma, int[2] group_size) -> Tensor");
  m.def("_deform_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor? offset, int[2] output_size, float spatial_scale, int sampling_ratio, float gamma, int[2] group_size) -> (Tensor, Tensor)");
  m.def("soft_nms(Tensor boxes, Tensor scores, Tensor starts, str method, float sigma, float iou_threshold, float score_threshold, int? max_per_class) -> Tensor");
}
// clang-format on
