#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/llvmMathExtras.h>
#include <torch/library.h>

#include "../common/target_clones.h"
#include "box_tiles.h"

namespace dcn_projects {
namespace {

// A set of lanes, as bits.
using Lanes = uint32_t;

DCN_HOST_DEVICE int first_lane(Lanes lanes) {
  return static_cast<int>(c10::llvm::countTrailingZeros(lanes, c10::llvm::ZB_Undefined));
}

template <typename T>
DCN_HOST_DEVICE T best_score(const Tile<T>& tile) {
  T best = 0;
#pragma omp simd reduction(max : best)
  for (int lane = 0; lane < kLanes; ++lane) best = std::max(best, tile.score[lane]);
  return best;
}

template <typename T>
DCN_HOST_DEVICE Lanes lanes_of_score(const Tile<T>& tile, T score) {
  Lanes lanes = 0;
#pragma omp simd reduction(| : lanes)
  for (int lane = 0; lane < kLanes; ++lane) {
    lanes |= (tile.score[lane] == score ? 1u : 0u) << lane;
  }
  return lanes;
}

template <typename T>
DCN_HOST_DEVICE Lanes lanes_that_touch(const Tile<T>& tile, const Box<T>& box) {
  Lanes lanes = 0;
#pragma omp simd reduction(| : lanes)
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool touches = (tile.x0[lane] < box.x1) & (tile.x1[lane] > box.x0) &
                         (tile.y0[lane] < box.y1) & (tile.y1[lane] > box.y0) &
                         (tile.score[lane] > 0);
    lanes |= (touches ? 1u : 0u) << lane;
  }
  return lanes;
}

// Of all boxes with this score the first of the class: its position in the tiles.
template <typename T>
DCN_HOST_DEVICE int find_box(const Tile<T>* boxes, const Tile<T>* hulls, int groups,
                             const int* order, T score) {
  int found = -1;
  for (int group = 0; group < groups; ++group) {
    for (Lanes rest = lanes_of_score(hulls[group], score); rest; rest &= rest - 1) {
      const int tile = group * kLanes + first_lane(rest);
      for (Lanes lanes = lanes_of_score(boxes[tile], score); lanes; lanes &= lanes - 1) {
        const int position = tile * kLanes + first_lane(lanes);
        if (found < 0 || order[position] < order[found]) found = position;
      }
    }
  }
  return found;
}

// What is left of a tile after a box was taken. Returns the best score.
template <SoftNmsMethod method, typename T>
DCN_HOST_DEVICE T rescore(Tile<T>& tile, const Box<T>& taken, T area, const Rescoring<T>& rule) {
  T best = 0;
#pragma omp simd reduction(max : best)
  for (int lane = 0; lane < kLanes; ++lane) {
    const Box<T> box{tile.x0[lane], tile.y0[lane], tile.x1[lane], tile.y1[lane]};
    const T iou = box_iou(taken, area, box, box_area(box));
    tile.score[lane] = rule.template apply<method>(tile.score[lane], iou);
    best = std::max(best, tile.score[lane]);
  }
  return best;
}

// Takes the boxes of a class. output is that of the class.
template <SoftNmsMethod method, typename T>
DCN_HOST_DEVICE void take_boxes(BoxTiles<T>& tiles, const Rescoring<T>& rule, int64_t most,
                                T* output) {
  int64_t until_repack = 0;
  for (int64_t count = 0; count < most; ++count) {
    if (until_repack-- == 0) {
      if (count > 0) tiles.repack();
      until_repack = static_cast<int64_t>(tiles.boxes.size()) * kLanes / 2;
    }
    Tile<T>*boxes = tiles.boxes.data(), *hulls = tiles.hulls.data();
    const int groups = static_cast<int>(tiles.hulls.size());
    T best = 0;
    for (int group = 0; group < groups; ++group) best = std::max(best, best_score(hulls[group]));
    if (best == 0) return;
    const int position = find_box(boxes, hulls, groups, tiles.order.data(), best);
    output[tiles.order[position]] = best;
    const int own_tile = position / kLanes, own_group = own_tile / kLanes;
    const Box<T> taken = boxes[own_tile].box(position % kLanes);
    const T area = box_area(taken);
    boxes[own_tile].score[position % kLanes] = 0;
    for (int group = 0; group < groups; ++group) {
      Lanes rest = lanes_that_touch(hulls[group], taken);
      // The best score of its own tile changed even if a box without area touches nothing.
      if (group == own_group) rest |= 1u << own_tile % kLanes;
      for (; rest; rest &= rest - 1) {
        const int lane = first_lane(rest);
        hulls[group].score[lane] = rescore<method>(boxes[group * kLanes + lane], taken, area, rule);
      }
    }
  }
}

template <typename T>
DCN_HOST_DEVICE void take_boxes_body(BoxTiles<T>& tiles, const SoftNmsGeometry& g, T* output) {
  const Rescoring<T> rule(g);
  switch (g.method) {
    case SoftNmsMethod::kLinear:
      return take_boxes<SoftNmsMethod::kLinear>(tiles, rule, g.max_per_class, output);
    case SoftNmsMethod::kGaussian:
      return take_boxes<SoftNmsMethod::kGaussian>(tiles, rule, g.max_per_class, output);
    case SoftNmsMethod::kHard:
      return take_boxes<SoftNmsMethod::kHard>(tiles, rule, g.max_per_class, output);
  }
}

DCN_TARGET_CLONES void take_boxes(BoxTiles<float>& tiles, const SoftNmsGeometry& g, float* output) {
  take_boxes_body(tiles, g, output);
}
DCN_TARGET_CLONES void take_boxes(BoxTiles<double>& tiles, const SoftNmsGeometry& g,
                                  double* output) {
  take_boxes_body(tiles, g, output);
}

// On the CPU alone, as a look at them would stop the host.
void check_starts(const int64_t* starts, const SoftNmsGeometry& g) {
  for (int64_t k = 0; k < g.S; ++k) {
    TORCH_CHECK(starts[k] >= 0 && starts[k] <= starts[k + 1] && starts[k + 1] <= g.N,
                "soft_nms: starts must ascend within 0, ..., ", g.N, ", got ", starts[k],
                " before ", starts[k + 1]);
  }
}

at::Tensor soft_nms_cpu(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& starts,
                        c10::string_view method, double sigma, double iou_threshold,
                        double score_threshold, std::optional<int64_t> max_per_class) {
  const SoftNmsGeometry g = check_soft_nms(boxes, scores, starts, method, sigma, iou_threshold,
                                           score_threshold, max_per_class);
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous(), classes = starts.contiguous();
  const int64_t* start = classes.const_data_ptr<int64_t>();
  check_starts(start, g);
  at::Tensor output = at::zeros_like(s);
  AT_DISPATCH_FLOATING_TYPES(s.scalar_type(), "soft_nms", [&] {
    const scalar_t *box = b.const_data_ptr<scalar_t>(), *score = s.const_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    const scalar_t threshold = static_cast<scalar_t>(g.score_threshold);
    const std::vector<uint8_t> cells = find_cells(box, g.B);
    // To wake a thread takes as long as a thousand boxes.
    const int64_t grain = at::divup(1024 * g.S, std::max<int64_t>(g.N, 1));
    at::parallel_for(0, g.S, grain, [&](int64_t first, int64_t last) {
      BoxTiles<scalar_t> tiles;
      for (int64_t k = first; k < last; ++k) {
        const int64_t length = start[k + 1] - start[k];
        if (length == 0) continue;
        tiles.fill(box, cells.data(), g.B, start[k] % g.B, score + start[k], length, threshold);
        take_boxes(tiles, g, out + start[k]);
      }
    });
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcn_projects, CPU, m) { m.impl("soft_nms", &soft_nms_cpu); }

}  // namespace dcn_projects
