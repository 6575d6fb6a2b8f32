"""Cases of the RoI pooling operators for the fuzz test: see fuzzing.py."""

import math

import torch
from hypothesis import strategies as st

from tests.layers.fuzzing import (
    LAYOUTS,
    NARROW,
    TOLERANCES,
    WILD,
    assert_all_close,
    dtype_of,
    dtypes_and_layouts,
    exact_copies,
    finish,
    results,
)

ROI_KINDS = ["usual", "usual", "large", "point", "reversed", "outside", "bad", "endless"]


@st.composite
def roi_pool_cases(draw, deformable):
    output_size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.just((7, 7)))
    group_size = draw(st.sampled_from([(1, 1), output_size, (2, 3)]))
    sampling_ratio = draw(st.sampled_from([1, 2, 4])) if deformable else 1
    # The reference takes its time for each sample.
    samples = math.prod(output_size) * sampling_ratio**2
    classes = draw(st.sampled_from([1, 2, 3])) if deformable and samples < 300 else 1
    cells = math.prod(group_size)
    widths = [w for w in [1, 2, 5, 16, 17, 70] if w * classes * cells <= 300]
    D = classes * draw(st.sampled_from(widths))
    case = {
        "N": draw(st.integers(1, 3)),
        "D": D,
        "size": draw(st.tuples(st.integers(1, 12), st.integers(1, 12))),
        "numbers": {
            "output_size": output_size,
            "spatial_scale": draw(st.sampled_from([0.25, 0.5, 1.0])),
            "group_size": group_size,
        },
        "kinds": draw(st.lists(st.sampled_from(ROI_KINDS), max_size=1 + 400 // samples)),
        "copies": draw(st.sampled_from([1, 5, 18])),
        # The copies of a RoI stay alike.
        **draw(dtypes_and_layouts(["input", "offset", "mask"], LAYOUTS[:-1])),
    }
    if deformable:
        case["numbers"] |= {"sampling_ratio": sampling_ratio, "gamma": 0.125}
        parts = st.sampled_from([(1, 1), output_size, (3, 2)])
        case |= {
            "offset": draw(st.none() | st.tuples(st.just(2 * classes), parts)),
            "mask": draw(st.sampled_from([0, 1, D])),
            "wild": draw(st.sampled_from([0, 0.2])),
        }
    return case


def roi_pool_tensors(case, device):
    """`rois`, `offset`, `mask` and `head` have `copies` of each RoI, in turn."""
    generator = torch.Generator().manual_seed(case["seed"])

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def randint(low, high):
        return torch.randint(low, high, (1,), generator=generator).item()

    narrow = dtype_of(case, "rois") in NARROW
    numbers = case["numbers"]
    steps = [n * numbers.get("sampling_ratio", 1) for n in numbers["output_size"]]
    rois = []
    for kind in case["kinds"]:
        corners = [[], []]
        for step in steps[::-1]:  # x, y
            longest = {"large": 200 // step if narrow else 40}.get(kind, 3)
            length = step * randint(1, max(longest, 1) + 1)
            begin = 300 if kind == "outside" else randint(-20, 40)
            ends = [begin, begin + length]
            if kind == "point":
                ends[1] = ends[0]
            elif kind == "reversed":
                ends.reverse()
            elif kind == "endless":
                ends = [-9e37, 1e38]
            # Corners are rounded, halves away from zero.
            shift = 0 if narrow else (0, 0.25, -0.25, 0.5)[randint(0, 4)]
            for corner, end in zip(corners, ends):
                corner.append(end - math.copysign(shift, end) if end else end)
        roi = [randint(0, case["N"]), *corners[0], *corners[1]]
        if kind == "bad":
            roi[randint(1, 5)] = WILD[randint(0, 3)].item()
        rois.append(roi)
    R, D = len(rois), case["D"]
    tensors = {
        "input": rand(case["N"], D * math.prod(numbers["group_size"]), *case["size"]) - 0.5,
        "rois": torch.tensor(rois, dtype=torch.float64).view(-1, 5),
        "head": rand(R, D, *numbers["output_size"]) - 0.5,
    }
    if case.get("offset"):
        channels, part = case["offset"]
        # Odd multiples of 1/64, up to 4, hold in 8 bits and meet no multiple of 1/10.
        odd = torch.randint(-128, 128, (R, channels, *part), generator=generator) * 2 + 1
        wild = rand(*odd.shape) < case["wild"]
        choice = torch.randint(len(WILD), odd.shape, generator=generator)
        tensors["offset"] = torch.where(wild, WILD[choice], odd / 64)
    if case.get("mask"):
        tensors["mask"] = rand(R, case["mask"], *numbers["output_size"])
    for name in tensors.keys() - {"input"}:
        tensors[name] = tensors[name].repeat(case["copies"], *[1] * (tensors[name].dim() - 1))
    return finish(case, tensors, device)


def on_copies(function, copies):
    """`results` of the reference on the first of several copies of each RoI, repeated for all."""

    def run(tensors, head, numbers):
        R = len(head) // copies
        first = {
            k: (t if k == "input" else t[:R]).detach().requires_grad_(t.requires_grad)
            for k, t in tensors.items()
        }
        # The reference cannot read them; these read nothing.
        first["rois"][~first["rois"].isfinite().all(1), 1:] = 1e5
        found = results(function, first, head[:R], numbers)
        return {
            k: t * copies if k == "input" else t.repeat(copies, 1, 1, 1) for k, t in found.items()
        }

    return run


def check_roi_pool(function, slow_function, case, device):
    torch.set_num_threads(case["threads"])
    tensors = roi_pool_tensors(case, device)
    exact = exact_copies(tensors)
    head, exact_head = tensors.pop("head"), exact.pop("head")
    numbers = case["numbers"]
    if "sampling_ratio" in numbers and "offset" not in tensors:
        numbers = {**numbers, "offset": None}
    actual = results(function, tensors, head, numbers)
    expected = on_copies(slow_function, case["copies"])(exact, exact_head, numbers)
    assert actual["out"].dtype == case["dtype"]
    assert actual["out"].requires_grad == any(t.requires_grad for t in tensors.values())
    assert_all_close(actual, expected, TOLERANCES[case["dtype"]])
