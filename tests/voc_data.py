"""Small data sets in the layout of Pascal VOC, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (20, 10)  # width and height
BOX = (1, 2, 9, 9)
SIDES = ("xmin", "ymin", "xmax", "ymax")


def object_xml(name="cat", box=BOX, difficult="0"):
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, box))
    # detectron2's evaluator reads the first two.
    marks = f"<pose/><truncated>0</truncated><difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{marks}<bndbox>{corners}</bndbox></object>"


def annotation_xml(*objects, size=SIZE, file_name=""):
    width, height = size
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    file_name = f"<filename>{file_name}</filename>" if file_name else ""
    return f"<annotation>{file_name}{size}{''.join(objects)}</annotation>"


def write_picture(path: Path, size=SIZE, seed=0):
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_voc(
    folder: Path,
    images: dict[str, str],
    image_list: str | bytes | None = None,
    list_file: str = "ImageSets/Main/train.txt",
    annotations: str = "Annotations",
    pictures: str = "JPEGImages",
    suffix: str = ".jpg",
    size: tuple[int, int] = SIZE,
) -> Path:
    """
    Args:
        images: name of an image -> its XML
        image_list: text of the list; None writes one of all names
        list_file: "" writes none
    """
    for seed, (name, xml) in enumerate(images.items()):
        path = folder / annotations / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml)
        write_picture(folder / pictures / f"{name}{suffix}", size, seed)
    if list_file:
        if image_list is None:
            image_list = "".join(f"{name}\n" for name in images)
        path = folder / list_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_list.encode() if isinstance(image_list, str) else image_list)
    return folder
