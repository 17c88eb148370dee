"""JSON files: rows 1 to 11 of the bad-input table, and writing that cannot leave half a file."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from src.core.errors import InvalidInput
from src.core.records import MAX_BYTES, DatasetRef, read_lines, read_object
from utils import json_utils
from utils.json_utils import write_lines, write_object, write_text

GOOD = {"bleu1": 0.5, "rows": 12}


def refusal(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_object(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert message.startswith(f"{path}: ")
    assert message.endswith("; run `dvc repro` to write it afresh")
    return message.removeprefix(f"{path}: ").rpartition("; ")[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.json"


def test_row_1_a_missing_file_is_named(path: Path) -> None:
    assert refusal(path) == "missing"


@pytest.mark.parametrize(("content", "byte"), [(b"", 0), (b"  \n ", 4), (b'{"a": 0', 7), (b'{"a": 1} x', 9),
                                               ('{"\u00e9\u00e9": 1 2}'.encode(), 11)])
def test_row_2_an_empty_or_truncated_file_is_refused_with_the_byte(path: Path, content: bytes, byte: int) -> None:
    assert refusal(path, content).startswith(f"not JSON at byte {byte}: ")


@pytest.mark.parametrize(("content", "kind"), [(b"[1]", "list"), (b'"0.5"', "str"), (b"null", "NoneType")])
def test_row_3_another_top_level_than_an_object_is_refused(path: Path, content: bytes, kind: str) -> None:
    assert refusal(path, content) == f"expected a JSON object at the top, found {kind}"


@pytest.mark.parametrize("content", [b'{"bleu1": 0.1, "bleu1": 0.9}', b'{"a": {"bleu1": 1, "b": 2, "bleu1": 1}}'])
def test_row_4_a_key_given_twice_is_refused(path: Path, content: bytes) -> None:
    assert refusal(path, content) == "key 'bleu1' is given twice"


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_row_6_a_number_that_is_none_is_refused(path: Path, word: str) -> None:
    assert refusal(path, f'{{"bleu4": {word}}}'.encode()).startswith(f"{word} is not a number")


def test_row_10_a_byte_order_mark_is_accepted_and_utf_16_is_not(path: Path) -> None:
    text = json.dumps(GOOD)
    assert refusal(path, text.encode("utf-16")) == "not UTF-8 at byte 0"
    assert refusal(path, b'{"a": "\xe9"}') == "not UTF-8 at byte 7"
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_object(path) == GOOD


def test_row_11_200_megabytes_are_refused_without_reading_them(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    tracemalloc.start()
    try:
        assert refusal(path) == f"larger than {MAX_BYTES} bytes"
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_row_11_a_device_without_an_end_is_refused() -> None:
    assert refusal(Path("/dev/zero")) == f"larger than {MAX_BYTES} bytes"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_row_11_a_depth_of_10000_is_refused(path: Path, opening: bytes, closing: bytes) -> None:
    assert refusal(path, b'{"a":' + opening * 10_000 + b"1" + closing * 10_000 + b"}") == "nested too deeply"


def test_row_11_an_integer_of_5000_digits_is_refused(path: Path) -> None:
    assert "4300 digits" in refusal(path, b'{"rows": ' + b"9" * 5000 + b"}")


def test_a_folder_and_a_path_through_a_file_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "Is a directory"
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "metrics.json") == "Not a directory"
    assert refusal(tmp_path / ("x" * 300)) == "File name too long"


def test_a_record_is_read_with_the_same_suspicion_and_its_file_is_named(path: Path) -> None:
    split = {"path": "train.jsonl", "sha256": "ab" * 32, "rows": 3}
    write_object(path, split)
    assert DatasetRef.load(path).model_dump() == split
    write_object(path, {**split, "rows": 0})
    with pytest.raises(InvalidInput, match=rf"^{path}: rows: .*run `dvc repro`"):
        DatasetRef.load(path)
    path.write_text('{"rows": 3, "rows": 4}')
    with pytest.raises(InvalidInput, match="key 'rows' is given twice"):
        DatasetRef.load(path)


def test_a_line_that_is_no_object_is_named_with_its_number(path: Path) -> None:
    good = b'{"a": 1}\n'
    for bad in (b"[1]\n", b"\n", b'{"a": NaN}\n', b'{"a": 1, "a": 2}\n', b'{"a"', b'{"a": "\xe9"}\n', b"[" * 10_000):
        path.write_bytes(good + good + bad)
        with pytest.raises(InvalidInput, match=rf"^{path}:3: "):
            list(read_lines(path))


def test_lines_are_read_one_by_one_and_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(InvalidInput, match="missing"):
        list(read_lines(path))
    rows = [{"a": "\u00e9\u2028\u0085x"}, {"b": [1, 2.5, None]}]
    write_lines(path, rows)
    assert list(read_lines(path)) == rows
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_lines(path)) == rows


def test_nothing_is_written_of_what_json_cannot_hold(path: Path) -> None:
    write_object(path, GOOD)
    for value in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_object(path, value)
    assert read_object(path) == GOOD


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_object(path, GOOD)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_object(path, {"bleu1": 0.9})
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text()) == GOOD


def test_an_equal_file_keeps_its_time_and_another_is_replaced(path: Path) -> None:
    write_text(path.parent / "new" / "folder" / "file.txt", "made")
    write_object(path, GOOD)
    os.utime(path, (1, 1))
    write_object(path, dict(GOOD))
    assert path.stat().st_mtime == 1
    write_object(path, {**GOOD, "rows": 13})
    assert read_object(path)["rows"] == 13


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_decides_who_may_read_a_file(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_object(path, GOOD)
        write_object(path, {**GOOD, "rows": 13})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_file_is_ascii_and_ends_with_a_newline(path: Path) -> None:
    write_object(path, {"reason": "caf\u00e9"})
    assert path.read_bytes() == b'{\n  "reason": "caf\\u00e9"\n}\n'


def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_ones_stays(tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    killed, living, other = (tmp_path / name for name in (
        f".info.json.{2**22 + 1}.x1", f".info.json.{os.getppid()}.x2", f".other.json.{2**22 + 1}.x3"))
    for file in (killed, living, other):
        file.write_text("{")
    json_utils.write_object(path, {"result": "kept"})
    assert {file.name for file in tmp_path.iterdir()} == {path.name, living.name, other.name}
