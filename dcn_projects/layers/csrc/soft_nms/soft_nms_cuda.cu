#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "../common/cuda_launch.h"
#include "soft_nms.h"

namespace dcn_projects {
namespace {

constexpr int kThreads = 512, kWarpSize = 32, kWarps = kThreads / kWarpSize;
constexpr unsigned kAllLanes = 0xffffffff;
// For the boxes of a class: with the records, what every GPU since Turing has. 2389 boxes in
// float32.
constexpr int64_t kSharedBytes = 56 * 1024;

// The boxes of a class, field by field. Slot j belongs to thread j % kThreads alone.
template <typename T>
struct Slots {
  T *x0, *y0, *x1, *y1, *score;
  int* index;  // within the class

  static constexpr int64_t kBytes = 5 * sizeof(T) + sizeof(int);

  // Of `count` slots at `memory`, those from `first` on.
  __device__ Slots(void* memory, int64_t count, int64_t first)
      : x0(static_cast<T*>(memory) + first),
        y0(x0 + count),
        x1(y0 + count),
        y1(x1 + count),
        score(y1 + count),
        index(reinterpret_cast<int*>(static_cast<T*>(memory) + 5 * count) + first) {}

  __device__ Box<T> box(int j) const { return {x0[j], y0[j], x1[j], y1[j]}; }
  __device__ void set(int j, const Box<T>& box, T new_score, int new_index) {
    x0[j] = box.x0;
    y0[j] = box.y0;
    x1[j] = box.x1;
    y1[j] = box.y1;
    score[j] = new_score;
    index[j] = new_index;
  }
};

template <typename T>
struct Candidate {
  T score;
  int index;

