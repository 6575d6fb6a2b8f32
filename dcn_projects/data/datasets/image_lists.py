"""Text files that list the images of a data set, as in ImageSets of Pascal VOC."""

import codecs
from collections import Counter
from collections.abc import Callable

from detectron2.utils.file_io import PathManager

# Of VOC's class lists: whether the image has objects of the class, has none, or has only difficult
# ones.
_COLUMN = {"1", "-1", "0"}


def read_image_list(
    path: str, exists: Callable[[str], bool], name_in: Callable[[str], str] = str
) -> list[str]:
    """
    The names in a list with a line for each image. Lines that are blank or begin with # do not
    count. Names may have spaces. Where every line ends in a column of 1, -1 or 0, as in VOC's class
    lists, it is taken off, and the images of all lines are listed; it belongs to the names if there
    are more files of such names.

    Args:
        path: file in UTF-8, or in UTF-16 with a byte order mark
        exists: whether there is an image, or the annotations of one, of a name
        name_in: of a line, without such a column, the name of its image
    Raises:
        OSError: if it is no text, has no name or has one twice
    """
    lines = _read_lines(path)
    names = [name_in(line) for line in lines]
    split_lines = [line.rsplit(None, 1) for line in lines]
    if all(len(words) == 2 and words[1] in _COLUMN for words in split_lines):
        first_column = [name_in(words[0]) for words in split_lines]
        found = sum(map(exists, first_column))
        if 0 < found >= sum(map(exists, names)):
            names = first_column
    if not names:
        raise OSError(f"{path}: it names no image. Write the name of one in each line")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise OSError(f"{path}: it names {name} {count} times. Keep one of the lines")
    return names


def _read_lines(path: str) -> list[str]:
    with PathManager.open(path, "rb") as f:
        content = f.read()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise OSError(f"{path}: it is no text in UTF-8 ({e.reason}). Save it as UTF-8") from e
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
