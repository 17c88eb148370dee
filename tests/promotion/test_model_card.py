import contextlib
import hashlib
import io
import re
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from src.core.errors import IntegrityError
from src.core.params import METRICS as NAMES
from src.core.records import EvaluationReport, FineTunedModel, GenerationSettings, Metrics, ModelIdentity, ScoreContract
from src.decisions.record import Request
from src.evaluation import generation
from src.model_selection import Decision, GainEvidence, Policy, Reason, ScoresToBeat, Verdict
from src.models import merging
from src.promotion import release
from src.promotion.card import CardFacts, CardMetric, Intervals, body, metadata, usage_snippet
from tests.fakes import tiny_model
from utils.hub import card as model_card_utils

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
SHIPPED = hashlib.sha256((Path(__file__).parents[2] / "data/customer_support.csv").read_bytes()).hexdigest()
REPO = "ShenghaoYummy/TinyLlama-ECommerce-Chatbot"
WEIGHTS = {"bleu1": 0.1, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.4, "rougeL_precision": 0.1}
METRICS = Metrics(bleu1=0.4, bleu2=0.3, bleu3=0.2, bleu4=0.1603, rougeL_precision=0.6641)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_model.write_models(root)
    return root


def report_of(model: FineTunedModel) -> EvaluationReport:
    base = model.base_model
    identity = ModelIdentity(adapter_sha256=model.adapter_sha256, base_name=base.name, base_revision=base.revision,
                             base_sha256=base.sha256, dtype="float32", safe_merge=True)
    contract = ScoreContract(rows_sha256="e" * 64, metric_version="1", metric_signature="tok:13a|smooth:exp",
                             generation=GenerationSettings(max_new_tokens=12, do_sample=False))
    return EvaluationReport(
        run_id="evaluation-run", tracking_uri="sqlite:///mlflow.db", model=identity, model_digest=identity.digest(),
        contract=contract, contract_digest=contract.digest(), metrics=METRICS, weighted_score=0.26553, weights=WEIGHTS,
        rows=6, truncated_rows=2, empty_rows=1, overlap_rows=0, evaluation=tiny_model.SPLIT)


def decision(**changes: object) -> Decision:
    """A decision of which a card shows only what is given here."""
    to_beat = ScoresToBeat(best_evaluated=None, best_promoted=None, champion=None, runs=3, complete=True)
    values = {"verdict": Verdict.PROMOTE, "reason": Reason.IMPROVED, "to_beat": to_beat, "gain": Decimal("0.012"),
              "score": Decimal("0.26553")}
    rest = dict.fromkeys(field.name for field in fields(Decision))
    return Decision(**{**rest, **values, **changes})  # type: ignore[arg-type]


def evidence(low: float = 0.004) -> GainEvidence:
    return GainEvidence(gain=0.012, low=low, high=0.02, confidence=0.975, threshold=0.001, p_value=0.01,
                        p_gain_positive=0.9985, p_gain_at_least_threshold=0.995, minimum_detectable_gain=0.01,
                        rows_needed=600, rows=6, resamples=100, seed=1)


def facts_of(model: FineTunedModel, reason: str = "", weights: dict[str, float] = WEIGHTS, **changes: Any) -> CardFacts:
    report = changes.pop("report", report_of(model))
    request = Request(report=report, model=model, policy=Policy(weights, Decimal("0.001"), require_significance=False),
                      model_name="shop", force=False, actor="me@here", reason=reason,
                      git_commit="c" * 40, ci_url=None, tracking_uri="sqlite:///mlflow.db")
    values = {"repo_id": REPO, "request": request, "validation": tiny_model.SPLIT, "decision": decision(),
              "intervals": Intervals(dict.fromkeys((*NAMES, "weighted_score"), (0.125, 0.75)), 0.95, 100, 7),
              "versions": {"torch": "2.13.0"}, "system_prompt": "Be brief.", "parameters": 2_009_472, "context": 512,
              "raw_sha256": "a" * 64, "languages": (), "licence": ""}
    return CardFacts(**{**values, **changes})


