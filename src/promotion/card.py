"""The facts on a model card, as metadata and as text.

A card contains no time, run id or version, so that the same decision about the same model gives the same bytes. The
ledger has them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from src.core.errors import IntegrityError
from src.core.params import METRIC_NAMES, METRICS
from src.core.records import DatasetRef, contributions
from src.decisions.record import Request
from src.decisions.words import INCLUDES_ZERO, NO_ANSWERS, NO_REASON, signed
from src.ledger.slots import Slot
from src.model_selection import Decision, GainEvidence, Reason

TASK = "text-generation"
DATASET_TYPE = "chat"
_NAMES = {**METRIC_NAMES, "weighted_score": "weighted score"}
_WEIGHTED = "weighted_score"
_POCKET = "pocket"
_TYPES = {"rougeL_precision": "rouge", _WEIGHTED: _WEIGHTED}  # the Hub's words; every other metric is "bleu"
# As their own model cards state. For any other base, whoever publishes has to state the licence.
_LICENCES = {"TinyLlama/TinyLlama-1.1B-Chat-v1.0": "apache-2.0"}
# data/customer_support.csv, about which data/README.md states these:
_SHIPPED_DATA, _SHIPPED_LICENCE, _SHIPPED_LANGUAGE = (
    "df416c4e283cb0b10730f9c6d7fb8240014886e4a0c0b7a0d1e12c853f524a48", "apache-2.0", "en")


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals, each (low, high) in [0, 1], of METRICS and of weighted_score, from resampled rows."""

    bounds: Mapping[str, tuple[float, float]]
    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card states.

    parameters: the number of weights of the merged model.
    context: the longest conversation in tokens, None if the model's configuration does not say.
    raw_sha256: the sha256 of the data before it was split.
    languages, licence: as in params.yaml, empty if not set there.
    versions: the packages that merged and verified the release, name to version.
    """

    repo_id: str
    parameters: int
    context: int | None
    raw_sha256: str
    languages: tuple[str, ...]
    licence: str
    request: Request
    validation: DatasetRef
    decision: Decision
    intervals: Intervals
    versions: Mapping[str, str]
    system_prompt: str

    def stated_languages(self) -> tuple[str, ...]:
        """The languages of the conversations as the Hub writes them; empty if nobody stated them."""
        return self.languages or ((_SHIPPED_LANGUAGE,) if self.raw_sha256 == _SHIPPED_DATA else ())

    def stated_licence(self) -> tuple[str | None, str]:
        """The licence as the Hub writes it, None if nobody stated one, and who states it."""
        base = self.request.model.base_model.name
        if self.licence:
            return self.licence, "stated by the publisher"
        if base in _LICENCES:
            return _LICENCES[base], "as the base model"
        if base == _POCKET and self.raw_sha256 == _SHIPPED_DATA:
            return _SHIPPED_LICENCE, "as the training data"
        return None, "not stated"

    def values(self) -> dict[str, float]:
        """Each metric and the weighted score that the gate used; raises IntegrityError for one that is not finite."""
        found = {**self.request.report.metrics.as_dict(), _WEIGHTED: float(self.decision.score)}
        numbers = {name: float(value) for name, value in found.items()}  # numpy's floats become binary tags in YAML
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise IntegrityError(f"model card: {name} is {number}; run `dvc repro evaluation`")
        return numbers


@dataclass(frozen=True)
class CardMetric:
    """One unweighted metric and its interval, in [0, 1]. key is its name in params.yaml, type the Hub's word for it."""

    key: str
    type: str
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CardMetadata:
    """What the Hub reads. base_model is None for a base that the Hub does not have, notes say how it was evaluated.

    licence is None and languages are empty if nobody stated them.
    """

    model_name: str
    licence: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    base_model: str | None
    dataset_name: str
    dataset_args: Mapping[str, str | int]
    confidence: float
    notes: str
    metrics: tuple[CardMetric, ...]


def metadata(facts: CardFacts) -> CardMetadata:
    """The facts for the Hub; raises IntegrityError for a metric that is no finite number."""
    report, base = facts.request.report, facts.request.model.base_model
    return CardMetadata(
        model_name=facts.repo_id,
        licence=facts.stated_licence()[0],
        languages=facts.stated_languages(),
        tags=("lora", "merged", "customer-support"),
        base_model=base.name if base.revision != "none" else None,
        dataset_name="held-out evaluation split",
        dataset_args={"sha256": report.evaluation.sha256, "rows": report.rows},
        confidence=facts.intervals.confidence,
        notes=f"{report.rows} rows of a split with sha256 {report.evaluation.sha256}; greedy, at most "
              f"{report.contract.generation.max_new_tokens} new tokens",
        metrics=tuple(CardMetric(name, _TYPES.get(name, "bleu"), _NAMES[name], value, *facts.intervals.bounds[name])
                      for name, value in facts.values().items()),
    )


