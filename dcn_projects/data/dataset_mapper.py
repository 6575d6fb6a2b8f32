from detectron2.config import configurable
from detectron2.data import DatasetMapper, detection_utils

from dcn_projects.errors import one_line

from .images import check_dataset_image, limit_pixels, with_whole_sides

__all__ = ["CheckedDatasetMapper"]

# Pillow raises SyntaxError on broken PNGs, detectron2 any of the last on odd annotations.
_OF_DAMAGE = (OSError, SyntaxError, ValueError)
_OF_DAMAGE += (AssertionError, AttributeError, LookupError, TypeError)


class CheckedDatasetMapper(DatasetMapper):
    """
    detectron2's mapper, whose errors name the image that could not be used, and which also crops
    images without objects where masks are learnt.
    """

    @configurable
    def __init__(self, *, max_pixels: int | None = None, **options):
        """
        Args:
            max_pixels: see `limit_pixels`
            options: of DatasetMapper
        """
        super().__init__(**options)
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        return super().from_config(cfg, is_train) | {"max_pixels": cfg.INPUT.MAX_PIXELS}

    def __call__(self, dataset_dict):
        """
        Raises:
            OSError: if the image cannot be read or used, or does not have the size in the
                annotations, or these are damaged
        """
        limit_pixels(self.max_pixels)  # in the process that loads the data
        check_dataset_image(dataset_dict["file_name"])
        dataset_dict = with_whole_sides(dataset_dict)
        try:
            if self.is_train and self.recompute_boxes and not _has_objects(dataset_dict):
                return self._without_objects(dataset_dict)
            return super().__call__(dataset_dict)
        except _OF_DAMAGE as e:
            raise OSError(
                f"Cannot use {dataset_dict['file_name']} ({one_line(e)}). "
                "Replace the file, or take the image out of the annotations."
            ) from e

    def _without_objects(self, dataset_dict):
        """detectron2 would compute boxes from masks, which such an image does not have."""
        annotated = "annotations" in dataset_dict
        record = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        record = super().__call__(record)
        if annotated:
            size = tuple(record["image"].shape[1:])
            record["instances"] = detection_utils.annotations_to_instances([], size)
        return record


def _has_objects(dataset_dict: dict) -> bool:
    """Besides crowds, which are not learnt."""
    return any(not a.get("iscrowd", 0) for a in dataset_dict.get("annotations", ()))