@pytest.fixture
def facts(root: Path) -> CardFacts:
    return facts_of(tiny_model.fine_tuned(root))


@pytest.fixture
def model(facts: CardFacts) -> FineTunedModel:
    return facts.request.model


def on_hub(root: Path, name: str, **changes: Any) -> CardFacts:
    model = tiny_model.fine_tuned(root)
    base = model.base_model.model_copy(update={"name": name, "revision": "f" * 40})
    return facts_of(model.model_copy(update={"base_model": base}), **changes)


def card(facts: CardFacts) -> str:
    return model_card_utils.render(metadata(facts), body(facts))


def with_bleu4(facts: CardFacts, value: float) -> CardFacts:
    report = facts.request.report
    metrics = report.metrics.model_copy(update={"bleu4": value})
    return facts_of(facts.request.model, report=report.model_copy(update={"metrics": metrics}))


def test_a_metric_that_is_no_finite_number_is_refused(facts: CardFacts) -> None:
    with pytest.raises(IntegrityError, match="bleu4 is nan"):
        metadata(with_bleu4(facts, float("nan")))


def test_a_metric_of_numpy_becomes_a_plain_number(facts: CardFacts) -> None:
    text = card(with_bleu4(facts, np.float64(0.1603)))
    assert "!!" not in text.partition("\n---\n")[0]
    assert text == card(facts)


def test_the_header_says_what_the_hub_asks_for(root: Path) -> None:
    name = TINYLLAMA
    header = yaml.safe_load(card(on_hub(root, name)).split("---\n")[1])
    assert header["base_model"] == name
    assert header["base_model_relation"] == "finetune"
    assert (header["license"], header["library_name"], header["pipeline_tag"]) == (
        "apache-2.0", "transformers", "text-generation")
    [index] = header["model-index"]
    [result] = index["results"]
    assert index["name"] == REPO
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "BLEU-1": 0.4, "BLEU-2": 0.3, "BLEU-3": 0.2, "BLEU-4": 0.1603, "ROUGE-L precision": 0.6641,
        "weighted score": 0.26553}
    assert result["dataset"]["args"] == {"sha256": "d" * 64, "rows": 6}
    assert all(metric["args"] == {"confidence": 0.95, "low": 0.125, "high": 0.75} for metric in result["metrics"])


def test_a_base_that_the_hub_does_not_have_is_no_base_model_of_the_header(facts: CardFacts) -> None:
    assert not {"base_model", "base_model_relation"} & yaml.safe_load(card(facts).split("---\n")[1]).keys()


@pytest.mark.parametrize(
    ("base", "changes", "stated"),
    [("someone/model", {}, (None, None, "not stated")), ("pocket", {}, (None, None, "not stated")),
     ("someone/model", {"raw_sha256": SHIPPED}, (None, ["en"], "not stated")),
     ("pocket", {"raw_sha256": SHIPPED}, ("apache-2.0", ["en"], "apache-2.0, as the training data")),
     (TINYLLAMA, {}, ("apache-2.0", None, "apache-2.0, as the base model")),
     ("pocket", {"raw_sha256": SHIPPED, "licence": "mit", "languages": ("de", "fr")},
      ("mit", ["de", "fr"], "mit, stated by the publisher"))],
)
def test_licence_and_language_are_stated_only_if_somebody_stated_them(
    base: str, changes: dict[str, Any], stated: tuple[str | None, list[str] | None, str], root: Path
) -> None:
    licence, languages, row = stated
    text = card(on_hub(root, base, **changes))
    data: Any = ModelCard(text).data
    assert (data.license, data.language) == (licence, languages)
    assert f"| licence | {row} |" in text
    assert f"| language | {', '.join(languages or ()) or 'not stated'} |" in text
    assert ("No licence is stated here" in text) is (licence is None)


