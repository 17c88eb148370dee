"""pipeline.yml as GitHub runs it, step by step, with a real MLflow server, Hub protocol, DVC remote and git origin.

Slow: every run is three jobs with their imports, and most train.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.actions.harness import Job, git
from tests.fakes.actions.shop import PASSWORD, REPO, USER, Shop, log_in
from tests.fakes.loopback_github import TOKEN, GitServer, LoopbackGithub
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.postgres import MlflowServer, PostgresCluster, needs_postgres

pytestmark = [pytest.mark.slow, needs_postgres]

EVIL = '"; echo pwned; #'
RUN, SETUP = "Run the pipeline", "Set up"
TRAINS = "Running stage 'fine_tuning'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    with PostgresCluster() as made:
        yield made


@pytest.fixture
def shop(tmp_path: Path, cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    log_in(monkeypatch)
    database = cluster.migrated("mlflow")
    with (MlflowServer(database, tmp_path / "artifacts", auth=(USER, PASSWORD)) as server,
          LoopbackHub(tmp_path / "hub") as hub, GitServer(tmp_path / "git", TOKEN) as origin, LoopbackGithub() as api):
        api.pulls = {"feature/work": 7}
        yield Shop(tmp_path, hub, server.url, origin, api)


def story(jobs: dict[str, Job]) -> str:
    return "".join(f"=== {name}: {job.result}\n" + "".join(
        f"--- {step.name}: {step.outcome}, {step.seconds:.1f} s\n{step.log}" for step in job.steps
    ) + f"--- summary\n{job.summary}\n" for name, job in jobs.items())


def results(jobs: dict[str, Job]) -> dict[str, str]:
    return {name: job.result for name, job in jobs.items()}


def outcomes(job: Job) -> dict[str, str]:
    return {step.name: step.outcome for step in job.steps}


def log(jobs: dict[str, Job]) -> str:
    return jobs["pipeline"].step(RUN).log


def test_a_push_promotes_once_and_a_forced_run_needs_its_reason(shop: Shop) -> None:
    shop.make(force_requires_reason=True)

    first = shop.push()
    assert results(first) == {"pipeline": "success", "records": "success", "comment": "success"}, story(first)
    assert set(outcomes(first["pipeline"]).values()) == {"success"}
    assert first["pipeline"].summary.startswith("## Promoted")
    assert [slot.reason for slot in shop.view.slots] == ["no reason given"]
    assert (shop.champion, shop.info("main")["result"]) == ("1", "promoted")
    assert "results/base_model/" not in git(shop.origin, "ls-tree", "-r", "--name-only", "main")

    refused = shop.dispatch(force_deploy=True)
    assert results(refused) == {"pipeline": "failure", "records": "skipped", "comment": "skipped"}
    assert "deployment.force_requires_reason asks for a reason" in story(refused)
    assert outcomes(refused["pipeline"])[RUN] == "skipped"
    assert outcomes(refused["pipeline"])["Write the job summary"] == "success"
    assert len(shop.view.slots) == 1

    unknown = shop.dispatch(profile=EVIL)
    assert outcomes(unknown["pipeline"])[RUN] == "skipped"
    assert f"profile: {EVIL!r} is unknown" in story(unknown)

    shop.pull()
    git(shop.clone, "checkout", "--quiet", "-b", "feature/short")
    shop.set(fine_tuning={"seed": 99})
    shop.commit("Another seed")
    git(shop.clone, "push", "--quiet", "origin", "feature/short")
    forced = shop.dispatch("feature/short", force_deploy=True, reason=EVIL)
    assert results(forced) == {"pipeline": "success", "records": "success", "comment": "success"}, story(forced)
    assert "Stage 'base_model' didn't change, skipping" in log(forced)
    assert TRAINS in log(forced)
    assert [slot.reason for slot in shop.view.slots] == ["no reason given", EVIL]
    assert shop.info("feature/short")["stated_reason"] == EVIL
    assert (shop.champion, shop.info("feature/short")["result"]) == ("2", "promoted")
    said = [line for jobs in shop.runs for job in jobs.values() for step in job.steps for line in step.log.splitlines()]
    assert "pwned" not in said


def test_a_branch_that_may_not_promote_leaves_the_model_that_its_merge_promotes(shop: Shop) -> None:
    shop.make(promoting_branches=["main"])
    git(shop.clone, "checkout", "--quiet", "-b", "feature/work")

    kept = shop.push("feature/work")
    assert results(kept) == {"pipeline": "success", "records": "success", "comment": "success"}, story(kept)
    assert TRAINS in log(kept)
    assert "not_promoting_branch" in log(kept)
    assert (shop.view.slots, shop.champion, f"models/{REPO}" in shop.hub.repos) == ((), None, False)

    shop.pull("feature/work")
    digest = shop.info("feature/work")["model_digest"]
    (comment,) = shop.api.comments
    assert "not_promoting_branch" in comment["body"] or "may not promote" in comment["body"]
    git(shop.clone, "checkout", "--quiet", "main")
    git(shop.clone, "merge", "--quiet", "--no-ff", "--message", "Merge the work", "feature/work")
    merged = shop.push("main")
    assert results(merged) == {"pipeline": "success", "records": "success", "comment": "success"}, story(merged)
    for stage in ("data_preprocessing", "base_model", "fine_tuning", "evaluation"):
        assert f"Stage '{stage}' didn't change, skipping" in log(merged)
    assert (shop.champion, len(shop.view.slots)) == ("1", 1)
    assert (shop.info("main")["result"], shop.info("main")["model_digest"]) == ("promoted", digest)

    before = git(shop.origin, "rev-parse", "feature/work")
    other = shop.dispatch("feature/work", min_improvement_threshold="0.5", skip_hf_push=True)
    assert results(other) == {"pipeline": "success", "records": "skipped", "comment": "success"}, story(other)
    assert "--min-improvement-threshold 0.5" in log(other)
    assert "result=already" in log(other)
    assert f"| Commit | {before} on feature/work |" in other["pipeline"].summary
    assert git(shop.origin, "rev-parse", "feature/work") == before
    assert len(shop.view.slots) == 1
    (comment,) = shop.api.comments  # the same one, written anew
    assert "## Already the champion" in comment["body"]
    assert f"{shop.hub.url}/{REPO}/commit/" in comment["body"]
