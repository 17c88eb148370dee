import contextlib
import io
import re
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from src import evaluation, merging, release
from src.errors import IntegrityError
from src.model_card import CardFacts, CardMetric, body, metadata, usage_snippet
from src.model_selection import Bars, Decision, Reason, Verdict
from src.records import EvaluationReport, FineTunedModel, GenerationSettings, Metrics, ModelIdentity, ScoreContract
from tests import tiny_model
from utils import model_card_utils

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
    bars = Bars(**{**dict.fromkeys(field.name for field in fields(Bars)), "runs": 3})  # type: ignore[arg-type]
    values = {"verdict": Verdict.PROMOTE, "reason": Reason.IMPROVED, "bars": bars, "gain": Decimal("0.012")}
    rest = dict.fromkeys(field.name for field in fields(Decision))
    return Decision(**{**rest, **values, **changes})  # type: ignore[arg-type]


def facts_of(model: FineTunedModel, **changes: object) -> CardFacts:
    values = {"repo_id": REPO, "report": report_of(model), "fine_tuned": model, "validation": tiny_model.SPLIT,
              "decision": decision(), "threshold": Decimal("0.001"), "reason_given": None,
              "system_prompt": "Be brief."}
    return CardFacts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def facts(root: Path) -> CardFacts:
    return facts_of(tiny_model.fine_tuned(root))


def on_hub(root: Path, name: str) -> CardFacts:
    model = tiny_model.fine_tuned(root)
    base = model.base_model.model_copy(update={"name": name, "revision": "f" * 40})
    return facts_of(model.model_copy(update={"base_model": base}))


def card(facts: CardFacts) -> str:
    return model_card_utils.render(metadata(facts), body(facts))


def test_a_metric_that_is_no_finite_number_is_refused(facts: CardFacts) -> None:
    broken = facts.report.metrics.model_copy(update={"bleu4": float("nan")})
    changed = facts_of(facts.fine_tuned, report=facts.report.model_copy(update={"metrics": broken}))
    with pytest.raises(IntegrityError, match="bleu4 is nan"):
        metadata(changed)


def test_a_metric_of_numpy_becomes_a_plain_number(facts: CardFacts) -> None:
    numpy = facts.report.metrics.model_copy(update={"bleu4": np.float64(0.1603)})
    text = card(facts_of(facts.fine_tuned, report=facts.report.model_copy(update={"metrics": numpy})))
    assert "!!" not in text.partition("\n---\n")[0]
    assert text == card(facts)


def test_the_header_says_what_the_hub_asks_for(root: Path) -> None:
    name = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
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


def test_a_base_that_the_hub_does_not_have_is_no_base_model_of_the_header(facts: CardFacts) -> None:
    header = yaml.safe_load(card(facts).split("---\n")[1])
    assert "base_model" not in header
    assert "base_model_relation" not in header


def test_the_licence_of_an_unknown_base_is_left_to_its_publisher(root: Path) -> None:
    text = card(on_hub(root, "someone/model"))
    assert "license: other\n" in text
    assert "See the base model's licence." in text


def test_the_hubs_own_reader_takes_the_card(facts: CardFacts) -> None:
    read: Any = ModelCard(card(facts))
    assert read.data.model_name == REPO
    assert CardMetric("bleu", "BLEU-4", 0.1603) in metadata(facts).metrics
    assert [result.metric_value for result in read.data.eval_results] == [
        metric.value for metric in metadata(facts).metrics]


def test_metrics_stand_unweighted_beside_their_contributions(facts: CardFacts) -> None:
    lines = body(facts).splitlines()
    assert "| BLEU-4 | 0.1603 | 0.4 | 0.0641 |" in lines
    assert "| ROUGE-L precision | 0.6641 | 0.1 | 0.0664 |" in lines
    assert "| **weighted score** | **0.2655** | | 0.2655 |" in lines


def test_the_card_names_decision_data_base_and_training(facts: CardFacts) -> None:
    text, report = body(facts), facts.report
    wanted = [
        "promote, because: improved.", "Gain over the best promoted model: +0.012000; at least 0.001 was needed.",
        "r = 4, alpha = 8, dropout = 0, on down_proj, q_proj, v_proj", "`pocket at revision none`",
        report.model_digest, report.model.base_sha256, report.contract_digest, facts.fine_tuned.adapter_sha256,
        report.evaluation.sha256, "2 answers ran into the token limit, 1 were empty",
    ]
    assert [phrase for phrase in wanted if phrase not in text] == []


def test_no_time_and_no_run_is_named(facts: CardFacts) -> None:
    text = card(facts)
    assert "evaluation-run" not in text
    assert "training-run" not in text
    assert not re.search(r"\b20[2-9]\d\b", re.sub(r"[0-9a-f]{64}", "", text))
    other = facts_of(facts.fine_tuned.model_copy(update={"run_id": "x", "git_commit": "y", "tracking_uri": "z"}))
    assert card(other) == text


def test_a_forced_promotion_says_so_and_its_reason_stays_plain_text(facts: CardFacts) -> None:
    forced = decision(reason=Reason.FORCED, overrode=Reason.NOT_BEST, gain=Decimal("-0.1"))
    text = body(facts_of(facts.fine_tuned, decision=forced, reason_given="`</code>\n# <b>x|y</b>"))
    assert "**FORCED**: the comparison said not_best. Reason given: `'</code> # <b>x/y</b>`." in text


def test_a_first_model_has_no_gain(facts: CardFacts) -> None:
    first = decision(reason=Reason.FIRST_MODEL, gain=None)
    assert "Gain over" not in body(facts_of(facts.fine_tuned, decision=first))


def test_the_usage_snippet_runs_and_prints_the_models_own_answer(root: Path, facts: CardFacts, tmp_path: Path) -> None:
    model, tokenizer = merging.merge(root / "results/base_model", root / "results/adapter", "float32")
    folder = tmp_path / "release"
    release.assemble_release(model, tokenizer, folder, max_new_tokens=12, card=card(facts))
    [snippet] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert snippet.strip() == usage_snippet(REPO, "Be brief.")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet.replace(REPO, str(folder)), {})
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How do I return an item?"}]
    [answer] = evaluation.answer(model, tokenizer, [asked], batch_size=1)
    assert printed.getvalue().strip() == answer.text.strip()


@pytest.mark.parametrize("prompt", ['Say "hi" \\ twice.\nBe brief.', "", "na\u00efve \U0001f600 '''"])
def test_any_system_prompt_survives_in_the_snippet(prompt: str) -> None:
    snippet = usage_snippet(REPO, prompt)
    found = re.search(r"messages = (\[.*?\n\])", snippet, re.DOTALL)
    assert found
    system = [turn["content"] for turn in eval(found[1]) if turn["role"] == "system"]
    assert system == ([prompt] if prompt else [])
