"""params.yaml as a file: read safely, and every fault named with its line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.errors import InvalidParams
from src.core.params import Params
from utils.yaml_utils import load_params

SHIPPED = (Path(__file__).parents[2] / "params.yaml").read_text()


def refusal(content: str | bytes, folder: Path) -> str:
    path = folder / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidParams) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_missing_file_is_named_with_the_flag_that_gives_another(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match=r"none\.yaml: No such file or directory; give the .* with --config"):
        load_params(tmp_path / "none.yaml")


def test_a_folder_is_no_parameter_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match="Is a directory"):
        load_params(tmp_path)


def test_a_tab_is_named_with_its_line(tmp_path: Path) -> None:
    text = SHIPPED.replace("  path: data/", "\tpath: data/")
    assert refusal(text, tmp_path).startswith(f":{line_of(text, chr(9))}: found character '\\t' that cannot start")


def test_a_python_tag_makes_nothing_and_is_named_with_its_line(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    text = SHIPPED.replace("seed: 20", f"seed: !!python/object/apply:os.mkdir [{trap}]")
    line = line_of(text, "!!python")
    assert refusal(text, tmp_path).startswith(f":{line}: could not determine a constructor for the tag")
    assert not trap.exists()
    assert ":1: could not determine" in refusal("profile: !!python/object:os.system {}\n", tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("mlflow:\n", "mlflow: {}\n"), ("  min_improvement_threshold: 0.001\n", "  min_improvement_threshold: 0.5\n"),
     ("      bleu4: 0.40\n", '      "bleu4": 0.40\n')],
)
def test_a_key_given_twice_is_named_with_its_second_line(first: str, second: str, tmp_path: Path) -> None:
    text = SHIPPED.replace(first, first + second if first.startswith(" ") else second + first)
    line = line_of(text, first) + (1 if first.startswith(" ") else 0)
    key = second.strip().partition(":")[0].strip('"')
    assert refusal(text, tmp_path) == f":{line}: key '{key}' is given twice; correct the file"


@pytest.mark.parametrize(
    ("content", "said"),
    [("", ": expected a mapping at the top, found NoneType"), ("- a\n", ": expected a mapping at the top, found list"),
     ("pocket", ": expected a mapping at the top, found str"), (b"\xff\xfe\xfa", ""), ("a: b: c\n", ":1: "),
     ("data: {path: x\n", ":2: "), ("a: *nowhere\n", ":1: found undefined alias"), ("{a: b}: 1\n", ":1: "),
     ("[" * 20_000, ": nested too deeply"), ("--- {}\n--- {}\n", ":2: ")],
    ids=range(10),
)
def test_what_is_no_mapping_is_refused(content: str | bytes, said: str, tmp_path: Path) -> None:
    assert refusal(content, tmp_path).startswith(said)


def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path) -> None:
    assert "learning_rate: Input should be a valid number, found '2e-3'" in refusal(
        re.sub(r"learning_rate: \S+", "learning_rate: 2e-3", SHIPPED, count=1), tmp_path)


def test_the_shipped_file_is_read_and_overrides_laid_over_it(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("\ufeff" + SHIPPED, encoding="utf-8")
    found = load_params(path, {"deployment": {"min_improvement_threshold": 0.5}})
    assert isinstance(found, Params)
    assert found.deployment.min_improvement_threshold == 0.5


def test_a_locale_that_is_not_utf8_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p\u00e4rams.yaml"
    path.write_text(re.sub(r"intent_column: \S+", "intent_column: \u00e9choppe", SHIPPED), encoding="utf-8")
    code = """
import sys; from pathlib import Path; from utils.yaml_utils import load_params
print(ascii(load_params(next(Path(sys.argv[1]).glob("p*"))).data.intent_column))"""
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)], env={"LC_ALL": "C"}, text=True,
                          capture_output=True, check=True, cwd=Path(__file__).parents[2])
    assert "\\xe9choppe" in done.stdout
