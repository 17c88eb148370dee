"""history_script.py --explain replays what the gate decided, and tells what was altered since."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import IntegrityError, InvalidInput, InvalidParams
from src.core.params import Params
from tests.fakes.history_fixtures import ROOT, Run, client, config, evaluate_and_deploy, evidence_of, params, run
from tests.fakes.history_store import answers, challenger, deploy, write_params

__all__ = ["config", "params", "run"]  # fixtures, found by their names


def test_a_decision_is_explained_and_taken_again_bit_for_bit(run: Run, config: Path, params: Params) -> None:
    first, second, third = evaluate_and_deploy(config, params, ("a", 20), ("b", 25), ("c", 24))
    assert "PROMOTED (first_model)" in run("--explain", first.run_id)
    words = run("--explain", second.run_id)
    assert "PROMOTED (improved): score 0.922 is 0.027 above the champion, version 1 (0.895)\n" in words
    assert f"best promoted   {first.weighted_score:.6f}  version 1, MLflow run {first.run_id[:8]}" in words
    assert " at 95 % on 40 rows" in words
    assert words.endswith("  replay          the same result, bit for bit\n")
    deployment = evidence_of(params, third).parts[-3]
    assert f"recorded in     MLflow run {deployment[:8]}" in run("--explain", third.run_id)
    assert "NOT PROMOTED (not_best)" in run("--explain", deployment)


def test_a_run_is_named_by_the_first_characters_of_its_id(run: Run, config: Path, params: Params) -> None:
    first, second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))
    assert run("--explain", second.run_id[:8]) == run("--explain", second.run_id)
    with pytest.raises(InvalidParams, match="MLflow has no such run"):
        run("--explain", "0" * 8)
    with pytest.raises(InvalidParams, match="MLflow has no such run"):
        run("--explain", first.run_id[:7])


def test_a_forced_decision_says_what_it_set_aside(run: Run, config: Path, params: Params) -> None:
    evaluate_and_deploy(config, params, ("a", 25))
    forced = challenger(params, "b", answers(20))
    deploy(config, "--force-deploy", "--reason", "a customer needs it")
    assert "asked for, and overrode the reason not_best" in run("--explain", forced.run_id)


def test_an_evaluation_that_nothing_was_decided_about_has_nothing_to_explain(run: Run, params: Params) -> None:
    lone = challenger(params, "a", answers(20))
    with pytest.raises(InvalidParams, match="nothing was decided"):
        run("--explain", lone.run_id)


ALTERATIONS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda e: e["answer"].update(gain="0.5"), "answer.gain: recorded '0.5', found '0.026573193'"),
    (lambda e: e["evidence"].update(low=0.5), "evidence.low: recorded 0.5, found "),
    (lambda e: e["challenger"]["metrics"].update(bleu4=0.99), "challenger.metrics.bleu4: recorded 0.99, found "),
    (lambda e: e["policy"].update(threshold="0.5"), "evidence.threshold: recorded 0.001, found 0.5"),
    (lambda e: e.update(challengers=7), "challengers: recorded 7, found None"),
    (lambda e: e.update(force=True, answer={**e["answer"], "reason": "forced"}), "answer.reason: recorded 'forced'"),
    (lambda e: e.update(ledger=[]), "answer.reason: recorded 'improved', found 'first_model'"),
]


def test_evidence_that_was_altered_is_told_and_named(run: Run, config: Path, params: Params,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))[1]
    path = evidence_of(params, second)
    text = path.read_text()
    for change, named in ALTERATIONS:
        evidence = json.loads(text)
        change(evidence)
        path.write_text(json.dumps(evidence))
        with pytest.raises(IntegrityError):
            run("--explain", second.run_id)
        out = capsys.readouterr().out
        assert "replay          differs\n" in out
        assert named in out.partition("differs\n")[2]


def test_the_number_of_a_challenger_is_recorded_with_the_confidence_that_it_asks_for(
    run: Run, config: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(config.parent, ROOT / "params.yaml", significance="require")
    third = evaluate_and_deploy(config, params, ("a", 30), ("b", 20), ("c", 21))[2]
    words = run("--explain", third.run_id)
    assert "challenger 2 since the last promotion, whose gain must show at 98.3 % confidence" in words
    assert " at 98.3 % on 40 rows, " in words
    assert words.endswith("  replay          the same result, bit for bit\n")
    path = evidence_of(params, third)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"challengers": 1}))
    with pytest.raises(IntegrityError):
        run("--explain", third.run_id)
    assert "evidence.confidence: recorded 0.983333333333, found 0.95\n" in capsys.readouterr().out


def test_answers_that_were_changed_after_the_decision_are_told(run: Run, config: Path, params: Params,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    first, second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))
    path = Path(client(params).get_run(first.run_id).info.artifact_uri) / "predictions.jsonl"
    path.write_text("".join(json.dumps(row.model_dump()) + "\n" for row in answers(30)))
    with pytest.raises(IntegrityError, match="differs from the record"):
        run("--explain", second.run_id)
    assert "metrics.bleu4: recorded 0.87" in capsys.readouterr().out.partition("differs")[2]


def test_evidence_that_is_none_at_all_or_gone_is_said_to_be(run: Run, config: Path, params: Params) -> None:
    (first,) = evaluate_and_deploy(config, params, ("a", 20))
    path = evidence_of(params, first)
    for text in ("{}", '{"challenger": 1}', '{"policy": {"threshold": "x"}, "evidence": null}'):
        path.write_text(text)
        with pytest.raises(IntegrityError, match=r"evidence\.json"):
            run("--explain", first.run_id)
    path.unlink()
    with pytest.raises(InvalidInput, match=r"evidence\.json cannot be read"):
        run("--explain", first.run_id)


def set_metric(path: Path, value: float) -> None:
    found = json.loads(path.read_text())
    found.get("metrics", found)["bleu4"] = value
    path.write_text(json.dumps(found))


def test_files_that_state_another_score_than_the_answers_give_are_named(
    run: Run, config: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))[1]
    true = f"{second.metrics.bleu4:.6f}"
    set_metric(Path("results/evaluations/metrics.json"), 0.9)
    with pytest.raises(IntegrityError, match=r"results/evaluations/metrics\.json says bleu4 0\.900000"):
        run("--explain", second.run_id)
    source = f"MLflow run {second.run_id}"
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("  untrue")]
    assert line == ("  untrue          results/evaluations/metrics.json says bleu4 0.900000, the answers in "
                    f"{source} give {true}; results/evaluations/report.json says {true}, {source} says {true}, "
                    f"the recorded decision says {true}")


def test_a_metric_that_was_logged_again_is_named(run: Run, config: Path, params: Params,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    first, second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))
    client(params).log_metric(first.run_id, "bleu4", 0.1)
    with pytest.raises(IntegrityError):
        run("--explain", second.run_id)
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("  untrue")]
    assert f"MLflow run {first.run_id} says bleu4 0.100000, the answers in MLflow run {first.run_id} give " in line


def test_a_recorded_decision_on_another_score_is_named(run: Run, config: Path, params: Params,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))[1]
    path = evidence_of(params, second)
    evidence = json.loads(path.read_text())
    evidence["challenger"]["metrics"]["bleu4"] = 0.99
    path.write_text(json.dumps(evidence))
    with pytest.raises(IntegrityError):
        run("--explain", second.run_id)
    assert "untrue          the recorded decision says bleu4 0.990000, the answers in " in capsys.readouterr().out


def test_changed_answers_are_named_where_all_else_agrees(run: Run, config: Path, params: Params,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    first, second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))
    path = Path(client(params).get_run(first.run_id).info.artifact_uri) / "predictions.jsonl"
    path.write_text("".join(json.dumps(row.model_dump()) + "\n" for row in answers(30)))
    with pytest.raises(IntegrityError):
        run("--explain", second.run_id)
    out = capsys.readouterr().out
    assert f"untrue          the answers in MLflow run {first.run_id} give bleu1 " in out
    assert out.rstrip().endswith(": the answers were changed")


def test_statistics_that_were_changed_beside_true_texts_are_named(run: Run, config: Path, params: Params) -> None:
    first, second = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))
    path = Path(client(params).get_run(first.run_id).info.artifact_uri) / "predictions.jsonl"
    rows = [row.model_dump() | {"stats": answers(0)[0].stats} for row in answers(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(IntegrityError, match=r"has statistics of row .* that its text does not give"):
        run("--explain", second.run_id)
