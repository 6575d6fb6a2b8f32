import itertools

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcn_projects.data.datasets import builtin


def register_all_again(root):
    tables = builtin.COCO, builtin.VOC, builtin.CITYSCAPES
    tables += builtin.CITYSCAPES_LABEL_IDS, builtin.VOC_SEM_SEG, {builtin.VOC_SBD}
    for name in itertools.chain(*tables):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    builtin.register_all(str(root))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An empty folder, under which our data sets are registered while a module's tests run."""
    root = tmp_path_factory.mktemp("datasets")
    register_all_again(root)
    yield root
    register_all_again(builtin.ROOT)