def body(facts: CardFacts) -> str:
    """The card's Markdown below the header."""
    sections = (_introduction, _usage, _scores, _verdict, _training, _provenance, _limits)
    return "\n\n".join(section(facts) for section in sections) + "\n"


def standing_body(repo_id: str, slot: Slot, base_name: str, model_name: str) -> str:
    """The Markdown of a short card, from the ledger alone, for a release that was made again from the registry."""
    metrics = slot.metrics.as_dict() if slot.metrics else {}
    scores = [f"| {_NAMES[name]} | {value:.4f} |" for name, value in metrics.items()]
    facts = {"model digest": slot.model_digest, "promotion key": slot.key, "score contract": slot.contract or "none",
             "name in MLflow": model_name}
    return "\n".join([
        f"# {model_name}\n",
        (f"A customer-support chat model: {_code(base_name)}, fine-tuned with LoRA and merged. These files were made "
         "from the weights in MLflow's Model Registry, because the Hub did not have them.\n"),
        f"## Usage\n\n```python\n{usage_snippet(repo_id, '')}\n```\n",
        *(["## Scores\n", "| metric | value |", "|---|---|", *scores, ""] if scores else []),
        "## Provenance\n", "| | |", "|---|---|", *(f"| {name} | {_code(value)} |" for name, value in facts.items()),
        "\nEvery promotion is a line of `ledger.jsonl` on the branch `ledger`.\n"])


def usage_snippet(repo_id: str, system_prompt: str) -> str:
    """Python that loads the model from a repository or folder and prints one answer."""
    system = f'    {{"role": "system", "content": {system_prompt!r}}},\n' if system_prompt else ""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

