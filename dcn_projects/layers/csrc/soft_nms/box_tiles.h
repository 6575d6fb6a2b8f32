#pragma once

// The boxes of one class for soft_nms_cpu.cpp: those that lie near each other side by side, in
// tiles of a vector's length, above which the hulls of the tiles form tiles of their own. A box
// rescores only the tiles that it touches, and the best score of a class is found among the hulls.

#include <algorithm>
#include <limits>
#include <vector>

#include "soft_nms.h"

namespace dcn_projects {
namespace {

constexpr int kLanes = 16;

// kLanes boxes; or the hulls of kLanes tiles, each with the best score in it. A score of 0 marks an
// empty place.
template <typename T>
struct alignas(64) Tile {
  T x0[kLanes], y0[kLanes], x1[kLanes], y1[kLanes], score[kLanes];

  DCN_HOST_DEVICE Box<T> box(int lane) const { return {x0[lane], y0[lane], x1[lane], y1[lane]}; }
  DCN_HOST_DEVICE void set(int lane, const Box<T>& box, T new_score) {
    x0[lane] = box.x0;
    y0[lane] = box.y0;
    x1[lane] = box.x1;
    y1[lane] = box.y1;
    score[lane] = new_score;
  }
};

constexpr int kCells = 256;

// For each box the cell of its centre, on a grid of 16 x 16 over all centres. Cells are counted in
// Z-order, so that those which follow each other are neighbours.
template <typename T>
std::vector<uint8_t> find_cells(const T* boxes, int64_t B) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  std::vector<uint8_t> cells(B);
  for (int axis = 0; axis < 2; ++axis) {
    // Twice the centre. A box that is not finite may be anywhere, and must not stretch the grid.
    const auto centre = [&](int64_t n) { return boxes[4 * n + axis] + boxes[4 * n + axis + 2]; };
    T low = kInfinity, high = -kInfinity;
    for (int64_t n = 0; n < B; ++n) {
      if (!std::isfinite(centre(n))) continue;
      low = std::min(low, centre(n));
      high = std::max(high, centre(n));
    }
    for (int64_t n = 0; n < B; ++n) {
      const T place = (centre(n) - low) / (high - low) * 16;
      const int cell = static_cast<int>(place > 0 ? (place < 15 ? place : T(15)) : T(0));
      const int pairs = (cell | cell << 2) & 0x33;
      cells[n] |= ((pairs | pairs << 1) & 0x55) << axis;
    }
  }
  return cells;
}

template <typename T>
struct BoxTiles {
  std::vector<Tile<T>> boxes, hulls;
  std::vector<int>
      order;  // the index within the class of box `lane` of tile t is [t * kLanes + lane]

  // Takes in those boxes of a class whose score is above the threshold. The class begins with box
  // `first` of all; box 0 comes after box B - 1.
  void fill(const T* all_boxes, const uint8_t* cells, int64_t B, int64_t first, const T* scores,
            int64_t length, T threshold) {
    int next[kCells] = {};  // how many boxes a cell has, then where its next one goes
    const auto for_each_candidate = [&](auto visit) {
      for (int64_t i = 0, b = first; i < length; ++i, b = b + 1 < B ? b + 1 : 0) {
        if (scores[i] > threshold) visit(i, b);
      }
    };
    for_each_candidate([&](int64_t, int64_t b) { ++next[cells[b]]; });
    int count = 0;
    for (int cell = 0; cell < kCells; ++cell) {
      const int begin = count;
      count += next[cell];
      next[cell] = begin;
    }
    boxes.assign((count + kLanes - 1) / kLanes, Tile<T>{});
    order.resize(boxes.size() * kLanes);
    for_each_candidate([&](int64_t i, int64_t b) {
      const int position = next[cells[b]]++;
      const T* box = all_boxes + 4 * b;
      boxes[position / kLanes].set(position % kLanes, {box[0], box[1], box[2], box[3]}, scores[i]);
      order[position] = static_cast<int>(i);
    });
    find_hulls();
  }

  // Closes the gaps that boxes left whose score is 0 by now.
  void repack() {
    const int size = static_cast<int>(boxes.size()) * kLanes;
    int count = 0;
    for (int position = 0; position < size; ++position) {
      const Tile<T>& from = boxes[position / kLanes];
      const int lane = position % kLanes;
      if (from.score[lane] == 0) continue;
      boxes[count / kLanes].set(count % kLanes, from.box(lane), from.score[lane]);
      order[count++] = order[position];
    }
    boxes.resize((count + kLanes - 1) / kLanes);
    for (; count % kLanes; ++count) boxes.back().score[count % kLanes] = 0;
    find_hulls();
  }

 private:
  void find_hulls() {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    hulls.assign((boxes.size() + kLanes - 1) / kLanes, Tile<T>{});
    for (size_t t = 0; t < boxes.size(); ++t) {
      Box<T> hull{kInfinity, kInfinity, -kInfinity, -kInfinity};
      T best = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        if (boxes[t].score[lane] == 0) continue;
        const Box<T> box = boxes[t].box(lane);
        // A box with a NaN overlaps none. std::min and std::max return their first argument then.
        hull = {std::min(hull.x0, box.x0), std::min(hull.y0, box.y0), std::max(hull.x1, box.x1),
                std::max(hull.y1, box.y1)};
        best = std::max(best, boxes[t].score[lane]);
      }
      hulls[t / kLanes].set(t % kLanes, hull, best);
    }
  }
};

}  // namespace
}  // namespace dcn_projects
