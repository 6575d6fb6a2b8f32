"""R-CNN feature mimicking of DCNv2: patches, their pairing with RoIs, losses and gradients."""

import datetime
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.config import checks_of
from dcn_projects.modeling import MimicRCNN
from dcn_projects.modeling.meta_arch.mimic_rcnn import check_mimic, crop_patches
from tests.modeling.narrow_models import make_mimic_cfg

K, SIZE = 3, 64  # of the narrow model


@pytest.fixture(scope="module")
def trained():
    """Weights with which no layer is zero and features differ from RoI to RoI."""
    torch.manual_seed(0)
    model = build_model(make_mimic_cfg())
    for name, p in model.named_parameters():
        if "conv2.conv_offset" in name or "offset_mask_fc" in name or "conv_new" in name:
            torch.nn.init.normal_(p, std=0.1)
        if name.startswith(("roi_heads.box_head", "mimic_score")):
            torch.nn.init.normal_(p, std=0.3)
    return model.state_dict()


def make_model(trained, **mimic):
    model = build_model(make_mimic_cfg(**mimic))
    model.load_state_dict(trained)
    return model


def make_proposals(boxes, classes, size):
    p = Instances(size, proposal_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
    p.gt_classes = torch.tensor(classes, dtype=torch.long)
    return p


def make_batch():
    """Two images of different size, padded to one, with 2 and 3 foreground RoIs among others."""
    torch.manual_seed(1)
    sizes = [(96, 80), (64, 128)]
    images = ImageList.from_tensors([torch.randn(3, *size) for size in sizes])
    boxes = [
        [[0, 0, 16, 96], [8, 4, 60.5, 70], [30, 40, 80, 96], [1, 1, 79, 20]],
        [[64, 10.3, 128, 64], [3, 3, 50, 40], [0, 0, 99, 30], [70, 5, 90, 63]],
    ]
    classes = [[K, 0, 2, K], [1, K, 0, 2]]
    return images, [make_proposals(*x) for x in zip(boxes, classes, sizes)]


def foreground(images, proposals):
    """(image index, box, class) of each foreground RoI."""
    return [
        (i, box, int(c))
        for i, p in enumerate(proposals)
        for box, c in zip(p.proposal_boxes.tensor, p.gt_classes)
        if c != K
    ]


def slow_losses(model, images, proposals):
    """One RoI at a time, each with its image and its patch alone."""
    distances, entropies = [], []
    for i, box, c in foreground(images, proposals):
        image = images[i]
        student = model.roi_heads.box_features(
            model.backbone(images.tensor[i : i + 1]), [Boxes(box[None])]
        )
        patch = crop_patches(image, box[None], SIZE)
        whole = Boxes(torch.tensor([[0.0, 0, SIZE, SIZE]]))
        teacher = model.roi_heads.box_features(model.backbone(patch), [whole])
        a, b = student[0], teacher[0]
        distances.append(1 - (a * b).sum() / (a.norm() * b.norm()))
        entropies.append(-torch.log_softmax(model.mimic_score(teacher)[0], dim=0)[c])
    return torch.stack(distances), torch.stack(entropies)


def slow_patch(image, box, size):
    """Bilinear samples at the centres of the patch's pixels, one at a time, borders repeated."""
    C, H, W = image.shape
    out = torch.zeros(C, size, size, dtype=image.dtype)
    x0, y0, x1, y1 = box.tolist()
    for i in range(size):
        for j in range(size):
            y = min(max(y0 + (i + 0.5) * (y1 - y0) / size - 0.5, 0), H - 1)
            x = min(max(x0 + (j + 0.5) * (x1 - x0) / size - 0.5, 0), W - 1)
            for a in (math.floor(y), math.floor(y) + 1):
                for b in (math.floor(x), math.floor(x) + 1):
                    weight = (1 - abs(y - a)) * (1 - abs(x - b))
                    if weight > 0:
                        out[:, i, j] += weight * image[:, a, b]
    return out


def test_patches():
    torch.manual_seed(0)
    image = torch.randn(2, 9, 13, dtype=torch.float64)
    boxes = torch.tensor(
        [[0, 0, 13, 9], [2.3, 1.7, 6.1, 8.9], [0, 0, 1, 9], [5, 3, 5.2, 3.1]], dtype=torch.float64
    )
    patches = crop_patches(image, boxes, 6)
    assert_close(patches, torch.stack([slow_patch(image, box, 6) for box in boxes]))
    resized = F.interpolate(image[None], (6, 6), mode="bilinear", align_corners=False)
    assert_close(patches[:1], resized)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_patches_are_exact_under_autocast(dtype):
    """In 16 bits a corner at 1201.3 would move by pixels."""
    torch.manual_seed(0)
    image, boxes = torch.randn(1, 20, 1333), torch.tensor([[1201.3, 2.2, 1267.9, 17.1]])
    with torch.autocast("cpu", dtype):
        patches = crop_patches(image, boxes, 8)
    expected = slow_patch(image.double(), boxes[0].double(), 8)
    assert_close(patches[0].double(), expected, rtol=1e-3, atol=1e-3)


def test_patches_do_not_reach_into_the_padding(trained):
    model = make_model(trained)
    images, proposals = make_batch()
    features = model.backbone(images.tensor)
    images.tensor[0, :, :, 80:] = math.nan
    images.tensor[1, :, 64:] = math.nan
    losses = model.mimic_losses(images, features, proposals)
    assert all(torch.isfinite(x) for x in losses.values())


@pytest.mark.parametrize("reduction", ["sum_per_image", "mean"])
def test_losses_of_a_batch(trained, reduction):
    model = make_model(trained, COS_WEIGHT=0.5, CLS_WEIGHT=0.25, REDUCTION=reduction)
    images, proposals = make_batch()
    with torch.no_grad():
        losses = model.mimic_losses(images, model.backbone(images.tensor), proposals)
        distances, entropies = slow_losses(model, images, proposals)
    assert len(distances) == 5 and distances.min() > 1e-3
    cos = distances.mean() if reduction == "mean" else distances.sum() / 2
    assert_close(losses["loss_mimic_cos"], 0.5 * cos, rtol=1e-3, atol=1e-4)
    assert_close(losses["loss_mimic_cls"], 0.25 * entropies.mean(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("empty", [0, 1])
def test_an_image_without_foreground(trained, empty):
    """It takes part in the mean over the images, and the other one has its RoIs."""
    model = make_model(trained, COS_WEIGHT=0.5, CLS_WEIGHT=0.25)
    images, proposals = make_batch()
    proposals[empty].gt_classes.fill_(K)
    with torch.no_grad():
        losses = model.mimic_losses(images, model.backbone(images.tensor), proposals)
        distances, entropies = slow_losses(model, images, proposals)
    assert len(distances) == (3, 2)[empty]
    assert_close(losses["loss_mimic_cos"], 0.5 * distances.sum() / 2, rtol=1e-3, atol=1e-4)
    assert_close(losses["loss_mimic_cls"], 0.25 * entropies.mean(), rtol=1e-3, atol=1e-4)


def test_identical_features_cost_nothing(trained):
    """
    RoIs that are whole images of the size of a patch are their own patches. The images differ, and
    have different numbers of foreground RoIs in different places.
    """
    model = make_model(trained, COS_WEIGHT=1.0)
    torch.manual_seed(2)
    noise = torch.randn(3, 3, SIZE, SIZE)
    images = ImageList(noise + 5 * torch.randn(3, 3, 1, 1), [(SIZE, SIZE)] * 3)  # of three colours
    whole, part = [0, 0, SIZE, SIZE], [5, 5, 40, 40]
    proposals = [
        make_proposals([part, whole], [K, 0], (SIZE, SIZE)),
        make_proposals([whole, part, whole, whole], [1, K, 2, 0], (SIZE, SIZE)),
        make_proposals([part, part, whole], [K, K, 2], (SIZE, SIZE)),
    ]
    with torch.no_grad():
        features = model.backbone(images.tensor)
        loss = model.mimic_losses(images, features, proposals)["loss_mimic_cos"]
        others = {k: v.roll(1, 0) for k, v in features.items()}  # each beside another's patches
        wrong = model.mimic_losses(images, others, proposals)["loss_mimic_cos"]
    assert abs(loss) < 1e-5 and wrong > 0.05


def gradients(model, loss):
    parameters = dict(model.named_parameters())
    loss.backward()
    return {n: p.grad for n, p in parameters.items()}


SHARED = ("backbone.", "roi_heads.conv_new.", "roi_heads.box_pooler.", "roi_heads.box_head.")


@pytest.mark.parametrize("name, classifier", [("loss_mimic_cos", False), ("loss_mimic_cls", True)])
def test_gradient_reaches_what_is_shared(trained, name, classifier):
    """Backbone, RoI pooling with its offsets, both layers; the own classifier, and nothing else."""
    model = make_model(trained)
    images, proposals = make_batch()
    losses = model.mimic_losses(images, model.backbone(images.tensor), proposals)
    for n, grad in gradients(model, losses[name]).items():
        learns = n.startswith(SHARED) or (classifier and n.startswith("mimic_score."))
        assert (grad is not None and bool(grad.any())) == learns, n


def test_a_detached_teacher_is_constant(trained):
    images, proposals = make_batch()
    images.image_sizes, images.tensor = images.image_sizes[:1], images.tensor[:1]
    proposals = proposals[:1]
    grads = []
    for detach in (True, False):
        model = make_model(trained, DETACH_TEACHER=detach, COS_WEIGHT=1.0)
        features = model.backbone(images.tensor)
        losses = model.mimic_losses(images, features, proposals)
        grads.append(gradients(model, losses["loss_mimic_cos"]))
    model.zero_grad()
    boxes = [proposals[0].proposal_boxes[1:3]]
    with torch.no_grad():
        patches = crop_patches(images[0], boxes[0].tensor, SIZE)
        whole = [Boxes(torch.tensor([[0.0, 0, SIZE, SIZE]]))] * 2
        teacher = model.roi_heads.box_features(model.backbone(patches), whole)
    student = model.roi_heads.box_features(model.backbone(images.tensor), boxes)
    expected = gradients(model, (1 - F.cosine_similarity(student, teacher)).sum())
    for n, grad in expected.items():
        if grad is not None:
            assert_close(grads[0][n], grad, rtol=1e-2, atol=1e-4 * float(grad.abs().max()) + 1e-7)
    name = "roi_heads.box_head.fc1.weight"
    assert (grads[1][name] - expected[name]).abs().max() > 0.1 * expected[name].abs().max()


def test_nothing_to_mimic(trained):
    """Without foreground both losses are 0, and whatever learns of them has a gradient of 0."""
    model = make_model(trained, MIN_BOX=1000)
    images, proposals = make_batch()
    losses = model.mimic_losses(images, model.backbone(images.tensor), proposals)
    assert all(x == 0 for x in losses.values())
    for name, grad in gradients(model, sum(losses.values())).items():
        learns = name.startswith((*SHARED, "mimic_score."))
        assert grad is not None and not grad.any() if learns else grad is None, name


def test_the_choice(trained):
    boxes = [[0, 0, 16, 40], [0, 0, 17, 40], [0, 0, 40, 10], [5, 5, 50, 50], [0, 0, 60, 60]]
    p = make_proposals(boxes, [0, 1, 2, K, 1], (64, 64))
    model = make_model(trained, MIN_BOX=16)
    assert sorted(model.choose(p).gt_classes.tolist()) == [1, 1]
    model = make_model(trained, NUM_SAMPLES=2)
    torch.manual_seed(0)
    pairs = {tuple(sorted(model.choose(p).proposal_boxes.area().int().tolist())) for _ in range(60)}
    areas = [640, 680, 400, 3600]  # of the foreground
    assert pairs == {tuple(sorted((a, b))) for a in areas for b in areas if a < b}


def make_inputs():
    torch.manual_seed(3)
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 20:50, 20:60] = True
    instances = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[20.0, 20, 60, 50]])))
    instances.gt_classes, instances.gt_masks = torch.tensor([1]), BitMasks(mask)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    return [dict(image=image, instances=instances, height=64, width=96) for _ in range(2)]


