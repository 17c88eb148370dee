"""BLEU-1..4 and ROUGE-L precision in one pass over the text, with statistics per row for resampling.

Tokenization is that of src.evaluation.tokenizers; the scores equal those of sacrebleu and rouge_score to 1e-9.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.core.errors import InvalidInput, InvalidParams
from src.core.params import METRICS, TOKENIZERS
from src.core.records import ScoreContract
from src.evaluation import tokenizers

METRIC_VERSION = "1"
ORDERS = 4
COLUMNS = 2 * ORDERS + 3
# Multiples of 2**-36 add up without rounding, in any order, for up to 2**17 rows: the same bits on every machine.
_GRID = 2.0**36


def signature(tokenizer: str) -> str:
    """Everything that a score depends on, as one string; sacrebleu's own signature omits the n-gram order.

    Raises InvalidParams as `tokenizers.load` does.
    """
    name = tokenizers.load(tokenizer).name
    bleu = f"bleu:corpus|nrefs:1|case:mixed|eff:no|tok:{name}|smooth:exp|max_ngram_order:1..{ORDERS}"
    rouge = "rougeL:precision" if tokenizer == tokenizers.WordTokens.name else "rougeL:precision|rouge_tok:as_bleu"
    return f"{bleu}|{rouge}|stemmer:no|mean:rows|version:{METRIC_VERSION}"


def tokenizer_of(contract: ScoreContract) -> str:
    """The tokenizer that a score was taken with, as `row_statistics` takes it.

    Raises InvalidInput for one that this version does not know, or whose dictionary has another version here, and
    InvalidParams for one that is not installed here.
    """
    parts = contract.metric_signature.split("|")
    stated = next((part.removeprefix("tok:") for part in parts if part.startswith("tok:")), "none")
    name = next((name for name in TOKENIZERS if stated == name or stated.startswith(f"{name}-")), None)
    if name is None or tokenizers.load(name).name != stated:
        raise InvalidInput(f"the score was taken with tokenizer {stated!r}, which is not available here; run "
                           "`dvc repro evaluation` to score the model again")
    return name


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Sufficient statistics of `rows` prediction/reference pairs.

    correct, total: int (rows, 4), matched and predicted n-grams of order 1..4, as sacrebleu counts them.
    sys_len, ref_len: int (rows,), tokens of prediction and reference.
    rouge_l: float (rows,), ROUGE-L precision in [0, 1], as rouge_score gives it.
    """

    correct: NDArray[np.int64]
    total: NDArray[np.int64]
    sys_len: NDArray[np.int64]
    ref_len: NDArray[np.int64]
    rouge_l: NDArray[np.float64]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.sys_len)

    def take(self, positions: NDArray[np.intp]) -> "RowStatistics":
        """The rows at `positions` (int array), in that order."""
        return RowStatistics(self.correct[positions], self.total[positions], self.sys_len[positions],
                             self.ref_len[positions], self.rouge_l[positions])

    def to_rows(self) -> list[list[float]]:
        """One list of 11 plain numbers a row: correct[4], total[4], sys_len, ref_len, rouge_l."""
        counts = np.column_stack([self.correct, self.total, self.sys_len, self.ref_len]).tolist()
        return [[*row, rouge] for row, rouge in zip(counts, self.rouge_l.tolist(), strict=True)]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> "RowStatistics":
        """The inverse of `to_rows`. Raises InvalidInput for no rows, and for an impossible row, which it names."""
        try:
            table = np.array(rows, dtype=np.float64).reshape(len(rows), COLUMNS)
        except (TypeError, ValueError):
            raise InvalidInput(f"row statistics: expected {COLUMNS} numbers a row; run the evaluation again") from None
        for row in _impossible(table):
            raise InvalidInput(f"row statistics {row}: {table[row].tolist()} cannot be; run the evaluation again")
        return _from_table(table)

    def table(self) -> NDArray[np.float64]:
        """All statistics as float (rows, 11), in the order of `to_rows`; rouge_l is rounded to multiples of 2**-36."""
        rouge = np.rint(self.rouge_l * _GRID) / _GRID
        return np.column_stack([self.correct, self.total, self.sys_len, self.ref_len, rouge])


