"""The summary says what was decided and why, and what is missing; text from people stays text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from scripts import summary_script
from src.core.errors import InvalidParams
from src.core.records import Baseline
from src.report.summary import MARKER, Link, RunResults, Summary, escaped, markdown, plain, summary, text
from tests.fakes.parsed_html import Parsed
from tests.fakes.promoted import run
from tests.fakes.report_example import decided, evaluated, ledger, write_results

CI = "https://github.com/acme/shop/actions/runs/5"
HOSTILE = ['"; echo pwned; #', "`rm -rf /`", "<script>alert(1)</script>", "a | b", "a\nb\r\n# c", "**bold** _x_ ~~y~~",
           "[click](javascript:alert(1))", "![i](https://evil.example/x.png)", "&lt;b&gt; &#64;alice", "- item",
           "1. item", "===", "$x^2$", "<!-- champion -->", "--> <b>", "\\`", "https://evil.example", "$(touch /tmp/x)"]


def found(**changes: Any) -> RunResults:
    """Model 2 promoted over model 1."""
    first, second = evaluated(1), evaluated(2)
    told, compared = decided(second, ledger(first), [first])
    values: dict[str, Any] = {
        "report": second.report, "info": {**told, "ci_url": CI}, "comparison": compared,
        "intervals": {"weighted_score": (0.1, 0.9)}, "confidence": 0.95, "problems": (), "outcome": "success",
        "ci_url": CI, "branch": "feature", "hub": "https://huggingface.co", "page": "results/report/index.html",
    }
    return RunResults(**(values | changes))


def rendered(source: str) -> Parsed:
    return Parsed(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(source))


def test_nothing_at_all_is_said_so() -> None:
    told = summary(found(report=None, info={}, comparison={}, problems=["results/x: missing; run `dvc repro`"]))
    assert (told.title, told.scores, told.comparisons) == ("Nothing to summarise", [], [])
    assert "missing: results/x: missing" in text(told)


@pytest.mark.parametrize(("outcome", "word"), [("failure", "failed"), ("cancelled", "was cancelled"),
                                               ("skipped", "did not run")])
def test_a_decision_that_lies_there_from_an_earlier_run_is_not_told_as_this_ones(outcome: str, word: str) -> None:
    told = summary(found(outcome=outcome, ci_url=f"{CI}0"))
    assert told.title.startswith("No decision")
    assert f"The pipeline {word} before the gate decided" in told.sentence
    assert "earlier run" in told.notes[0]
    assert (told.scores, told.comparisons, [name for name, _ in told.facts]) == ([], [], ["Report", "Run"])


def test_a_pipeline_that_failed_after_its_decision_says_both() -> None:
    told = summary(found(outcome="failure"))
    assert told.title == "Promoted to champion: ecommerce-chatbot"
    assert told.notes[0] == "The pipeline failed afterwards, in a later stage or step."


def test_a_deployment_that_failed_says_how() -> None:
    info = {"result": "undecided", "code": 4, "reason": "MLflow at http://x: no answer; check that it runs"}
    told = summary(found(info=info, comparison={}, outcome="failure"))
    assert told.title == "The deployment did not finish"
    assert "exit code 4 (undecided): MLflow at http://x: no answer" in told.sentence
    assert len(told.scores) == 7
    without = summary(found(report=None, info=info, comparison={}, outcome="failure"))
    assert without.sentence == told.sentence


def test_a_decision_on_another_model_is_not_told_of_this_one() -> None:
    told = summary(found(report=evaluated(3).report))
    assert told.title == "No decision on this model: ecommerce-chatbot"
    assert told.comparisons == []
    assert summary(found(report=None)).title == "No evaluation: ecommerce-chatbot"


def test_a_model_that_an_earlier_run_promoted_is_not_told_as_promoted_now() -> None:
    told = summary(found(ci_url=f"{CI}0"))
    assert told.title == "Already the champion: ecommerce-chatbot"
    assert told.sentence.endswith("an earlier run promoted this model, as version 2.")
    assert dict(told.facts)["Promoted by"].url == CI
    assert summary(found(ci_url=None)).title == "Promoted to champion: ecommerce-chatbot"


def test_a_promotion_comes_with_scores_intervals_parts_versions_and_links() -> None:
    info = dict(found().info)
    info |= {"tracking_uri": "https://mlflow.example.com/", "hub": {"repo": "acme/shop", "commit": "c" * 40}}
    told = summary(found(info=info))
    assert told.title == "Promoted to champion: ecommerce-chatbot"
    header, (name, value, interval, _, _, other), *metrics = told.scores
    assert header == ("", "value", "95 % interval", "weight", "contribution", "best promoted")
    assert (name, interval, other != "") == ("Weighted score", "0.1000 to 0.9000", True)
    assert sum(float(line[4]) for line in metrics) == pytest.approx(float(value), abs=3e-4)
    assert [name for name, _ in told.comparisons] == ["best evaluated, best promoted, champion", "gain",
                                                      "interval of the gain"]
    links = dict(told.facts)
    assert links["Champion"] == Link("ecommerce-chatbot version 2, before it version 1",
                                     "https://mlflow.example.com/#/models/ecommerce-chatbot/versions/2")
    assert links["Hub"].url == f"https://huggingface.co/acme/shop/commit/{'c' * 40}"
    assert links["Run"].url == CI
    page = rendered(markdown(told))
    assert page.text.startswith(f"{told.title} {told.sentence}")
    assert len(page.all("table")) == 2
    assert len(page.all("a")) == 3


def test_copied_answers_have_a_column_and_a_warning_if_they_are_better() -> None:
    report = evaluated(2).report
    better = Baseline(weighted_score=0.99, metrics=report.metrics)
    told = summary(found(report=report.model_copy(update={"nearest_neighbour": better})))
    assert [(line[0], line[-1]) for line in told.scores[:2]] == [("", "copied answers"), ("Weighted score", "0.9900")]
    warning = "The model answers worse than copying the nearest training answer (0.990); it is not worth serving yet."
    assert warning in told.notes
    page = rendered(markdown(told))
    assert warning in page.text
    assert len(page.all("th")) == 7 + 2


@pytest.mark.parametrize(("changes", "title"), [
    ({"result": "kept", "decision": "keep", "reason": "not_best"}, "Not promoted"),
    ({"result": "already", "decision": "already", "reason": "already"}, "Already the champion"),
    ({"result": "refused", "decision": "refused", "reason": "blocked"}, "Refused"),
    ({"result": "undecided", "decision": "undecided", "reason": "incomparable"}, "No decision"),
    ({"result": "would_promote", "deployment_run": "none: dry run"}, "Would be promoted to champion"),
])
def test_every_result_has_its_words(changes: dict[str, str], title: str) -> None:
    assert summary(found(info={**found().info, **changes})).title == f"{title}: ecommerce-chatbot"


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_reason_stays_text_wherever_it_stands(reason: str) -> None:
    told = Summary(
        title=reason, sentence=reason, notes=[reason], scores=[], comparisons=[("gain", reason)],
        facts=[("Asked by", Link(reason, None)), ("Run", Link(reason, CI))], problems=[reason])
    page, line = rendered(markdown(told)), plain(reason)
    assert page.text.replace("\u200b", "") == (
        f"{line} {line} {line} gain {line} Asked by {line} Run {line} Missing: {line}")
    assert {tag for tag, _ in page.tags} == {"h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "a"}
    assert page.all("a") == [{"href": CI}]
    assert line in text(told)


def test_nobody_is_called_by_a_reason() -> None:
    assert "@alice" not in escaped("ask @alice, see #12").replace("&#64;", "@").replace("&#35;", "#")


def test_an_address_that_is_none_is_no_link() -> None:
    told = replace(summary(found()), facts=[("Hub", Link("acme", "https://x/) <script>")), ("Run", Link("y", None))])
    assert rendered(markdown(told)).all("a") == []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "PIPELINE_OUTCOME", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    Path("params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    return tmp_path


def summarise(*flags: str) -> None:
    assert run(summary_script, *flags) == 0


def write() -> None:
    write_results(evaluated(2), *decided(evaluated(2), ledger(evaluated(1)), [evaluated(1)]))


def test_an_empty_folder_and_broken_files_still_make_a_summary(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summarise("--format", "text")
    said = capsys.readouterr().out
    assert said.startswith("Nothing to summarise")
    assert "missing: results/deployment/deployment_info.json: missing" in said
    write()
    Path("results/deployment/deployment_info.json").write_text("{")
    Path("results/evaluations/predictions.jsonl").write_text("")
    Path("params.yaml").write_text("profile: nowhere")
    summarise("--format", "markdown")
    assert "not JSON at byte" in capsys.readouterr().out


def test_an_unknown_outcome_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_OUTCOME", "fine")
    with pytest.raises(InvalidParams, match="PIPELINE_OUTCOME"):
        summarise()


def test_formats_say_the_same(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write()
    summarise()
    plainly = capsys.readouterr().out
    assert plainly.startswith("Promoted to champion: ecommerce-chatbot\necommerce-chatbot version 2 replaces version 1")
    assert "95 % interval" in plainly
    summarise("--format", "markdown")
    marked = capsys.readouterr().out
    assert marked.startswith(f"{MARKER}\n## Promoted to champion")
    summarise("--format", "github")
    assert f"{MARKER}\n{capsys.readouterr().out}" == marked
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "page.md"))
    (here / "page.md").write_text("Before.\n")
    summarise("--format", "github")
    assert (here / "page.md").read_text() == "Before.\n" + marked.removeprefix(MARKER + "\n")
