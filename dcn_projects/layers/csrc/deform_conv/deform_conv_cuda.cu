// The CUDA side gathers the columns of as many output pixels as fit in the L2 cache, over the whole
// batch, and leaves their products to the matrix library. Inside, maps are channels-last: (N, H, W,
// C). Then one read of a sample is a row of consecutive channels for consecutive threads. What a
// map lacks (index -1) is not read. 16-bit tensors are blended, and their gradients are summed, in
// float32.

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../common/cuda_launch.h"
#include "deform_conv.h"

namespace dcn_projects {
namespace {

constexpr int64_t kColumnBytes = 32 << 20;
constexpr int kWarpSize = 32;

// V neighbouring channels, which one instruction loads or stores.
template <typename S, int V>
struct alignas(sizeof(S) * V) Channels {
  S value[V];
};

template <int V, typename S>
__device__ __forceinline__ Channels<S, V> load(const S* from) {
  return *reinterpret_cast<const Channels<S, V>*>(from);
}

template <int V, typename S>
__device__ __forceinline__ void store(S* to, const Channels<S, V>& channels) {
  *reinterpret_cast<Channels<S, V>*>(to) = channels;
}

// Adds V values to memory that other threads add to. Newer devices take four floats at once.
template <int V, typename T>
__device__ __forceinline__ void atomic_add(T* to, const T (&value)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) atomicAdd(to + v, value[v]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ >= 12
template <>
__device__ __forceinline__ void atomic_add<4, float>(float* to, const float (&value)[4]) {
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(value[0], value[1], value[2], value[3]));
}
#endif

// Output pixels [first, first + pixels) of the batch, image after image, whose columns are made at
// a time: (groups, pixels, taps, channels of a group), so that each group's is a matrix.
struct Chunk {
  int64_t image;  // of the first pixel, and its place there
  unsigned place, pixels;
};

template <typename T>
struct ModulationData {
  const T* offset;
  const T* mask;  // null: all ones
};

// One tap of one deformable group at one output pixel.
template <typename T>
struct Tap {
  Sample<T> sample;
  T mask;
  int64_t image;
  int64_t offset_at, mask_at;  // of dy, with dx one plane behind it, and of the mask
};

template <typename T>
__device__ __forceinline__ Tap<T> read_tap(const ConvGeometry& g, ModulationData<T> modulation,
                                           Chunk chunk, unsigned pixel, int tap,
                                           int deformable_group) {
  const unsigned out_pixels = g.out_pixels(), place = chunk.place + pixel;
  const int64_t image = chunk.image + place / out_pixels;
  const int o = place % out_pixels;
  const int64_t plane = (image * g.deformable_groups + deformable_group) * g.taps() + tap;
  const int64_t offset_at = 2 * plane * out_pixels + o, mask_at = plane * out_pixels + o;
  const Sample<T> sample =
      locate(g, o / g.out_width, o % g.out_width, tap / g.kernel_w, tap % g.kernel_w,
             modulation.offset[offset_at], modulation.offset[offset_at + out_pixels], -1);
  return {sample, modulation.mask ? modulation.mask[mask_at] : T(1), image, offset_at, mask_at};
}

// Where the column of a pixel and tap has input channel c.
__device__ __forceinline__ int64_t column_at(const ConvGeometry& g, Chunk chunk, unsigned pixel,
                                             int tap, int c) {
  const int group_size = static_cast<int>(g.channels) / g.groups;
  const int64_t row = static_cast<int64_t>(c / group_size) * chunk.pixels + pixel;
  return (row * g.taps() + tap) * group_size + c % group_size;
}

template <typename T>
__device__ __forceinline__ void bilinear_weights(const BilinearTap<T>& tap, T (&weight)[4]) {
  weight[0] = (1 - tap.ly) * (1 - tap.lx);
  weight[1] = (1 - tap.ly) * tap.lx;
  weight[2] = tap.ly * (1 - tap.lx);
  weight[3] = tap.ly * tap.lx;
}

// A thread makes V channels of one tap of one pixel.
template <typename S, int V>
__global__ void gather_kernel(ConvGeometry g, const S* x,
                              ModulationData<at::opmath_type<S>> modulation, Chunk chunk,
                              S* column) {
  using T = at::opmath_type<S>;
  const int C = static_cast<int>(g.channels), taps = g.taps();
  const unsigned parts = C / V, units = chunk.pixels * taps * parts;
  for (int64_t i = grid_index(); i < units; i += grid_stride()) {
    const unsigned unit = i, c = unit % parts * V, row = unit / parts;
    const unsigned pixel = row / taps, k = row % taps;
    const Tap<T> tap = read_tap(g, modulation, chunk, pixel, k, c / (C / g.deformable_groups));
    T weight[4];
    bilinear_weights(tap.sample.tap, weight);
    const S* map = x + tap.image * g.pixels() * C + c;
    T sum[V] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (tap.sample.tap.index[q] < 0) continue;
      const auto values = load<V>(map + static_cast<int64_t>(tap.sample.tap.index[q]) * C);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weight[q] * static_cast<T>(values.value[v]);
    }
    Channels<S, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.value[v] = static_cast<S>(tap.mask * sum[v]);
    store<V>(column + column_at(g, chunk, pixel, k, c), result);
  }
}

// Takes the gradients of the columns and leaves the columns in their place, so that one pass over
// the pixels of a sample serves all gradients. A warp owns one tap of one deformable group at one
// pixel, its lanes divide the channels; so it writes the gradients of offset and mask alone. Only
// the gradient of the map is shared with other warps.
template <typename S, int V>
__global__ void scatter_kernel(ConvGeometry g, const S* x,
                               ModulationData<at::opmath_type<S>> modulation, Chunk chunk,
                               S* column, at::opmath_type<S>* grad_x,
                               at::opmath_type<S>* grad_offset, at::opmath_type<S>* grad_mask) {
  using T = at::opmath_type<S>;
  const int C = static_cast<int>(g.channels), taps = g.taps(), size = C / g.deformable_groups;
  const int lane = threadIdx.x % kWarpSize;
  const unsigned units = chunk.pixels * taps * g.deformable_groups;
  for (int64_t i = grid_index() / kWarpSize; i < units; i += grid_stride() / kWarpSize) {
    const unsigned unit = i, deformable_group = unit % g.deformable_groups;
    const unsigned row = unit / g.deformable_groups, pixel = row / taps, k = row % taps;
    const Tap<T> tap = read_tap(g, modulation, chunk, pixel, k, deformable_group);
    T weight[4], dot[4] = {};
    bilinear_weights(tap.sample.tap, weight);
    const int64_t image_at = tap.image * g.pixels() * C;
    for (int c = deformable_group * size + lane * V; c < (deformable_group + 1) * size;
         c += kWarpSize * V) {
      S* const place = column + column_at(g, chunk, pixel, k, c);
      const auto loaded = load<V>(place);
      T grad[V], sum[V] = {};
#pragma unroll
      for (int v = 0; v < V; ++v) grad[v] = static_cast<T>(loaded.value[v]);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (tap.sample.tap.index[q] < 0) continue;
        const int64_t at = image_at + static_cast<int64_t>(tap.sample.tap.index[q]) * C + c;
        const auto values = load<V>(x + at);
        T share[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const T value = static_cast<T>(values.value[v]);
          dot[q] += grad[v] * value;
          sum[v] += weight[q] * value;
          share[v] = tap.mask * weight[q] * grad[v];
        }
        atomic_add(grad_x + at, share);
      }
      Channels<S, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.value[v] = static_cast<S>(tap.mask * sum[v]);
      store<V>(place, result);
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      for (int s = kWarpSize / 2; s > 0; s /= 2) dot[q] += __shfl_xor_sync(0xffffffff, dot[q], s);
    }
    if (lane == 0) {
      const SampleGrad<T> grad = sample_grad(tap.sample, tap.mask, dot);
      grad_offset[tap.offset_at] = grad.offset_y;
      grad_offset[tap.offset_at + g.out_pixels()] = grad.offset_x;
      if (grad_mask) grad_mask[tap.mask_at] = grad.mask;
    }
  }
}