def row_statistics(predictions: Sequence[str], references: Sequence[str], tokenizer: str) -> RowStatistics:
    """Statistics of each prediction against its one reference, in the given order.

    tokenizer is `evaluation.tokenizer` of params.yaml, or for a score that was taken already `tokenizer_of` its
    contract. Raises InvalidInput for different lengths, no rows at all, or a row that is not text, and InvalidParams
    for a tokenizer that is not installed.
    """
    if len(predictions) != len(references):
        raise InvalidInput(f"{len(predictions)} predictions for {len(references)} references; evaluate again")
    words = tokenizers.load(tokenizer)
    rows = []
    for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if not (isinstance(prediction, str) and isinstance(reference, str)):
            raise InvalidInput(f"row {number}: {prediction!r:.60} and {reference!r:.60} must both be text")
        rows.append(_statistics(words.split(prediction), words.split(reference)))
    return _from_table(np.array(rows, dtype=np.float64).reshape(-1, COLUMNS))


def corpus_scores(statistics: RowStatistics) -> dict[str, float]:
    """Each of METRICS in [0, 1]: cumulative corpus BLEU-1..4, and the mean ROUGE-L precision of the rows."""
    sums = statistics.table().sum(axis=0, keepdims=True)
    rouge = math.fsum(statistics.rouge_l) / len(statistics)
    return dict(zip(METRICS, [*_cumulative_bleu(sums, effective_order=False)[0].tolist(), rouge], strict=True))


