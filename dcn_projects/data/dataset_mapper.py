from detectron2.data import DatasetMapper

__all__ = ["CheckedDatasetMapper"]


class CheckedDatasetMapper(DatasetMapper):
    """detectron2's mapper, whose errors name the image that could not be used."""

    def __call__(self, dataset_dict):
        """
        Raises:
            OSError: if the image cannot be read, or its size is not the one in the annotations
        """
        try:
            return super().__call__(dataset_dict)
        except (OSError, ValueError) as e:
            raise OSError(
                f"Cannot use {dataset_dict['file_name']} ({' '.join(str(e).split())}). "
                "Replace the file, or take the image out of the annotations."
            ) from e
