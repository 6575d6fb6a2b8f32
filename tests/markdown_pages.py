"""The Markdown pages of the repository, and what stands in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "configs/*/README.md", "benchmarks/README.md")
    for path in ROOT.glob(pattern)
) + [ROOT / "dcn_projects/layers/csrc/README.md"]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass
class Block:
    """A code block: its language, "" for commands and output, and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in _FENCE.findall(page.read_text())]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Of all headings, as GitHub makes them."""
    headings = _HEADING.findall(prose(page))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def commands(text: str) -> list[str]:
    """The lines of a block, those that end with a backslash joined with the next."""
    return text.replace("\\\n", " ").strip().splitlines()
