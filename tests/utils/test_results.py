"""results/ as the deployment reads it: rows 1 to 17 of the bad-input table, and row 42 for what it writes to."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import InvalidInput, InvalidParams
from src.core.records import EVALUATION_RESULTS, MODEL_LOCATION, manifest, tree_digest
from tests.fakes.factories import write_results
from utils import results
from utils.results import Inputs, check_output_dir, last_info, read_inputs, write_failure

REPORT = Path("results/evaluations/report.json")
ADAPTER = Path("results/adapter")
Damage = Callable[[], object]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with valid results, which is the working directory."""
    root = tmp_path / "a repository"
    write_results(root)
    monkeypatch.chdir(root)
    return root


def read() -> Inputs:
    return read_inputs(EVALUATION_RESULTS, MODEL_LOCATION)


def change(path: Path, **values: Any) -> Damage:
    """A function that sets keys of a JSON object, dots written `__`; `...` takes a key away."""

    def damage() -> None:
        found = json.loads(path.read_text())
        for dotted, value in values.items():
            *sections, key = dotted.split("__")
            section = found
            for name in sections:
                section = section[name]
            if value is ...:
                del section[key]
            else:
                section[key] = value
        path.write_text(json.dumps(found))

    return damage


def both(**values: Any) -> Damage:
    """The same change of metrics.json and, below `metrics`, of report.json."""
    ofreport = {name if name == "rows" else f"metrics__{name}": value for name, value in values.items()}
    return lambda: (change(EVALUATION_RESULTS, **values)(), change(REPORT, **ofreport)())


def write(path: Path, content: bytes) -> Damage:
    return lambda: path.write_bytes(content)


def adapter_path(value: str) -> Damage:
    return change(MODEL_LOCATION, adapter_path=value)


def link_out_of_the_repository() -> None:
    shutil.move(ADAPTER, "../elsewhere")
    ADAPTER.symlink_to("../../elsewhere")


def link_to_itself() -> None:
    Path("loop").symlink_to("loop")
    adapter_path("loop")()


def of_another_adapter() -> None:
    (ADAPTER / "adapter_model.safetensors").write_bytes(b"newer")
    change(MODEL_LOCATION, adapter_sha256=tree_digest(manifest(ADAPTER)))()


def emptied() -> None:
    shutil.rmtree(ADAPTER)
    ADAPTER.mkdir()


def too_large() -> None:
    EVALUATION_RESULTS.write_text(EVALUATION_RESULTS.read_text().replace("0.5", "1e400"))


def absolute_inside() -> None:
    adapter_path(str(ADAPTER.resolve()))()


