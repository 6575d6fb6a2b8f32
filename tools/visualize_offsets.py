#!/usr/bin/env python3
"""
Show where the deformable layers of a model look (arXiv 1703.06211, Sec. 4.2, Fig. 5 to 7).

    python tools/visualize_offsets.py --load output/demo/model_final.pth \\
        --config-file configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml \\
        --image datasets/digits_coco/test/000000.jpg

writes, for one image: the sampling locations of the last deformable convolutions, stacked, at each
--point (else in the middle of the surest detections); the bins of the RoIs of these detections; the
length of the offsets of every convolution; and effective_dilation.json, mean and standard deviation
of the effective dilation per layer and size of objects, which is printed as a table. With --dataset
the statistics are those of a data set and its annotated objects, else of the image and what is
detected there.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import argparse
import json
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from dcn_projects.data import check_datasets, load_checked, loading, read_bgr_image
from dcn_projects.data.images import check_image, limit_pixels
from dcn_projects.engine.command_line import ConfigArgumentParser
from dcn_projects.engine.predictor import load_predictor, trained_config
from dcn_projects.errors import exit_with_one_line, one_line_errors
from dcn_projects.vis import (
    LONGEST,
    DilationStatistics,
    ImageOffsets,
    NarrowImageError,
    OffsetPictures,
    effective_dilation,
    object_sizes,
    record_image,
    write_picture,
)

NUM_DETECTIONS = 3  # that are shown
SHORT_SIDE = 600  # of the pictures in pixels, at least


def parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text} is not X,Y") from e
    return x, y


def parse_arguments():
    parser = ConfigArgumentParser(description=__doc__)
    parser.add_drawing_flags(nargs=None, output=Path("output/offsets"))
    parser.add_argument(
        "--point",
        type=parse_point,
        nargs="+",
        action="extend",
        default=[],
        metavar="X,Y",
        help="in pixels of the image",
    )
    parser.add_argument("--layers", type=int, default=3, help="stacked convolutions (3)")
    parser.add_argument("--group", type=int, default=0, help="deformable group to follow (0)")
    parser.add_argument("--dataset", help="registered name, for the statistics")
    parser.add_argument("--max-images", type=int, help="of the data set (all)")
    args = parser.parse_words()
    if not args.predict and not args.dataset:
        parser.error("give --image, --dataset or both")
    args.image = args.predict[-1] if args.predict else None
    return args


def record_offsets(predictor, path, image: np.ndarray) -> ImageOffsets:
    try:
        return record_image(predictor, image)
    except NarrowImageError as e:
        raise ValueError(f"{path}: {e}") from e


def show_image(predictor, args) -> ImageOffsets:
    """Writes the pictures of --image."""
    image = read_bgr_image(args.image)
    offsets = record_offsets(predictor, args.image, image)
    zoom = min(max(1, SHORT_SIDE / min(offsets.size)), LONGEST / max(offsets.size))
    pictures = OffsetPictures(image, offsets, zoom)
    if zoom < 1:
        height, width = offsets.size
        print(f"the network input of {width} x {height} pixels is drawn at {zoom:.3f} of its size")
    boxes, classes = np.zeros((0, 4)), []
    if offsets.instances is not None:
        sure = offsets.surest(NUM_DETECTIONS, args.confidence)
        boxes, classes = sure.pred_boxes.tensor.numpy(), sure.pred_classes.tolist()
        print(f"{len(boxes)} detections are shown (score at least {args.confidence:g})")

    points = args.point or [offsets.middle_of(box) for box in boxes]
    points = points or [(image.shape[1] / 2, image.shape[0] / 2)]
    for x, y in points if offsets.convs else []:
        drawn = pictures.sampling_locations((x, y), args.layers, args.group)
        write(args.output / f"sampling_locations_{x:.0f}_{y:.0f}.png", drawn)
    for i, (box, category) in enumerate(zip(boxes, classes)):
        drawn = pictures.deformed_bins(box, category)
        if drawn is not None:
            write(args.output / f"deformed_bins_{i}_class_{category}.png", drawn)
    for name in offsets.convs:
        write(args.output / f"offset_magnitude_{name}.png", pictures.offset_magnitude(name))
    return offsets


def write(path: Path, picture: np.ndarray):
    write_picture(path, picture)
    print(f"wrote {path}")


def add_statistics(statistics: DilationStatistics, offsets: ImageOffsets, boxes: np.ndarray):
    """boxes: (n, 4), of the objects in pixels of the image"""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    boxes = boxes * np.tile(offsets.scale, 2)
    for name, entry in offsets.convs.items():
        shape, stride = entry.offset.shape[-2:], offsets.strides[name]
        sizes = object_sizes(shape, stride, offsets.size, boxes, areas)
        statistics.add(name, effective_dilation(entry)[0], sizes)


def annotated_boxes(record) -> np.ndarray:
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record["annotations"]
        if not a.get("iscrowd", 0)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def main(args):
    weights = args.weights[-1] if args.weights else None
    cfg = trained_config(args.config_file, weights, args.opts)
    limit_pixels(cfg.INPUT.MAX_PIXELS)
    if args.image:
        check_image(args.image)
    if args.dataset:
        check_datasets([args.dataset])
    with one_line_errors(args.config_file):
        predictor = load_predictor(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    statistics = DilationStatistics()
    if args.image:
        offsets = show_image(predictor, args)
    if args.dataset:
        records = load_checked(args.dataset)[: args.max_images]
        with loading([args.dataset]):
            boxes = [annotated_boxes(record) for record in records]
        for record, objects in zip(records, boxes):
            path = record["file_name"]
            offsets = record_offsets(predictor, path, read_bgr_image(path))
            add_statistics(statistics, offsets, objects)
        objects = f"annotated objects of {len(records)} images of {args.dataset}"
    else:
        boxes = np.zeros((0, 4))
        if offsets.instances is not None:
            sure = offsets.surest(confidence=args.confidence)
            boxes = sure.pred_boxes.tensor.numpy() / np.tile(offsets.scale, 2)
        add_statistics(statistics, offsets, boxes)
        objects = f"{len(boxes)} detections in {args.image}"
    path = args.output / "effective_dilation.json"
    path.write_text(json.dumps({"objects": objects, "layers": statistics.results()}, indent=1))
    print(f"Effective dilation, mean ± standard deviation in cells, {objects}:")
    print(statistics.table())
    print(f"wrote {path}")


if __name__ == "__main__":
    args = parse_arguments()
    with exit_with_one_line():
        main(args)
