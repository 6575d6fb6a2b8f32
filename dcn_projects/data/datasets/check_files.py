"""Tell in one line what is wrong with a data set."""

import contextlib
import difflib
import gc
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from dcn_projects.errors import one_line

from .builtin import ROOT
from .voc_files import VocFiles

# What detectron2's registering functions, and ours, note in the Metadata of a data set.
PATH_KEYS = ("recipe_file", "json_file", "image_list", "image_root", "image_dir", "gt_dir")
PATH_KEYS += ("sem_seg_root", "voc_root", "panoptic_json", "panoptic_root")

# What detectron2, pycocotools and the loaders of users raise on odd annotations.
_OF_ANNOTATIONS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError)
_OF_ANNOTATIONS += (TypeError, ValueError)


def expected_paths(name: str) -> list[str]:
    """The files and folders that a registered data set needs. Metadata may have them as paths."""
    meta = MetadataCatalog.get(name)
    paths = [meta.get(key) for key in PATH_KEYS]
    if meta.get("dirname"):
        files = VocFiles.find(meta.dirname, meta.get("split"))
        paths += [files.image_list, files.annotations, files.pictures]
    return [os.fspath(path) for path in paths if path]


def check_datasets(names: Iterable[str]):
    """
    Args:
        names: of data sets, ours, detectron2's or the user's own
    Raises:
        FileNotFoundError: if one is not registered, or a file or folder of it is missing; one line
            that names it and says what to do
    """
    for name in names:
        if name not in DatasetCatalog.list():
            close = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f"; similar names: {', '.join(close)}" if close else ""
            raise FileNotFoundError(f"no data set is registered as {name}{hint}")
        for path in expected_paths(name):
            if not PathManager.exists(path):
                raise FileNotFoundError(
                    f"data set {name}: {path} is missing; {_remedy(name, path)}"
                )


@contextlib.contextmanager
def loading(names: Iterable[str]):
    """
    Within this context data sets are loaded, without a search for cycles of objects that are not
    used any more. Annotations have none, and the search in millions of objects, again and again,
    would take longer than to read them.

    Raises:
        OSError: if annotations are cut off, empty or contradict themselves; one line that names the
            data sets
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    except (*_OF_ANNOTATIONS, ET.ParseError) as e:
        what = one_line(e)
        if isinstance(e, (json.JSONDecodeError, UnicodeDecodeError, ET.ParseError)):
            kind = "XML" if isinstance(e, ET.ParseError) else "JSON"
            what = f"an annotation file is cut off or no {kind} ({what}). Copy it again"
        raise OSError(f"data set {', '.join(names)}: {what}") from e
    finally:
        if was_enabled:
            gc.enable()


def _remedy(name: str, path: str) -> str:
    if name.startswith("digits_"):
        hard = " --hard" if "_hard_" in name else ""
        return f"make it: python tools/make_dataset.py --format {name.split('_')[1]}{hard}"
    inside = os.path.relpath(path, ROOT)
    if inside.startswith(".."):
        return "correct the path with which it is registered"
    return f"set DETECTRON2_DATASETS (now {ROOT}) to the folder that holds {inside}"