def test_the_title_is_the_registered_name_and_the_size_stands_below_it(facts: CardFacts) -> None:
    lines = body(facts).splitlines()
    assert lines[0] == "# shop"
    assert "TinyLlama" not in body(facts).replace(REPO, "")
    assert "| parameters | 2.0 million (2,009,472), float32 |" in lines
    assert "| context length | 512 tokens |" in lines
    assert "| base model | `pocket`, a small model built on the training data |" in lines
    big = body(facts_of(facts.request.model, parameters=1_100_048_384, context=None)).splitlines()
    assert "| parameters | 1.1 billion (1,100,048,384), float32 |" in big
    assert "| context length | not stated |" in big


def test_the_card_says_how_to_stay_at_one_version_and_names_none_of_its_own(facts: CardFacts) -> None:
    text = body(facts)
    assert 'revision = "main"  # the current champion; a tag such as "v2" always loads version 2' in text
    assert text.count(".from_pretrained(name, revision=revision)") == 2
    assert '`revision="v2"` loads version 2' in text
    assert set(re.findall(r"\bv\d+\b", text)) == {"v2"}


def test_the_hubs_own_reader_takes_the_card(facts: CardFacts) -> None:
    read: Any = ModelCard(card(facts))
    assert read.data.model_name == REPO
    assert CardMetric("bleu4", "bleu", "BLEU-4", 0.1603, 0.125, 0.75) in metadata(facts).metrics
    assert [result.metric_value for result in read.data.eval_results] == [
        metric.value for metric in metadata(facts).metrics]


def test_the_hubs_own_reader_takes_the_evaluation_results(facts: CardFacts) -> None:
    entries = parse_eval_result_entries(yaml.safe_load(model_card_utils.render_results(metadata(facts))))
    assert {entry.task_id: entry.value for entry in entries} == {**METRICS.as_dict(), "weighted_score": 0.26553}
    assert {entry.dataset_id for entry in entries} == {REPO}
    assert {entry.date for entry in entries} == {None}
    started = "95 % interval 0.1250 to 0.7500; 6 rows of a split"
    assert [entry.notes and entry.notes.partition(" with")[0] for entry in entries] == [started] * 6


def test_metrics_stand_unweighted_beside_their_intervals_and_contributions(facts: CardFacts) -> None:
    lines = body(facts).splitlines()
    assert "| metric | value | 95 % interval | weight | contribution |" in lines
    assert "| BLEU-4 | 0.1603 | 0.1250 to 0.7500 | 0.4 | 0.0641 |" in lines
    assert "| ROUGE-L precision | 0.6641 | 0.1250 to 0.7500 | 0.1 | 0.0664 |" in lines
    assert "| **weighted score** | **0.2655** | 0.1250 to 0.7500 | | 0.2655 |" in lines


def test_the_weights_are_those_of_the_decision_not_of_the_evaluation(model: FineTunedModel) -> None:
    today = {**dict.fromkeys(WEIGHTS, 0.0), "bleu1": 1.0}
    changed = facts_of(model, weights=today, decision=decision(score=Decimal("0.4")))
    assert "| BLEU-1 | 0.4000 | 0.1250 to 0.7500 | 1 | 0.4000 |" in body(changed)
    assert "| **weighted score** | **0.4000** |" in body(changed)
    assert metadata(changed).metrics[-1].value == 0.4


def test_the_card_names_verdict_data_base_and_training(facts: CardFacts) -> None:
    text, report = body(facts), facts.request.report
    wanted = [
        "Decision: **promote** (`improved`).",
        "r = 4, alpha = 8, dropout = 0, on down_proj, q_proj, v_proj", "`pocket at revision none`",
        report.model_digest, report.model.base_sha256, report.contract_digest, facts.request.model.adapter_sha256,
        report.evaluation.sha256, facts.request.key, "`torch 2.13.0`", "`shop`", "(seed 7)",
        f"| commit of the training | `{facts.request.model.git_commit}` |",
        "2 answers reached the token limit, 1 were empty",
        "none of its questions is in the training split",
    ]
    assert [phrase for phrase in wanted if phrase not in text] == []


