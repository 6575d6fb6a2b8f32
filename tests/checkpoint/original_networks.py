"""
The eight detectors and two segmentors of the MXNet repository as its symbols define them: names and
shapes of their parameters, and what they compute, in float64.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_pool

from tests.layers import reference

# Parameters and statistics of batch normalisation of the published networks, plain and deformable.
COUNTS = {
    "R-FCN": (324, 334),
    "Faster R-CNN": (328, 336),
    "FPN": (344, 362),
    "DeepLab": (317, 323),
}


def bilinear_kernel(classes: int) -> Tensor:
    """Of the deconvolution of DeepLab, (classes, 1, 32, 32)."""
    tent = 1 - (torch.arange(32) / 16 - 0.96875).abs()
    return (tent[:, None] * tent).expand(classes, 1, 32, 32)


@dataclass
class Original:
    """
    Args:
        name: key of COUNTS
        deformable: with deformable convolutions and RoI pooling
        classes: with the background, 21 or 81; DeepLab has 19 without and 21 with it
        anchors: per cell of the RPN
        units: blocks of res2..res5
        shrink: divides the channels of all layers
    """

    name: str
    deformable: bool
    classes: int
    anchors: int
    units: tuple[int, ...] = (3, 4, 23, 3)
    shrink: int = 1

    def blocks(self, stage: int) -> list[str]:
        """Such as 3a, 3b1, 3b2, 3b3 or 5a, 5b, 5c."""
        if self.units[stage - 2] <= 3:
            return [f"{stage}{letter}" for letter in "abc"[: self.units[stage - 2]]]
        return [f"{stage}a", *(f"{stage}b{i}" for i in range(1, self.units[stage - 2]))]

    def deformable_blocks(self) -> list[str]:
        if not self.deformable:
            return []
        last = [self.blocks(3)[-1], self.blocks(4)[-1]] if self.name == "FPN" else []
        return last + self.blocks(5)

    def resnet(self) -> dict[str, tuple[int, ...]]:
        """ "arg:NAME" or "aux:NAME" -> shape, of the plain ResNet."""
        shapes = {}

        def conv(name, out, *rest):
            shapes[f"arg:{name}_weight"] = (out, *rest)
            norm = f"bn_{name}" if name == "conv1" else name.replace("res", "bn")
            for kind in ("arg:{}_gamma", "arg:{}_beta", "aux:{}_moving_mean", "aux:{}_moving_var"):
                shapes[kind.format(norm)] = (out,)

        inputs = 64 // self.shrink
        conv("conv1", inputs, 3, 7, 7)
        for stage in range(2, 6):
            width = 16 * 2**stage // self.shrink
            for block in self.blocks(stage):
                if block.endswith("a"):
                    conv(f"res{block}_branch1", 4 * width, inputs, 1, 1)
                conv(f"res{block}_branch2a", width, inputs, 1, 1)
                conv(f"res{block}_branch2b", width, width, 3, 3)
                conv(f"res{block}_branch2c", 4 * width, width, 1, 1)
                inputs = 4 * width
        return shapes

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Layers with a weight of this shape and a bias."""
        res4, res5, hidden, fc = (n // self.shrink for n in (1024, 2048, 512, 1024))
        narrow = 256 // self.shrink
        layers = {}
        groups = 1 if self.name == "DeepLab" else 4
        for block in self.deformable_blocks():
            width = 16 * 2 ** int(block[0]) // self.shrink
            layers[f"res{block}_branch2b_offset"] = (groups * 18, width, 3, 3)  # 9 taps, (y, x)
        if self.name == "DeepLab":
            layers["fc6"] = (fc, res5, 1, 1)
            layers["score"] = (self.classes, fc, 1, 1)
            return layers
        if self.name == "FPN":
            for i in range(2, 6):
                layers[f"fpn_p{i}_1x1"] = (narrow, 64 * 2**i // self.shrink, 1, 1)
                layers[f"fpn_p{i}"] = (narrow, narrow, 3, 3)
            layers["fpn_p6"] = (narrow, res5, 3, 3)
            layers["rpn_conv"] = (hidden, narrow, 3, 3)
        else:
            layers["rpn_conv_3x3"] = (hidden, res4, 3, 3)
            layers["conv_new_1"] = (fc if self.name == "R-FCN" else narrow, res5, 1, 1)
        layers["rpn_cls_score"] = (2 * self.anchors, hidden, 1, 1)
        layers["rpn_bbox_pred"] = (4 * self.anchors, hidden, 1, 1)
        if self.name == "R-FCN":
            layers["rfcn_cls"] = (49 * self.classes, fc, 1, 1)
            layers["rfcn_bbox"] = (49 * 8, fc, 1, 1)
            if self.deformable:
                layers["rfcn_cls_offset_t"] = (2 * 49 * self.classes, fc, 1, 1)
                layers["rfcn_bbox_offset_t"] = (2 * 49, fc, 1, 1)
            return layers
        layers["fc_new_1"] = (fc, 49 * narrow)
        layers["fc_new_2"] = (fc, fc)
        layers["cls_score"] = (self.classes, fc)
        layers["bbox_pred"] = (4 * self.classes, fc)
        if self.deformable:
            levels = [f"_p{i}" for i in range(2, 6)] if self.name == "FPN" else [""]
            layers |= {f"offset{level}": (98, 49 * narrow) for level in levels}
        return layers

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """ "arg:NAME" or "aux:NAME" -> shape."""
        shapes = self.resnet()
        for name, shape in self.layers().items():
            shapes |= {f"arg:{name}_weight": shape, f"arg:{name}_bias": shape[:1]}
        if self.name == "DeepLab":
            shapes["arg:upsampling_weight"] = (self.classes, 1, 32, 32)
        return shapes

    def run(self, arrays, image: Tensor, rois: Tensor) -> dict[str, list[Tensor] | Tensor]:
        """
        Args:
            arrays: as in `parameters`, with any of the box layer the one that detects
            image: (1, 3, H, W), RGB minus the mean; multiples of 32
            rois: (R, 5), far corners exclusive
        Returns:
            dict: per level "rpn_prob" (1, 2A, H, W), the background first, and "rpn_deltas"
            (1, 4A, H, W); "cls_prob" (R, classes), the background first, "deltas" (R, boxes * 4).
            Of DeepLab only "scores" (1, classes, H, W)
        """
        p = {n.split(":")[1]: torch.from_numpy(a).double() for n, a in arrays.items()}

        def layer(name, x, **geometry):
            apply = F.conv2d if p[name + "_weight"].dim() == 4 else F.linear
            return apply(x, p[name + "_weight"], p.get(name + "_bias"), **geometry)

        def norm(name, x):
            mean, var, gamma, beta = (
                p[f"{name}_{kind}"] for kind in ("moving_mean", "moving_var", "gamma", "beta")
            )
            return F.batch_norm(x, mean, var, gamma, beta, eps=1e-5)

        def block(name, x, stride, dilation):
            res, bn = f"res{name}_branch", f"bn{name}_branch"
            y = F.relu(norm(bn + "2a", layer(res + "2a", x, stride=stride)))
            geometry = dict(padding=dilation, dilation=dilation)
            if name in self.deformable_blocks():
                undilated = dict(padding=1) if self.name == "DeepLab" else geometry
                offset = layer(res + "2b_offset", y, **undilated)
                y = reference.deform_conv(
                    y, offset, p[res + "2b_weight"], **geometry, legacy_border=True
                )
            else:
                y = layer(res + "2b", y, **geometry)
            y = norm(bn + "2c", layer(res + "2c", F.relu(norm(bn + "2b", y))))
            if name.endswith("a"):
                x = norm(bn + "1", layer(res + "1", x, stride=stride))
            return F.relu(x + y)

        x = F.relu(norm("bn_conv1", layer("conv1", image, stride=2, padding=3)))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        res = {}
        for stage in range(2, 6):
            dilated = stage == 5 and self.name != "FPN"
            for i, name in enumerate(self.blocks(stage)):
                stride = 2 if i == 0 and stage > 2 and not dilated else 1
                x = block(name, x, stride, 2 if dilated else 1)
            res[stage] = x

        if self.name == "DeepLab":
            x = layer("score", F.relu(layer("fc6", res[5])))
            x = F.conv_transpose2d(x, p["upsampling_weight"], stride=16, groups=self.classes)
            return {"scores": x[:, :, 8 : 8 + image.shape[2], 8 : 8 + image.shape[3]]}

        if self.name == "FPN":
            top, levels = 0, {}
            for i in (5, 4, 3, 2):
                if i < 5:
                    top = F.interpolate(top, scale_factor=2, mode="nearest")
                top = layer(f"fpn_p{i}_1x1", res[i]) + top
                levels[i] = layer(f"fpn_p{i}", top, padding=1)
            levels[6] = layer("fpn_p6", res[5], stride=2, padding=1)
            rpn_in, rpn_conv = [levels[i] for i in range(2, 7)], "rpn_conv"
        else:
            rpn_in, rpn_conv = [res[4]], "rpn_conv_3x3"
        out = {"rpn_prob": [], "rpn_deltas": []}
        for x in rpn_in:
            x = F.relu(layer(rpn_conv, x, padding=1))
            background, foreground = layer("rpn_cls_score", x).chunk(2, dim=1)
            prob = torch.stack((background, foreground), dim=1).softmax(dim=1)
            out["rpn_prob"].append(prob.flatten(1, 2))
            out["rpn_deltas"].append(layer("rpn_bbox_pred", x))

        def pool(x, rois, scale, offset_fc):
            if not self.deformable:
                return roi_pool(x, rois - torch.tensor([0, 0, 0, 1.0, 1]), 7, scale)
            pooled = reference.deform_roi_pool(x, rois, None, 7, scale)
            offset = layer(offset_fc, pooled.flatten(1)).view(-1, 2, 7, 7)
            return reference.deform_roi_pool(x, rois, offset, 7, scale)

        if self.name == "R-FCN":
            x = F.relu(layer("conv_new_1", res[5]))
            votes = []
            for kind in ("cls", "bbox"):
                maps = layer(f"rfcn_{kind}", x)
                if self.deformable:
                    offset = layer(f"rfcn_{kind}_offset_t", x)
                    offset = reference.deform_roi_pool(offset, rois, None, 7, 1 / 16, group_size=7)
                    pooled = reference.deform_roi_pool(maps, rois, offset, 7, 1 / 16, group_size=7)
                else:
                    pooled = reference.ps_roi_pool(maps, rois, 7, 1 / 16)
                votes.append(pooled.mean(dim=(2, 3)))
            scores, out["deltas"] = votes
        else:
            if self.name == "FPN":
                sizes = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
                of_roi = (2 + (sizes / 224).log2()).floor().clamp(0, 3).long() + 2
                pooled = torch.cat(
                    [
                        pool(levels[i], roi[None], 0.5**i, f"offset_p{i}")
                        for i, roi in zip(of_roi.tolist(), rois)
                    ]
                )
            else:
                pooled = pool(F.relu(layer("conv_new_1", res[5])), rois, 1 / 16, "offset")
            x = F.relu(layer("fc_new_1", pooled.flatten(1)))
            x = F.relu(layer("fc_new_2", x))
            scores, out["deltas"] = layer("cls_score", x), layer("bbox_pred", x)
        out["cls_prob"] = scores.softmax(dim=1)
        return out
