"""Operators under torch.compile, torch.export, torch.func and torch.vmap."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.export import Dim, export
from torch.testing import assert_close

import dcn_projects.layers
from dcn_projects import add_dcn_config
from dcn_projects.layers import DeformableConv2d, DeformROIPool, ModulatedDeformConv, PSROIPool
from dcn_projects.modeling.backbone.deform_resnet import build_deform_resnet_backbone
from tests.layers import operators, reference
from tests.layers.rois import ROIS, SCALE


class Operator:
    """
    An operator and its reference, called on tensors alone; make(size) gives such tensors, `argnums`
    says which are differentiable.
    """

    def __init__(self, name):
        self.name, self.module = name, operators.module(name)
        self.names = self.module.TRANSFORMED
        inputs = self.module.transform_inputs((9, 8))
        self.numbers = {k: v for k, v in inputs.items() if k not in self.names}
        self.argnums = tuple(k for k, n in enumerate(self.names) if inputs[n].requires_grad)

    def op(self, *tensors):
        return self.call(getattr(dcn_projects.layers, self.name), *tensors)

    def expected(self, *tensors):
        return self.call(getattr(reference, self.name), *tensors)

    def call(self, function, *tensors):
        return function(**dict(zip(self.names, tensors, strict=True)), **self.numbers)

    def make(self, size=(9, 8)):
        inputs = self.module.transform_inputs(size)
        return [inputs[name].detach() for name in self.names]

    def grads(self, function, tensors):
        """Gradients of sum(sin(function(*tensors)))."""
        tensors = [t.detach().requires_grad_(k in self.argnums) for k, t in enumerate(tensors)]
        out = function(*tensors).sin().sum()
        return torch.autograd.grad(out, [tensors[k] for k in self.argnums])


OPERATORS = [Operator(name) for name in operators.having("TRANSFORMED")]


@pytest.fixture(params=OPERATORS, ids=lambda operator: operator.name)
def operator(request):
    return request.param


def test_one_graph_for_all_sizes(operator):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(operator.op, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for size in [(9, 8), (15, 12), (22, 31)]:
        tensors = operator.make(size)
        assert_close(operator.grads(compiled, tensors), operator.grads(operator.op, tensors))
        counts.append(counter.frame_count)
    # PyTorch may try more than once before the first call, but never again.
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2


class Head(nn.Module):
    """Three operators, one behind the other."""

    def __init__(self):
        super().__init__()
        self.conv_offset = nn.Conv2d(8, 27, 3, padding=1)
        self.conv = ModulatedDeformConv(8, 36, 3, padding=1)
        self.ps_pool = PSROIPool(3, SCALE)
        self.offset = nn.Linear(36, 18)
        self.deform_pool = DeformROIPool(3, SCALE, group_size=3)

    def forward(self, x, rois):
        offset = self.conv_offset(x)
        x = self.conv(x, offset[:, :18], offset[:, 18:].sigmoid())
        offset = self.offset(self.ps_pool(x, rois).flatten(1)).view(-1, 2, 3, 3)
        return self.deform_pool(x, rois, offset)


def test_export_with_dynamic_sizes():
    model, rois = Head().eval(), torch.tensor(ROIS)
    sizes = {"x": {0: Dim("n"), 2: Dim("h", min=4), 3: Dim("w", min=4)}, "rois": {0: Dim("r")}}
    program = export(model, (torch.randn(2, 8, 9, 8), rois), dynamic_shapes=sizes)
    targets = [node.target for node in program.graph.nodes]
    for name in ("deform_conv", "ps_roi_pool", "deform_roi_pool"):
        assert targets.count(getattr(torch.ops.dcn_projects, name).default) == 1
    inputs = torch.randn(3, 8, 14, 23), torch.cat([rois, rois + torch.tensor([1, 2, 2, 4, 4])])
    assert_close(program.module()(*inputs), model(*inputs))


def test_deformable_resnet_compiles_as_one_graph():
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    backbone = build_deform_resnet_backbone(cfg, ShapeSpec(channels=3))
    assert sum(isinstance(module, DeformableConv2d) for module in backbone.modules()) == 13
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    image = torch.randn(1, 3, 64, 64)
    actual, expected = compiled(image)["res5"], backbone(image)["res5"]
    assert_close(actual, expected)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    assert_close(
        torch.autograd.grad(actual.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
    )


def test_torch_func(operator):
    tensors, argnums = operator.make(), operator.argnums
    expected = operator.grads(operator.expected, tensors)

    def loss(*tensors):
        return operator.op(*tensors).sin().sum()

    assert_close(torch.func.grad(loss, argnums)(*tensors), expected)
    out, vjp = torch.func.vjp(operator.op, *tensors)
    grads = vjp(out.cos())
    assert_close(tuple(grads[k] for k in argnums), expected)
    jacobians = torch.func.jacrev(operator.op, argnums, chunk_size=64)(*tensors)
    for jacobian, grad in zip(jacobians, expected):
        assert_close(torch.tensordot(out.cos(), jacobian, out.dim()), grad)


def vmapped(operator, batched):
    """
    Returns:
        (in_dims, tensors): tensors for three examples; bit k of `batched` says whether tensor k
            has a vmapped dimension, which is at another place in each
    """
    tensors, in_dims = operator.make((5, 4)), []
    for k, tensor in enumerate(tensors):
        if batched >> k & 1:
            in_dims.append((k + 1) % (tensor.dim() + 1))
            # Column 0 of RoIs stays as it is.
            steps = torch.linspace(0, 0.7, tensor.shape[-1], dtype=tensor.dtype)
            tensors[k] = torch.stack([tensor + i * steps for i in range(3)], in_dims[-1])
        else:
            in_dims.append(None)
    return tuple(in_dims), tensors


def loop(function, in_dims):
    """What torch.vmap(function, in_dims) is for three examples."""

    def looped(*tensors):
        return torch.stack(
            [
                function(
                    *(
                        t if d is None else t.select(d, i).contiguous()
                        for t, d in zip(tensors, in_dims)
                    )
                )
                for i in range(3)
            ]
        )

    return looped


@pytest.mark.parametrize("batched", [0b01, 0b10, 0b11, 0b111, 0b100, 0b11011, 0b10000, 0b11111])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch 2.4
def test_vmap(operator, batched):
    if batched >= 2 ** len(operator.names):
        pytest.skip("there are not so many tensors")
    in_dims, tensors = vmapped(operator, batched)
    mapped, expected = torch.vmap(operator.op, in_dims), loop(operator.expected, in_dims)
    assert_close(mapped(*tensors), expected(*tensors))
    assert_close(operator.grads(mapped, tensors), operator.grads(expected, tensors))
    nested = torch.vmap(mapped)(*(torch.stack([t, t]) for t in tensors))
    assert_close(nested, torch.stack([expected(*tensors)] * 2))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch 2.4
def test_gradients_of_each_example(operator):
    in_dims, tensors = vmapped(operator, 0b01011)

    def loss(*tensors):
        return operator.op(*tensors).sin().sum()

    actual = torch.vmap(torch.func.grad(loss, operator.argnums), in_dims)(*tensors)
    for i in range(3):
        example = [t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims)]
        expected = operator.grads(operator.expected, example)
        assert_close(tuple(t[i] for t in actual), expected)


@pytest.mark.parametrize("index", [2.0, -1.0, float("nan")])
def test_vmap_does_not_read_another_example(index):
    of_rois = [operator for operator in OPERATORS if operator.names[1] == "rois"]
    assert len(of_rois) >= 2
    for operator in of_rois:
        in_dims, tensors = vmapped(operator, 0b011)
        tensors[1].select(in_dims[1], 0)[1, 0] = index
        with pytest.raises(RuntimeError, match="RoI 1 is on image .* of a batch of"):
            torch.vmap(operator.op, in_dims)(*tensors)


def test_no_second_or_forward_derivative(operator):
    tensors = operator.make()

    def loss(input):
        return operator.op(input, *tensors[1:]).sin().sum()

    second = f"{operator.name} has no second derivative"
    forward = f"{operator.name} has no forward-mode derivative"
    with pytest.raises(RuntimeError, match=second):
        torch.func.grad(lambda input: torch.func.grad(loss)(input).sum())(tensors[0])
    with pytest.raises(RuntimeError, match=second):
        torch.autograd.functional.hessian(loss, tensors[0])
    with pytest.raises(RuntimeError, match=forward):
        torch.func.hessian(loss)(tensors[0])
    with pytest.raises(RuntimeError, match=forward):
        torch.func.jvp(loss, (tensors[0],), (tensors[0],))
    with pytest.raises(RuntimeError, match=forward), forward_ad.dual_level():
        loss(forward_ad.make_dual(tensors[0], tensors[0]))


def test_no_silent_mix_of_devices(operator):
    tensors = operator.make()
    shape = operator.op(*tensors).shape
    metas = [t.to("meta") for t in tensors]
    for k in range(len(tensors)):
        with pytest.raises(RuntimeError, match="(is|must be) on .*(meta|cpu)"):
            operator.op(*tensors[:k], metas[k], *tensors[k + 1 :])
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in tensors]
        assert operator.op(*fakes).shape == shape
        for k in range(len(tensors)):
            # Not Tensor.to("cuda"), which PyTorch 2.4 refuses where there is no GPU.
            on_cuda = FakeTensor(mode, metas[k], "cuda:0")
            with pytest.raises(RuntimeError, match="(is|must be) on .*(cuda:0|cpu)"):
                operator.op(*fakes[:k], on_cuda, *fakes[k + 1 :])
