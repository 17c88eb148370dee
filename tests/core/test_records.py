"""Records: what another file could hold is refused by name, and digests depend on content alone."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import InvalidInput
from src.core.records import (
    DatasetRef,
    EvaluationReport,
    FineTunedModel,
    Metrics,
    ModelIdentity,
    Record,
    ScoreContract,
    canonical_json,
    digest_of,
)
from tests.fakes.factories import DATASET, IDENTITY, SCORE_CONTRACT, metrics, model, model_values, report, report_values

ADAPTER = digest_of("adapter")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1.1, 31.2, "0.5", True, None, [0.5]])
def test_a_component_that_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"^report\.json: bleu4: .*run `dvc repro`"):
        Metrics.parse({**metrics(0.5).as_dict(), "bleu4": value}, where="report.json")


@pytest.mark.parametrize(("record", "values", "key"), [
    *((EvaluationReport, report_values(ADAPTER), key) for key in sorted(report_values(ADAPTER))),
    *((FineTunedModel, model_values(ADAPTER), key) for key in sorted(model_values(ADAPTER))),
])
def test_a_record_without_a_key_is_refused(record: type[Record], values: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidInput, match=f"^file: {key}: required key is missing"):
        record.parse({name: value for name, value in values.items() if name != key}, where="file")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("rows", 0, "rows: "), ("rows", 1.5, "rows: "), ("rows", "12", "rows: "),
     ("model_digest", "abc", "model_digest: "), ("model_digest", "G" * 64, "model_digest: "),
     ("weighted_score", 1.01, "weighted_score: "),
     ("weights", {"bleu1": 1.0}, "weights: must name exactly"), ("colour", 1, "colour: unknown key"),
     ("metrics", [], "metrics: "), ("run_id", None, "run_id: ")],
)
def test_a_report_of_wrong_values_is_refused(key: str, value: object, said: str) -> None:
    with pytest.raises(InvalidInput, match=f"^report: {said}"):
        EvaluationReport.parse({**report_values(ADAPTER), key: value}, where="report")


@pytest.mark.parametrize("value", [False, "true", None])
def test_a_model_that_was_not_merged_safely_has_no_identity(value: object) -> None:
    with pytest.raises(InvalidInput, match="safe_merge"):
        ModelIdentity.parse({**IDENTITY, "adapter_sha256": ADAPTER, "safe_merge": value}, where="x")


def test_a_sampled_answer_has_no_score_contract() -> None:
    sampled = {**SCORE_CONTRACT, "generation": {"max_new_tokens": 160, "do_sample": True}}
    with pytest.raises(InvalidInput, match="do_sample"):
        ScoreContract.parse(sampled, where="x")


@pytest.mark.parametrize("value", [{"rows": 0}, {"sha256": "0"}, {"path": 3}])
def test_an_empty_or_unnamed_split_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        DatasetRef.parse({**DATASET, **value}, where="x")


@pytest.mark.parametrize(("key", "value"), [("rows", "a\nb" * 10_000), ("run_id", "\ud800")])
def test_a_message_is_one_line_however_wild_the_value(key: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        EvaluationReport.parse({**report_values(ADAPTER), key: value}, where="x")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [1, math.nan]}])
def test_no_digest_of_what_is_no_number(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of(value)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        metrics(0.5).bleu1 = 0.9  # type: ignore[misc]


def test_a_record_comes_back_from_its_own_json() -> None:
    for record in (report(), model()):
        assert type(record).parse(record.model_dump(mode="json"), where="x") == record


def test_order_and_spelling_of_keys_change_no_digest() -> None:
    assert canonical_json({"b": 1, "a": "\u00e9"}) == '{"a":"\\u00e9","b":1}'
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])


def test_a_digest_is_the_same_in_every_process() -> None:
    code = ("from tests.fakes.factories import report as r; "
            "print(r().model_digest, r().contract_digest, r().weights_digest())")
    found = [subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, text=True, capture_output=True,
                            check=True, cwd=Path(__file__).parents[2]).stdout.split() for seed in ("1", "2")]
    assert found[0] == found[1] == [report().model_digest, report().contract_digest, report().weights_digest()]


@pytest.mark.parametrize("key", ["adapter_sha256", "base_name", "base_revision", "base_sha256", "dtype"])
def test_each_part_of_a_model_changes_its_digest_and_key(key: str) -> None:
    values = {**IDENTITY, "adapter_sha256": ADAPTER}
    one = ModelIdentity.parse(values, where="x")
    other = ModelIdentity.parse({**values, key: digest_of("other")}, where="x")
    assert one.digest() != other.digest()
    assert one.key("c") != other.key("c")
    assert one.key("c") != one.key("d")


@pytest.mark.parametrize(
    "change", [{"rows_sha256": digest_of("x")}, {"metric_version": "2"}, {"metric_signature": "tok:zh"},
               {"generation": {"max_new_tokens": 161, "do_sample": False}}],
)
def test_each_part_of_a_contract_changes_its_digest(change: dict[str, Any]) -> None:
    assert ScoreContract.parse(SCORE_CONTRACT, where="x").digest() != ScoreContract.parse(
        {**SCORE_CONTRACT, **change}, where="x").digest()


def test_weights_are_no_part_of_a_contract() -> None:
    values = report_values(ADAPTER)
    other = {**values, "weights": {**values["weights"], "bleu1": 0.15, "bleu2": 0.10}}
    one, two = (EvaluationReport.parse(v, where="x") for v in (values, other))
    assert one.contract.digest() == two.contract.digest()
    assert one.weights_digest() != two.weights_digest()
