"""
What the fuzz test calls the operators with: hypothesis draws a dict of plain numbers, which is what
a failure prints, and `*_tensors` fills tensors from its seed.

Derivatives and the borders of what counts are discontinuous. So that float32 and the reference in
float64 fall on the same side, deformable convolution gets offsets away from integers (or its
gradient of the offsets is not compared), and the RoI operators positions that are sums of few
powers of two, which every dtype holds.
"""

import math

import torch
from hypothesis import strategies as st

WIDE, NARROW = [torch.float64, torch.float32], [torch.float16, torch.bfloat16]
LAYOUTS = [
    "contiguous",
    "channels_last",
    "sliced",
    "transposed",
    "unaligned",
    "expanded",
    "overlapping",
]
WILD = torch.tensor([math.nan, math.inf, -math.inf, 1e20, -1e20, 2.0**31], dtype=torch.float64)
seeds = st.integers(0, 2**32 - 1)


def lay_out(tensor, layout):
    """The tensor in another memory layout; the last two also repeat some of its values."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "unaligned":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand_as(tensor)
    if layout == "overlapping" and tensor.numel():
        return tensor.contiguous().as_strided(tensor.shape, [1] * tensor.dim())
    return tensor.contiguous()


@st.composite
def dtypes_and_layouts(draw, names, layouts=LAYOUTS):
    """`wide`: which of offset, mask and rois are float32 beside a 16-bit input."""
    return {
        "dtype": draw(st.sampled_from(WIDE + NARROW)),
        "wide": draw(st.sets(st.sampled_from(["offset", "mask", "rois"]))),
        "layouts": {name: draw(st.sampled_from(layouts)) for name in [*names, "rois", "head"]},
        "requires_grad": draw(st.just(names) | st.lists(st.sampled_from(names), unique=True)),
        "threads": draw(st.sampled_from([1, 3])),
        "seed": draw(seeds),
    }


def dtype_of(case, name):
    is_wide = case["dtype"] in NARROW and name in case["wide"]
    return torch.float32 if is_wide else case["dtype"]


def finish(case, tensors, device):
    """Tensors of the case's dtypes and layouts."""
    result = {}
    for name, tensor in tensors.items():
        dtype = dtype_of(case, name)
        tensor = lay_out(tensor.to(device, dtype), case["layouts"].get(name, "contiguous"))
        result[name] = tensor.requires_grad_(name in case["requires_grad"])
    return result


@st.composite
def deform_conv_cases(draw):
    kind = draw(st.sampled_from(["any", "any", "depthwise", "deep"]))
    # Deep ones may take the processor's bfloat16 product.
    groups = 1 if kind == "deep" else draw(st.sampled_from([1, 1, 2, 3, 32]))
    deformable_groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    common = math.lcm(groups, deformable_groups)
    widths = [1, 2, 3, 5, 8, 17, 64, 65, 130, 257, 300] if kind != "deep" else [130, 64, 257]
    C = common * draw(st.sampled_from([w for w in widths if w * common <= 320]))
    if kind == "depthwise" and C <= 70:
        groups = C
    outs = [1, 2, 3, 7, 64, 70, 130] if kind != "deep" else [130, 64]
    outs = draw(st.sampled_from([n for n in outs if n * groups <= 140]))
    largest_kernel = 5 if C < 70 else 3
    largest_out = 21 if C < 20 and outs * groups < 20 else 5
    axes = []
    for _ in range(2):
        kernel = draw(st.integers(1, largest_kernel))
        stride = draw(st.sampled_from([1, 1, 2, 3, 2**31 - 1]))
        padding, dilation = draw(st.sampled_from([0, 1, 2, 9])), draw(st.sampled_from([1, 1, 2, 7]))
        out = draw(st.integers(1, largest_out))
        # The map may be smaller than the kernel, and than its padding.
        free = (out - 1) * min(stride, 3) + dilation * (kernel - 1) + 1 - 2 * padding
        axes.append((kernel, stride, padding, dilation, max(1, free + draw(st.integers(0, 2)))))
    kernel, stride, padding, dilation, size = zip(*axes)
    return {
        "N": draw(st.sampled_from([1, 1, 2, 2, 3, 0])),
        "C": C,
        "out_channels": groups * outs,
        "groups": groups,
        "deformable_groups": deformable_groups,
        "size": size,
        "kernel": kernel,
        "numbers": {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "legacy_border": draw(st.booleans()),
        },
        "reach": draw(st.sampled_from([2, 0, 8])),
        "integers": draw(st.booleans()),
        "wild": draw(st.sampled_from([0, 0.2, 1])),
        "mask": draw(st.booleans()),
        "bias": draw(st.booleans()),
        **draw(dtypes_and_layouts(["input", "offset", "weight", "mask", "bias"])),
    }


