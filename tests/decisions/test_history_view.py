"""The history as a list: who is ranked, who is named, and how it reads."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from src.core.records import digest_of
from src.decisions import history
from src.ledger.slots import LedgerView
from src.model_selection import Policy
from tests.fakes.factories import POLICY, ledger, rollback, run

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR = 3_600_000
AT = int(NOW.timestamp() * 1000)
NOBODY = LedgerView(())
TOMORROW = digest_of("tomorrow's contract")


def logged(model: str, score: float, hours_ago: float, *, excluded: str | None = None, run_id: str | None = None,
           contract: str | None = None, guard: str | None = None) -> history.Evaluation:
    more = {"contract": contract} if contract else {}
    return history.Evaluation(run(model, score, run_id=run_id, at=AT - int(hours_ago * HOUR), **more), excluded, guard)


def listed(evaluations: list[history.Evaluation], view: LedgerView = NOBODY, policy: Policy = POLICY) -> list[Any]:
    """Run, rank and mark of each row, of all contracts."""
    return [(row.run_id, row.rank, row.mark) for group in history.groups(evaluations, view, policy, {}, NOW)
            for row in group.rows]


def test_runs_are_ranked_by_score_and_equals_share_a_rank() -> None:
    evaluations = [logged("a", 0.5, 4), logged("b", 0.7, 3), logged("c", 0.5, 2), logged("d", 0.4, 1)]
    assert listed(evaluations) == [("run-b", 1, ""), ("run-c", 2, ""), ("run-a", 2, ""), ("run-d", 4, "")]
    assert listed([]) == []


def test_runs_under_another_contract_are_listed_apart_and_never_ranked_together() -> None:
    found = history.groups([logged("a", 0.9, 3), logged("b", 0.2, 1, contract=TOMORROW)], NOBODY, POLICY, {}, NOW)
    assert [(group.contract, [row.rank for row in group.rows]) for group in found] == [
        (TOMORROW, [1]), (run("a", 0.9).contract, [1])]


def test_excluded_blocked_and_superseded_runs_have_no_rank_and_say_why() -> None:
    view = rollback(ledger(("a", 0.5), ("b", 0.7)), 1, blocks=[2])
    evaluations = [logged("a", 0.5, 9), logged("b", 0.7, 8), logged("c", 0.95, 7, excluded="by hand"),
                   logged("d", 0.9, 6, run_id="first"), logged("d", 0.3, 5, run_id="again")]
    assert listed(evaluations, view) == [("run-a", 1, ""), ("again", 2, ""), ("run-c", None, "excluded: by hand"),
                                         ("first", None, "superseded"), ("run-b", None, "blocked")]


def test_where_the_latest_evaluation_is_excluded_the_one_before_counts_again() -> None:
    evaluations = [logged("a", 0.5, 2, run_id="first"), logged("a", 0.9, 1, run_id="second", excluded="no")]
    assert listed(evaluations) == [("first", 1, ""), ("second", None, "excluded: no")]


def test_a_model_that_a_guard_refused_has_no_rank_and_says_which_guard_unless_it_was_promoted() -> None:
    evaluations = [logged("a", 0.5, 9, guard="least_rows"), logged("b", 0.9, 8, guard="least_rows"),
                   logged("c", 0.8, 7, run_id="passed"), logged("c", 0.8, 6, run_id="failed", guard="least_rows"),
                   logged("d", 0.7, 5, run_id="refused", guard="least_rows"), logged("d", 0.6, 4, run_id="cured")]
    assert listed(evaluations, ledger(("a", 0.5))) == [
        ("cured", 1, ""), ("run-a", 2, ""), ("run-b", None, "refused by guard least_rows"),
        ("failed", None, "refused by guard least_rows"), ("passed", None, "superseded"),
        ("refused", None, "refused by guard least_rows")]


def test_a_model_that_a_guard_refused_is_in_nobodys_way_and_nothing_is_in_its_way() -> None:
    before = [logged("a", 0.5, 3), logged("refused", 0.7, 2, guard="least_rows")]
    assert history.in_the_way([*before, logged("new", 0.6, 1)], ledger(("a", 0.5)), POLICY) is None
    evaluations = [logged("a", 0.5, 3), logged("lone", 0.7, 2), logged("new", 0.6, 1, guard="least_rows")]
    assert history.in_the_way(evaluations, ledger(("a", 0.5)), POLICY) is None


def test_a_row_says_its_version_alias_age_and_what_was_decided() -> None:
    view = ledger(("a", 0.5), ("b", 0.7))
    evaluations = [logged("a", 0.5, 50), logged("b", 0.7, 5), logged("c", 0.6, 0.5)]
    (group,) = history.groups(evaluations, view, POLICY, {evaluations[2].key: "keep (not_best)"}, NOW)
    assert [(row.version, row.alias, row.age, row.decision, row.delta and float(row.delta)) for row in group.rows] == [
        (2, "champion", "5 h", "", 0.0),
        (None, "", "30 min", "keep (not_best)", -0.1),
        (1, "previous", "2 d", "", -0.2),
    ]


def test_scores_are_taken_again_under_the_weights_of_today() -> None:
    precise = Policy({**dict.fromkeys(POLICY.weights, 0.0), "bleu4": 1.0}, POLICY.threshold, require_significance=False)
    best = logged("a", 0.5, 2)
    metrics = best.run.metrics.model_copy(update={"bleu4": 0.6, "bleu1": 0.0, "bleu2": 0.0})
    changed = history.Evaluation(replace(best.run, run_id="new", model_digest=digest_of("new"), metrics=metrics), None)
    assert [row[0] for row in listed([best, changed])] == ["run-a", "new"]
    assert [row[0] for row in listed([best, changed], policy=precise)] == ["new", "run-a"]


def test_the_header_shows_champion_best_promoted_and_best_evaluated_side_by_side() -> None:
    view = ledger(("a", 0.6), ("b", 0.5))  # b was forced
    (group,) = history.groups([logged("a", 0.6, 3), logged("b", 0.5, 2), logged("c", 0.7, 1)], view, POLICY, {}, NOW)
    text = history.header("shop-bot", group, view, POLICY)
    assert text[0].startswith("shop-bot: 3 models evaluated on the same test set (contract ")
    assert text[1:] == [
        "  champion        version 2, score 0.500, MLflow run run-b",
        "  best promoted   version 1, score 0.600, MLflow run run-a",
        "  best evaluated  never promoted, score 0.700, MLflow run run-c"]


@pytest.mark.parametrize(("lone", "latest", "named"), [(0.60, 0.55, True), (0.55, 0.55, True), (0.60, 0.5005, False),
                                                       (0.55, 0.60, False), (0.60, 0.40, False)])
def test_a_run_that_was_never_promoted_is_named_where_it_alone_keeps_the_latest_challenger_out(
    lone: float, latest: float, named: bool
) -> None:
    evaluations = [logged("a", 0.5, 3), logged("lone", lone, 2), logged("new", latest, 1)]
    found = history.in_the_way(evaluations, ledger(("a", 0.5)), POLICY)
    assert (found is not None) is named
    if found:
        assert found.startswith(f"run run-new: score {latest:.3f} ")
        assert found.endswith("`champion history --promote run-lone`")


def test_a_promoted_model_in_the_way_is_not_called_one_that_was_never_promoted() -> None:
    view = ledger(("a", 0.6), ("b", 0.5))
    assert history.in_the_way([], NOBODY, POLICY) is None
    assert history.in_the_way([logged("a", 0.6, 3), logged("b", 0.5, 2), logged("new", 0.55, 1)], view, POLICY) is None


def test_the_table_is_aligned_and_csv_and_json_hold_every_column() -> None:
    evaluations = [logged("a", 0.5, 4), logged("b", 0.7, 3, excluded="x")]
    (group,) = history.groups(evaluations, ledger(("a", 0.5)), POLICY, {}, NOW)
    lines = history.table(group.rows).splitlines()
    assert len(lines) == 3
    assert lines[0].index("MLflow run") == lines[1].index("run-a") == lines[2].index("run-b")
    rows = list(csv.DictReader(io.StringIO(history.csv_text(group.rows))))
    assert tuple(rows[0]) == history.HEADINGS
    assert rows[1]["rank"] == ""
    value = json.loads(json.dumps(history.as_json(group, group.rows, POLICY), allow_nan=False))
    assert set(value["runs"][0]) == set(history.HEADINGS)
    assert (value["models"], value["champion"]["score"], value["runs"][0]["delta"]) == (1, 0.5, 0.0)


def test_an_exclusion_keeps_reason_actor_and_time_in_one_value() -> None:
    note = history.exclusion('a "broken" machine', "octocat", NOW)
    assert json.loads(note) == {"reason": 'a "broken" machine', "actor": "octocat", "time": "2026-11-20T12:00:00+00:00"}
    assert history.exclusion_words(note) == 'a "broken" machine (octocat, 2026-11-20T12:00:00+00:00)'
    assert [history.exclusion_words(text) for text in ("set by hand", "[1]")] == ["set by hand", "[1]"]


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (7300, "2 h"),
                                               (200_000, "2 d")])
def test_an_age_is_told_in_its_largest_unit(seconds: int, text: str) -> None:
    assert history.age(AT - seconds * 1000, NOW) == text
