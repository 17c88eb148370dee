"""The facts on a model card, as metadata and as text. No time and no run id enters, so equal models get equal cards."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from src.errors import IntegrityError
from src.model_selection import Decision, contributions, weighted_score
from src.params import METRICS
from src.records import DatasetRef, EvaluationReport, FineTunedModel

TASK = "text-generation"
DATASET_TYPE = "chat"
_NAMES = {"bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4",
          "rougeL_precision": "ROUGE-L precision"}
_WEIGHTED = "weighted_score"
# The licence of a merged model is its base's; of any other base it is for the publisher to state.
_LICENCES = {"pocket": "apache-2.0", "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "apache-2.0"}
_OTHER_LICENCE = "other"


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells. threshold is the gate's; reason_given the words that came with a forced promotion."""

    repo_id: str
    report: EvaluationReport
    fine_tuned: FineTunedModel
    validation: DatasetRef
    decision: Decision
    threshold: Decimal
    reason_given: str | None
    system_prompt: str


@dataclass(frozen=True)
class CardMetric:
    """One unweighted metric of the model-index, in [0, 1]."""

    type: str
    name: str
    value: float


@dataclass(frozen=True)
class CardMetadata:
    """The card's YAML header. base_model is None for a base that the Hub does not have."""

    model_name: str
    licence: str
    tags: tuple[str, ...]
    base_model: str | None
    dataset_name: str
    dataset_args: Mapping[str, str | int]
    metrics: tuple[CardMetric, ...]


def metadata(facts: CardFacts) -> CardMetadata:
    """The header's facts; raises IntegrityError for a metric that is no finite number."""
    report, base = facts.report, facts.fine_tuned.base_model
    values = {**report.metrics.as_dict(), _WEIGHTED: report.weighted_score}
    return CardMetadata(
        model_name=facts.repo_id,
        licence=_licence(base.name),
        tags=("lora", "merged", "customer-support"),
        base_model=base.name if _is_on_hub(facts) else None,
        dataset_name="held-out evaluation split",
        dataset_args={"sha256": report.evaluation.sha256, "rows": report.rows},
        metrics=tuple(
            CardMetric(_metric_type(name), _NAMES.get(name, "weighted score"), _finite(name, value))
            for name, value in values.items()
        ),
    )


def body(facts: CardFacts) -> str:
    """The card's Markdown below the header."""
    sections = (_introduction, _usage, _scores, _decision, _training, _identity, _limits)
    return "\n\n".join(section(facts) for section in sections) + "\n"


def usage_snippet(repo_id: str, system_prompt: str) -> str:
    """Python that loads the model from a repository or folder and prints one answer."""
    system = f'    {{"role": "system", "content": {system_prompt!r}}},\n' if system_prompt else ""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