  // Of equal scores the first.
  __device__ bool beats(const Candidate& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

// The best of a warp, in all of its lanes.
template <typename T>
__device__ Candidate<T> best_of_warp(Candidate<T> best) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const Candidate<T> other{__shfl_xor_sync(kAllLanes, best.score, distance),
                             __shfl_xor_sync(kAllLanes, best.index, distance)};
    if (other.beats(best)) best = other;
  }
  return best;
}

// The best box of a warp.
template <typename T>
struct Record {
  Candidate<T> candidate;
  Box<T> box;
};

// A block per class. Each round ends with one barrier: warps write their best boxes into one half
// of the records while slow ones may still read the other.
template <SoftNmsMethod method, typename T>
__global__ void __launch_bounds__(kThreads)
    take_boxes_kernel(const T* boxes, const T* scores, const int64_t* starts, SoftNmsGeometry g,
                      Rescoring<T> rule, int64_t shared_slots, char* scratch, T* output) {
  extern __shared__ __align__(16) char shared[];
  __shared__ Record<T> records[2][kWarps];
  __shared__ int candidates;
  const int thread = threadIdx.x, warp = thread / kWarpSize, lane = thread % kWarpSize;

  for (int64_t k = blockIdx.x; k < g.S; k += gridDim.x) {
    const int64_t begin = starts[k], end = starts[k + 1];
    if (begin < 0 || begin >= end || end > g.N) continue;
    const int length = static_cast<int>(end - begin);
    Slots<T> slots =
        length <= shared_slots ? Slots<T>(shared, shared_slots, 0) : Slots<T>(scratch, g.N, begin);
    __syncthreads();  // the class before is done with the memory
    if (thread == 0) candidates = 0;
    __syncthreads();
    for (int i = thread; i < length; i += kThreads) {
      const T score = scores[begin + i];
      if (!(score > rule.score_threshold)) continue;
      const T* box = boxes + (begin + i) % g.B * 4;
      // The slots are in any order. Of equal scores, the one with the lower index is first.
      slots.set(atomicAdd(&candidates, 1), {box[0], box[1], box[2], box[3]}, score, i);
    }
    __syncthreads();

    int slots_end = candidates;  // this thread's slots are thread, thread + kThreads, ... below it
    slots_end = thread + (slots_end - thread + kThreads - 1) / kThreads * kThreads;
    Record<T> taken{};  // overlaps nothing
    T taken_area = 0;
    int taken_index = -1;
    for (int64_t count = 0; count < g.max_per_class; ++count) {
      Candidate<T> best{0, INT_MAX};
      Box<T> best_box{};
      for (int j = thread; j < slots_end;) {
        const Box<T> box = slots.box(j);
        const int index = slots.index[j];
        T score = slots.score[j];
        if (count > 0) {
          const T iou = box_iou(taken.box, taken_area, box, box_area(box));
          score = index == taken_index ? T(0) : rule.template apply<method>(score, iou);
        }
        if (score > 0) {
          slots.score[j] = score;
          if (Candidate<T>{score, index}.beats(best)) {
            best = {score, index};
            best_box = box;
          }
          j += kThreads;
        } else {  // the last one takes its slot
          slots_end -= kThreads;
          slots.set(j, slots.box(slots_end), slots.score[slots_end], slots.index[slots_end]);
        }
      }
      Record<T>* half = records[count % 2];
      const Candidate<T> warp_best = best_of_warp(best);
      // Without a box left in the warp, all lanes write the same.
      if (best.index == warp_best.index) half[warp] = {best, best_box};
      __syncthreads();
      const Candidate<T> none{0, INT_MAX};
      const Candidate<T> block_best = best_of_warp(lane < kWarps ? half[lane].candidate : none);
      if (block_best.score == 0) break;
      int winner = 0;
      while (half[winner].candidate.index != block_best.index) ++winner;
      taken = half[winner];
      taken_area = box_area(taken.box);
      taken_index = block_best.index;
      if (thread == 0) output[begin + taken_index] = block_best.score;
    }
  }
}

template <SoftNmsMethod method, typename T>
void take_boxes(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& starts,
                const SoftNmsGeometry& g, at::Tensor& output) {
  const int64_t shared_slots = std::min(g.N, kSharedBytes / Slots<T>::kBytes);
  const int64_t scratch_slots = g.N > shared_slots ? g.N : 0;
  at::Tensor scratch =
      at::empty({scratch_slots * Slots<T>::kBytes}, scores.options().dtype(at::kByte));
  const auto kernel = take_boxes_kernel<method, T>;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(kSharedBytes)));
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(g.S, 1 << 16));
  kernel<<<blocks, kThreads, shared_slots * Slots<T>::kBytes, c10::cuda::getCurrentCUDAStream()>>>(
      boxes.const_data_ptr<T>(), scores.const_data_ptr<T>(), starts.const_data_ptr<int64_t>(), g,
      Rescoring<T>(g), shared_slots, reinterpret_cast<char*>(scratch.mutable_data_ptr<uint8_t>()),
      output.mutable_data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor soft_nms_cuda(const at::Tensor& boxes, const at::Tensor& scores,
                         const at::Tensor& starts, c10::string_view method, double sigma,
                         double iou_threshold, double score_threshold,
                         std::optional<int64_t> max_per_class) {
  const SoftNmsGeometry g = check_soft_nms(boxes, scores, starts, method, sigma, iou_threshold,
                                           score_threshold, max_per_class);
  const c10::cuda::CUDAGuard guard(scores.device());
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous(), classes = starts.contiguous();
  at::Tensor output = at::zeros_like(s);
  if (g.N == 0 || g.S == 0) return output;
  AT_DISPATCH_FLOATING_TYPES(s.scalar_type(), "soft_nms", [&] {
    switch (g.method) {
      case SoftNmsMethod::kLinear:
        return take_boxes<SoftNmsMethod::kLinear, scalar_t>(b, s, classes, g, output);
      case SoftNmsMethod::kGaussian:
        return take_boxes<SoftNmsMethod::kGaussian, scalar_t>(b, s, classes, g, output);
      case SoftNmsMethod::kHard:
        return take_boxes<SoftNmsMethod::kHard, scalar_t>(b, s, classes, g, output);
    }
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CUDA, m) { m.impl("soft_nms", &soft_nms_cuda); }

}  // namespace dcn_projects
