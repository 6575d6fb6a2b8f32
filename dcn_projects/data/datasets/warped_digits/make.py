"""Draw both splits and write them to a folder, once."""

import json
from pathlib import Path

from tqdm import tqdm

from ..builtin import RECIPE_FILE
from .layouts import LAYOUTS
from .scenes import SPLITS, WarpedDigits

PARTIAL_FILE = "partial_" + RECIPE_FILE
VERSION = 2  # of the recipe: to be raised for new arguments, and when the same draw other images


def make_dataset(
    output: str,
    format: str,
    *,
    size: int = 192,
    count_train: int = 2000,
    count_test: int = 200,
    seed: int = 0,
    masks: str = "polygon",
    warp: float = 1.0,
) -> bool:
    """
    Draw and write both splits. The folder holds partial_recipe.json, with the arguments, until all
    is written and recipe.json takes its place: an interrupted run is known by it and done again.

    Args:
        output: folder, made if it is missing
        format: "coco", "voc" or "cityscapes"
        size: side of the images in pixels, at least 64
        count_train, count_test: images, at least 2; more of them begin with the same ones
        seed: the same seed gives the same files
        masks: "polygon" or "rle"; the COCO layout knows both, the others have one form
        warp: factor on the smooth part of the digits' deformation; people still read them at 2
    Returns:
        bool: False if the folder holds this very data set already
    Raises:
        FileExistsError: if the folder holds anything else
        ValueError: if a number is too small
    """
    if size < 64 or min(count_train, count_test) < 2 or min(seed, warp) < 0:
        raise ValueError(
            "images have at least 64 pixels a side, splits at least 2 images, seed and warp no "
            f"sign; got size {size}, {count_train}, {count_test} images, seed {seed}, warp {warp}"
        )
    root = Path(output)
    recipe = {"version": VERSION, "format": format, "size": size, "seed": seed, "masks": masks}
    recipe |= {"count_train": count_train, "count_test": count_test, "warp": warp}
    if _is_complete(root, recipe):
        return False
    root.mkdir(parents=True, exist_ok=True)
    (root / PARTIAL_FILE).write_text(json.dumps(recipe))
    layout = LAYOUTS[format](root, masks) if format == "coco" else LAYOUTS[format](root)
    jobs = [("train", i) for i in range(count_train)] + [("test", i) for i in range(count_test)]
    digits = {split: WarpedDigits(split, size, seed, warp) for split in SPLITS}
    for split, index in tqdm(jobs, desc=str(root), unit="image"):
        layout.add(split, index, digits[split].draw(index))
    layout.close()
    (root / PARTIAL_FILE).replace(root / RECIPE_FILE)
    return True


def _is_complete(root: Path, recipe: dict) -> bool:
    """True if `root` holds all of this data set, False if none or a part of it; else an error."""
    if not root.is_dir() or not any(root.iterdir()):
        return False
    for name in RECIPE_FILE, PARTIAL_FILE:
        if (root / name).is_file():
            found = json.loads((root / name).read_text())
            if found == recipe:
                return name == RECIPE_FILE
            changed = [f"{key} {found.get(key)}" for key in recipe if found.get(key) != recipe[key]]
            raise FileExistsError(
                f"{root} holds digits of another recipe ({', '.join(changed)}): delete it or "
                "choose another folder"
            )
    raise FileExistsError(f"{root} is not empty and holds no warped digits: choose another folder")
