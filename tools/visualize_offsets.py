#!/usr/bin/env python3
"""
Show where the deformable layers of a model look (arXiv 1703.06211, Sec. 4.2, Fig. 5 to 7).

    python tools/visualize_offsets.py --weights output/demo/model_final.pth \\
        --config-file configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml \\
        --image datasets/digits_coco/test/000000.jpg

writes, for one image: the sampling locations of the last deformable convolutions, stacked, at each
--point (else in the middle of the surest detections); the bins of the RoIs of these detections; the
length of the offsets of every convolution; and effective_dilation.json, mean and standard deviation
of the effective dilation per layer and size of objects, which is printed as a table. With --dataset
the statistics are those of a data set and its annotated objects, else of the image and what is
detected there.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from dcn_projects.data import check_datasets, loading, read_bgr_image
from dcn_projects.engine import build_predictor
from dcn_projects.vis import (
    DilationStatistics,
    Look,
    draw_deformed_bins,
    draw_heat_map,
    draw_sampling_locations,
    effective_dilation,
    look,
    object_sizes,
    offset_magnitude,
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="checkpoint of that config")
    parser.add_argument("--image")
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
    parser.add_argument("--score-threshold", type=float, default=0.5, help="of detections (0.5)")
    parser.add_argument("--dataset", help="registered name, for the statistics")
    parser.add_argument("--max-images", type=int, help="of the data set (all)")
    parser.add_argument("--output", type=Path, default=Path("output/offsets"), help="folder")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config, last"
    )
    args = parser.parse_args()
    if not args.image and not args.dataset:
        parser.error("give --image, --dataset or both")
    return parser, args


def show_image(predictor, args) -> Look:
    """Writes the pictures of --image."""
    image = read_bgr_image(args.image)
    seen = look(predictor, image)
    zoom = max(1, SHORT_SIDE / min(seen.size))
    size = round(seen.size[1] * zoom), round(seen.size[0] * zoom)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    boxes, classes = np.zeros((0, 4)), []
    if seen.instances is not None:
        sure = seen.instances[seen.instances.scores >= args.score_threshold]
        sure = sure[sure.scores.argsort(descending=True)[:NUM_DETECTIONS]]
        boxes, classes = sure.pred_boxes.tensor.numpy(), sure.pred_classes.tolist()
        print(f"{len(boxes)} detections are shown (score at least {args.score_threshold:g})")

    points = args.point or [
        ((b[0] + b[2]) / 2 / seen.scale[0], (b[1] + b[3]) / 2 / seen.scale[1]) for b in boxes
    ]
    points = points or [(image.shape[1] / 2, image.shape[0] / 2)]
    for x, y in points if seen.convs else []:
        locations = seen.locations((x, y), args.layers, args.group)
        drawn = draw_sampling_locations(picture, *locations, zoom)
        write(args.output / f"sampling_locations_{x:.0f}_{y:.0f}.png", drawn)
    for i, (box, category) in enumerate(zip(boxes, classes)):
        found = seen.roi_of(box)
        if found is not None:
            drawn = draw_deformed_bins(picture, *found, category, zoom)
            write(args.output / f"deformed_bins_{i}_class_{category}.png", drawn)
    for name, entry in seen.convs.items():
        values = offset_magnitude(entry)[0]
        drawn = draw_heat_map(picture, values, seen.strides[name] * zoom, name)
        write(args.output / f"offset_magnitude_{name}.png", drawn)
    return seen


def write(path: Path, picture: np.ndarray):
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"{path} cannot be written")
    print(f"wrote {path}")


def add_statistics(statistics: DilationStatistics, seen: Look, boxes: np.ndarray):
    """boxes: (n, 4), of the objects in pixels of the image"""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    boxes = boxes * np.tile(seen.scale, 2)
    for name, entry in seen.convs.items():
        sizes = object_sizes(entry.offset.shape[-2:], seen.strides[name], seen.size, boxes, areas)
        statistics.add(name, effective_dilation(entry)[0], sizes)


def annotated_boxes(record) -> np.ndarray:
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record["annotations"]
        if not a.get("iscrowd", 0)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def main(args):
    predictor = build_predictor(args.config_file, args.weights, args.opts)
    args.output.mkdir(parents=True, exist_ok=True)
    statistics = DilationStatistics()
    if args.image:
        seen = show_image(predictor, args)
    if args.dataset:
        check_datasets([args.dataset])
        with loading([args.dataset]):
            records = DatasetCatalog.get(args.dataset)[: args.max_images]
            boxes = [annotated_boxes(record) for record in records]
        for record, objects in zip(records, boxes):
            seen = look(predictor, read_bgr_image(record["file_name"]))
            add_statistics(statistics, seen, objects)
        objects = f"annotated objects of {len(records)} images of {args.dataset}"
    else:
        boxes = np.zeros((0, 4))
        if seen.instances is not None:
            sure = seen.instances[seen.instances.scores >= args.score_threshold]
            boxes = sure.pred_boxes.tensor.numpy() / np.tile(seen.scale, 2)
        add_statistics(statistics, seen, boxes)
        objects = f"{len(boxes)} detections in {args.image}"
    path = args.output / "effective_dilation.json"
    path.write_text(json.dumps({"objects": objects, "layers": statistics.results()}, indent=1))
    print(f"Effective dilation, mean ± standard deviation in cells, {objects}:")
    print(statistics.table())
    print(f"wrote {path}")


if __name__ == "__main__":
    parser, args = parse_arguments()
    try:
        main(args)
    except (OSError, ValueError) as e:
        parser.exit(1, f"error: {e}\n")
