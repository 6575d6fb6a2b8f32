"""
The parameters of the recorded networks: every array follows from its name and shape. The words of
NumPy's Philox generator, keyed by the CRC-32 of the name, give either a uniform number (53 bits) or
a bell-shaped one (the sum of four 16-bit fields), which is then scaled by the rule of the name.
"""

import json
import re
import zlib
from math import prod, sqrt
from pathlib import Path

import numpy as np

from tests.checkpoint.original_networks import bilinear_kernel

# The first pattern that is found in the name counts. ("bell", g): deviation g * sqrt(2 / fan_in);
# ("uniform", low, high); ("bilinear",): the kernel that upsamples DeepLab's scores.
_RULES = [
    (r"^upsampling_weight$", "bilinear"),
    (r"^bn.*_branch2c_gamma$", "uniform", 0.20, 0.30),
    (r"_gamma$", "uniform", 0.8, 1.2),
    (r"_beta$", "uniform", -0.2, 0.2),
    (r"_moving_mean$", "uniform", -0.1, 0.1),
    (r"_moving_var$", "uniform", 0.5, 1.5),
    (r"^conv1_weight$", "bell", 1 / 64),
    (r"^rpn_cls_score_weight$", "bell", 0.12),
    (r"^rpn_bbox_pred_weight$", "bell", 0.025),
    (r"^rfcn_cls_weight$", "bell", 0.90),
    (r"^rfcn_bbox_weight$", "bell", 0.20),
    (r"^score_weight$", "bell", 0.15),
    (r"_weight$", "bell", 1.0),
    (r"^(rpn_bbox_pred|rfcn_bbox)_bias$", "uniform", -0.05, 0.05),
    (r"_bias$", "uniform", -0.2, 0.2),
]


def make_array(name: str, shape) -> np.ndarray:
    kind, *numbers = next(rule[1:] for rule in _RULES if re.search(rule[0], name))
    if kind == "bilinear":
        return bilinear_kernel(shape[0]).numpy().copy()
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(prod(shape))
    if kind == "uniform":
        low, high = numbers
        values = low + (words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * (high - low)
    else:
        total = words.view("<u2").reshape(-1, 4).sum(axis=1, dtype=np.int64) - 2 * (2**16 - 1)
        # The order of these products decides the last bit.
        scale = numbers[0] * sqrt(2.0 / prod(shape[1:])) / sqrt((65536.0**2 - 1) / 3.0)
        values = total.astype(np.float64) * scale
    return values.astype(np.float32).reshape(shape)


def load_network(folder: Path, name: str) -> dict:
    """ "arg:NAME" or "aux:NAME" -> array, each checked against its CRC-32."""
    manifest = json.loads((folder / f"{name}.manifest.json").read_text())
    arrays = {}
    for entry in manifest["parameters"]:
        array = make_array(entry["name"], entry["shape"])
        assert zlib.crc32(array.tobytes()) == entry["crc32"], entry["name"]
        arrays[f"{entry['group']}:{entry['name']}"] = array
    return arrays
