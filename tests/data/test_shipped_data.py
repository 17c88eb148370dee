"""The data that is shipped: its tables write it, no question is asked twice, and none of the first evaluation split."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from data import write
from src.data.prepare import normalise

README = Path(write.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with write.OUTPUT.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_write_the_shipped_file_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = write.OUTPUT.read_bytes()
    monkeypatch.setattr(write, "OUTPUT", tmp_path / "written.csv")
    write.main()
    assert (tmp_path / "written.csv").read_bytes() == shipped


def test_no_question_of_the_kept_evaluation_rows_is_asked_however_it_is_greeted(rows: list[dict[str, str]]) -> None:
    kept = [json.loads(line)["messages"][0]["content"] for line in write.KEPT_OUT.read_text().splitlines()]
    assert len(kept) == 232
    for form in (normalise, write.bare):
        assert {form(row["instruction"]) for row in rows}.isdisjoint(map(form, kept))


def test_no_question_is_asked_twice_and_every_intent_has_enough_of_them(rows: list[dict[str, str]]) -> None:
    assert max(Counter(normalise(row["instruction"]) for row in rows).values()) == 1
    assert min(Counter(row["intent"] for row in rows).values()) >= 45


def test_no_slot_is_left_and_the_text_is_ascii(rows: list[dict[str, str]]) -> None:
    text = "".join(value for row in rows for value in row.values())
    assert text.isascii()
    assert "<" not in text


def test_every_intent_has_one_answer_to_questions_that_name_no_fact() -> None:
    for path in write.TABLES.glob("*.yaml"):
        for intent, table in yaml.safe_load(path.read_text()).items():
            general = [wording for wording in table["wordings"] if "<" not in wording["answer"]]
            assert [len(wording["questions"]) >= 10 for wording in general] == [True], intent


def test_the_readme_states_the_counts_of_the_file(rows: list[dict[str, str]]) -> None:
    text = README.read_text(encoding="utf-8")
    intents = Counter(row["intent"] for row in rows)
    for name, value in {"rows": f"{len(rows):,}", "intents": f"{len(intents)}", "distinct answers":
                        f"{len({row['response'] for row in rows}):,}"}.items():
        assert f"| {name} | {value} |" in text