M, R, L = str(EVALUATION_RESULTS), str(REPORT), str(MODEL_LOCATION)
# What test_json_utils tries of every file (rows 2 to 4, 6, 10 and 11) stands here once.
TABLE: list[tuple[str, Damage, str]] = [
    ("1 missing", EVALUATION_RESULTS.unlink, f"{M}: missing; run `dvc repro`"),
    ("1 report missing", REPORT.unlink, f"{R}: missing; run `dvc repro`"),
    ("1 location missing", MODEL_LOCATION.unlink, f"{L}: missing; run `dvc repro`"),
    ("2 truncated", write(EVALUATION_RESULTS, b'{"bleu1": 0.'), f"{M}: not JSON at byte"),
    ("3 list", write(EVALUATION_RESULTS, b"[]"), f"{M}: expected a JSON object"),
    ("5 missing", change(EVALUATION_RESULTS, bleu4=...), f"{M}: bleu4 missing; expected bleu1, bleu2"),
    ("5 other case", change(EVALUATION_RESULTS, bleu4=..., BLEU4=0.5), f"{M}: bleu4 missing; expected bleu1"),
    ("5 report", change(REPORT, metrics__bleu4=...), f"{R}: metrics.bleu4: required key is missing"),
    ("6 NaN", both(bleu4=float("nan")), f"{M}: NaN is not a number"),
    ("6 1e400", too_large, f"{M}: bleu1 is inf, outside [0, 1]"),
    ("7 string", both(bleu4="0.5"), f"{M}: bleu4 is '0.5', expected a number"),
    ("7 bool", both(bleu4=True), f"{M}: bleu4 is True, expected a number"),
    ("8 percent", both(bleu4=31.2), f"{M}: bleu4 is 31.2, outside [0, 1] (sacrebleu's scale"),
    ("8 negative", both(rougeL_precision=-0.1), f"{M}: rougeL_precision is -0.1, outside [0, 1]"),
    ("12 no rows", change(EVALUATION_RESULTS, rows=0), f"{M}: rows is 0, expected the number of evaluated rows"),
    ("12 absent", change(EVALUATION_RESULTS, rows=...), f"{M}: rows is None, expected the number"),
    ("12 true", change(EVALUATION_RESULTS, rows=True), f"{M}: rows is True, expected the number"),
    ("12 report", change(REPORT, rows=0), f"{R}: rows: Input should be greater than or equal to 1"),
    ("13 other score", change(EVALUATION_RESULTS, bleu4=0.6), "bleu4 differs from report.json beside it"),
    ("13 other rows", change(EVALUATION_RESULTS, rows=13), "rows differs from report.json beside it"),
    ("13 newer adapter", of_another_adapter, f"{R}: scores adapter "),
    ("13 adapter altered", write(ADAPTER / "adapter_model.safetensors", b"x"), f"{L}: the adapter in results"),
    ("13 forged identity", change(REPORT, model__dtype="float16"), f"{R}: its digests do not follow from its content"),
    ("13 forged contract", change(REPORT, contract__metric_version="0"), f"{R}: its digests do not follow"),
    ("14 no run", change(MODEL_LOCATION, run_id=...), f"{L}: run_id: required key is missing"),
    ("14 no base", change(MODEL_LOCATION, base_model__sha256=...), f"{L}: base_model.sha256: required key"),
    ("14 unknown key", change(MODEL_LOCATION, colour=1), f"{L}: colour: unknown key"),
    ("14 not hex", change(MODEL_LOCATION, adapter_sha256="../x"), f"{L}: adapter_sha256: String should match"),
    ("15 absolute", adapter_path("/etc"), f"{L}: adapter_path '/etc' leaves the repository"),
    ("15 absolute inside", absolute_inside, "leaves the repository"),
    ("15 dots", adapter_path("results/../../elsewhere"), "leaves the repository"),
    ("15 dots inside", adapter_path("results/../results/adapter"), "leaves the repository"),
    ("15 link", link_out_of_the_repository, f"{L}: adapter_path 'results/adapter' leaves the repository"),
    ("15 loop", link_to_itself, f"{L}: adapter_path 'loop': "),
    ("15 base", change(MODEL_LOCATION, base_model__path="../b"), "base_model.path '../b' leaves the repository"),
    ("17 absent", adapter_path("results/none"), f"{L}: adapter_path 'results/none': no such folder"),
    ("17 empty", emptied, f"{L}: the adapter in results/adapter is empty"),
    ("17 no config", (ADAPTER / "adapter_config.json").unlink, f"{L}: the adapter in results/adapter is"),
    ("17 no weights", (ADAPTER / "adapter_model.safetensors").unlink, f"{L}: the adapter in results/adapter"),
    ("31 NUL", adapter_path("results/\0adapter"), f"{L}: adapter_path 'results/\\x00adapter': "),
    ("31 long", adapter_path("x" * 300), f"{L}: adapter_path 'xxx"),
    ("31 newline", adapter_path("results/ad\napter"), f"{L}: adapter_path 'results/ad\\napter': no such"),
]


