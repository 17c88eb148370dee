"""params.yaml as a file: read safely, and every fault named with its line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml

from src.core.errors import InvalidParams
from src.core.params import Params, load_params

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


def test_the_shipped_profiles_take_their_base_model_at_a_commit() -> None:
    profiles = parse_yaml(SHIPPED, "params.yaml")["profiles"]
    fetched = [profile["model"] for profile in profiles.values() if "base_model" in profile.get("model", {})]
    assert fetched
    for model in fetched:
        assert re.fullmatch(r"[0-9a-f]{40}", model["revision"]), model


def test_a_missing_file_is_named_with_the_folder_to_run_in(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match=r"none\.yaml: not found in .*; run it in the repository's folder"):
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
    assert refusal(text, tmp_path) == f':{line}: found duplicate key "{key}"; correct the file'


@pytest.mark.parametrize(
    ("content", "said"),
    [("", ": expected a mapping at the top, found NoneType"), ("- a\n", ": expected a mapping at the top, found list"),
     ("pocket", ": expected a mapping at the top, found str"), (b"\xff\xfe\xfa", ""), ("a: b: c\n", ":1: "),
     ("data: {path: x\n", ":2: "), ("{a: b}: 1\n", ":1: "),
     ("[" * 20_000, ": nested too deeply"), ("--- {}\n--- {}\n", ":2: ")],
    ids=range(9),
)
def test_what_is_no_mapping_is_refused(content: str | bytes, said: str, tmp_path: Path) -> None:
    assert refusal(content, tmp_path).startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("profile: pocket", "profile: gpt5", "profile: 'gpt5' is unknown"),
     ("profiles:", "profiles: 1\nx:", "2 problems: profiles: expected"),
     ("  max_rows: 0", "  max_row: 0", "evaluation.max_row"),
     ("  max_rows: 0", "  max_rows: -1", "evaluation.max_rows: Input should be greater"),
     ("  verified_rows: ", "  registry: none\n  verified_rows: ", "deployment.registry is gone"),
     ("  verified_rows: ", "  resamples: 100\n  verified_rows: ", "deployment.resamples is gone: every interval"),
     ("  pocket:  ", "  pocket: {heads: 4}\n  other:  ", "2 problems: model.pocket.heads is gone: it is fixed now"),
     ("  tinyllama:\n", "  tinyllama:\n    colour: 1\n", "profiles.tinyllama.colour: unknown key"),
     ("  tinyllama:\n", "  tinyllama:\n    evaluation: 1\n  other:\n", "profiles.tinyllama.evaluation: expected a")],
)
def test_a_wrong_value_is_said_of_the_file_that_was_read(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = SHIPPED.replace(old, new, 1)
    if "  tinyllama:" in old:
        text = text.replace("profile: pocket", "profile: tinyllama")
    (tmp_path / "theirs.yaml").write_text(text)
    with pytest.raises(InvalidParams) as caught:
        load_params(tmp_path / "theirs.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'theirs.yaml'}: {said}")


@pytest.mark.parametrize("arguments", [["data_preprocessing_script.py"], ["launch_script.py", "stage.py"]])
def test_a_script_names_the_file_that_it_was_given(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(SHIPPED.replace("profile: pocket", "profile: gpt5"))
    (tmp_path / "stage.py").touch()
    root, (script, *others) = Path(__file__).parents[2], arguments
    ended = subprocess.run([sys.executable, root / "scripts" / script, *others, "--config", "theirs.yaml"],
                           cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("ERROR theirs.yaml: profile: 'gpt5' is unknown")


NUMBER, COUNT = "fine_tuning.warmup_ratio", "deployment.verified_rows"
TEXT, SWITCH = "data.intent_column", "space.enabled"


def spelt(key: str, spelling: str) -> str:
    """params.yaml with one value spelt like this, and with an anchor."""
    name = key.rpartition(".")[2]
    text = SHIPPED.replace("seed: 20\n", "seed: &many 20\n")
    return re.sub(rf"^  {name}: \S+", lambda _: f"  {name}: {spelling}", text, count=1, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("key", "spelling", "value"),
    [(NUMBER, "4e-3", 0.004), (NUMBER, ".5", 0.5), (NUMBER, "!!float 0", 0.0),
     (COUNT, "013", 13), (COUNT, "08", 8), (COUNT, "0o17", 15), (COUNT, "0x1F", 31), (COUNT, "0b11", 3),
     (COUNT, "1_000", 1000), (COUNT, "+1", 1), (COUNT, "*many", 20),
     (TEXT, "yes", "yes"), (TEXT, "on", "on"), (TEXT, "12:30", "12:30"), (TEXT, "1:30:00", "1:30:00"),
     (TEXT, "1,000", "1,000"), (TEXT, "'013'", "013"), (TEXT, "!!str 1", "1"), (TEXT, '"2024-01-01"', "2024-01-01"),
     (SWITCH, "true", True), (SWITCH, "False", False), (SWITCH, "TRUE", True)],
)
def test_a_spelling_is_the_same_value_to_a_stage_and_to_dvc(key: str, spelling: str, value: object, tmp_path: Path
                                                            ) -> None:
    section, name = key.split(".")
    (tmp_path / "params.yaml").write_text(spelt(key, spelling))
    found = load_params(tmp_path / "params.yaml").model_dump()[section][name]
    assert repr(found) == repr(parse_yaml(spelt(key, spelling), "")[section][name]) == repr(value)


@pytest.mark.parametrize(
    ("key", "spelling", "said"),
    [(COUNT, "12:30", "valid integer, found '12:30'"), (COUNT, "1,000", "valid integer, found '1,000'"),
     (COUNT, "4e3", "valid integer, found 4000.0"), (COUNT, "~", "valid integer, found None"),
     (NUMBER, ".inf", "finite number, found inf"), (NUMBER, "1e400", "finite number, found inf"),
     (TEXT, "013", "expected text in quotes, found 13"), (TEXT, "7e1", "expected text in quotes, found 70.0"),
     (TEXT, "true", "expected text in quotes, found True"), (TEXT, "", "expected text in quotes, found None"),
     (SWITCH, "yes", "expected true or false, found 'yes'"), (SWITCH, "off", "expected true or false, found 'off'"),
     (TEXT, "2024-01-01", "a parameter is no timestamp; put text in quotes"),
     (TEXT, "2024-13-01", "a parameter is no timestamp; put text in quotes"),
     (TEXT, "!!binary aGk=", "a parameter is no binary; put text in quotes"),
     (TEXT, "!!set {a}", "a parameter is no set; put text in quotes"), (TEXT, "=", "could not determine a constructor"),
     (COUNT, "!!int x", "invalid literal for int() with base 10: 'x'"), (SWITCH, "!!bool x", "'x'; correct the file"),
     (COUNT, "*nothing", "found undefined alias 'nothing'"), (COUNT, "9" * 5000, "Exceeds the limit"),
     (TEXT, "&a [*a]", "expected text in quotes")],
)
def test_a_spelling_that_does_not_fit_is_refused_by_its_key_or_line(key: str, spelling: str, said: str, tmp_path: Path
                                                                    ) -> None:
    message, line = refusal(spelt(key, spelling), tmp_path), line_of(SHIPPED, f"  {key.rpartition('.')[2]}: ")
    assert said in message
    assert f"{key}: " in message or f":{line}: " in message or spelling.startswith(("!!int", "!!bool", "999"))


def test_a_profile_merged_from_another_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.replace("  tinyllama:\n", "  tinyllama: &tinyllama\n")
                    + "  quick:\n    <<: *tinyllama\n    evaluation: {max_rows: 0o20}\n")
    quick = parse_yaml(path.read_text(), "")["profiles"]["quick"]
    params = load_params(path, profile="quick")
    assert params.evaluation.max_rows == quick["evaluation"]["max_rows"] == 16
    assert params.model.base_model == quick["model"]["base_model"] != "pocket"


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
import sys; from pathlib import Path; from src.core.params import load_params
print(ascii(load_params(next(Path(sys.argv[1]).glob("p*"))).data.intent_column))"""
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)], env={"LC_ALL": "C"}, text=True,
                          capture_output=True, check=True, cwd=Path(__file__).parents[2])
    assert "\\xe9choppe" in done.stdout