def test_training_has_the_losses_of_both(trained):
    model = make_model(trained)
    with EventStorage():
        losses = model(make_inputs())
    mimic = {"loss_mimic_cos", "loss_mimic_cls"}
    assert mimic < set(losses)
    cfg = make_mimic_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with EventStorage():
        assert set(build_model(cfg)(make_inputs())) == set(losses) - mimic


def without_objects(inputs):
    return [{**x, "instances": x["instances"][:0]} for x in inputs]


def train_a_step(rank, folder):
    """Two images each; those of the second process have no objects. Saves all gradients."""
    torch.set_num_threads(1)
    options = dict(rank=rank, world_size=2, timeout=datetime.timedelta(seconds=200))
    dist.init_process_group("gloo", f"file://{folder}/store", **options)
    cfg = make_mimic_cfg()
    cfg.MODEL.RESNETS.NORM = "naiveSyncBN"  # the one that runs on the CPU
    torch.manual_seed(0)
    model = DistributedDataParallel(build_model(cfg), broadcast_buffers=False)
    for _ in range(2):  # the second finds a gradient that is missing in the first
        with EventStorage():
            losses = model(without_objects(make_inputs()) if rank == 1 else make_inputs())
        sum(losses.values()).backward()
    losses = {name: float(x.detach()) for name, x in losses.items()}
    torch.save((losses, [p.grad for p in model.parameters()]), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


TWO_PROCESSES = """
import sys, torch
from tests.modeling.test_mimic_rcnn import train_a_step
torch.multiprocessing.start_processes(
    train_a_step, (sys.argv[1],), nprocs=2, start_method="fork"
)
"""


def test_a_process_without_foreground(tmp_path):
    """Neither SyncBN nor DistributedDataParallel waits for it, and the gradients are the same."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, tmp_path], env=env, timeout=300, **output
    )
    assert done.returncode == 0, done.stdout
    (first, of_first), (second, of_second) = (
        torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)
    )
    assert all(
        first[name] > 0 and second[name] == 0 for name in ("loss_mimic_cos", "loss_mimic_cls")
    )
    assert all(torch.equal(*pair) for pair in zip(of_first, of_second))


def test_inference_is_that_of_the_detector(trained):
    """The weights without the branch are those of the plain model, and the same code runs."""
    model = make_model(trained).eval()
    cfg = make_mimic_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    plain = build_model(cfg).eval()
    branch = {"mimic_score.weight", "mimic_score.bias"}
    assert set(model.state_dict()) - set(plain.state_dict()) == branch
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k not in branch})
    assert MimicRCNN.inference is GeneralizedRCNN.inference

    model.mimic_score.register_forward_hook(lambda *_: pytest.fail("the branch ran"))
    with torch.no_grad():
        found, expected = (m(make_inputs())[0]["instances"] for m in (model, plain))
    assert len(found) > 0
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(found.get(field), expected.get(field))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.MIMIC.NUM_SAMPLES", 0, "MODEL.MIMIC.NUM_SAMPLES is 0"),
        ("MODEL.MIMIC.PATCH_SIZE", 0, "MODEL.MIMIC.PATCH_SIZE is 0"),
        ("MODEL.MIMIC.REDUCTION", "sum", "MODEL.MIMIC.REDUCTION is sum"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "NAME is StandardROIHeads: MimicRCNN needs"),
        (
            "MODEL.PROPOSAL_GENERATOR.NAME",
            "PrecomputedProposals",
            "MODEL.PROPOSAL_GENERATOR.NAME is",
        ),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "MODEL.ROI_BOX_HEAD.NUM_FC is 0"),
    ],
)
def test_wrong_values_are_named(key, value, message):
    cfg = make_mimic_cfg()
    cfg.merge_from_list([key, value])
    if value == "StandardROIHeads":
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "ROIAlignV2"
    cfg.MODEL.ROI_BOX_HEAD.update(dict(NUM_CONV=1, CONV_DIM=8))
    with pytest.raises(ValueError, match=message):
        build_model(cfg)
    if not key.endswith(("PATCH_SIZE", "NUM_FC")):  # what does not need the built parts
        with pytest.raises(ValueError, match=message):
            check_mimic(cfg)
        assert check_mimic in checks_of(MimicRCNN)


def test_the_patch_must_fit_the_pyramid():
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file("configs/DCNv2/mask_rcnn_R_14_FPN_gn_mdconv_mdpool_mimic_digits.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.MIMIC.PATCH_SIZE = "cpu", 48
    with pytest.raises(ValueError, match="MODEL.MIMIC.PATCH_SIZE is 48, expected a multiple of 32"):
        build_model(cfg)
