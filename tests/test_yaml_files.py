"""What all files under configs/ have in common."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from dcn_projects import add_dcn_config
from dcn_projects.config_keys import leaves
from tests.yaml_files import BASES, LEAVES, ROOT, bases_of, keys_of

MOST_LINES = 15
MOST_BASES = 2
MOST_LEVELS = 2
# Keys that no config sets, each with the reason why it is one all the same.
UNSET = {
    "DATALOADER.EXACT_RESUME": "belongs to a run, not to a model",
    "INPUT.MAX_PIXELS": "belongs to the data, not to a model",
    "MODEL.DEFORMABLE.META_ARCHITECTURE": "for programs that call detectron2's own build_model",
    "MODEL.DEFORMABLE.STATISTICS_PERIOD": "belongs to a run, not to a model",
    "MODEL.ROI_MASK_HEAD.POOLER_SHARE_LEVELS": "the mask head has all keys of the box head",
}


def levels(path: Path) -> int:
    """How many files there are one above the other over a file."""
    return max((1 + levels(base) for base in bases_of(path)), default=0)


def test_there_are_leaves_and_bases():
    assert len(LEAVES) >= 96 and len(BASES) >= 10


@pytest.mark.parametrize("path", LEAVES, ids=[str(p.relative_to(ROOT)) for p in LEAVES])
def test_leaves_are_short(path):
    """A leaf holds what makes it itself; what it shares stands in one place."""
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert len(bases_of(path)) <= MOST_BASES and 1 <= levels(path) <= MOST_LEVELS


def test_bases_are_used():
    used = {base.resolve() for path in (*LEAVES, *BASES) for base in bases_of(path)}
    assert used == {path.resolve() for path in BASES}
    assert all(len(bases_of(path)) <= MOST_BASES for path in BASES)


def test_keys_are_used():
    """A key that no config sets is one that nobody has tried."""
    theirs, ours = get_cfg(), get_cfg()
    add_deeplab_config(theirs)
    add_dcn_config(ours)
    added = dict(leaves(ours)).keys() - dict(leaves(theirs)).keys()
    assert len(added) > 40
    assert added - set().union(*map(keys_of, (*LEAVES, *BASES))) == set(UNSET)
