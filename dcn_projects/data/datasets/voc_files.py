"""Where the files of a data set in the layout of Pascal VOC are."""

import os
from collections import defaultdict
from dataclasses import dataclass, field

from detectron2.utils.file_io import PathManager

from ..images import is_image_name
from .image_lists import read_image_list

_LISTS = ("ImageSets", "Main")
_PICTURE_FOLDERS = ("JPEGImages", "images")
_ANNOTATION_FOLDERS = ("Annotations", "annotations")


@dataclass(frozen=True)
class VocFiles:
    """
    The folders and the list of a data set, of which any may be missing.

    Attributes:
        pictures: folder of pictures
        annotations: folder of XML files
        image_list: file that lists the images; "" where every XML file is one of an image
    """

    pictures: str
    annotations: str
    image_list: str
    _found: dict[str, dict] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def find(cls, dirname: str, split: str | None) -> "VocFiles":
        """
        Args:
            dirname: has the pictures in JPEGImages or images, the XML files in Annotations or
                annotations, and the lists in ImageSets/Main. All may also lie in `dirname` itself
            split: name of a list without ".txt"; "" or None where there is none
        """
        return cls(
            _find_folder(dirname, _PICTURE_FOLDERS, is_image_name),
            _find_folder(dirname, _ANNOTATION_FOLDERS, _is_xml),
            _find_list(dirname, split) if split else "",
        )

    def image_ids(self) -> list[str]:
        """
        The names of all images, as listed, or else in alphabetical order.

        Raises:
            OSError: if there are none, the list cannot be read, or an XML file is missing
        """
        if not self.image_list:
            names = sorted(map(_stem, filter(_is_xml, _list(self.annotations))))
            if not names:
                raise OSError(f"{self.annotations}: it has no .xml file. Copy the files there")
            return names
        names = read_image_list(self.image_list, lambda name: PathManager.isfile(self.xml(name)))
        for name in names:
            if not PathManager.isfile(self.xml(name)):
                advice = "Copy it there, or take the line out"
                if is_image_name(name) and PathManager.isfile(self.xml(_stem(name))):
                    advice = f"The lists have names without suffix: write {_stem(name)}"
                raise FileNotFoundError(
                    f"{self.image_list}: it names {name}, but {self.xml(name)} is missing. {advice}"
                )
        return names

    def xml(self, image_id: str) -> str:
        return os.path.join(self.annotations, f"{image_id}.xml")

    def picture(self, image_id: str, file_name: str) -> str:
        """
        Args:
            image_id: name of the image
            file_name: in its XML file, which decides between a.jpg and a.png
        Raises:
            OSError: if it is missing, or cannot be told from another one
        """
        folder, stem = os.path.split(image_id)
        names = self._pictures_in(folder).get(stem, [])
        if len(names) > 1 and file_name in names:
            names = [file_name]
        if not names:
            raise FileNotFoundError(
                f"{self.xml(image_id)}: its picture is missing, there is no {image_id}.jpg or "
                f"{image_id}.png in {self.pictures}. Copy it there, or take the image out of "
                f"{self.image_list or 'the annotations'}"
            )
        if len(names) > 1:
            raise OSError(
                f"{self.xml(image_id)}: its picture could be {' or '.join(names)} in "
                f"{self.pictures}. Keep one, or name it in <filename>"
            )
        return os.path.join(self.pictures, folder, names[0])

    def pictures_without_xml(self, image_ids: list[str]) -> list[str]:
        return sorted(self._pictures_in("").keys() - set(image_ids))

    def _pictures_in(self, folder: str) -> dict[str, list[str]]:
        """Names of the files in a folder below `pictures`, by their stems."""
        if folder not in self._found:
            self._found[folder] = found = defaultdict(list)
            for name in sorted(filter(is_image_name, _list(os.path.join(self.pictures, folder)))):
                found[_stem(name)].append(name)
        return self._found[folder]


def _find_folder(dirname: str, names: tuple[str, ...], belongs) -> str:
    """The first folder that is there, or `dirname` if it has such files, or else VOC's own."""
    folders = [os.path.join(dirname, name) for name in names]
    for folder in folders:
        if PathManager.isdir(folder):
            return folder
    return dirname if any(map(belongs, _list(dirname))) else folders[0]


def _find_list(dirname: str, split: str) -> str:
    """That in ImageSets/Main, or, where there is none, one beside the folders."""
    paths = [os.path.join(dirname, *names, f"{split}.txt") for names in (_LISTS, ())]
    return next(filter(PathManager.isfile, paths), paths[0])


def _list(folder: str) -> list[str]:
    """Names of the files in a folder that may be missing, without hidden ones."""
    names = PathManager.ls(folder) if PathManager.isdir(folder) else []
    return [name for name in names if not name.startswith(".")]


def _is_xml(name: str) -> bool:
    return name.endswith(".xml")


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