def test_a_gain_stands_with_its_interval_and_its_probability(model: FineTunedModel) -> None:
    text = body(facts_of(model, decision=decision(evidence=evidence())))
    assert "Gain over the best promoted model: +0.012000, at least 0.001 is required." in text
    assert "Its 97.5 % interval is +0.004000 to +0.020000; P(gain > 0) = 0.999, P(gain >= 0.001) = 0.995" in text
    assert "which includes 0" in body(facts_of(model, decision=decision(evidence=evidence(low=-0.004))))
    assert "It has no interval: MLflow does not have the answers of the best promoted model." in body(facts_of(model))


def test_evaluated_questions_that_were_trained_on_are_told(facts: CardFacts) -> None:
    report = facts.request.report.model_copy(update={"overlap_rows": 3})
    assert "3 of its questions are also in the training split" in body(facts_of(facts.request.model, report=report))
    known = report.model_copy(update={"answer_overlap_rows": 4})
    assert "4 of its reference answers stand word for word in the training split" in body(
        facts_of(facts.request.model, report=known))


def test_no_time_no_run_and_no_person_is_named(facts: CardFacts) -> None:
    text = card(facts) + model_card_utils.render_results(metadata(facts))
    told = ["evaluation-run", "training-run", "me@here", "c" * 40, "mlflow.db"]
    assert [word for word in told if word in text] == []
    assert not re.search(r"\b20[2-9]\d\b", re.sub(r"[0-9a-f]{64}", "", text))


def test_a_forced_promotion_says_so_and_its_reason_stays_plain_text(model: FineTunedModel) -> None:
    forced = decision(reason=Reason.FORCED, overrode=Reason.GUARD, gain=Decimal("-0.1"), failed_guard="least_rows: 6")
    text = body(facts_of(model, decision=forced, reason="`</code>\n# <b>x|y</b>"))
    assert "Decision: **promote** (`forced`)." in text
    assert ("**Promoted by force**: the gate alone would not have promoted it, reason `guard` (least_rows: 6). Reason "
            "given for the force: `'</code> # <b>x|y</b>`.") in text
    assert "no reason given" in body(facts_of(model, decision=forced))


def test_a_first_model_has_no_gain(model: FineTunedModel) -> None:
    text = body(facts_of(model, decision=decision(reason=Reason.FIRST_MODEL, gain=None)))
    assert "(`first_model`): no model was promoted before it." in text
    assert "Gain over" not in text


def test_the_usage_snippet_runs_and_prints_the_models_own_answer(root: Path, facts: CardFacts, tmp_path: Path) -> None:
    model, tokenizer = merging.merge(root / "results/base_model", root / "results/adapter", "float32")
    folder = tmp_path / "release"
    release.assemble_release(model, tokenizer, folder, max_new_tokens=12, texts={release.CARD: card(facts)})
    [snippet] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert snippet.strip() == usage_snippet(REPO, "Be brief.")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet.replace(REPO, str(folder)), {})
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How do I return an item?"}]
    [answer] = generation.answer(model, tokenizer, [asked], tokens_per_batch=1)
    assert printed.getvalue().strip() == answer.text.strip()


@pytest.mark.parametrize("prompt", ['Say "hi" \\ twice.\nBe brief.', "", "na\u00efve \U0001f600 '''"])
def test_any_system_prompt_survives_in_the_snippet(prompt: str) -> None:
    snippet = usage_snippet(REPO, prompt)
    found = re.search(r"messages = (\[.*?\n\])", snippet, re.DOTALL)
    assert found
    system = [turn["content"] for turn in eval(found[1]) if turn["role"] == "system"]
    assert system == ([prompt] if prompt else [])
