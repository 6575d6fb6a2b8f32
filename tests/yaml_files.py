"""The files under configs/: which there are, on what they build, and which keys they set."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1] / "configs"
LEAVES = sorted(p for p in ROOT.rglob("*.yaml") if not p.name.startswith("Base-"))
BASES = sorted(ROOT.rglob("Base-*.yaml"))


def bases_of(path: Path) -> list[Path]:
    """The files that a file names under _BASE_, a later one of which overrides an earlier one."""
    names = yaml.safe_load(path.read_text()).get("_BASE_", [])
    return [path.parent / name for name in ([names] if isinstance(names, str) else names)]


def keys_of(path: Path) -> set[str]:
    """Full names of all keys that a file sets itself."""
    keys = set()
    stack = [("", yaml.safe_load(path.read_text()))]
    while stack:
        prefix, node = stack.pop()
        for key, value in node.items():
            if isinstance(value, dict):
                stack.append((f"{prefix}{key}.", value))
            else:
                keys.add(prefix + key)
    return keys - {"_BASE_"}


def all_keys_of(path: Path) -> set[str]:
    """Full names of all keys that a file and its bases set."""
    return keys_of(path).union(*map(all_keys_of, bases_of(path)))