def row_counts(indices: NDArray[np.integer], rows: int) -> NDArray[np.float64]:
    """How often each of `rows` rows was drawn: int (resamples, drawn rows) -> float (resamples, rows)."""
    resamples = len(indices)
    cells = indices + rows * np.arange(resamples)[:, np.newaxis]
    return np.bincount(cells.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def scores_of_counts(statistics: RowStatistics, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corpus scores with each row taken so many times: float (resamples, rows) -> float (resamples, 5)."""
    sums = counts @ statistics.table()
    rouge = sums[:, -1] / counts.sum(axis=1)
    return np.column_stack([_cumulative_bleu(sums, effective_order=False), rouge])


def row_scores(statistics: RowStatistics, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The weighted score of each row alone, float (rows,) in [0, 1], for ranking answers.

    It combines the row's ROUGE-L precision and its sentence BLEU-n (sacrebleu's sentence_score), which is corpus BLEU
    without the orders that the prediction is too short for. The mean over the rows is not the corpus score.
    """
    bleu = _cumulative_bleu(statistics.table(), effective_order=True)
    return np.column_stack([bleu, statistics.rouge_l]) @ weight_vector(weights)


def row_contributions(ours: RowStatistics, theirs: RowStatistics | None, weights: Mapping[str, float]
                      ) -> NDArray[np.float64]:
    """What each row adds to the corpus score, float (rows,): the score minus the score without this answer of ours.

    In its place stands the answer of the other model, so that these are the parts of the gain; `theirs` holds the same
    rows in the same order. Without another model, the row is left out. Corpus BLEU is no mean over rows: the
    difference of two sentence scores would rank a short perfect answer above a long good one that moves the corpus
    score more.
    """
    table = ours.table()
    total, rows = table.sum(axis=0, keepdims=True), len(table)
    others = total - table + (0 if theirs is None else theirs.table())
    without, vector = _corpus(others, max(1, rows - (theirs is None))), weight_vector(weights)
    return (_corpus(total, rows) - without) @ vector


def _corpus(sums: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Corpus scores of summed statistics of so many rows: float (k, 11) -> float (k, 5)."""
    return np.column_stack([_cumulative_bleu(sums, effective_order=False), sums[:, -1] / rows])


def weight_vector(weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The weights in the order of METRICS, float (5,). Raises InvalidParams if they name other metrics."""
    if set(weights) != set(METRICS):
        raise InvalidParams(f"weights name {', '.join(sorted(weights))}; expected {', '.join(METRICS)}")
    return np.array([weights[name] for name in METRICS], dtype=np.float64)


def _statistics(prediction: tuple[list[str], list[str]], reference: tuple[list[str], list[str]]) -> list[float]:
    hypothesis, target = prediction[0], reference[0]
    correct = [_matches(hypothesis, target, order) for order in range(1, ORDERS + 1)]
    total = [max(0, len(hypothesis) - order) for order in range(ORDERS)]
    precision = _lcs_length(reference[1], prediction[1]) / max(1, len(prediction[1]))
    return [*correct, *total, len(hypothesis), len(target), precision]


def _matches(hypothesis: list[str], target: list[str], order: int) -> int:
    """The number of n-grams of one order that both have, each counted as often as the side with fewer has it."""
    ours = Counter(zip(*(hypothesis[i:] for i in range(order)), strict=False))
    theirs = Counter(zip(*(target[i:] for i in range(order)), strict=False))
    return sum([min(ours[ngram], theirs[ngram]) for ngram in ours.keys() & theirs.keys()])


def _lcs_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, a machine word of `first` at a time.

    Source: Hyyro, Bit-parallel LCS-length computation revisited (2004). A zero bit of `row` marks a step of the LCS.
    """
    positions: dict[str, int] = {}
    for place, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << place
    ones = row = (1 << len(first)) - 1
    for token in second:
        common = row & positions.get(token, 0)
        row = (row + common) | (row - common)
    return len(first) - (row & ones).bit_count()


def _cumulative_bleu(table: NDArray[np.float64], *, effective_order: bool) -> NDArray[np.float64]:
    """BLEU-1..4 in [0, 1] of each row of statistics: float (k, 11) -> float (k, 4).

    Source: sacrebleu.BLEU.compute_bleu with smooth_method="exp" (Chen and Cherry 2014, method 3): the first order
    without a match counts as half a match, the next as a quarter, and so on.
    """
    correct, total = table[:, :ORDERS], table[:, ORDERS : 2 * ORDERS]
    sys_len, ref_len = table[:, 2 * ORDERS, np.newaxis], table[:, 2 * ORDERS + 1, np.newaxis]
    unmatched, present = correct == 0, total > 0
    smoothed = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=1), correct)
    logs = np.where(present, np.log(smoothed / np.maximum(total, 1)), 0.0)
    orders = np.cumsum(present, axis=1) if effective_order else np.arange(1, ORDERS + 1)
    defined = (correct[:, :1] > 0) & (present | effective_order)
    brevity = np.exp(np.minimum(0.0, 1 - ref_len / np.maximum(sys_len, 1)))
    return np.where(defined, brevity * np.exp(np.cumsum(logs, axis=1) / np.maximum(orders, 1)), 0.0)


def _from_table(table: NDArray[np.float64]) -> RowStatistics:
    if not len(table):
        raise InvalidInput("no rows to score; is the evaluation split empty?")
    counts = table[:, :-1].astype(np.int64)
    return RowStatistics(correct=counts[:, :ORDERS], total=counts[:, ORDERS : 2 * ORDERS], sys_len=counts[:, -2],
                         ref_len=counts[:, -1], rouge_l=table[:, -1])


def _impossible(table: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which rows cannot have been counted: float (rows, 11) -> positions. NaN fails every comparison."""
    counts, rouge = table[:, :-1], table[:, -1:]
    correct, total, sys_len = counts[:, :ORDERS], counts[:, ORDERS:-2], counts[:, -2:-1]
    whole = (counts >= 0) & (counts == np.floor(counts)) & (counts < np.inf)
    consistent = (correct <= total) & (total == np.maximum(0, sys_len - np.arange(ORDERS)))
    sound = np.column_stack([whole, consistent, (rouge >= 0) & (rouge <= 1)])
    return np.flatnonzero(~sound.all(axis=1))