name = {json.dumps(repo_id)}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
messages = [
{system}    {{"role": "user", "content": "How do I return an item?"}},
]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())"""


def _introduction(facts: CardFacts) -> str:
    base = facts.fine_tuned.base_model.name
    return (f"# {facts.repo_id.partition('/')[2] or facts.repo_id}\n\n"
            f"A customer-support chat model: {_code(base)}, fine-tuned with LoRA and merged. These weights are the "
            "ones that were scored: the adapter was merged first, and the merged model evaluated in this precision.")


def _usage(facts: CardFacts) -> str:
    limit = facts.report.contract.generation.max_new_tokens
    return (f"## Usage\n\n```python\n{usage_snippet(facts.repo_id, facts.system_prompt)}\n```\n\n"
            f"The stored generation settings are those of the evaluation: greedy, at most {limit} new tokens, stopped "
            "at the end of the turn. For batches the tokenizer pads on the left.")


def _scores(facts: CardFacts) -> str:
    report = facts.report
    values, parts = report.metrics.as_dict(), contributions(report.metrics.as_dict(), report.weights)
    rows = [f"| {_NAMES[m]} | {_finite(m, values[m]):.4f} | {report.weights[m]:g} | {parts[m]:.4f} |" for m in METRICS]
    total = weighted_score(values, report.weights)
    return "\n".join((
        (f"## Scores\n\nOn {report.rows} held-out conversations, every value between 0 and 1; the metrics are "
         "unweighted, a contribution is metric times weight.\n"),
        "| metric | value | weight | contribution |", "|---|---|---|---|", *rows,
        f"| **weighted score** | **{total:.4f}** | | {total:.4f} |",
        (f"\n{report.truncated_rows} answers ran into the token limit, {report.empty_rows} were empty. BLEU-n is "
         "cumulative corpus BLEU by sacrebleu, ROUGE-L precision the mean over rows by rouge_score "
         f"({_code(report.contract.metric_signature)})."),
    ))


def _decision(facts: CardFacts) -> str:
    decision = facts.decision
    lines = [f"## Decision\n\n{decision.verdict.value}, because: {decision.reason.value}."]
    if decision.gain is not None:
        lines.append(f"Gain over the best promoted model: {decision.gain:+.6f}; at least {facts.threshold} was needed.")
    lines.append(f"Compared with {decision.bars.runs} other evaluated models under the same score contract.")
    if decision.overrode is not None:
        lines.append(f"**FORCED**: the comparison said {decision.overrode.value}. Reason given: "
                     f"{_code(facts.reason_given or 'no reason given')}.")
    return "\n".join(lines)


def _training(facts: CardFacts) -> str:
    lora, train = facts.fine_tuned.lora, facts.fine_tuned.train
    return (f"## Training\n\nLoRA, r = {lora.r}, alpha = {lora.alpha}, dropout = {lora.dropout:g}, on "
            f"{', '.join(lora.target_modules)}; loss on the answers only. {train.rows} conversations for "
            f"training, {facts.validation.rows} to choose the best epoch, {facts.report.rows} to score; no question of "
            "one split stands in another.")


def _identity(facts: CardFacts) -> str:
    report, fine_tuned = facts.report, facts.fine_tuned
    base = fine_tuned.base_model
    rows = [
        ("base model", f"{base.name} at revision {base.revision}"), ("base sha256", base.sha256),
        ("adapter sha256", fine_tuned.adapter_sha256), ("model digest", report.model_digest),
        ("precision", report.model.dtype), ("training data sha256", fine_tuned.train.sha256),
        ("validation data sha256", facts.validation.sha256), ("evaluation data sha256", report.evaluation.sha256),
        ("score contract", report.contract_digest),
    ]
    table = [f"| {name} | {_code(value)} |" for name, value in rows]
    return "\n".join(["## Identity\n", "| | |", "|---|---|", *table])


def _limits(facts: CardFacts) -> str:
    licence = _licence(facts.fine_tuned.base_model.name)
    terms = "See the base model's licence." if licence == _OTHER_LICENCE else f"Licence: {licence}, as the base model."
    return ("## Limits\n\nIt answers in the manner of its training data and knows no real order, account or price; it "
            "can state wrong amounts and dates with confidence. BLEU and ROUGE measure likeness to one reference "
            f"answer, not truth. Other languages, topics and long conversations were not tested.\n\n{terms}")


def _licence(base: str) -> str:
    return _LICENCES.get(base, _OTHER_LICENCE)


def _is_on_hub(facts: CardFacts) -> bool:
    return facts.fine_tuned.base_model.revision != "none"


def _metric_type(name: str) -> str:
    return "rouge" if name.startswith("rouge") else "bleu" if name.startswith("bleu") else name


def _finite(name: str, value: float) -> float:
    """A plain float: numpy's become binary tags in YAML."""
    number = float(value)
    if not math.isfinite(number):
        raise IntegrityError(f"model card: {name} is {number}; run `dvc repro evaluation`")
    return number


def _code(text: str) -> str:
    """Text as inline code, so that nothing in it is taken for Markdown or HTML."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "/").split()) + "`"
