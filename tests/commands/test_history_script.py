"""history_script.py over a real store that the gate itself has filled."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import InvalidParams, PipelineError, Refused
from src.core.params import Params
from src.model_selection import Reason, Verdict
from tests.fakes.history_fixtures import ROOT, Run, client, config, evaluate_and_deploy, evidence_of, params, run
from tests.fakes.history_store import answers, challenger, deploy

__all__ = ["config", "params", "run"]  # fixtures, found by their names

PAGE = ROOT / "docs/troubleshooting.md"


def rows(run: Run) -> dict[str, dict[str, str]]:
    return {row["run_id"]: row for row in csv.DictReader(io.StringIO(run("--csv")))}


def reasons(steps: list[dict[str, Any]]) -> list[str]:
    return [step["reason"] for step in steps]


def test_an_empty_store_has_no_evaluations(run: Run) -> None:
    assert run() == "ecommerce-chatbot: no evaluations\n"
    assert json.loads(run("--json"))["contracts"] == []
    assert len(run("--csv").splitlines()) == 1


def test_the_list_ranks_what_was_decided_and_names_what_is_in_the_way(run: Run, config: Path, params: Params) -> None:
    first, second, third = evaluate_and_deploy(config, params, ("a", 20), ("b", 25), ("c", 24))
    lone = challenger(params, "lone", answers(35))
    (late,) = evaluate_and_deploy(config, params, ("late", 30))
    found = rows(run)
    assert [(found[r.run_id]["rank"], found[r.run_id]["decision"], found[r.run_id]["version"], found[r.run_id]["alias"])
            for r in (lone, late, second, third, first)] == [
        ("1", "", "", ""), ("2", "keep (not_best)", "", ""), ("3", "promote (improved)", "2", "champion"),
        ("4", "keep (not_best)", "", ""), ("5", "promote (first_model)", "1", "previous")]
    assert list(found) == [r.run_id for r in (lone, late, second, third, first)]
    assert "champion history                         # every scored run, the best first\n" in PAGE.read_text()
    listed = json.loads(run("--json"))
    assert f"--promote {lone.run_id[:8]}`" in listed["in_the_way"]
    assert late.run_id in listed["in_the_way"]
    assert listed["contracts"][0]["champion"] == {"run_id": second.run_id, "score": second.weighted_score}
    text = run("--limit", "2")
    assert f"\nlatest evaluation: score {late.weighted_score:.3f} is " in text
    assert "... and 3 more" in text


def test_another_contract_is_listed_apart(run: Run, config: Path, params: Params) -> None:
    evaluate_and_deploy(config, params, ("a", 20))
    other = challenger(params, "b", answers(30, split="Please: "))
    contracts = json.loads(run("--json"))["contracts"]
    assert [len(each["runs"]) for each in contracts] == [1, 1]
    assert contracts[0]["contract"] == other.contract_digest
    assert contracts[0]["champion"] is None


def test_an_excluded_run_is_not_to_beat_and_the_note_says_who_and_why(run: Run, config: Path, params: Params) -> None:
    evaluate_and_deploy(config, params, ("a", 20))
    lone = challenger(params, "lone", answers(35))
    challenger(params, "late", answers(30))
    assert deploy(config).reason is Reason.NOT_BEST
    said = run("--exclude", lone.run_id, "--reason", " measured on\na broken machine ")
    assert "measured on a broken machine" in said
    note = json.loads(client(params).get_run(lone.run_id).data.tags["champion.excluded"])
    assert note["reason"] == "measured on a broken machine"
    assert {"actor", "time"} < set(note)
    assert "was already excluded" in run("--exclude", lone.run_id, "--reason", "another")
    assert json.loads(client(params).get_run(lone.run_id).data.tags["champion.excluded"]) == note
    assert rows(run)[lone.run_id]["rank"] == ""
    assert deploy(config).reason is Reason.IMPROVED


def test_a_promoted_models_run_is_not_excluded_but_rolled_back(run: Run, config: Path, params: Params) -> None:
    (first, _) = evaluate_and_deploy(config, params, ("a", 20), ("b", 25))
    with pytest.raises(Refused, match=r"champion rollback --block 1"):
        run("--exclude", first.run_id, "--reason", "why not")
    assert "champion.excluded" not in client(params).get_run(first.run_id).data.tags


def test_what_is_no_evaluation_of_this_model_is_refused(run: Run, config: Path, params: Params) -> None:
    (first,) = evaluate_and_deploy(config, params, ("a", 20))
    deleted = challenger(params, "b", answers(10))
    client(params).delete_run(deleted.run_id)
    deployment = evidence_of(params, first).parts[-3]
    foreign = challenger(params, "c", answers(11))
    client(params).set_tag(foreign.run_id, "champion.model_name", "another")
    for run_id in ("f" * 32, deployment, deleted.run_id, foreign.run_id):
        for flags in (["--exclude", run_id, "--reason", "x"], ["--promote", run_id]):
            with pytest.raises(InvalidParams, match=run_id):
                run(*flags)


@pytest.mark.parametrize("flags", [
    ["--exclude", "a" * 32], ["--exclude", "a" * 32, "--reason", " \n"], ["--reason", "x"], ["--backtest"],
    ["--set", "threshold=0.1"], ["--explain", "a", "--csv"], ["--backtest", "--set", "threshold=0.1", "--csv"],
    ["--limit", "0"], ["--limit", "3", "--explain", "a"], ["--json", "--csv"], ["--explain", "a", "--promote", "b"]])
def test_flags_that_do_not_go_together_are_named(run: Run, flags: list[str]) -> None:
    with pytest.raises(InvalidParams, match=r"^(argument )?--"):
        run(*flags)


def test_a_backtest_shows_which_promotions_would_have_differed(run: Run, config: Path, params: Params) -> None:
    first, second, _, fourth = evaluate_and_deploy(config, params, ("a", 20), ("b", 21), ("c", 22), ("d", 30))
    text = run("--backtest", "--set", "threshold=0.02")
    assert "2 promotions differ" in text
    assert second.run_id[:8] in text
    assert first.run_id[:8] not in text
    (found,) = json.loads(run("--backtest", "--set", "threshold=0.02", "--json"))
    assert reasons(found["recorded"]) == ["first_model", "improved", "improved", "improved"]
    assert reasons(found["other"]) == ["first_model", "below_threshold", "below_threshold", "improved"]
    (found,) = json.loads(run("--backtest", "--set", "significance=require", "--json"))
    assert reasons(found["other"]) == ["first_model", "within_noise", "within_noise", "improved"]
    assert found["other"][-1]["run_id"] == fourth.run_id


def test_the_command_itself_lists_without_torch_and_fails_in_one_line(config: Path, params: Params) -> None:
    evaluate_and_deploy(config, params, ("a", 20))
    script = str(ROOT / "scripts/history_script.py")
    program = (f"import runpy, sys\ntry: runpy.run_path({script!r}, run_name='__main__')\n"
               "finally: assert not {'torch', 'transformers', 'evaluate'} & set(sys.modules)")
    listed = subprocess.run([sys.executable, "-c", program, "--config", str(config)], capture_output=True, text=True,
                            env={"PYTHONPATH": str(ROOT)}, check=False)
    assert (listed.returncode, listed.stderr) == (0, "")
    failed = subprocess.run([sys.executable, script, "--set", "threshold=1"], capture_output=True, text=True,
                            env={"PYTHONPATH": str(ROOT)}, check=False)
    assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1)


def test_an_unreachable_server_is_undecided(config: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(PipelineError, match="MLflow at") as caught:
        run()
    assert caught.value.code == 4
    assert Verdict.UNDECIDED.value == caught.value.result
