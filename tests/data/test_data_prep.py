"""Raw files as conversations: what is refused and where, what is cleaned, and that no question stands in two parts."""

import json
import string
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from src.core.errors import InvalidInput
from src.core.params import DataParams, load_params
from src.core.records import digest_of, read_lines
from src.data import prepare
from utils import json_utils

ROOT = Path(__file__).parents[2]
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PARAMS = load_params(ROOT / "params.yaml").data


def params(**changes: object) -> DataParams:
    return PARAMS.model_copy(update={"system_prompt": "", **changes})


def csv_file(folder: Path, text: str, *, header: str = "instruction,response,intent") -> Path:
    path = folder / "raw.csv"
    path.write_bytes(f"{header}\n{text}".encode())
    return path


def jsonl_file(folder: Path, *records: object) -> Path:
    path = folder / "raw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def chat(*turns: str, intent: str | None = None) -> prepare.Row:
    return prepare.Row(intent, tuple(zip(("user", "assistant") * len(turns), turns, strict=False)))


def plainly(question: str) -> str:
    """Another hand's idea of the same question: lower case, single spaces, no ASCII punctuation."""
    return " ".join(question.lower().translate(str.maketrans("", "", string.punctuation)).split())


@pytest.mark.parametrize(("name", "content", "message"), [
    ("raw.txt", b"", "neither .csv nor .jsonl"),
    ("raw.csv", b"", "raw.csv:1: expected one column 'instruction', found nothing"),
    ("raw.csv", b"question,response\na,b\n", "expected one column 'instruction', found question, response"),
    ("raw.csv", b"instruction,response,response\na,b,c\n", "expected one column 'response'"),
    ("raw.csv", b"instruction,response\na,b\n\xff,c\n", "raw.csv:3: not UTF-8"),
    ("raw.csv", b'instruction,"response\n', "raw.csv:1: not CSV"),
])
def test_a_file_that_cannot_be_read_at_all_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        prepare.read(tmp_path / name, params())


def test_a_missing_file_is_named_with_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.csv: No such file or directory; correct data\.path"):
        prepare.read(tmp_path / "none.csv", params())


def test_bad_csv_rows_are_named_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 'one,"two\nlines",x\n,answer,x\n\nq,a\n"a"b,c,d\nquestion,  ,x\nlast,one,x\n')
    with pytest.raises(InvalidInput) as caught:
        prepare.read(path, params(max_bad_rows=3))
    assert str(caught.value) == (
        f"{path}:4: instruction: empty; {path}:6: 2 fields, the header names 3; {path}:7: not CSV: ',' expected after "
        f"'\"'; {path}:8: response: empty. 4 unusable rows, data.max_bad_rows allows 3: correct the file or allow more"
    )
    raw = prepare.read(path, params(max_bad_rows=4))
    assert [row.messages[0][1] for row in raw.rows] == ["one", "last"]
    assert len(raw.bad) == 4


@pytest.mark.parametrize(("record", "message"), [
    ([1], "expected a JSON object, found list"),
    ({"instruction": "a"}, "response: missing"),
    ({"instruction": 5, "response": "b"}, "instruction: expected text, found int"),
    ({"instruction": "a", "response": "b", "intent": 5}, "intent: expected text, found int"),
    ({"messages": "hello"}, "messages: expected a list of objects"),
    ({"messages": []}, "messages: roles are none"),
    ({"messages": [USER]}, "messages: roles are user;"),
    ({"messages": [ASSISTANT, USER]}, "messages: roles are assistant, user;"),
    ({"messages": [USER, {"role": "tool", "content": "b"}]}, "messages: roles are user, tool;"),
    ({"messages": [USER, {"role": "assistant", "content": "\u0007 "}]}, "content: empty"),
    ({"messages": [USER, {"content": "b"}]}, "role: missing"),
])
def test_bad_json_rows_are_named_by_line(tmp_path: Path, record: object, message: str) -> None:
    path = jsonl_file(tmp_path, {"instruction": "a", "response": "b"}, record)
    with pytest.raises(InvalidInput, match=rf"raw\.jsonl:2: {message}"):
        prepare.read(path, params())


def test_a_broken_json_line_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text('{"instruction": "a", "response": "b"}\n\n{"instruction": \n' + "[" * 100_000 + "\n")
    raw = prepare.read(path, params(max_bad_rows=2))
    assert len(raw.rows) == 1
    assert [problem.partition(": ")[0] for problem in raw.bad] == [f"{path}:3", f"{path}:4"]


def test_columns_are_found_by_their_configured_names(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "delivery,When?,Soon.,x\n", header="topic, ask ,reply,more")
    raw = prepare.read(path, params(instruction_column="ask", response_column="reply", intent_column="topic"))
    assert raw.rows == [prepare.Row("delivery", (("user", "When?"), ("assistant", "Soon.")))]


