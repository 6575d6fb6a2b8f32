"""Cityscapes as it is downloaded."""

from pathlib import Path


def load_cityscapes_label_ids(image_dir: str, gt_dir: str) -> list[dict]:
    """
    detectron2's `load_cityscapes_semantic` with `*_labelIds.png` for labels, of which `read_labels`
    makes the 19 classes. The `*_labelTrainIds.png` need not be made first.

    Args:
        image_dir: contains a folder of `*_leftImg8bit.png` per city
        gt_dir: contains a folder of `*_gtFine_labelIds.png` per city
    Returns:
        list[dict]: "file_name", "image_id" and "sem_seg_file_name" of every image
    Raises:
        FileNotFoundError: if there are no images, or one has no labels
    """
    records = []
    for image in sorted(Path(image_dir).glob("*/*_leftImg8bit.png")):
        name = image.name.removesuffix("_leftImg8bit.png")
        labels = Path(gt_dir, image.parent.name, f"{name}_gtFine_labelIds.png")
        if not labels.is_file():
            raise FileNotFoundError(f"{labels} is missing, the labels of {image}.")
        records.append(
            {"file_name": str(image), "image_id": name, "sem_seg_file_name": str(labels)}
        )
    if not records:
        raise FileNotFoundError(f"{image_dir} holds no <city>/*_leftImg8bit.png.")
    return records
