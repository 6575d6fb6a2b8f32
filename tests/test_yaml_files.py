"""What all files under configs/ have in common."""

from pathlib import Path

import pytest

from tests.yaml_files import BASES, LEAVES, ROOT, bases_of

MOST_LINES = 15
MOST_BASES = 2
MOST_LEVELS = 2


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
