"""What is drawn: the same for the same seed, hard, and of disjoint sources in both splits."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from sklearn.datasets import load_digits, load_sample_images

from dcn_projects.data.datasets.warped_digits.glyphs import digit_samples, warp_glyph
from dcn_projects.data.datasets.warped_digits.masks import (
    mask_to_polygons,
    mask_to_rle,
    tight_box,
)
from dcn_projects.data.datasets.warped_digits.scenes import (
    DIGIT_SIDE,
    MAX_HIDDEN,
    WarpedDigits,
    photographs,
)


@pytest.fixture(scope="module")
def scenes():
    drawer = WarpedDigits("train", size=192, seed=3)
    return [drawer.draw(index) for index in range(30)]


def test_a_scene_depends_on_size_seed_split_and_index_alone(scenes):
    again = WarpedDigits("train", size=192, seed=3).draw(7)  # without the images before it
    assert np.array_equal(again.image, scenes[7].image)
    assert [d.label for d in again.digits] == [d.label for d in scenes[7].digits]
    for other in (
        WarpedDigits("train", size=192, seed=4).draw(7),
        WarpedDigits("test", size=192, seed=3).draw(7),
        scenes[8],
    ):
        assert not np.array_equal(other.image, scenes[7].image)


def test_splits_share_no_digit_and_no_pixel():
    train, test = digit_samples("train"), digit_samples("test")
    known = {glyph.tobytes() for glyph in train[0]}
    assert not any(glyph.tobytes() in known for glyph in test[0])
    assert len(train[0]) + len(test[0]) > 0.95 * len(load_digits().target)
    for labels in train[1], test[1]:
        assert np.bincount(labels, minlength=10).min() > 0.05 * len(labels)
    for whole, *parts in zip(
        load_sample_images().images, photographs("train"), photographs("test"), strict=True
    ):
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_visible_masks_are_what_later_digits_leave(scenes):
    for scene in scenes:
        covered = np.zeros((192, 192), bool)
        for digit in reversed(scene.digits):
            assert np.array_equal(digit.visible, digit.mask & ~covered)
            covered |= digit.mask
            # `hidden` counts what lies outside the image, too.
            assert 1 - digit.visible.sum() / digit.mask.sum() <= digit.hidden + 1e-9
            assert digit.hidden <= MAX_HIDDEN


def test_scenes_vary(scenes):
    counts = [len(scene.digits) for scene in scenes]
    assert min(counts) >= 1 and max(counts) == 6
    digits = [digit for scene in scenes for digit in scene.digits]
    assert {digit.label for digit in digits} == set(range(10))
    assert 0.05 < np.mean([digit.hidden > 0.15 for digit in digits]) < 0.5
    sides = []
    for digit in digits:
        x0, y0, x1, y1 = tight_box(digit.mask)
        if min(x0, y0) > 0 and max(x1, y1) < 192:
            sides.append(max(x1 - x0, y1 - y0) / 192)
    assert DIGIT_SIDE[0] - 0.02 < min(sides) < 0.22 and 0.45 < max(sides) < DIGIT_SIDE[1] + 0.02


@pytest.mark.parametrize("side", [20.0, 60.0])
def test_warped_glyph_is_one_piece_of_the_given_size(side):
    glyphs, _ = digit_samples("test")
    for seed in range(20):
        alpha = warp_glyph(np.random.default_rng(seed), glyphs[seed], side)
        assert abs(max(alpha.shape) - side) <= 2
        ink = alpha > 0.5
        assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
        assert count_pieces(ink) == 1


def test_strength_bends_a_glyph_and_nothing_else():
    """Seen from straight lines: without the smooth part a straight stroke stays straight."""
    stroke = np.zeros((64, 64), np.float32)
    stroke[4:-4, 28:36] = 1

    def bend(seed, strength):
        """Largest distance of a row's centre from the straight line through all rows' centres."""
        ink = warp_glyph(np.random.default_rng(seed), stroke, 100.0, strength) > 0.5
        rows = np.arange(len(ink))[10:-10]  # without the ends, which are cut square
        centres = np.array([np.flatnonzero(ink[row]).mean() for row in rows])
        line = np.polyval(np.polyfit(rows, centres, 1), rows)
        return np.abs(centres - line).max()

    bends = {s: np.mean([bend(seed, s) for seed in range(12)]) for s in (0.0, 1.0, 2.0)}
    assert bends[0.0] < 1.0
    assert bends[1.0] > 3 * bends[0.0] and bends[2.0] > 1.4 * bends[1.0]


def count_pieces(mask):
    """Pieces of a mask, 8 neighbours each, by flooding."""
    left, pieces = {tuple(p) for p in np.argwhere(mask)}, 0
    while left:
        pieces, todo = pieces + 1, [left.pop()]
        while todo:
            y, x = todo.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
    return pieces


def test_polygons_and_run_lengths_decode_to_the_mask(scenes):
    masks = [digit.visible for scene in scenes for digit in scene.digits]
    ring = np.zeros((192, 192), bool)
    ring[50:90, 60:80], ring[55:60, 65:70], ring[70:71, 65:66] = True, False, False  # two holes
    ring[120, 120] = True  # and a piece of one pixel
    for mask in [*masks, ring, np.ones((192, 192), bool)]:
        polygons = mask_to_polygons(mask)
        assert all(len(polygon) >= 6 for polygon in polygons)
        rle = mask_util.merge(mask_util.frPyObjects(polygons, 192, 192))
        assert np.array_equal(mask_util.decode(rle).astype(bool), mask)
        assert np.array_equal(mask_util.decode(mask_to_rle(mask)).astype(bool), mask)
