"""Every relative link of a page, and every page that the code names, leads somewhere; and the pages stay short."""

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from itertools import chain
from pathlib import Path

import pytest

from scripts import cli

ROOT = Path(__file__).parents[2]
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NAMED = re.compile(r"(?<![\w/])docs/[\w/-]+\.md(?:#[\w-]+)?")
_COMMAND = re.compile(r"(?:^|`)champion ([a-z]+)([^`#\n]*)", re.MULTILINE)
FOLDERS = ("docs", "src", "utils", "scripts", "space", "tests", "benchmarks", "data", "examples", ".github")


def files(*suffixes: str) -> list[Path]:
    """The repository's files with these suffixes, without environments and results."""
    found = chain(ROOT.iterdir(), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    return sorted(path for path in found if path.suffix in suffixes and path.is_file()
                  and not any(part.startswith(".venv") or part == "assets" for part in path.relative_to(ROOT).parts))


PAGES = files(".md")
CODE = [*files(".py", ".yaml", ".yml", ".toml"), ROOT / "Makefile", ROOT / ".env.example"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Where a link into a page can lead; the second of two equal headings ends with -1."""
    seen: Counter[str] = Counter()
    found = set()
    for name in map(slug, _HEADING.findall(_FENCED.sub("", page.read_text()))):
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return frozenset(found)


def broken(page: Path, target: str) -> bool:
    """Whether a link of a page leads nowhere: no such file, or no such heading in it."""
    path, _, anchor = target.partition("#")
    there = page.parent / path if path else page
    return not there.exists() or (bool(anchor) and anchor not in anchors(there))


def links(page: Path) -> Iterator[str]:
    text = _FENCED.sub("", page.read_text())
    yield from (link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link))


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("# Page\n[a](other.md) [b](gone.md) [c](#page) [d](#nowhere)\n"
                    "[e](other.md#an-altered-ledger-1) [f](other.md#fenced) [g](https://example.com/x)\n")
    other.write_text("# An `altered` ledger\n## An altered ledger\n```\n# fenced\n```\n")
    assert [link for link in links(page) if broken(page, link)] == ["gone.md", "#nowhere", "other.md#fenced"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert [link for link in links(page) if broken(page, link)] == []


def test_every_page_that_the_code_names_exists() -> None:
    named = [(path, found) for path in CODE if path != Path(__file__) for found in _NAMED.findall(path.read_text())]
    assert len(named) > 20
    assert [(str(path.relative_to(ROOT)), name) for path, name in named if broken(ROOT / "page", name)] == []


def test_the_pages_stay_short_but_for_the_tables_of_the_appendix() -> None:
    """The decisions and the appendix are looked up, not read. The bar between two cells of a table is no word."""
    words = {page.name: sum(any(map(str.isalnum, word)) for word in page.read_text().split())
             for page in (ROOT / "docs").glob("*.md")}
    assert words.pop("appendix-reliability.md") > 5000
    assert sum(words.values()) <= 12_000, sorted(words.items(), key=lambda item: -item[1])


def test_no_page_recommends_a_command_that_rewrites_params_fails_before_a_commit_or_needs_a_network() -> None:
    unwanted = ("dvc exp run", "dvc metrics diff", "dvc plots show")
    assert [(page.name, command) for page in (ROOT / "docs").glob("*.md") for command in unwanted
            if command in page.read_text()] == []


def test_every_command_on_a_page_exists_with_its_flags() -> None:
    found = [(page.name, *command) for page in PAGES for command in _COMMAND.findall(page.read_text())]
    assert len(found) > 50
    assert [(page, name) for page, name, _ in found if name not in cli.COMMANDS] == []
    assert [(page, name, flag) for page, name, words in found for flag in re.findall(r"--[\w-]+", words)
            if flag not in flags_of(name)] == []


def flags_of(name: str) -> set[str]:
    """The flags of a command that is one of the scripts; of the others, all that their sources name."""
    start = cli.COMMANDS[name]
    if isinstance(start, partial):
        parser = importlib.import_module(f"scripts.{start.args[0]}").PARSER
        return {flag for action in parser._actions for flag in action.option_strings}
    sources = [ROOT / "scripts/cli.py", *(ROOT / "space").glob("*.py")]
    return {flag for source in sources for flag in re.findall(r'"(--[\w-]+)"', source.read_text())}