def deform_conv_tensors(case, device):
    generator = torch.Generator().manual_seed(case["seed"])

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    N, (kh, kw), G = case["N"], case["kernel"], case["deformable_groups"]
    stride, padding, dilation, _ = case["numbers"].values()
    out_size = [
        (case["size"][i] + 2 * padding[i] - dilation[i] * (case["kernel"][i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    ]
    offset = torch.floor((2 * rand(N, 2 * G * kh * kw, *out_size) - 1) * (case["reach"] + 0.5))
    if not case["integers"]:
        offset += 0.02 + 0.96 * rand(*offset.shape)
        if case["dtype"] in NARROW and "offset" not in case["wide"]:
            offset = torch.floor(offset * 8) / 8 + 1 / 16  # as bfloat16 can hold
    wild = rand(*offset.shape) < case["wild"]
    choice = torch.randint(len(WILD), offset.shape, generator=generator)
    tensors = {
        "input": rand(N, case["C"], *case["size"]) - 0.5,
        "offset": torch.where(wild, WILD[choice], offset),
        "weight": rand(case["out_channels"], case["C"] // case["groups"], kh, kw) - 0.5,
    }
    if case["mask"]:
        tensors["mask"] = rand(N, G * kh * kw, *out_size)
    if case["bias"]:
        tensors["bias"] = rand(case["out_channels"])
    tensors["head"] = rand(N, case["out_channels"], *out_size) - 0.5
    return finish(case, tensors, device)


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


@st.composite
def soft_nms_cases(draw):
    return {
        "R": draw(st.integers(0, 70)),
        "classes": draw(st.integers(1, 4)),
        "span": draw(st.sampled_from([5, 60, 1000])),  # small: all boxes overlap
        "wild": draw(st.sampled_from([0.0, 0.2])),
        "copies": draw(st.integers(1, 2)),
        "own_boxes": draw(st.booleans()),
        "threads": draw(st.sampled_from([1, 3])),
        "seed": draw(seeds),
        "numbers": {
            "method": draw(st.sampled_from(["linear", "gaussian", "hard"])),
            "sigma": draw(st.sampled_from([0.01, 0.5, 10.0])),
            "iou_threshold": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
            "score_threshold": draw(st.sampled_from([0.0, 0.001, 0.3])),
            "max_per_class": draw(st.sampled_from([None, 1, 10])),
        },
    }


def soft_nms_tensors(case, device):
    """
    Returns:
        boxes (R, 4) or (R, K * 4), scores (R, K), float64. Copies of a box have scores of their
        own: which of two equal ones is taken first may depend on the last bit.
    """
    generator = torch.Generator().manual_seed(case["seed"])
    R, K = case["R"], case["classes"]
    own = K if case["own_boxes"] else 1
    boxes = torch.rand(R, own, 4, generator=generator, dtype=torch.float64)
    boxes[..., 2:] = boxes[..., :2] * case["span"] + 30 * boxes[..., 2:] - 1  # some are reversed
    boxes[..., :2] *= case["span"]
    wild = torch.rand(boxes.shape, generator=generator) < case["wild"] / 4
    choice = torch.randint(3, boxes.shape, generator=generator)  # NaN, Inf, -Inf
    boxes = torch.where(wild, WILD[choice], boxes).repeat(case["copies"], 1, 1)
    scores = torch.rand(len(boxes), K, generator=generator, dtype=torch.float64) - 0.1
    return boxes.flatten(1).to(device), scores.to(device)
