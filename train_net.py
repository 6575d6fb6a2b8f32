#!/usr/bin/env python3
"""
Train and evaluate the models of this project.

    python train_net.py --config-file configs/R-FCN/deformable_rfcn_R_101_C5_voc.yaml --num-gpus 4
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    python train_net.py --config-file ... --eval-only    # or --eval-iter 5000: of OUTPUT_DIR
    python train_net.py --config-file ... --load model_final.pth --evaluate detections.json
    python train_net.py --config-file ... --load model_final.pth --predict a.jpg b.jpg
    torchrun --nproc-per-node 2 train_net.py --config-file ...

Everything else is in dcn_projects/engine.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
from dcn_projects.engine import parse_arguments

if __name__ == "__main__":
    args = parse_arguments()

    # PyTorch and detectron2, which take seconds to import, are not needed to print --help.
    from dcn_projects.engine import run_program

    run_program(args)
