"""
The Semantic Boundaries Dataset (SBD): masks of the 20 classes of VOC for 11,355 of its images, in
`cls/*.mat`, with the lists `train.txt` and `val.txt` of its own.
"""

import os

from .voc_seg import load_voc_sem_seg, read_image_ids


def load_voc_sbd_sem_seg(voc_dir: str, sbd_dir: str) -> list[dict]:
    """
    The training set of DeepLab, "trainaug": VOC 2012 train, and what SBD adds to it, without the
    images of VOC 2012 val. Those of VOC keep VOC's labels, in which the borders are ignored. With
    all files of both there are 10,582.

    Args:
        voc_dir: contains "ImageSets/Segmentation", "JPEGImages" and "SegmentationClass" of VOC 2012
        sbd_dir: contains "img", "cls", "train.txt" and "val.txt", as in the folder "dataset" of
            SBD's archive
    Returns:
        list[dict]: as in `load_voc_sem_seg`
    """
    images = os.path.join(sbd_dir, "img")
    lists = [f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val")]
    records, held_out = (load_voc_sem_seg(voc_dir, p, "SegmentationClass") for p in lists)
    in_voc = {record["image_id"] for record in records + held_out}
    in_sbd = {
        image_id
        for split in ("train", "val")
        for image_id in read_image_ids(os.path.join(sbd_dir, f"{split}.txt"), images)
    }
    return records + [
        {
            "file_name": os.path.join(images, f"{image_id}.jpg"),
            "image_id": image_id,
            "sem_seg_file_name": os.path.join(sbd_dir, "cls", f"{image_id}.mat"),
        }
        for image_id in sorted(in_sbd - in_voc)
    ]