name = {json.dumps(repo_id)}
revision = "main"  # the current champion; a tag such as "v2" always loads version 2
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
model = AutoModelForCausalLM.from_pretrained(name, revision=revision)
messages = [
{system}    {{"role": "user", "content": "How do I return an item?"}},
]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())"""


def _introduction(facts: CardFacts) -> str:
    base, (licence, source) = facts.request.model.base_model.name, facts.stated_licence()
    origin = ", a small model built on the training data" if base == _POCKET else ""
    rows = {
        "parameters": f"{_rounded(facts.parameters)} ({facts.parameters:,}), {facts.request.report.model.dtype}",
        "context length": f"{facts.context:,} tokens" if facts.context else "not stated",
        "base model": f"{_code(base)}{origin}", "language": ", ".join(facts.stated_languages()) or "not stated",
        "licence": f"{licence}, {source}" if licence else source,
    }
    return "\n".join([
        (f"# {facts.request.model_name}\n\nA customer-support chat model: {_code(base)}, fine-tuned with LoRA and "
         "merged. These weights are the ones that were scored: first the adapter was merged, then the merged model "
         "evaluated in this precision.\n"),
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()),
    ])


def _usage(facts: CardFacts) -> str:
    limit = facts.request.report.contract.generation.max_new_tokens
    return (f"## How to use\n\n```python\n{usage_snippet(facts.repo_id, facts.system_prompt)}\n```\n\n"
            "`main` is the current champion, and changes with the next promotion or rollback. Each promoted version "
            "has a tag that stays where it is: `revision=\"v2\"` loads version 2. The Hub lists the tags under \"Files "
            "and versions\", and `ledger.jsonl` on the branch `ledger` names the version of this promotion key.\n\n"
            f"The stored generation settings are those of the evaluation: greedy, at most {limit} new tokens, stopped "
            "at the end of the turn. For batches the tokenizer pads on the left.")


def _scores(facts: CardFacts) -> str:
    report, weights, values = facts.request.report, facts.request.policy.weights, facts.values()
    parts, level = contributions(report.metrics.as_dict(), weights), _percent(facts.intervals.confidence)
    between = {name: f"{low:.4f} to {high:.4f}" for name, (low, high) in facts.intervals.bounds.items()}
    rows = [f"| {_NAMES[m]} | {values[m]:.4f} | {between[m]} | {weights[m]:g} | {parts[m]:.4f} |" for m in METRICS]
    total = values[_WEIGHTED]
    return "\n".join((
        (f"## Scores\n\nOn {report.rows} held-out conversations, every value between 0 and 1; the metrics are "
         "unweighted, a contribution is metric times weight.\n"),
        f"| metric | value | {level} interval | weight | contribution |", "|---|---|---|---|---|", *rows,
        f"| **weighted score** | **{total:.4f}** | {between[_WEIGHTED]} | | {total:.4f} |",
        (f"\nThe intervals come from {facts.intervals.resamples} resamples of the rows (seed {facts.intervals.seed}): "
         "they show how much a score varies with the choice of questions. Which of two models is better is decided by "
         "a paired comparison on the same questions, not by whether such intervals overlap."),
        (f"\n{report.truncated_rows} answers reached the token limit, {report.empty_rows} were empty. BLEU-n is "
         "cumulative corpus BLEU by sacrebleu, ROUGE-L precision the mean over rows by rouge_score "
         f"({_code(report.contract.metric_signature)})."),
    ))


def _verdict(facts: CardFacts) -> str:
    decision, policy = facts.decision, facts.request.policy
    first = ": no model was promoted before it" if decision.reason is Reason.FIRST_MODEL else ""
    lines = [f"Decision: **{decision.verdict}** ({_code(decision.reason)}){first}."]
    if decision.overrode is not None:
        guard = f" ({decision.failed_guard})" if decision.failed_guard else ""
        lines.append(f"**Promoted by force**: the gate alone would not have promoted it, reason "
                     f"{_code(decision.overrode)}{guard}. Reason given for the force: "
                     f"{_code(facts.request.reason or NO_REASON)}.")
    if decision.gain is not None:
        lines.append(f"Gain over the best promoted model: {signed(decision.gain)}, at least {policy.threshold} is "
                     f"required. {_evidence(decision.evidence, facts)}")
    least = "" if decision.to_beat.complete else "at least "
    lines.append(f"Other models evaluated under the same score contract: {least}{decision.to_beat.runs}.")
    return "\n".join(["## Verdict\n", *(f"- {line}" for line in lines)])


def _evidence(evidence: GainEvidence | None, facts: CardFacts) -> str:
    if evidence is None:
        return f"It has no interval: {NO_ANSWERS}."
    noise = f", which {INCLUDES_ZERO}" if evidence.includes_zero else ""
    return (f"Its {_percent(evidence.confidence)} interval is {evidence.low:+.6f} to {evidence.high:+.6f}{noise}; "
            f"P(gain > 0) = {evidence.p_gain_positive:.3f}, P(gain >= {facts.request.policy.threshold}) = "
            f"{evidence.p_gain_at_least_threshold:.3f} (paired bootstrap over {evidence.rows} rows both answered).")


def _training(facts: CardFacts) -> str:
    lora, train, report = facts.request.model.lora, facts.request.model.train, facts.request.report
    overlap = (f"{report.overlap_rows} of its questions are also in the training split" if report.overlap_rows else
               "none of its questions is in the training split")
    if report.answer_overlap_rows:
        overlap += f"; {report.answer_overlap_rows} of its reference answers stand word for word in the training split"
    return (f"## Training\n\nLoRA, r = {lora.r}, alpha = {lora.alpha}, dropout = {lora.dropout:g}, on "
            f"{', '.join(lora.target_modules)}; loss on the answers only. {train.rows} conversations for "
            f"training, {facts.validation.rows} to choose the best epoch, {report.rows} to score: {overlap}.")


def _provenance(facts: CardFacts) -> str:
    request, report, model = facts.request, facts.request.report, facts.request.model
    base = model.base_model
    rows = {
        "base model": f"{base.name} at revision {base.revision}", "base sha256": base.sha256,
        "adapter sha256": model.adapter_sha256, "model digest": report.model_digest,
        "precision": report.model.dtype, "training data sha256": model.train.sha256,
        "validation data sha256": facts.validation.sha256, "evaluation data sha256": report.evaluation.sha256,
        "score contract": report.contract_digest, "promotion key": request.key,
        "commit of the training": model.git_commit,
        "merged with": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "name in MLflow": request.model_name,
    }
    table = [f"| {name} | {_code(value).replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join([
        "## Provenance\n", "| | |", "|---|---|", *table,
        ("\nEvery promotion is a line of `ledger.jsonl` on the branch `ledger`: under this promotion key it names the "
         "registered version, the MLflow run of the evaluation, who promoted it, when and from which commit. Later "
         "decisions about this model, a rollback for instance, are lines there too. MLflow's versions carry the "
         "key in the tag `champion.key`, its runs the model digest in `champion.model_digest`."),
    ])


def _limits(facts: CardFacts) -> str:
    terms = "" if facts.stated_licence()[0] else (
        "\n\nNo licence is stated here: the terms of the base model and of the training data apply.")
    return ("## Limits\n\nIt answers in the manner of its training data and knows no real order, account or price; it "
            "can state wrong amounts and dates with confidence. BLEU and ROUGE measure likeness to one reference "
            f"answer, not truth. Other languages, topics and long conversations were not tested.{terms}")


def _rounded(count: int) -> str:
    """A number of parameters as `2.0 million` or `1.1 billion`."""
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.6g} %"


def _code(text: str) -> str:
    """Text as inline code, so that nothing in it is taken for Markdown or HTML."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
