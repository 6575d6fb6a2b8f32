from detectron2.data import DatasetMapper

from dcn_projects.errors import one_line

from .images import check_file

__all__ = ["CheckedDatasetMapper"]

# Pillow raises SyntaxError on broken PNGs, detectron2 any of the last on odd annotations.
_OF_DAMAGE = (OSError, SyntaxError, ValueError)
_OF_DAMAGE += (AssertionError, AttributeError, LookupError, TypeError)


class CheckedDatasetMapper(DatasetMapper):
    """detectron2's mapper, whose errors name the image that could not be used."""

    def __call__(self, dataset_dict):
        """
        Raises:
            OSError: if the image cannot be read or used, or does not have the size in the
                annotations, or these are damaged
        """
        check_file(dataset_dict["file_name"])
        try:
            return super().__call__(dataset_dict)
        except _OF_DAMAGE as e:
            raise OSError(
                f"Cannot use {dataset_dict['file_name']} ({one_line(e)}). "
                "Replace the file, or take the image out of the annotations."
            ) from e
