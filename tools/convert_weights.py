#!/usr/bin/env python3
"""
Convert published weights of the original implementations to a checkpoint for a config.

    python tools/convert_weights.py rfcn_dcn_coco-0000.params rfcn_dcn_coco.pkl \\
        --config-file configs/R-FCN/deformable_rfcn_R_101_C5_coco.yaml
    python train_net.py --config-file configs/R-FCN/deformable_rfcn_R_101_C5_coco.yaml \\
        --eval-only MODEL.WEIGHTS rfcn_dcn_coco.pkl

The kind of the weights is found in the file:

    MXNet, .params              the Deformable ConvNets detectors, and the ImageNet classifier
    tensorpack, .npz            Faster, Mask and Cascade R-CNN, and the ImageNet classifiers
    maskrcnn-benchmark, .pth    Faster and Mask R-CNN; also Dynamic R-CNN, and TreB1eN's DCNv2
    torchvision, .pth           Faster and Mask R-CNN, and the ImageNet classifiers
    mmdetection, .pth           Faster and Mask R-CNN with DCN and DCNv2; also Dynamic R-CNN

Where arrays are unknown, missing or misshapen, some of them are named, and nothing is written.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import argparse
import shlex

import torch

from dcn_projects.checkpoint import convert_weights, training_only_names
from dcn_projects.checkpoint.original_settings import reorders_anchors
from dcn_projects.engine import read_config
from dcn_projects.errors import exit_with_one_line, one_line_errors
from dcn_projects.modeling import build_model


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file of weights: .params, .npz or .pth")
    parser.add_argument("output", help="checkpoint to write: .pkl or .pth")
    parser.add_argument("--config-file", required=True, help="of the model")
    parser.add_argument(
        "--normalized-boxes",
        action="store_true",
        help="MXNet: the box layer of a source without *_test arrays predicts normalised targets "
        "(the original would use it as it is)",
    )
    parser.add_argument(
        "--legacy-anchors",
        action="store_true",
        help="tensorpack: the detector is from before May 2019, when anchors had whole-numbered "
        "sides (the file does not tell)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    args = parser.parse_intermixed_args()
    with exit_with_one_line():
        cfg = read_config(args.config_file, ["MODEL.DEVICE=meta", *args.opts])
        # On the device "meta" there are names and shapes without memory or initialisation.
        with one_line_errors(args.config_file), torch.device("meta"):
            model = build_model(cfg)
        kind, differing = convert_weights(
            args.source,
            args.output,
            cfg,
            {name: tuple(t.shape) for name, t in model.state_dict().items()},
            args.normalized_boxes,
            args.legacy_anchors,
            training_only_names(model),
        )
    print(f"{args.output} is written from {args.source}: {kind}")
    if differing:
        settings = " ".join(f"{key} {shlex.quote(str(v))}" for key, v in differing.items())
        if reorders_anchors(cfg, differing):
            print(
                "note: the original has other settings, and with them the anchors have another "
                "order. For the same results convert again with these options, and then detect "
                f"with them: {settings}"
            )
        else:
            print(f"note: the original has other settings. For the same results set {settings}")


if __name__ == "__main__":
    main()
