"""DeepLab's head against the deconvolution it stands for; windows, views and learning rates."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data.transforms import ResizeTransform
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler

from dcn_projects import add_dcn_config
from dcn_projects.modeling import DeepLabHead, SemSegTTA
from dcn_projects.modeling.meta_arch.deeplab import upsample_bilinear, window_options, window_starts
from dcn_projects.solver import build_optimizer

CONFIGS = Path(__file__).parents[2] / "configs/DeepLab"
NARROW = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 14),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.RESNETS.NORM", "BN"),
]


def make_cfg(name="deeplab_R_101_cityscapes", *opts):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(CONFIGS / f"{name}.yaml")
    cfg.merge_from_list(list(opts))
    return cfg


def make_model(*opts, name="deeplab_R_101_cityscapes"):
    torch.manual_seed(0)
    model = build_model(make_cfg(name, *NARROW, *opts)).eval()
    torch.nn.init.normal_(model.sem_seg_head.fc6.weight)
    torch.nn.init.normal_(model.sem_seg_head.score.weight)
    return model


def picture(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


# The head


def deconvolution(x, stride):
    """The layer of the original: a tent of 2s x 2s for every class, cropped by s / 2."""
    tent = 1 - ((torch.arange(2 * stride) + 0.5) / stride - 1).abs()
    kernel = (tent[:, None] * tent).expand(x.shape[1], 1, -1, -1).to(x)
    x = F.conv_transpose2d(x, kernel, stride=stride, groups=x.shape[1])
    return x[:, :, stride // 2 :, stride // 2 :]


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)], ids=str)
def test_upsampling_is_the_deconvolution(stride, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = upsample_bilinear(x, stride), deconvolution(x, stride)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = (torch.autograd.grad((y * weights).sum(), x) for y in (ours, theirs))
    torch.testing.assert_close(*gradients)


def test_upsampling_fades_towards_the_border():
    """As measured in the original: row r < 8 of a constant map is (17 + 2r) / 32 of it."""
    rows = upsample_bilinear(torch.ones(1, 1, 4, 4), 16)[0, 0, :, 30]
    expected = [(17 + 2 * r) / 32 for r in range(8)]
    np.testing.assert_allclose(rows[:8], expected)
    np.testing.assert_allclose(rows[8:56], 1)
    np.testing.assert_allclose(rows[56:], expected[::-1] + [(15 - 2 * r) / 32 for r in range(8)])


def test_the_result_covers_every_size():
    model = make_model()
    for n in range(200, 261):
        with torch.no_grad():
            (output,) = model([{"image": picture(n, 460 - n)}])
        assert output["sem_seg"].shape == (3, n, 460 - n)
        assert output["labels"].shape == (n, 460 - n)


def make_head(num_classes=3):
    return DeepLabHead(
        in_feature="res5",
        input_shape=ShapeSpec(channels=6, stride=16),
        conv_dim=5,
        num_classes=num_classes,
        ignore_value=255,
    )


def test_loss_is_the_mean_over_valid_pixels_then_over_images():
    torch.manual_seed(0)
    head = make_head()
    logits = torch.randn(3, 3, 20, 30)
    targets = torch.randint(0, 3, (3, 20, 30))
    targets[0, :15] = targets[2] = 255
    loss = head.loss(logits, targets)
    log_p = logits.log_softmax(dim=1)
    means = [
        np.mean([-log_p[n, t, y, x] for (y, x), t in np.ndenumerate(targets[n]) if t != 255])
        for n in range(2)
    ]
    assert loss.item() == pytest.approx(sum(means) / 3, rel=1e-5)  # the last has no pixels


def test_training_reads_the_part_that_the_labels_cover():
    torch.manual_seed(0)
    head = make_head().train()
    features = {"res5": torch.randn(1, 6, 3, 4)}
    targets = torch.randint(0, 3, (1, 33, 50))
    _, losses = head(features, targets)
    logits, _ = head.eval()(features)
    assert logits.shape == (1, 3, 56, 72)
    expected = F.cross_entropy(logits[:, :, :33, :50], targets)
    torch.testing.assert_close(losses, {"loss_sem_seg": expected})
    assert all(layer.weight.std() < 0.02 for layer in (head.fc6, head.score))


def test_one_feature_map_is_read():
    cfg = make_cfg("deeplab_R_101_voc", *NARROW, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4", "res5"])
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.IN_FEATURES is .*res4"):
        build_model(cfg)


# The network


def test_offsets_are_not_dilated():
    block = make_model(name="deformable_deeplab_R_101_cityscapes").backbone.res5[0]
    assert block.conv2.dilation == block.conv2.padding == (2, 2)
    assert block.conv2.conv_offset.dilation == block.conv2.conv_offset.padding == (1, 1)
    assert block.conv2.conv_offset.out_channels == 18


def test_zero_offsets_give_the_plain_network():
    plain, deformable = make_model(), make_model(name="deformable_deeplab_R_101_cityscapes")
    missing = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys and all("offset" in key for key in missing.missing_keys)
    inputs = [{"image": picture(97, 114)}]
    with torch.no_grad():
        ours, theirs = deformable.double()(inputs)[0], plain.double()(inputs)[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("deeplab_R_101_voc", 44_641_365 - 21 * 1024),
        ("deformable_deeplab_R_101_voc", 44_890_251 - 21 * 1024),
        ("deeplab_R_101_cityscapes", 44_637_267 - 19 * 1024),
        ("deformable_deeplab_R_101_cityscapes", 44_886_153 - 19 * 1024),
    ],
)
def test_number_of_parameters(name, parameters):
    """As counted in the originals, without the kernel of the deconvolution."""
    with torch.device("meta"):
        model = build_model(make_cfg(name, "MODEL.DEVICE", "meta"))
    affine = [t for n, t in model.named_buffers() if n.endswith(("norm.weight", "norm.bias"))]
    assert sum(t.numel() for t in [*model.parameters(), *affine]) == parameters


# The solver


@pytest.mark.parametrize("name", ["deformable_deeplab_R_101_voc", "deeplab_R_101_cityscapes"])
def test_learning_rates(name):
    cfg = make_cfg(name, "MODEL.DEVICE", "cpu", *NARROW[4:-2])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    of = {p: group for group in optimizer.param_groups for p in group["params"]}
    for n, p in model.named_parameters():
        if not p.requires_grad:
            assert "stem" in n or "res2" in n
        elif n.endswith("bias"):
            assert (of[p]["lr"], of[p]["weight_decay"]) == (0.004, 0.0)
        else:
            assert (of[p]["lr"], of[p]["weight_decay"]) == (0.002, 0.000125)


SCHEDULES = {  # iteration -> of the learning rate
    "deeplab_R_101_cityscapes": {0: 0.1, 999: 0.1, 1000: 1, 59998: 1, 59999: 0.1, 78810: 0.1},
    "deformable_deeplab_R_101_voc": {0: 1, 42327: 1, 42328: 0.1, 63491: 0.1},
    "deeplab_R_14_digits": {0: 0.01, 100: (29 / 30) ** 0.9, 1500: 0.5**0.9, 2700: 0.1**0.9},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    cfg = make_cfg(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration, expected in SCHEDULES[name].items():
        scheduler.last_epoch = iteration
        assert scheduler.get_lr() == [pytest.approx(expected)], iteration


# Windows and views


@pytest.mark.parametrize(
    "arguments, expected",
    [((10, 4, 3), [0, 3, 6]), ((10, 4, 4), [0, 4, 6]), ((4, 4, 1), [0]), ((3, 4, 2), [0])],
)
def test_window_starts(arguments, expected):
    assert window_starts(*arguments) == expected


WINDOWS = ["TEST.WINDOW_SIZE", [64, 80], "TEST.WINDOW_STRIDE", [48, 40]]


def test_windows_are_averaged():
    model, whole = make_model(*WINDOWS), make_model()
    image = picture(100, 130)
    expected, counts = torch.zeros(3, 100, 130), torch.zeros(100, 130)
    with torch.no_grad():
        for y in (0, 36):
            for x in (0, 40, 50):
                window = image[:, y : y + 64, x : x + 80]
                expected[:, y : y + 64, x : x + 80] += whole([{"image": window}])[0]["sem_seg"]
                counts[y : y + 64, x : x + 80] += 1
        (output,) = model([{"image": image}])
    torch.testing.assert_close(output["sem_seg"], expected / counts)
    torch.testing.assert_close(output["labels"], expected.div(counts).argmax(dim=0))


def test_a_window_as_large_as_the_image_is_the_whole_image():
    inputs = [{"image": picture(64, 70), "height": 32, "width": 35}]
    with torch.no_grad():
        torch.testing.assert_close(make_model(*WINDOWS)(inputs)[0], make_model()(inputs)[0])


@pytest.mark.parametrize(
    "size, stride",
    [([64], [64]), ([64, 64], []), ([], [8, 8]), ([64, 64], [65, 8]), ([8, 8], [0, 8])],
)
def test_mistaken_windows_are_named(size, stride):
    cfg = make_cfg("deeplab_R_101_voc", "TEST.WINDOW_SIZE", size, "TEST.WINDOW_STRIDE", stride)
    with pytest.raises(ValueError, match="TEST.WINDOW_SIZE and TEST.WINDOW_STRIDE must be"):
        window_options(cfg)


@pytest.mark.parametrize("windows", [[], WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("flip", [False, True])
def test_views_are_averaged(flip, windows):
    aug = ["TEST.AUG.SCALES", [[64, 100], [96, 120]], "TEST.AUG.FLIP", flip]
    model = make_model(*windows)
    view = SemSegTTA(make_cfg("deeplab_R_101_cityscapes", *aug), model)
    image = picture(80, 100)
    (output,) = view([{"image": image, "height": 40, "width": 50}])
    expected = []
    for height, width in ((64, 80), (96, 120)):
        pixels = ResizeTransform(80, 100, height, width).apply_image(image.permute(1, 2, 0).numpy())
        for mirrored in (False, True) if flip else (False,):
            seen = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            seen = seen.flip(-1) if mirrored else seen
            with torch.no_grad():
                (one,) = model([{"image": seen, "height": 40, "width": 50}])
            one = one["sem_seg"].softmax(dim=0)
            expected.append(one.flip(-1) if mirrored else one)
    torch.testing.assert_close(output["sem_seg"], torch.stack(expected).mean(dim=0))
