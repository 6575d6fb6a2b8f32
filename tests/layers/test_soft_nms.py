import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.testing import assert_close
from torchvision.ops import batched_nms, nms

from dcn_projects.layers import batched_soft_nms, multiclass_soft_nms, soft_nms
from tests.devices import CUDA, DEVICES
from tests.layers import reference
from tests.layers.operators.soft_nms import BOXES, PUBLISHED, make_boxes, make_scores

METHODS = ["linear", "gaussian", "hard"]
NAN, INF = float("nan"), float("inf")


def assert_equals_reference(actual, expected):
    assert actual[0].dtype == torch.int64
    assert actual[0].tolist() == expected[0]
    assert_close(actual[1].cpu(), torch.tensor(expected[1], dtype=torch.float64))


CASES = [
    dict(),
    dict(sigma=0.05),
    dict(sigma=1e-3),  # exp underflows
    dict(iou_threshold=0.0),
    dict(iou_threshold=0.7),
    dict(iou_threshold=1.0),
    dict(score_threshold=0.2),
    dict(score_threshold=1.0),
    dict(max_per_class=7),
    dict(max_per_class=10**6, score_threshold=0.001),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(device, method, case):
    boxes, scores = make_boxes(device=device), make_scores(200, device=device)
    actual = soft_nms(boxes, scores, method, **case)
    assert_equals_reference(actual, reference.soft_nms(boxes, scores, method, **case))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("N", [0, 1, 2, 15, 16, 17, 255, 256, 257, 600])
@pytest.mark.parametrize("extent", [100.0, 1e4])
def test_any_number_of_boxes(device, method, N, extent):
    boxes, scores = make_boxes(N, extent=extent, device=device), make_scores(N, device=device)
    actual = soft_nms(boxes, scores, method, score_threshold=0.01)
    assert_equals_reference(actual, reference.soft_nms(boxes, scores, method, score_threshold=0.01))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method,case,order,values", PUBLISHED)
def test_published_values(device, dtype, method, case, order, values):
    boxes = torch.tensor(BOXES, device=device, dtype=dtype) + torch.tensor([0, 0, 1, 1]).to(device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], device=device, dtype=dtype)
    keep, kept_scores = soft_nms(boxes, scores, method, **case)
    assert keep.tolist() == order
    assert_close(kept_scores, torch.tensor(values).to(kept_scores), rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_score_threshold_is_a_filter(device):
    # A box below the threshold takes no other down with it: it comes after all that are above.
    boxes, scores = make_boxes(device=device), make_scores(200, device=device)
    keep, kept_scores = soft_nms(boxes, scores)
    above = kept_scores > 0.05
    actual = soft_nms(boxes, scores, score_threshold=0.05)
    assert 0 < above.sum() < len(keep)
    assert torch.equal(actual[0], keep[above]) and torch.equal(actual[1], kept_scores[above])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
def test_hard_is_nms(device, dtype, iou_threshold):
    boxes = make_boxes(1000, dtype=dtype, device=device)
    scores = make_scores(1000, dtype=dtype, device=device)
    idxs = (torch.arange(1000, device=device) * 7 % 13) - 6
    keep, kept_scores = soft_nms(boxes, scores, "hard", iou_threshold=iou_threshold)
    assert torch.equal(keep, nms(boxes, scores, iou_threshold))
    assert torch.equal(kept_scores, scores[keep])
    keep, kept_scores = batched_soft_nms(boxes, scores, idxs, "hard", iou_threshold=iou_threshold)
    assert torch.equal(keep, batched_nms(boxes, scores, idxs, iou_threshold))
    assert torch.equal(kept_scores, scores[keep])


@pytest.mark.parametrize("device", DEVICES)
def test_comparisons_with_the_thresholds(device):
    # IoU is 1/2 exactly.
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]], device=device)
    scores = torch.tensor([0.75, 0.5], device=device)
    assert soft_nms(boxes, scores, "hard", iou_threshold=0.5)[0].tolist() == [0, 1]
    assert soft_nms(boxes, scores, "hard", iou_threshold=0.499)[0].tolist() == [0]
    assert soft_nms(boxes, scores, "linear", iou_threshold=0.5)[1].tolist() == [0.75, 0.25]
    assert soft_nms(boxes, scores, "linear", iou_threshold=0.501)[1].tolist() == [0.75, 0.5]
    # The score falls to 1/4 exactly.
    assert soft_nms(boxes, scores, "linear", score_threshold=0.25)[0].tolist() == [0]
    assert soft_nms(boxes, scores, "linear", score_threshold=0.249)[0].tolist() == [0, 1]
    assert soft_nms(boxes, scores, "linear", score_threshold=0.5)[0].tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_of_equal_scores_the_first_is_taken(device, method):
    boxes = make_boxes(300, device=device)
    scores = (make_scores(300, device=device) * 4).ceil() / 4  # four different ones
    assert scores.unique().numel() == 4
    expected = reference.soft_nms(boxes, scores, method)
    assert_equals_reference(soft_nms(boxes, scores, method), expected)
    idxs = torch.arange(300, device=device) % 3
    ranks = list(zip(*(t.tolist() for t in batched_soft_nms(boxes, scores, idxs, method))))
    assert len(set(ranks)) > len({score for _, score in ranks})
    assert ranks == sorted(ranks, key=lambda rank: (-rank[1], rank[0]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("max_per_class", [None, 5])
def test_classes_do_not_meet(device, method, max_per_class):
    boxes, scores = make_boxes(400, device=device), make_scores(400, device=device)
    idxs = torch.tensor([5, -3, 2**40, 0, 5], device=device).repeat(80)
    keep, kept_scores = batched_soft_nms(boxes, scores, idxs, method, max_per_class=max_per_class)
    assert torch.equal(kept_scores, kept_scores.sort(descending=True)[0])
    for value in idxs.unique():
        rows = (idxs == value).nonzero().squeeze(1)
        order, values = reference.soft_nms(
            boxes[rows], scores[rows], method, max_per_class=max_per_class
        )
        of_class = idxs[keep] == value
        assert keep[of_class].tolist() == rows[order].tolist()
        assert_close(kept_scores[of_class].tolist(), values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own_boxes", [False, True])
@pytest.mark.parametrize("case", [dict(), dict(max_per_class=9, score_threshold=0.1)], ids=str)
def test_box_heads(device, dtype, own_boxes, case):
    R, K = 90, 6
    boxes = [
        make_boxes(R, seed=k if own_boxes else 0, dtype=dtype, device=device) for k in range(K)
    ]
    scores = make_scores(R, K, dtype=dtype, device=device)
    actual = multiclass_soft_nms(torch.cat(boxes if own_boxes else boxes[:1], 1), scores, **case)
    assert actual.shape == (R, K) and actual.dtype == dtype
    for k in range(K):
        expected = torch.zeros(R, dtype=torch.float64)
        order, values = reference.soft_nms(boxes[k], scores[:, k], **case)
        expected[order] = torch.tensor(values, dtype=torch.float64)
        assert_close(actual[:, k].cpu().double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_wild_boxes_overlap_none(device, method):
    boxes, scores = make_boxes(40, device=device), make_scores(40, device=device)
    corner = boxes[0].tolist()
    wild = [list(corner) for _ in range(12)]
    for k, box in enumerate(wild):
        box[k % 4] = (NAN, INF, -INF)[k // 4]
    x0, y0, x1, y1 = corner
    wild += [
        [x0, y0, x0, y1],
        [x0, y0, x1, y0],
        [x1, y1, x0, y0],
        [x1, y0, x0, y1],
        [-INF, -INF, INF, INF],
    ]
    wild = torch.tensor(wild, device=device).to(boxes)
    wild_scores = make_scores(len(wild), seed=2, device=device)
    for front in (False, True):  # better than all others, or among them
        keep, values = soft_nms(
            torch.cat([boxes, wild]), torch.cat([scores, wild_scores + front]), method
        )
        is_wild = keep >= 40
        assert sorted(keep[is_wild].tolist()) == list(range(40, 40 + len(wild)))
        assert torch.equal(values[is_wild], (wild_scores + front)[keep[is_wild] - 40])
        assert_equals_reference(
            (keep[~is_wild], values[~is_wild]), reference.soft_nms(boxes, scores, method)
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_wild_scores(device, method):
    boxes, scores = make_boxes(40, device=device), make_scores(40, device=device)
    plain = soft_nms(boxes, scores, method)
    for bad in (NAN, -INF, -1.0, 0.0):
        bad_scores = torch.full((3,), bad, device=device).to(scores)
        keep, values = soft_nms(
            torch.cat([boxes[:3], boxes]), torch.cat([bad_scores, scores]), method
        )
        assert torch.equal(keep - 3, plain[0]) and torch.equal(values, plain[1])
    # Infinity is the best score, and stays infinite unless it is multiplied by 0.
    scores[7] = scores[9] = INF
    boxes[9] = boxes[7]
    keep, values = soft_nms(boxes, scores, method)
    assert keep[0] == 7 and values[0] == INF
    assert ((keep == 9) & (values == INF)).any() == (method == "gaussian")
    assert not values.isnan().any()


@pytest.mark.parametrize("device", DEVICES)
def test_empty(device):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    for result in (soft_nms(boxes, scores), batched_soft_nms(boxes, scores, scores.long())):
        assert [t.shape for t in result] == [(0,), (0,)]
        assert [t.dtype for t in result] == [torch.int64, torch.float32]
    for R, K, columns in [(0, 3, 4), (0, 3, 12), (5, 0, 4), (5, 0, 0), (0, 0, 4)]:
        boxes = torch.zeros(R, columns, device=device)
        assert multiclass_soft_nms(boxes, torch.zeros(R, K, device=device)).shape == (R, K)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_float32(device, method):
    # Ranks that differ by roundings may change places, scores change by roundings.
    boxes = make_boxes(1000, dtype=torch.float32, device=device)
    scores = make_scores(1000, dtype=torch.float32, device=device)
    keep, values = soft_nms(boxes, scores, method, score_threshold=0.001)
    expected = soft_nms(boxes.double(), scores.double(), method, score_threshold=0.001)
    assert values.dtype == torch.float32
    assert (values[1:] <= values[:-1]).all()
    assert len(set(keep.tolist()) ^ set(expected[0].tolist())) <= 2
    n = min(len(values), len(expected[1]))
    assert_close(values[:n].double(), expected[1][:n], rtol=2e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_in_float32(device, dtype):
    boxes = make_boxes(300, dtype=dtype, device=device)
    scores = make_scores(300, dtype=dtype, device=device)
    expected = soft_nms(boxes.float(), scores.float())
    with torch.autocast(device, torch.bfloat16):
        under_autocast = soft_nms(boxes, scores)
    for actual in (soft_nms(boxes, scores), soft_nms(boxes, scores.float()), under_autocast):
        assert actual[1].dtype == torch.float32
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    assert soft_nms(boxes, scores.double())[1].dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_memory_layouts(device):
    boxes, scores = make_boxes(60, device=device), make_scores(60, 4, device=device)
    expected = multiclass_soft_nms(boxes, scores)
    strided = boxes.t().contiguous().t(), scores.repeat_interleave(2, 1)[:, ::2]
    assert not strided[0].is_contiguous() and not strided[1].is_contiguous()
    assert torch.equal(multiclass_soft_nms(*strided), expected)
    keep, values = soft_nms(strided[0], strided[1][:, 1])
    assert torch.equal(values, expected[keep, 1])


def test_threads_do_not_change_the_result():
    boxes = make_boxes(1000, dtype=torch.float32)
    scores = make_scores(1000, 7, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(multiclass_soft_nms(boxes, scores, max_per_class=200))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0]) and torch.equal(results[2], results[0])


@pytest.mark.parametrize("device", [CUDA])
def test_classes_larger_than_shared_memory(device):
    boxes, scores = make_boxes(9000, extent=5e3), make_scores(9000, 2)
    expected = multiclass_soft_nms(boxes, scores, max_per_class=300)
    actual = multiclass_soft_nms(boxes.to(device), scores.to(device), max_per_class=300)
    assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_registration(device, method):
    boxes = make_boxes(20, device=device)
    for starts in ([0, 20], [0, 20, 40, 60], [0, 7, 7, 31, 60]):
        starts = torch.tensor(starts, device=device)
        scores = make_scores(int(starts[-1]), device=device)
        arguments = (boxes, scores, starts, method, 0.5, 0.3, 0.01, 5)
        torch.library.opcheck(torch.ops.dcn_projects.soft_nms, arguments)


def test_scores_outside_the_classes_are_not_taken():
    boxes, scores = make_boxes(20), make_scores(20)
    arguments = ("hard", 0.5, 0.3, 0.0, None)
    taken = torch.ops.dcn_projects.soft_nms(boxes, scores, torch.tensor([4, 9]), *arguments)
    assert taken[4:9].any() and not taken[:4].any() and not taken[9:].any()


def test_results_are_constants_to_derivatives():
    boxes, scores = make_boxes(20).requires_grad_(), make_scores(20, 3).requires_grad_()
    taken = multiclass_soft_nms(boxes, scores)
    assert not taken.requires_grad
    assert not soft_nms(boxes, scores[:, 0])[1].requires_grad
    boxes, scores = boxes.detach(), scores.detach()

    def loss(boxes, scores):
        return (scores * multiclass_soft_nms(boxes, scores)).sum() + boxes.sum()

    expected = torch.ones_like(boxes), taken
    assert_close(torch.func.grad(loss, (0, 1))(boxes, scores), expected)
    assert_close(torch.func.jacrev(loss, (0, 1))(boxes, scores), expected)
    tangent = torch.func.jvp(loss, (boxes, scores), (boxes, scores))[1]
    assert_close(tangent, (scores * taken).sum() + boxes.sum())
    second = torch.func.grad(lambda s: torch.func.grad(loss, 1)(boxes, s).square().sum())(scores)
    assert not second.any()


# The boxes of R boxes and 3 classes.
LAYOUTS = [make_boxes, lambda R: make_boxes(3 * R).view(R, 12)]


class Heads(torch.nn.Module):
    def forward(self, boxes, scores):
        return multiclass_soft_nms(boxes, scores, "linear", max_per_class=9)


@pytest.mark.parametrize("boxes_of", LAYOUTS)
def test_compiles_once_for_all_sizes(boxes_of):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Heads(), fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for R in (50, 30, 7, 200):
        inputs = boxes_of(R), make_scores(R, 3)
        assert torch.equal(compiled(*inputs), Heads()(*inputs))
        counts.append(counter.frame_count)
    # PyTorch may try more than once before the first call, but never again.
    assert counts[0] > 0 and counts[1:] == counts[:1] * 3


@pytest.mark.parametrize("boxes_of", LAYOUTS)
def test_export_with_dynamic_sizes(boxes_of, tmp_path):
    R = torch.export.Dim("R")
    program = torch.export.export(
        Heads(),
        (boxes_of(50), make_scores(50, 3)),
        dynamic_shapes={"boxes": {0: R}, "scores": {0: R}},
    )
    torch.export.save(program, tmp_path / "heads.pt2")
    loaded = torch.export.load(tmp_path / "heads.pt2").module()
    for R in (50, 7, 200):
        inputs = boxes_of(R), make_scores(R, 3)
        assert torch.equal(loaded(*inputs), Heads()(*inputs))


@pytest.mark.parametrize("own_boxes", [False, True])
def test_no_silent_mix_of_devices(own_boxes):
    boxes, scores = make_boxes(9).repeat(1, 3 if own_boxes else 1), make_scores(9, 3)
    metas = boxes.to("meta"), scores.to("meta")
    out = multiclass_soft_nms(*metas)
    assert (out.shape, out.dtype, out.device.type) == ((9, 3), torch.float64, "meta")
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (boxes, scores)]
        # Not Tensor.to("cuda"), which PyTorch 2.4 refuses where there is no GPU.
        on_cuda = [FakeTensor(mode, t, "cuda:0") for t in metas]
        assert multiclass_soft_nms(*on_cuda).device.type == "cuda"
    for b, s in [(boxes, metas[1]), (metas[0], scores)]:
        with pytest.raises(RuntimeError, match="must be on the device of scores .*(meta|cpu)"):
            multiclass_soft_nms(b, s)
    for b, s in [(fakes[0], on_cuda[1]), (on_cuda[0], fakes[1])]:
        with mode, pytest.raises(RuntimeError, match="must be on the device of .*(cuda:0|cpu)"):
            multiclass_soft_nms(b, s)


def test_refuses_vmap():
    for function, scores in [
        (soft_nms, make_scores(2, 9)),
        (multiclass_soft_nms, make_scores(2, 9, 3)),
        (lambda b, s: batched_soft_nms(b, s, torch.arange(9)), make_scores(2, 9)),
        (torch.func.grad(lambda b, s: multiclass_soft_nms(b, s).sum()), make_scores(2, 9, 3)),
    ]:
        with pytest.raises(RuntimeError, match="soft_nms: there is no vmap"):
            torch.vmap(function)(make_boxes(18).view(2, 9, 4), scores)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-37, 2.9e-39, 1e-40, 1e-310, 5e-324])
def test_tiny_sigma_takes_nothing_from_boxes_that_do_not_overlap(device, dtype, sigma):
    boxes = torch.tensor([[0, 0, 4, 4], [8, 8, 9, 9], [0, 0, 4, 2]], dtype=dtype, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=dtype, device=device)
    keep, values = soft_nms(boxes, scores, sigma=sigma)  # 1 / sigma may be infinite
    assert keep.tolist() == [0, 1] and torch.equal(values, scores[:2])


ERRORS = [
    (dict(boxes=torch.zeros(9, 5)), r"boxes must be \(N, 4\) .* got \[9, 5\] and \[9\]"),
    (dict(boxes=torch.zeros(8, 4)), r"got \[8, 4\] and \[9\]"),
    (dict(scores=torch.zeros(9, 1)), r"scores \(N,\), got \[9, 4\] and \[9, 1\]"),
    (
        dict(boxes=torch.zeros(9, 4, dtype=torch.int64)),
        "dtype of scores .*, got (Long|torch.int64)",
    ),
    (dict(scores=torch.zeros(9, dtype=torch.int64)), "float32 or float64, got (Long|torch.int64)"),
    (dict(method="Gaussian"), "'linear', 'gaussian' or 'hard', got 'Gaussian'"),
    (dict(sigma=0.0), "sigma must be positive, got 0"),
    (dict(sigma=NAN), "sigma must be positive, got nan"),
    (dict(iou_threshold=1.5), "iou_threshold must be from 0 to 1, got 1.5"),
    (dict(iou_threshold=NAN), "iou_threshold must be from 0 to 1, got nan"),
    (dict(score_threshold=-0.1), "score_threshold must not be negative, got -0.1"),
    (dict(score_threshold=NAN), "score_threshold must not be negative, got nan"),
    (dict(max_per_class=0), "max_per_class must be positive or None, got 0"),
]


@pytest.mark.parametrize("device", [*DEVICES, "meta"])
@pytest.mark.parametrize("change,message", ERRORS, ids=str)
def test_errors_quote_what_came(device, change, message):
    arguments = {"boxes": make_boxes(9), "scores": make_scores(9), **change}
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=f"soft_nms: .*{message}"):
        soft_nms(**arguments)


def test_more_errors():
    boxes, scores = make_boxes(9), make_scores(9, 3)
    with pytest.raises(RuntimeError, match=r"idxs \(N,\), got \[9, 4\] and \[8\]"):
        batched_soft_nms(boxes, scores[:, 0], torch.zeros(8))
    with pytest.raises(RuntimeError, match=r"or \(R, K \* 4\), got \[9, 3\] and \[9, 8\]"):
        multiclass_soft_nms(boxes.repeat(1, 2), scores)
    for starts in ([0, 10], [-1, 9], [0, 5, 3]):
        with pytest.raises(RuntimeError, match="starts must ascend within 0, ..., 9, got"):
            torch.ops.dcn_projects.soft_nms(
                boxes, scores[:, 0], torch.tensor(starts), "hard", 0.5, 0.3, 0.0, None
            )


@pytest.mark.parametrize("device", [CUDA])
def test_error_names_devices(device):
    with pytest.raises(RuntimeError, match=r"on the device of scores \(cuda:0\), got cpu"):
        soft_nms(make_boxes(9), make_scores(9, device=device))
