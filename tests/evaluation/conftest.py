import pytest

from .coco_files import Registered


@pytest.fixture
def register_coco(tmp_path):
    """register_coco(content of a file in the COCO format) -> name of a data set"""
    registered = Registered(tmp_path)
    yield registered
    registered.forget()
