"""The weighted score as an `evaluate.Metric`: `evaluate.load("src/evaluation/weighted_score.py")` works offline.

`evaluate` parses the import lines of this file itself, so each `import` line names one module. Importing `evaluate`
takes seconds, so no other module imports this one.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate

from src.core.params import EvaluationParams
from src.core.records import weighted_score
from src.evaluation.metrics import corpus_scores, row_statistics, weight_vector

_DESCRIPTION = "Weighted sum of cumulative corpus BLEU-1..4 (sacrebleu, exp) and mean ROUGE-L precision, in 0..1."
_CITATION = """\
@inproceedings{post-2018-call, title = "A Call for Clarity in Reporting {BLEU} Scores", author = "Post, Matt",
  booktitle = "Proceedings of the Third Conference on Machine Translation", year = "2018"}
@inproceedings{lin-2004-rouge, title = "{ROUGE}: A Package for Automatic Evaluation of Summaries",
  author = "Lin, Chin-Yew", booktitle = "Text Summarization Branches Out", year = "2004"}
"""
_INPUTS = """\
predictions, references: one text each a row.
weights: mapping of bleu1..bleu4 and rougeL_precision to weights that sum to 1, as in params.yaml.
tokenizer: as evaluation.tokenizer in params.yaml; None stands for 13a.
Returns the five metrics and `weighted_score`.
"""


class WeightedScore(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """compute(predictions=, references=, weights=, tokenizer=) -> the five metrics and `weighted_score`, in 0..1."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS,
                                   features=texts)

    def _compute(self, predictions: Sequence[str], references: Sequence[str],
                 weights: Mapping[str, float], tokenizer: str | None = None) -> dict[str, float]:
        weight_vector(weights)  # InvalidParams for wrong names
        scores = corpus_scores(row_statistics(predictions, references, tokenizer or EvaluationParams().tokenizer))
        return {**scores, "weighted_score": float(weighted_score(scores, weights))}
