#!/usr/bin/env python3
"""
Convert published weights of the original implementations to a checkpoint for a config.

    python tools/convert_weights.py rfcn_dcn_coco-0000.params rfcn_dcn_coco.pkl \\
        --config-file configs/R-FCN/deformable_rfcn_R_101_C5_coco.yaml
    python train_net.py --config-file configs/R-FCN/deformable_rfcn_R_101_C5_coco.yaml \\
        --eval-only MODEL.WEIGHTS rfcn_dcn_coco.pkl

Of MXNet: the `.params` files of the Deformable ConvNets detectors and of the ImageNet classifier
that they start from. Arrays that are unknown, missing or misshapen are listed, and nothing is
written then.
"""

import argparse
import sys

import torch
from detectron2.modeling import build_model

from dcn_projects.checkpoint import convert_weights
from dcn_projects.engine import one_line_errors, read_config


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file of weights: .params")
    parser.add_argument("output", help="checkpoint to write: .pkl or .pth")
    parser.add_argument("--config-file", required=True, help="of the model")
    parser.add_argument(
        "--normalized-boxes",
        action="store_true",
        help="the box layer of a source without *_test arrays predicts normalised targets "
        "(the original would use it as it is)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    args = parser.parse_intermixed_args()
    try:
        cfg = read_config(args.config_file, [*args.opts, "MODEL.DEVICE", "meta"])
        # On the device "meta" there are names and shapes without memory or initialisation.
        with one_line_errors(args.config_file), torch.device("meta"):
            shapes = {name: tuple(t.shape) for name, t in build_model(cfg).state_dict().items()}
        kind = convert_weights(args.source, args.output, cfg, shapes, args.normalized_boxes)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    print(f"{args.output} is written from {args.source}: {kind}")
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE) and not cfg.MODEL.RESNETS.DEFORM_LEGACY_BORDER:
        print(
            "note: the weights were trained with the border rule of 2017. For the same results "
            "set MODEL.RESNETS.DEFORM_LEGACY_BORDER True."
        )


if __name__ == "__main__":
    main()
