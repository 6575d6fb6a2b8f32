"""The pages lead where they say, and what they tell to type exists."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dcn_projects import __version__
from dcn_projects.engine import read_config

from .markdown_pages import PAGES, ROOT, anchors, blocks, commands, links

LONGEST_README = 150  # lines

# Its blocks are an operator that is not in the package; another test adds it, and runs them.
EXAMPLE_OPERATOR = ROOT / "dcn_projects/layers/csrc/README.md"

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_all_pages_are_found():
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "docs/operators.md", "configs/FPN/README.md"} <= names


def test_every_page_is_linked():
    """From the README, directly or over other pages."""
    found, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in found or page not in PAGES:
            continue
        found.add(page)
        files = [link.partition("#")[0] for link in links(page) if "://" not in link]
        left += [(page.parent / file).resolve() for file in files]
    assert set(PAGES) == found


def test_every_config_is_in_a_readme():
    """In that of its folder; a file named Base-* describes no model."""
    for config in (ROOT / "configs").rglob("*.yaml"):
        if not config.name.startswith("Base-"):
            assert config.name in links(config.parent / "README.md"), config


@each_page
def test_links(page):
    for link in links(page):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_python_compiles_and_imports_what_is_there(page):
    # Modules that the reader is to write: the first line of the block names the file.
    written = re.findall(r"^# (dcn_projects/[\w/]+)\.py$", page.read_text(), re.MULTILINE)
    written = {path.replace("/", ".") for path in written}
    for block in blocks(page):
        if block.language != "python" or page == EXAMPLE_OPERATOR:
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("dcn_projects"):
                        importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "dcn_projects"
            ):
                for alias in node.names:
                    if f"{node.module}.{alias.name}" not in written:
                        _import(node.module, alias.name)


def _import(module: str, name: str) -> None:
    if not hasattr(importlib.import_module(module), name):
        importlib.import_module(f"{module}.{name}")  # a module of a package


@each_page
def test_dotted_names_in_prose_exist(page):
    """But for the first column of tables, where CHANGELOG.md has old names."""
    text = re.sub(r"^\|[^|]*\|", "", page.read_text(), flags=re.MULTILINE)
    for dotted in re.findall(r"`(dcn_projects(?:\.\w+)+)\b", text):
        _import(*dotted.rsplit(".", 1))


@each_page
def test_yaml_is_yaml(page):
    for block in blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)


@each_page
def test_programs_and_configs_exist(page):
    """Of all commands in blocks: the program, and every config, with braces and variables."""
    for block in blocks(page):
        if block.language == "":
            _check_commands(block.text)


def _check_commands(text: str) -> None:
    variables = {}
    for command in commands(text):
        if match := re.fullmatch(r"(\w)=(.*)", command):
            variables[match[1]] = match[2]
        if not command.startswith(("python ", "torchrun ")):  # a picture of the tree, output
            continue
        words = shlex.split(command, comments=True)
        programs = [word for word in words if word.endswith(".py")]
        if programs and not programs[0].startswith(("train_m", "my_")):  # the reader's own
            assert (ROOT / programs[0]).is_file(), command
        for word in words:
            for name, value in variables.items():
                word = word.replace("${" + name + "}", value).replace("$" + name, value)
            if word.startswith("configs/") and word.endswith(".yaml"):
                for path in _expand(word):
                    assert (ROOT / path).is_file(), path


def _expand(word: str) -> list[str]:
    """Braces, as bash has them: a{b,c}d is abd and acd."""
    match = re.search(r"\{([^{}]*)\}", word)
    if match is None:
        return [word]
    before, behind = word[: match.start()], word[match.end() :]
    return [path for part in match[1].split(",") for path in _expand(before + part + behind)]


def test_braces():
    assert _expand("a{b,}{c,d}") == ["abc", "abd", "ac", "ad"]


@each_page
def test_paths_in_prose_exist(page):
    """Whatever is quoted and begins with a folder of the repository that is kept in git."""
    folders = ("benchmarks/", "configs/", "demo/", "docs/", "tests/", "tools/", "dcn_projects/")
    for quoted in re.findall(r"`([\w./\-]+)`", page.read_text()):
        if quoted.startswith(folders) and not re.search(r"ToyDETR|/\.\.\.$", quoted):
            assert (ROOT / quoted).exists(), quoted


def test_the_tree_of_contributing():
    """Every file and folder that CONTRIBUTING.md names in its tree."""
    (tree,) = (b for b in blocks(ROOT / "CONTRIBUTING.md") if b.text.startswith("README.md "))
    folders = []
    for line in tree.text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        for name in names:
            path = Path(*folders[:depth], name)
            assert (ROOT / path).exists(), path
        if names[-1].endswith("/"):
            folders[depth:] = [names[-1]]


def test_keys_in_commands_exist():
    """MODEL.X.Y and the like, wherever a page writes them in full."""
    cfg = read_config(str(ROOT / "configs/R-FCN/rfcn_R_14_C5_digits.yaml"))
    groups = "|".join(key for key, value in cfg.items() if isinstance(value, dict))
    pattern = re.compile(rf"\b(?:{groups})(?:\.[A-Z][A-Z0-9_]*)+\b(?!\*)")
    for page in PAGES:
        if page.name in ("CHANGELOG.md", "CONTRIBUTING.md"):  # has old keys, keys of an example
            continue
        for key in pattern.findall(page.read_text()):
            node = cfg
            for part in key.split("."):
                assert part in node, f"{page.name}: {key}"
                node = node[part]


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for key in ("title", "message", "authors", "license", "version", "type"):
        assert citation[key]
    for entry in (citation, *citation["references"]):
        assert all("name" in author or "family-names" in author for author in entry["authors"])


def test_changelog_has_this_version():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
