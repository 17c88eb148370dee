"""The journal is evidence: written before each step, read with suspicion, and nothing when it is gone."""

import os
from pathlib import Path

import pytest

from src.promotion.protocol import Step
from utils.tracking.deployments import FOLDER, Journal, traces

KEY = "0123456789ab" + "c" * 52


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("torn", ['{"time": "2026', "", "\n\n", '{"step": "publish"}', '{"step": "dance"}', "[]"])
def test_a_line_that_a_crash_cut_short_is_passed_over(torn: str) -> None:
    Journal(KEY).note(Step.ASSEMBLE)
    with (FOLDER / KEY[:12] / "journal.jsonl").open("a") as file:
        file.write(torn)
    (trace,) = traces()
    assert (trace.key, trace.step, trace.pid, trace.running) == (KEY[:12], Step.ASSEMBLE, os.getpid(), True)


def test_no_journal_and_one_that_holds_nothing_readable_tell_nothing() -> None:
    assert list(traces()) == []
    (FOLDER / "x").mkdir(parents=True)
    (FOLDER / "x" / "journal.jsonl").write_bytes(b"\xff\xfe\n")
    assert list(traces()) == []


def test_the_last_step_of_each_promotion_is_told() -> None:
    for key, steps in {KEY: (Step.PREFLIGHT, Step.PUBLISH), "f" * 64: (Step.CLAIM,)}.items():
        for step in steps:
            Journal(key).note(step)
    assert [(trace.key, trace.step) for trace in traces()] == [(KEY[:12], Step.PUBLISH), ("f" * 12, Step.CLAIM)]


def test_a_process_that_is_gone_is_not_running() -> None:
    child = os.fork()
    if child == 0:
        Journal(KEY).note(Step.CLAIM)
        os._exit(0)
    os.waitpid(child, 0)
    (trace,) = traces()
    assert (trace.pid, trace.running) == (child, False)
