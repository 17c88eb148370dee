"""Check what results/evaluations says of a model: all of it follows from the answers and the evaluation split.

No number in a file is believed: each is computed again by the code that computed it at evaluation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.core.errors import InvalidInput
from src.core.records import EvaluationReport, Metrics, weighted_score
from src.data.rows import EvaluationRow
from src.evaluation.metrics import RowStatistics, corpus_scores, tokenizer_of
from src.evaluation.neighbour import nearest_neighbour
from src.evaluation.predictions import (
    Prediction,
    make_report,
    rescored,
    score_contract,
    split_counts,
)

SAME = 1e-9  # scores are rounded to that; the last bit of a logarithm is the processor's
AGAIN = "run `dvc repro --force evaluation`"
_SHOWN = 60
_IDS = 2**31


def check_answers(path: Path, given: Sequence[Prediction], rows: Sequence[EvaluationRow], *, max_new_tokens: int,
                  tokenizer: str, decode: Callable[[], list[str]]) -> None:
    """Check predictions.jsonl (at `path`) against the rows of the split and against itself.

    decode: gives the text of each answer's tokens. Raises InvalidInput, naming the first row and field that differ.
    """
    if len(given) != len(rows):
        raise InvalidInput(f"{path}: has {len(given)} rows, the evaluation split gives {len(rows)}; {AGAIN}")
    stops = {row.tokens[-1] for row in given if row.tokens and not row.truncated}
    for number, found in enumerate(given, start=1):
        if problem := _token_problem(found, stops, max_new_tokens):
            raise InvalidInput(f"{path}:{number}: row {found.id}: {problem}; {AGAIN}")
    texts = decode()
    honest = rescored(given, tokenizer)
    for number, (found, row, text, scored) in enumerate(zip(given, rows, texts, honest, strict=True), start=1):
        true: dict[str, tuple[object, str]] = {
            "id": (row.id, "the split says"), "messages": (row.messages[:-1], "the split says"),
            "reference": (row.reference(), "the split says"), "intent": (row.intent, "the split says"),
            "prediction": (text, "its tokens say"), "stats": (scored.stats, "its text gives")}
        for field, (value, source) in true.items():
            if getattr(found, field) != value:
                raise InvalidInput(f"{path}:{number}: row {found.id}: {field} is {_short(getattr(found, field))}, "
                                   f"{source} {_short(value)}; {AGAIN}")


def _token_problem(row: Prediction, stops: set[int], max_new_tokens: int) -> str | None:
    """Why these tokens can be no answer, None if they can.

    stops: the last tokens of all answers that are said to be complete. The first stop token ends an answer, so none
    stands further in front, and an answer without one has exactly max_new_tokens tokens.
    """
    count = len(row.tokens)
    if row.new_tokens != count:
        return f"new_tokens is {row.new_tokens}, its tokens are {count}"
    if not 0 < count <= max_new_tokens:
        return f"its tokens are {count}, an answer has 1 to {max_new_tokens}"
    if not all(0 <= token < _IDS for token in row.tokens):
        return "its tokens are no token ids"
    if inner := stops.intersection(row.tokens[: count if row.truncated else -1]):
        return f"truncated is {row.truncated}, but stop token {min(inner)} stands among its tokens"
    if row.truncated and count < max_new_tokens:
        return f"truncated is True, but its tokens are {count} of {max_new_tokens}"
    return None


def check_scores(path: Path, claimed: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check the content of metrics.json or report.json (at `path`) against what the answers give.

    Raises InvalidInput, naming the first value that differs.
    """
    for key, here, computed in disagreements(claimed, expected):
        raise InvalidInput(f"{path}: {key} is {_short(here)}, the answers give {_short(computed)}; {AGAIN}")


def true_report(report: EvaluationReport, given: Sequence[Prediction], rows: Sequence[EvaluationRow], *,
                trained: Sequence[EvaluationRow]) -> EvaluationReport:
    """The report that an evaluation with these checked answers writes; run, model, weights and split are `report`'s.

    trained: the rows of the training split. What the version that wrote the report did not count stays uncounted.
    """
    tokenizer = tokenizer_of(report.contract)
    contract = score_contract(rows, max_new_tokens=report.contract.generation.max_new_tokens, tokenizer=tokenizer)
    scores = corpus_scores(RowStatistics.from_rows([row.stats for row in given]))
    counts = {key: count for key, count in split_counts(rows, trained, tokenizer).items()
              if getattr(report, key) is not None}
    copied = (nearest_neighbour(trained, rows, weights=report.weights, tokenizer=tokenizer)
              if report.nearest_neighbour else None)
    return make_report(
        report.model, given, metrics=Metrics(**scores), weights=report.weights,
        weighted_score=float(weighted_score(scores, report.weights)), run_id=report.run_id,
        tracking_uri=report.tracking_uri, contract=contract, split=report.evaluation, counts=counts,
        nearest_neighbour=copied)


def disagreements(claimed: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = ""
                  ) -> Iterator[tuple[str, Any, Any]]:
    """Where claimed values differ from the expected ones by more than 1e-9: dotted key, claimed, expected value."""
    for key, value in expected.items():
        here, name = claimed.get(key), f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(here, Mapping):
            yield from disagreements(here, value, f"{name}.")
        elif isinstance(value, float) and isinstance(here, int | float) and abs(here - value) <= SAME:
            continue
        elif here != value:
            yield name, here, value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
