"""
tensorpack's R-CNN models as its example defines them: names and shapes of their arrays, filters as
(rows, columns, in, out), and what they compute, in NumPy and float64, on maps of (H, W, C).
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Tensorpack:
    """
    Args:
        fpn: a feature pyramid, or res5 on RoIs (C4)
        mask: with the mask branch
        classes: with the background
        units: blocks of the four groups
        norm, fpn_norm, box_norm, mask_norm: "bn", "gn" or ""
        box_head: "2fc" or "4conv1fc"
        cascade: three box heads that share boxes between the classes
        anchors: per cell of the RPN
        stem, width, dim, fc: channels of conv0, of the bottlenecks of group0, of pyramid and heads,
            and of fully connected layers
        rpn: channels of the RPN; those of the pyramid if there is one
    """

    fpn: bool
    mask: bool
    classes: int = 81
    units: tuple[int, ...] = (3, 4, 6, 3)
    norm: str = "bn"
    fpn_norm: str = ""
    box_norm: str = ""
    mask_norm: str = ""
    box_head: str = "2fc"
    cascade: bool = False
    anchors: int = 3
    stem: int = 64
    width: int = 64
    dim: int = 256
    fc: int = 1024
    rpn: int = 1024

    def resnet(self) -> dict[str, tuple[int, ...]]:
        shapes = {}

        def conv(name, rows, inputs, out):
            shapes[f"{name}/W"] = (rows, rows, inputs, out)
            for kind in KINDS[self.norm]:
                shapes[f"{name}/{self.norm}/{kind}"] = (out,)

        conv("conv0", 7, 3, self.stem)
        inputs = self.stem
        for group, blocks in enumerate(self.units):
            width = self.width * 2**group
            for i in range(blocks):
                name = f"group{group}/block{i}"
                if i == 0:
                    conv(f"{name}/convshortcut", 1, inputs, 4 * width)
                conv(f"{name}/conv1", 1, inputs, width)
                conv(f"{name}/conv2", 3, width, width)
                conv(f"{name}/conv3", 1, width, 4 * width)
                inputs = 4 * width
        return shapes

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        shapes, dim = self.resnet(), self.dim

        def layer(name, *shape, norm=""):
            shapes[f"{name}/W"] = shape
            shapes[f"{name}/b"] = shape[2:3] if name.endswith("deconv") else shape[-1:]
            for kind in KINDS[norm]:
                shapes[f"{_norm_name(name)}/{kind}"] = shape[-1:]

        if self.fpn:
            for i in range(2, 6):
                inputs = self.width * 2**i
                layer(f"fpn/lateral_1x1_c{i}", 1, 1, inputs, dim, norm=self.fpn_norm)
                layer(f"fpn/posthoc_3x3_p{i}", 3, 3, dim, dim, norm=self.fpn_norm)
        rpn_in, rpn = (dim, dim) if self.fpn else (self.width * 16, self.rpn)
        layer("rpn/conv0", 3, 3, rpn_in, rpn)
        layer("rpn/class", 1, 1, rpn, self.anchors)
        layer("rpn/box", 1, 1, rpn, 4 * self.anchors)
        for head, outputs in self.heads():
            if head and self.box_head == "2fc":
                layer(f"{head}/fc6", 49 * dim, self.fc)
                layer(f"{head}/fc7", self.fc, self.fc)
            elif head:
                for k in range(4):
                    layer(f"{head}/conv{k}", 3, 3, dim, dim, norm=self.box_norm)
                layer(f"{head}/fc", 49 * dim, self.fc)
            features = self.fc if head else self.width * 32
            layer(f"{outputs}/class", features, self.classes)
            layer(f"{outputs}/box", features, 4 * (1 if self.cascade else self.classes))
        if self.mask:
            for k in range(4 if self.fpn else 0):
                layer(f"maskrcnn/fcn{k}", 3, 3, dim, dim, norm=self.mask_norm)
            layer("maskrcnn/deconv", 2, 2, dim, dim if self.fpn else self.width * 32)
            layer("maskrcnn/conv", 1, 1, dim, self.classes - 1)
        return shapes

    def heads(self) -> list[tuple[str, str]]:
        """Scopes of the layers and of the outputs of each box head."""
        if self.cascade:
            scopes = [f"cascade_rcnn_stage{i}" for i in (1, 2, 3)]
            return [(f"{scope}/head", f"{scope}/outputs") for scope in scopes]
        return [("fastrcnn", "fastrcnn/outputs") if self.fpn else ("", "fastrcnn")]

    def run(self, arrays, image, box_rois, mask_rois) -> dict[str, list[np.ndarray]]:
        """
        Args:
            arrays: as in `parameters`
            image: (H, W, 3), BGR pixels, multiples of 32
            box_rois, mask_rois: (R, C, h, w), what is pooled from RoIs, channels first as there;
                C4 has one for both
        Returns:
            dict: "scores" (H, W, A) and "deltas" (H, W, 4A) of each map of the RPN; "classes"
            (R, classes) logits and "boxes" (R, boxes * 4) of each box head; "masks", the
            (2h, 2w, classes - 1) logits of each RoI
        """
        p = {name: array.astype(np.float64) for name, array in arrays.items()}

        def layer(name, x, stride=1):
            y = conv(x, p[f"{name}/W"], p.get(f"{name}/b", 0), stride)
            if f"{name}/bn/gamma" in p:
                return batch_norm(y, *(p[f"{name}/bn/{kind}"] for kind in KINDS["bn"]))
            if f"{name}/gn/gamma" in p:
                return group_norm(y, p[f"{name}/gn/gamma"], p[f"{name}/gn/beta"])
            return y

        def group_norm_of(name, x):
            gamma = p.get(_norm_name(name) + "/gamma")
            return x if gamma is None else group_norm(x, gamma, p[_norm_name(name) + "/beta"])

        def group(index, x, stride):
            for i in range(self.units[index]):
                name, s = f"group{index}/block{i}", stride if i == 0 else 1
                y = relu(layer(f"{name}/conv1", x))
                y = layer(f"{name}/conv3", relu(layer(f"{name}/conv2", y, s)))
                x = relu(y + (layer(f"{name}/convshortcut", x, s) if i == 0 else x))
            return x

        def connected(name, x):
            return x @ p[f"{name}/W"] + p[f"{name}/b"]

        std, mean = np.array([57.375, 57.12, 58.395]), np.array([103.53, 116.28, 123.675])
        x = max_pool(relu(layer("conv0", (image - mean) / std, 2)))
        maps = []
        for i in range(4 if self.fpn else 3):
            x = group(i, x, 1 if i == 0 else 2)
            maps.append(x)
        if self.fpn:
            maps = self.pyramid(maps, lambda name, x: group_norm_of(name, layer(name, x)))
        else:
            maps = maps[-1:]
        out = {"scores": [], "deltas": [], "classes": [], "boxes": [], "masks": []}
        for x in maps:
            x = relu(layer("rpn/conv0", x))
            out["scores"].append(layer("rpn/class", x))
            out["deltas"].append(layer("rpn/box", x))

        def convolved(scope, names, roi):
            x = roi.transpose(1, 2, 0)
            for name in names:
                x = group_norm_of(f"{scope}/{name}", relu(layer(f"{scope}/{name}", x)))
            return x

        for head, outputs in self.heads():
            features = []
            for roi in box_rois:
                if not head:
                    x = group(3, roi.transpose(1, 2, 0), 2).mean(axis=(0, 1))
                elif self.box_head == "2fc":
                    x = relu(connected(f"{head}/fc6", roi.flatten()))
                    x = relu(connected(f"{head}/fc7", x))
                else:
                    x = convolved(head, [f"conv{k}" for k in range(4)], roi)
                    x = relu(connected(f"{head}/fc", x.transpose(2, 0, 1).flatten()))
                features.append(x)
            out["classes"].append(connected(f"{outputs}/class", np.stack(features)))
            out["boxes"].append(connected(f"{outputs}/box", np.stack(features)))
        for roi in mask_rois if self.mask else ():
            if self.fpn:
                x = convolved("maskrcnn", [f"fcn{k}" for k in range(4)], roi)
            else:
                x = group(3, roi.transpose(1, 2, 0), 2)
            x = relu(deconv(x, p["maskrcnn/deconv/W"], p["maskrcnn/deconv/b"]))
            out["masks"].append(layer("maskrcnn/conv", x))
        return out

    def pyramid(self, maps, layer):
        top, levels = 0, []
        for i in (5, 4, 3, 2):
            if i < 5:
                top = top.repeat(2, axis=0).repeat(2, axis=1)
            top = layer(f"fpn/lateral_1x1_c{i}", maps[i - 2]) + top
            levels.insert(0, layer(f"fpn/posthoc_3x3_p{i}", top))
        return [*levels, levels[-1][::2, ::2]]


KINDS = {"bn": ("gamma", "beta", "mean/EMA", "variance/EMA"), "gn": ("gamma", "beta"), "": ()}


def _norm_name(layer: str) -> str:
    """fpn/lateral_1x1_c2 -> fpn/gn_c2, maskrcnn/fcn0 -> maskrcnn/gn0, fastrcnn/conv0 -> .../gn0"""
    scope, _, name = layer.rpartition("/")
    return f"{scope}/gn_{name[-2:]}" if scope == "fpn" else f"{scope}/gn{name[-1:]}"


def relu(x):
    return np.maximum(x, 0)


def conv(x, weight, bias, stride):
    """(H, W, C) by (rows, columns, C, out); what strided layers pad in excess is above and left."""
    rows, columns, _, out = weight.shape
    before, after = rows // 2, (rows - 1) // 2 - (stride - 1)
    x = np.pad(x, ((before, max(after, 0)), (before, max(after, 0)), (0, 0)))
    height, width = ((n - rows) // stride + 1 for n in x.shape[:2])
    y = np.zeros((height, width, out)) + bias
    for i in range(rows):
        for j in range(columns):
            y += x[i : i + height * stride : stride, j : j + width * stride : stride] @ weight[i, j]
    return y


def deconv(x, weight, bias):
    """(H, W, C) by (2, 2, out, C), stride 2."""
    height, width, _ = x.shape
    y = np.zeros((2 * height, 2 * width, weight.shape[2])) + bias
    for i in range(2):
        for j in range(2):
            y[i::2, j::2] += x @ weight[i, j].T
    return y


def max_pool(x):
    """3 x 3, stride 2, of maps that ReLU has left; padded above and left."""
    height, width = (n // 2 for n in x.shape[:2])
    x = np.pad(x, ((1, 0), (1, 0), (0, 0)))
    windows = [x[i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


def batch_norm(x, gamma, beta, mean, variance):
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def group_norm(x, gamma, beta):
    groups = x.reshape(*x.shape[:2], 32, -1)
    groups = groups - groups.mean(axis=(0, 1, 3), keepdims=True)
    groups = groups / np.sqrt((groups**2).mean(axis=(0, 1, 3), keepdims=True) + 1e-5)
    return groups.reshape(x.shape) * gamma + beta
