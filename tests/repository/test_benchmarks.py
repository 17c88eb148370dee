"""What the benchmarks share: processes that are measured, rounds in turns, and the table of the README."""

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import measure, table

STAMP = table.Stamp(machine="2 cores, 24 GB", date="2026-11-21", commit="abc1234")
ROW = {"measure": "ours, s", "value": 1234.5, "spread": [1200.0, 1300.4], "peak_mb": 2961.4}
PAGE = f"# Benchmarks\n\n{table.BEGIN}\n{table.END}\n"


def python(program: str) -> measure.Measured:
    return measure.run([sys.executable, "-c", program])


def test_a_command_that_fails_ends_the_benchmark_with_its_words() -> None:
    with pytest.raises(SystemExit, match=r"exit code 3\n(.|\n)*out of luck"):
        python("import sys; print('out of luck', file=sys.stderr); sys.exit(3)")


def test_the_peak_is_that_of_the_command_and_not_of_who_measures_it() -> None:
    ballast = bytearray(400_000_000)
    small, large = python("pass"), python("x = bytearray(200_000_000); import time; time.sleep(2); print('done')")
    assert small.peak_mb < 100
    assert 200 < large.peak_mb < 300
    assert 190 < large.anonymous_mb < 300
    assert large.output == "done\n"
    assert len(ballast) == 400_000_000


def test_sides_take_turns_and_every_other_round_goes_backwards() -> None:
    order: list[str] = []
    found = measure.interleave({name: lambda name=name: order.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert order == list("abbaab")
    assert {name: len(results) for name, results in found.items()} == {"a": 3, "b": 3}


def test_a_row_tells_the_spread_and_a_ratio_that_of_its_rounds(tmp_path: Path) -> None:
    rows = [measure.row("ours, s", [1.0, 3.0, 2.0], [10.0, 30.0]), measure.ratio("x", [2.0, 9.0], [1.0, 3.0])]
    measure.finish("any", rows, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == {"name": "any", "rows": [
        {"measure": "ours, s", "value": 2.0, "spread": [1.0, 3.0], "peak_mb": 30.0},
        {"measure": "x", "value": 2.75, "spread": [2.0, 3.0], "peak_mb": None}]}


@pytest.mark.parametrize("page", ["# no table\n", PAGE + PAGE, PAGE.replace(table.END, f"| a | b |\n{table.END}")])
def test_a_page_without_its_one_table_is_not_written(page: str) -> None:
    with pytest.raises(ValueError, match=r"README\.md"):
        table.rewritten(page, "merge", [ROW], STAMP)


def test_figures_that_were_not_measured_again_keep_their_place_and_date() -> None:
    page = PAGE
    for name in ("merge", "scoring", "history"):
        page = table.rewritten(page, name, [ROW, {**ROW, "measure": "theirs, s", "peak_mb": None}], STAMP)
    again = table.rewritten(page, "scoring", [{**ROW, "value": 0.01234, "spread": [0.01, 0.02]}],
                            table.Stamp("4 cores, 9 GB", "2027-01-01", "def"))
    rows = table.read(again.partition(table.BEGIN)[2].partition(table.END)[0])
    assert [row[0] for row in rows] == ["merge", "merge", "scoring", "history", "history"]
    assert rows[0] == ("merge", "ours, s", "1,234", "1,200 to 1,300", "2,961", "2 cores, 24 GB", "2026-11-21",
                       "abc1234")
    assert rows[2] == ("scoring", "ours, s", "0.0123", "0.01 to 0.02", "2,961", "4 cores, 9 GB", "2027-01-01", "def")
    assert rows[1][4] == ""
    assert table.rewritten(again, "scoring", [ROW], STAMP) == table.rewritten(page, "scoring", [ROW], STAMP)


def test_the_real_page_can_be_rewritten_and_every_named_benchmark_has_its_flag() -> None:
    page = command.README.read_text()
    written = table.rewritten(page, "merge", [ROW], STAMP)
    assert re.sub(r"\| merge \|.*\n", "", written) == re.sub(r"\| merge \|.*\n", "", page)
    for name in command.NAMES:
        source = (measure.ROOT / "benchmarks" / f"{name}.py").read_text()
        assert ".add_flags(" in source, name
        assert f'.finish("{name}"' in source, name