@pytest.mark.parametrize(("damage", "said"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_a_bad_input_is_refused_in_one_line_that_names_it(damage: Damage, said: str) -> None:
    damage()
    with pytest.raises(InvalidInput) as caught:
        read()
    message = str(caught.value)
    assert said in message
    assert "run `dvc repro" in message
    assert "\n" not in message
    assert len(message) < 600


def test_nothing_is_written_while_reading(repository: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    read()
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_row_9_all_zeros_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    zeros = dict.fromkeys(("bleu1", "bleu2", "bleu3", "bleu4", "rougeL_precision"), 0.0)
    both(**zeros)()
    with caplog.at_level(logging.WARNING):
        assert read().report.metrics.as_dict() == zeros
    assert caplog.messages == [f"{M}: every metric is 0; look at predictions.jsonl beside it"]


def test_row_10_a_byte_order_mark_is_accepted() -> None:
    for path in (EVALUATION_RESULTS, REPORT, MODEL_LOCATION):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read().report.rows == 12


def test_whole_numbers_are_metrics_too() -> None:
    both(bleu1=1, bleu4=0)()
    assert read().report.metrics.as_dict()["bleu1"] == 1.0


def test_valid_results_are_read_wherever_they_lie() -> None:
    shutil.move("results/evaluations", "scores of \u00e9")
    found = read_inputs(Path("scores of \u00e9/metrics.json"), MODEL_LOCATION)
    assert found.evaluations == Path("scores of \u00e9")
    assert found.report.model.adapter_sha256 == found.model.adapter_sha256
    assert found.report.metrics.bleu4 == 0.5


@pytest.mark.parametrize(
    "folder", ["/", "~", ".", "..", "", "results/..", "results/fine_tuned_model_location.json",
               "results/fine_tuned_model_location.json/x", "/proc/champion", "x" * 300, "loop/x"],
)
def test_row_42_a_folder_that_is_not_ours_is_refused(folder: str) -> None:
    Path("loop").symlink_to("loop")
    with pytest.raises(InvalidParams, match=r"^--output-dir .*use results/deployment$"):
        check_output_dir(Path(folder).expanduser())


def test_row_42_a_folder_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # the tests may run as root
    with pytest.raises(InvalidParams, match="is not writable"):
        check_output_dir(Path("results/deployment"))


def test_a_folder_of_records_is_made_and_a_present_one_kept(tmp_path: Path) -> None:
    for folder in (Path("results/deployment"), tmp_path / "else where"):
        (check_output_dir(folder) / "kept").touch()
        assert check_output_dir(folder) == folder
        assert (folder / "kept").exists()


def test_the_last_record_is_empty_where_there_is_none_or_it_is_broken() -> None:
    assert last_info(Path("results")) == {}
    Path("results/deployment_info.json").write_text("{")
    assert last_info(Path("results")) == {}


def test_a_failure_replaces_record_and_log_and_leaves_the_comparison_alone() -> None:
    folder = check_output_dir(Path("results/deployment"))
    for name in (results.INFO, results.COMPARISON, results.LOGS):
        (folder / name).write_text('{"result": "promoted"}')
    write_failure(folder, "undecided", 4, "MLflow: no answer", "ERROR MLflow: no answer\n")
    assert last_info(folder) == {"result": "undecided", "code": 4, "reason": "MLflow: no answer"}
    assert (folder / results.COMPARISON).read_text() == '{"result": "promoted"}'
    assert (folder / results.LOGS).read_text() == "ERROR MLflow: no answer\n"


def test_the_log_of_a_run_is_kept_from_info_up() -> None:
    log, logger = results.LogBuffer(), logging.getLogger("src.of_this_test")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(log)
    logger.debug("too fine")
    logger.info("kept %s", "this")
    logger.removeHandler(log)
    step, end = log.text("PROMOTED: first model").splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO kept this", step)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ END PROMOTED: first model", end)
    utc = datetime.fromisoformat(step.split()[0])
    assert abs(datetime.now(UTC) - utc) < timedelta(minutes=5)
