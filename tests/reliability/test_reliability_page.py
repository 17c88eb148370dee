"""The appendix has a place for every table that a test writes, so that a run of hours ends with its table written."""

import re
from pathlib import Path

import pytest

from tests.reliability.reliability_page import report, table

ROOT = Path(__file__).parents[2]
APPENDIX = ROOT / "docs/appendix-reliability.md"


def written_by_tests() -> set[str]:
    texts = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    writers = (text for text in texts if "reliability_page import report" in text)
    return {name for text in writers for name in re.findall(r'\breport\("([\w-]+)"', text)}


def test_the_appendix_has_a_place_for_every_table_and_no_other() -> None:
    places = re.findall(r"<!-- begin: (\S+) -->\n[^\0]*?<!-- end: \1 -->", APPENDIX.read_text())
    assert sorted(places) == sorted(written_by_tests())


@pytest.mark.parametrize("name", sorted(written_by_tests()))
def test_a_table_replaces_the_one_of_its_name_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "appendix.md"
    page.write_text(APPENDIX.read_text())
    monkeypatch.setenv("RELIABILITY_PAGE", str(page))
    report(name, table(("killed", "found"), [("here | there", "equal")]))
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    before, _, rest = APPENDIX.read_text().partition(begin)
    after = rest.partition(end)[2]
    rows = "| killed | found |\n| --- | --- |\n| here \\| there | equal |\n"
    assert page.read_text() == before + begin + rows + end + after