// Calls run(chunk, first pixel, columns) for all output pixels of the batch, in chunks of equal
// size.
template <typename F>
void for_each_chunk(const ConvGeometry& g, const at::TensorOptions& options, F run) {
  const int64_t pixels = g.batch * g.out_pixels(), width = g.taps() * g.channels;
  if (pixels == 0) return;
  const int64_t element_size = static_cast<int64_t>(options.dtype().itemsize());
  const int64_t most = std::max<int64_t>(kColumnBytes / (width * element_size), 1);
  const int64_t chunks = (pixels + most - 1) / most, size = (pixels + chunks - 1) / chunks;
  const at::Tensor buffer = at::empty({size * width}, options);
  for (int64_t first = 0; first < pixels; first += size) {
    const int64_t count = std::min(size, pixels - first);
    const Chunk chunk{first / g.out_pixels(), static_cast<unsigned>(first % g.out_pixels()),
                      static_cast<unsigned>(count)};
    run(chunk, first, buffer.narrow(0, 0, count * width).view({g.groups, count, width / g.groups}));
  }
}

// Calls run(std::integral_constant<int, V>) with V = wide if groups of channels divide by it,
// else 1.
template <int wide, typename F>
void with_vector_size(const ConvGeometry& g, F run) {
  if (g.channels / g.groups % wide == 0 && g.channels / g.deformable_groups % wide == 0) {
    run(std::integral_constant<int, wide>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

// (N, H, W, C), without a copy if the tensor lies so in memory, at an address that vectors can
// have.
at::Tensor channels_last(const at::Tensor& map) {
  const at::Tensor result = map.permute({0, 2, 3, 1}).contiguous();
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0 ? result : result.clone();
}

// (groups, O / groups, taps * C / groups)
at::Tensor weight_matrices(const ConvGeometry& g, const at::Tensor& weight) {
  return channels_last(weight).view({g.groups, g.out_channels / g.groups, -1});
}

template <typename S>
at::Tensor forward(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& offset,
                   const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                   const std::optional<at::Tensor>& bias) {
  using T = at::opmath_type<S>;
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  const at::Tensor x = channels_last(input), w = weight_matrices(g, weight);
  const at::Tensor offset_ = offset.to(kType).contiguous();
  const at::Tensor mask_ = mask ? mask->to(kType).contiguous() : at::Tensor();
  const ModulationData<T> modulation{offset_.const_data_ptr<T>(),
                                     mask ? mask_.const_data_ptr<T>() : nullptr};
  const at::Tensor result = at::empty({g.batch, g.out_channels, g.out_height, g.out_width},
                                      input.options(), at::MemoryFormat::ChannelsLast);
  const int64_t outs = g.out_channels / g.groups;
  const at::Tensor rows = channels_last(result).view({-1, g.out_channels});

  for_each_chunk(g, x.options(), [&](Chunk chunk, int64_t first, const at::Tensor& column) {
    with_vector_size<16 / sizeof(S)>(g, [&](auto V) {
      launch(gather_kernel<S, V>, column.numel() / V, g, x.const_data_ptr<S>(), modulation, chunk,
             column.mutable_data_ptr<S>());
    });
    for (int64_t group = 0; group < g.groups; ++group) {
      at::Tensor out = rows.narrow(0, first, chunk.pixels).narrow(1, group * outs, outs);
      if (bias) {
        at::addmm_out(out, bias->narrow(0, group * outs, outs), column[group], w[group].t());
      } else {
        at::mm_out(out, column[group], w[group].t());
      }
    }
  });
  return result.contiguous(format_like(input));
}

template <typename S>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
    const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& mask) {
  using T = at::opmath_type<S>;
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  const at::Tensor x = channels_last(input), w = weight_matrices(g, weight);
  const at::Tensor offset_ = offset.to(kType).contiguous();
  const at::Tensor mask_ = mask ? mask->to(kType).contiguous() : at::Tensor();
  const ModulationData<T> modulation{offset_.const_data_ptr<T>(),
                                     mask ? mask_.const_data_ptr<T>() : nullptr};
  const at::Tensor rows = channels_last(grad).view({-1, g.out_channels});
  const int64_t outs = g.out_channels / g.groups;

  const at::TensorOptions options = x.options().dtype(kType);
  const at::Tensor grad_x = at::zeros(x.sizes(), options), grad_w = at::zeros(w.sizes(), options);
  const at::Tensor grad_offset = at::empty(offset.sizes(), options);
  const at::Tensor grad_mask = at::empty(mask ? mask->sizes() : at::IntArrayRef({0}), options);

  for_each_chunk(g, x.options(), [&](Chunk chunk, int64_t first, const at::Tensor& column) {
    const auto grad_rows = [&](int64_t group) {
      return rows.narrow(0, first, chunk.pixels).narrow(1, group * outs, outs);
    };
    for (int64_t group = 0; group < g.groups; ++group) {
      at::Tensor out = column[group];
      at::mm_out(out, grad_rows(group), w[group]);
    }
    // Four channels at most, as many as one addition to the gradient of x can take.
    with_vector_size<std::min<int>(16 / sizeof(S), 4)>(g, [&](auto V) {
      launch(scatter_kernel<S, V>,
             int64_t{kWarpSize} * chunk.pixels * g.taps() * g.deformable_groups, g,
             x.const_data_ptr<S>(), modulation, chunk, column.mutable_data_ptr<S>(),
             grad_x.mutable_data_ptr<T>(), grad_offset.mutable_data_ptr<T>(),
             mask ? grad_mask.mutable_data_ptr<T>() : nullptr);
    });
    for (int64_t group = 0; group < g.groups; ++group) {
      // In 16 bits a product is rounded per chunk, the chunks are summed in float32.
      grad_w[group].add_(at::mm(grad_rows(group).t(), column[group]));
    }
  });

  at::Tensor grad_input = at::empty(input.sizes(), input.options(), format_like(input));
  grad_input.copy_(grad_x.permute({0, 3, 1, 2}));
  at::Tensor grad_weight = at::empty(weight.sizes(), weight.options());
  grad_weight.copy_(
      grad_w.view({g.out_channels, g.kernel_h, g.kernel_w, -1}).permute({0, 3, 1, 2}));
  return {grad_input, grad_offset.to(offset.scalar_type()), grad_weight,
          grad_mask.to(mask ? mask->scalar_type() : input.scalar_type())};
}

at::Tensor deform_conv_cuda(const at::Tensor& input, const at::Tensor& offset,
                            const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                            const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, bias, stride, padding,
                                           dilation, legacy_border);
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "deform_conv",
      [&] { result = forward<scalar_t>(g, input, offset, weight, mask, bias); });
  return result;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv_backward_cuda(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool legacy_border) {
  const ConvGeometry g = check_deform_conv(input, offset, weight, mask, std::nullopt, stride,
                                           padding, dilation, legacy_border);
  check_grad(g, grad, input);
  at::globalContext().alertNotDeterministic("deform_conv backward on CUDA");
  const c10::cuda::CUDAGuard guard(input.device());
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "_deform_conv_backward",
      [&] { result = backward<scalar_t>(g, grad, input, offset, weight, mask); });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CUDA, m) {
  m.impl("deform_conv", &deform_conv_cuda);
  m.impl("_deform_conv_backward", &deform_conv_backward_cuda);
}

}  // namespace dcn_projects