def test_a_chat_keeps_its_turns_and_its_own_system_message(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")]
    path = jsonl_file(tmp_path, {"messages": turns}, {"messages": turns[3:], "intent": "i"})
    rows = prepare.read(path, params(system_prompt="Be brief. ")).rows
    assert [row.conversation() for row in rows] == [
        turns, [{"role": "system", "content": "Be brief."}, *turns[3:]]]
    assert [row.intent for row in rows] == [None, "i"]


@pytest.mark.parametrize(("raw", "cleaned"), [
    (" a  b \t\r\n\r\n- **c**  \n", "a  b\n\n- **c**"),
    ("e\u0301", "\u00e9"),
    ("a\x00b\x1b[0m\ufeff", "ab[0m"),
    ("half a pair \ud83d", "half a pair"),
    ("x\ty\u2028z", "x\ty\u2028z"),
    ("{{Order Number}}", "{{Order Number}}"),
])
def test_cleaning_keeps_lines_and_markdown_and_is_stable(raw: str, cleaned: str) -> None:
    assert prepare.clean(raw) == cleaned
    assert prepare.clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", prepare.clean(raw))


@pytest.mark.parametrize(("one", "other"), [
    ("Where is my order?", "where  is my order"),
    ("I can't pay", "I can\u2019t pay!"),
    ("re-order", "Re order"),
    ("STRASSE", "stra\u00dfe"),
])
def test_questions_equal_but_for_case_spaces_and_punctuation_are_one(one: str, other: str) -> None:
    assert prepare.normalise(one) == prepare.normalise(other)


def test_questions_of_punctuation_alone_differ() -> None:
    assert prepare.normalise("???") != prepare.normalise("!")


def test_duplicates_are_dropped_and_other_answers_kept(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "Where is it?,Here.,a\nwhere is it,Here.,a\nWhere is it?,There.,a\n")
    raw = prepare.read(path, params())
    assert [row.messages for row in raw.rows] == [
        (("user", "Where is it?"), ("assistant", "Here.")), (("user", "Where is it?"), ("assistant", "There."))]
    assert raw.duplicates == 1


def test_too_few_questions_for_three_parts_are_refused() -> None:
    rows = [chat("same?", f"answer {number}") for number in range(40)]
    with pytest.raises(InvalidInput, match="40 rows with 1 distinct questions leave no row for validation and evalu"):
        prepare.split(rows, params())


def test_each_intent_is_divided_in_the_asked_proportion_to_the_nearest_row() -> None:
    sizes = {"a": 17, "b": 18, "c": 19, "d": 20, "e": 21, "f": 22, "g": 5, "h": 40}
    rows = [chat(f"{intent} {number}", "a", intent=intent) for intent, size in sizes.items() for number in range(size)]
    parts = prepare.split(rows, params(validation_fraction=0.1, evaluation_fraction=0.2))
    for part, fraction in (("evaluation", 0.2), ("validation", 0.1)):
        count = Counter(row.intent for row in parts[part])
        assert all(abs(count[intent] - fraction * sizes[intent]) < 1.3 for intent in sizes)
        assert abs(len(parts[part]) - fraction * len(rows)) <= 1
    assert sorted(row.messages for part in parts.values() for row in part) == sorted(row.messages for row in rows)


def test_rows_that_share_any_question_stay_together() -> None:
    rows = [chat(f"first {number}?", "a", f"THEN {number // 4}", "b") for number in range(80)]
    rows += [chat(f"then {number}!", "c") for number in range(20)]
    parts = prepare.split(rows, params())
    asked = {part: {question for row in parts[part] for question in row.questions()} for part in prepare.PARTS}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))


def test_the_seed_alone_decides_the_split() -> None:
    rows = [chat(f"question {number}", "a") for number in range(60)]
    assert prepare.split(rows, params(seed=1)) == prepare.split(rows, params(seed=1))
    assert prepare.split(rows, params(seed=1)) != prepare.split(rows, params(seed=2))


@pytest.mark.parametrize("path", [
    ROOT / "data/customer_support.csv",
    pytest.param(ROOT.parent / "shared/data/bitext/customer_support.csv", marks=pytest.mark.skipif(
        not (ROOT.parent / "shared/data/bitext").is_dir(), reason="the Bitext sample is not beside this repository")),
])
def test_real_data_is_split_without_leaks_and_the_same_way_twice(tmp_path: Path, path: Path) -> None:
    written = []
    for attempt in ("one", "two"):
        raw = prepare.read(path, PARAMS)
        assert raw.bad == []
        parts = prepare.split(raw.rows, PARAMS)
        for part, rows in parts.items():
            json_utils.write_lines(tmp_path / attempt / part, [row.as_json() for row in rows])
        written.append([(tmp_path / attempt / part).read_bytes() for part in prepare.PARTS])
    assert written[0] == written[1]
    asked = {part: {plainly(row.messages[-2][1]) for row in parts[part]} for part in prepare.PARTS}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))
    assert len(parts["evaluation"]) == pytest.approx(PARAMS.evaluation_fraction * len(raw.rows), abs=1)
    assert len(parts["validation"]) == pytest.approx(PARAMS.validation_fraction * len(raw.rows), abs=1)
    line = next(read_lines(tmp_path / "one" / "train"))
    assert line["id"] == digest_of(line["messages"])[:16]
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
