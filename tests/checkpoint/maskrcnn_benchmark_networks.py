"""
Detectors of maskrcnn-benchmark, and Dynamic R-CNN's, as their modules define them: names and shapes
of their parameters, and what they compute, in float64.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tests.layers import reference


@dataclass
class MaskRCNNBenchmark:
    """
    Args:
        fpn: a feature pyramid, or res5 on RoIs (C4)
        mask: with the mask branch
        gn: GroupNorm everywhere instead of frozen norms, with `xconvs`
        xconvs: a box head of four convolutions and a fully connected layer, instead of two of these
        dcn: "", "v1" or "v2": deformable 3x3 convolutions in layer2..layer4
        flat: names of Dynamic R-CNN's code
        agnostic: boxes without classes: of background and foreground
        classes: with the background
        units: blocks of the four stages
        stem, width, dim, fc: channels of the stem, of the bottlenecks of layer1, of pyramid and
            heads, and of fully connected layers
    """

    fpn: bool
    mask: bool
    gn: bool = False
    xconvs: bool = False
    dcn: str = ""
    flat: bool = False
    agnostic: bool = False
    classes: int = 81
    anchors: int = 3
    units: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    width: int = 64
    dim: int = 256
    fc: int = 1024

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, of parameters and buffers."""
        shapes, dim = {}, self.dim

        def layer(name, *shape, bias=True):
            shapes[f"{name}.weight"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[:1]

        def norm(name, channels):
            frozen = () if self.gn else ("running_mean", "running_var")
            for kind in ("weight", "bias", *frozen):
                shapes[f"{name}.{kind}"] = (channels,)

        def with_gn(name, *shape):
            if self.gn:
                layer(f"{name}.0", *shape, bias=False)
                norm(f"{name}.1", shape[0])
            else:
                layer(name, *shape)

        def stage(name, index):
            inputs = self.stem if index == 1 else self.width * 2**index
            width = self.width * 2 ** (index - 1)
            for i in range(self.units[index - 1]):
                block = f"{name}.layer{index}.{i}"
                if i == 0:
                    layer(f"{block}.downsample.0", 4 * width, inputs, 1, 1, bias=False)
                    norm(f"{block}.downsample.1", 4 * width)
                layer(f"{block}.conv1", width, inputs, 1, 1, bias=False)
                if self.dcn and index > 1:
                    taps = 27 if self.dcn == "v2" else 18
                    layer(f"{block}.conv2.offset", taps, width, 3, 3)
                    layer(f"{block}.conv2.conv", width, width, 3, 3, bias=False)
                else:
                    layer(f"{block}.conv2", width, width, 3, 3, bias=False)
                layer(f"{block}.conv3", 4 * width, width, 1, 1, bias=False)
                for k, channels in enumerate((width, width, 4 * width), 1):
                    norm(f"{block}.bn{k}", channels)
                inputs = 4 * width

        layer("backbone.body.stem.conv1", self.stem, 3, 7, 7, bias=False)
        norm("backbone.body.stem.bn1", self.stem)
        for index in range(1, 5 if self.fpn else 4):
            stage("backbone.body", index)
        for i in range(1, 5 if self.fpn else 1):
            with_gn(f"backbone.fpn.fpn_inner{i}", dim, self.width * 2 ** (i + 1), 1, 1)
            with_gn(f"backbone.fpn.fpn_layer{i}", dim, dim, 3, 3)
        rpn = dim if self.fpn else self.width * 16
        layer(self.name("rpn.head.conv"), rpn, rpn, 3, 3)
        layer(self.name("rpn.head.cls_logits"), self.anchors, rpn, 1, 1)
        layer(self.name("rpn.head.bbox_pred"), 4 * self.anchors, rpn, 1, 1)
        for i in range(5 if self.fpn else 1):
            shapes[self.name(f"rpn.anchor_generator.cell_anchors.{i}")] = (self.anchors, 4)
        box = "roi_heads.box.feature_extractor"
        if not self.fpn:
            stage(f"{box}.head", 4)
        elif self.xconvs:
            for k in range(4):
                layer(self.xconv(k), dim, dim, 3, 3, bias=not self.gn)
                if self.gn:
                    norm(self.xconv(k, norm=1), dim)
            layer(f"{box}.fc6", self.fc, 49 * dim)
        else:
            layer(self.name(f"{box}.fc6"), self.fc, 49 * dim)
            layer(self.name(f"{box}.fc7"), self.fc, self.fc)
        features = self.fc if self.fpn else self.width * 32
        layer(self.name("roi_heads.box.predictor.cls_score"), self.classes, features)
        boxes = 2 if self.agnostic else self.classes
        layer(self.name("roi_heads.box.predictor.bbox_pred"), 4 * boxes, features)
        if self.mask:
            mask = "roi_heads.mask.feature_extractor"
            if not self.fpn:
                stage(f"{mask}.head", 4)
            for k in range(1, 5 if self.fpn else 1):
                with_gn(f"{mask}.mask_fcn{k}", dim, dim, 3, 3)
            inputs = dim if self.fpn else self.width * 32
            shapes["roi_heads.mask.predictor.conv5_mask.weight"] = (inputs, dim, 2, 2)
            shapes["roi_heads.mask.predictor.conv5_mask.bias"] = (dim,)
            layer("roi_heads.mask.predictor.mask_fcn_logits", self.classes, dim, 1, 1)
        return shapes

    def name(self, name: str) -> str:
        """rpn.head.conv -> rpn_conv, and so on, of Dynamic R-CNN."""
        if not self.flat:
            return name
        if name.startswith("rpn.head"):
            return "rpn_" + name.rsplit(".", 1)[1]
        if name.startswith("rpn"):
            return name.removeprefix("rpn.")
        return name.rsplit(".", 1)[1]

    def xconv(self, k: int, norm: int = 0) -> str:
        """Convolution k of the box head, or its norm; ReLU is a module, too."""
        return f"roi_heads.box.feature_extractor.xconvs.{(3 if self.gn else 2) * k + norm}"

    def run(self, arrays, image, box_rois, mask_rois) -> dict[str, list]:
        """
        Args:
            arrays: as in `parameters`
            image: (H, W, 3), BGR pixels, multiples of 32
            box_rois, mask_rois: (R, C, h, w), what is pooled from RoIs; C4 has one for both
        Returns:
            dict: "scores" (H, W, A) and "deltas" (H, W, 4A) of each map of the RPN; "classes"
            [(R, classes)] logits, "boxes" [(R, boxes * 4)]; "masks" (R, 2h, 2w, classes - 1)
            logits of the foreground
        """
        image, box_rois, mask_rois = (
            torch.from_numpy(x).double() for x in (image, box_rois, mask_rois)
        )
        p = {name: torch.from_numpy(array).double() for name, array in arrays.items()}

        def layer(name, x, **geometry):
            name = name if name + ".weight" in p else self.name(name)
            apply = F.conv2d if p[name + ".weight"].dim() == 4 else F.linear
            return apply(x, p[name + ".weight"], p.get(name + ".bias"), **geometry)

        def norm(name, x):
            weight, bias = (p[f"{name}.{kind}"].view(-1, 1, 1) for kind in ("weight", "bias"))
            if self.gn:
                return F.group_norm(x, 32, weight.flatten(), bias.flatten())
            mean, var = (p[f"{name}.running_{kind}"].view(-1, 1, 1) for kind in ("mean", "var"))
            return (x - mean) / var.sqrt() * weight + bias

        def with_gn(name, x, **geometry):
            if self.gn:
                return norm(f"{name}.1", layer(f"{name}.0", x, **geometry))
            return layer(name, x, **geometry)

        def conv2(name, x, stride):
            if name + ".offset.weight" not in p:
                return layer(name, x, stride=stride, padding=1)
            offset = layer(name + ".offset", x, stride=stride, padding=1)
            mask = offset[:, 18:].sigmoid() if self.dcn == "v2" else None
            return reference.deform_conv(
                x, offset[:, :18], p[name + ".conv.weight"], None, stride, 1, mask=mask
            )

        def stage(name, index, x):
            for i in range(self.units[index - 1]):
                block, stride = f"{name}.layer{index}.{i}", 2 if i == 0 and index > 1 else 1
                in_1x1, in_3x3 = (1, stride) if self.gn else (stride, 1)
                y = F.relu(norm(f"{block}.bn1", layer(f"{block}.conv1", x, stride=in_1x1)))
                y = F.relu(norm(f"{block}.bn2", conv2(f"{block}.conv2", y, in_3x3)))
                y = norm(f"{block}.bn3", layer(f"{block}.conv3", y))
                if i == 0:
                    x = layer(f"{block}.downsample.0", x, stride=stride)
                    x = norm(f"{block}.downsample.1", x)
                x = F.relu(x + y)
            return x

        mean = torch.tensor([102.9801, 115.9465, 122.7717], dtype=torch.float64)
        image = (image - mean).permute(2, 0, 1)[None]
        x = layer("backbone.body.stem.conv1", image, stride=2, padding=3)
        x = F.max_pool2d(F.relu(norm("backbone.body.stem.bn1", x)), 3, 2, 1)
        maps = []
        for index in range(1, 5 if self.fpn else 4):
            x = stage("backbone.body", index, x)
            maps.append(x)
        if self.fpn:
            top, levels = 0, []
            for i in (4, 3, 2, 1):
                if i < 4:
                    top = F.interpolate(top, scale_factor=2, mode="nearest")
                top = with_gn(f"backbone.fpn.fpn_inner{i}", maps[i - 1]) + top
                levels.insert(0, with_gn(f"backbone.fpn.fpn_layer{i}", top, padding=1))
            maps = [*levels, F.max_pool2d(levels[-1], 1, 2)]
        else:
            maps = maps[-1:]
        maps = [F.relu(layer("rpn.head.conv", x, padding=1)) for x in maps]
        out = {
            "scores": [channels_last(layer("rpn.head.cls_logits", x))[0] for x in maps],
            "deltas": [channels_last(layer("rpn.head.bbox_pred", x))[0] for x in maps],
            "masks": [],
        }
        box = "roi_heads.box.feature_extractor"
        if not self.fpn:
            x = stage(f"{box}.head", 4, box_rois).mean(dim=(2, 3))
        elif self.xconvs:
            x = box_rois
            for k in range(4):
                x = layer(self.xconv(k), x, padding=1)
                x = F.relu(norm(self.xconv(k, norm=1), x) if self.gn else x)
            x = F.relu(layer(f"{box}.fc6", x.flatten(1)))
        else:
            x = F.relu(layer(f"{box}.fc6", box_rois.flatten(1)))
            x = F.relu(layer(f"{box}.fc7", x))
        out["classes"] = [layer("roi_heads.box.predictor.cls_score", x).numpy()]
        out["boxes"] = [layer("roi_heads.box.predictor.bbox_pred", x).numpy()]
        if self.mask:
            mask, x = "roi_heads.mask.feature_extractor", mask_rois
            if not self.fpn:
                x = stage(f"{mask}.head", 4, x)
            for k in range(1, 5 if self.fpn else 1):
                x = F.relu(with_gn(f"{mask}.mask_fcn{k}", x, padding=1))
            weight, bias = (
                p[f"roi_heads.mask.predictor.conv5_mask.{k}"] for k in ("weight", "bias")
            )
            x = F.relu(F.conv_transpose2d(x, weight, bias, stride=2))
            x = layer("roi_heads.mask.predictor.mask_fcn_logits", x)
            out["masks"] = channels_last(x[:, 1:])  # of label l, channel l
        return out


def channels_last(x):
    return x.permute(0, 2, 3, 1).numpy()
