"""Cases of the RoI pooling operators for the fuzz test: see fuzzing.py."""

import math

import torch

import dcn_projects.layers
from tests.layers.fuzzing import (
    LAYOUTS,
    NARROW,
    WILD,
    YES_OR_NO,
    check_calls,
    dtype_of,
    dtypes_and_layouts,
    exact_copies,
    fallback_results,
    finish,
    of_any_size,
    split_head,
)

ROI_KINDS = ["usual", "usual", "large", "point", "reversed", "outside", "bad", "endless"]


def roi_pool_case(choose, deformable):
    extreme = choose([False, False, False, True])
    size = (choose(range(1, 5)), choose(range(1, 5)))
    output_size = choose(9 * [size] + [(7, 7)])
    group_size = choose([(1, 1), output_size, (2, 3)])
    sampling_ratio = choose([1, 2, 4]) if deformable else 1
    # The reference takes its time for each sample.
    samples = math.prod(output_size) * sampling_ratio**2
    classes = choose([1, 2, 3]) if deformable and samples < 300 else 1
    cells = math.prod(group_size)
    widths = [w for w in [1, 1, 2, 2, 5, 5, 16, 17, 70] if w * classes * cells <= 300]
    D = classes * choose(widths)
    kinds = ["any size"] if extreme else ROI_KINDS
    case = {
        "N": choose(range(1, 4)),
        "D": D,
        "size": (choose(range(1, 13)), choose(range(1, 13))),
        "numbers": {
            "output_size": output_size,
            "spatial_scale": choose([0.25, 1 / 3, 1e-30, 1e30] if extreme else [0.25, 0.5, 1.0]),
            "group_size": group_size,
        },
        "kinds": [choose(kinds) for _ in range(choose(range(min(13, 2 + 400 // samples))))],
        "copies": choose([1, 1, 1, 5, 18]),
        "extreme": extreme,
        # The copies of a RoI stay alike.
        **dtypes_and_layouts(choose, ["input", "offset", "mask"], LAYOUTS[:-1]),
    }
    if deformable:
        gamma = choose([0.125, 10.0, -3.0, 1e30, 1e300]) if extreme else 0.125
        case["numbers"] |= {"sampling_ratio": sampling_ratio, "gamma": gamma}
        part = choose([(1, 1), output_size, (3, 2)])
        case |= {
            "offset": (2 * classes, part) if choose(YES_OR_NO) else None,
            "mask": choose([0, 1, D]),
            "wild": choose([0, 0.2]),
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
        if kind == "any size":
            sizes = of_any_size([4], generator)
            roi[1:] = torch.where(rand(4) < 0.5, sizes, 40 * rand(4)).tolist()
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
        offset = odd / 64
        if case["extreme"]:
            sizes = of_any_size(odd.shape, generator)
            offset = torch.where(rand(*odd.shape) < 0.5, sizes, offset)
        tensors["offset"] = torch.where(wild, WILD[choice], offset)
    if case.get("mask"):
        tensors["mask"] = rand(R, case["mask"], *numbers["output_size"])
    for name in tensors.keys() - {"input"}:
        tensors[name] = tensors[name].repeat(case["copies"], *[1] * (tensors[name].dim() - 1))
    return finish(case, tensors, device)


def on_copies(expected_results, copies):
    """What is expected of the first of several copies of each RoI, repeated for all."""

    def run(name, tensors, head, numbers):
        R = len(head) // copies
        first = {
            k: (t if k == "input" else t[:R]).detach().requires_grad_(t.requires_grad)
            for k, t in tensors.items()
        }
        # The reference cannot read them; these read nothing.
        first["rois"][~first["rois"].isfinite().all(1), 1:] = 1e5
        found = expected_results(name, first, head[:R], numbers)
        return {
            k: t * copies if k == "input" else t.repeat(copies, 1, 1, 1) for k, t in found.items()
        }

    return run


def check_roi_pool(name, case, device, expected_results):
    tensors = roi_pool_tensors(case, device)
    if case["extreme"]:
        exact, expected_results = exact_copies(tensors, None), fallback_results
    else:
        exact, expected_results = exact_copies(tensors), on_copies(expected_results, case["copies"])
    exact_head, exact = split_head(exact)
    numbers = case["numbers"]
    if "sampling_ratio" in numbers and "offset" not in tensors:
        numbers = {**numbers, "offset": None}
    expected = expected_results(name, exact, exact_head, numbers)
    return check_calls(getattr(dcn_projects.layers, name), case, tensors, numbers, expected)
