"""The metric as `evaluate` loads it, in a process of its own: importing evaluate costs seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.params import METRICS
from src.core.records import weighted_score
from src.evaluation.metrics import corpus_scores, row_statistics

ROOT = Path(__file__).parents[2]
WEIGHTS = {"bleu1": 0.10, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.40, "rougeL_precision": 0.10}
PREDICTIONS = ["Your order ships within 2 days, we promise.", "", "Yes"]
REFERENCES = ["Your order ships within 3 days, we promise.", "Page 7.", "Yes"]
CHINESE = "您的订单已经发货。"
SCRIPT = """
import json, sys
import evaluate
from src.core.errors import PipelineError
metric = evaluate.load(sys.argv[1])
predictions, references, weights = json.loads(sys.stdin.read())
scores = metric.compute(predictions=predictions, references=references, weights=weights)
chinese = metric.compute(predictions=[sys.argv[2]], references=[sys.argv[2]], weights=weights, tokenizer="zh")
try:
    metric.compute(predictions=predictions, references=references, weights={"bleu1": 1.0})
except PipelineError as error:
    print(json.dumps([scores, str(error), chinese["weighted_score"]]))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], str, float]:
    """Scores by way of `evaluate.load`, and what it says to wrong weights; caches empty and the Hub out of reach."""
    unreachable = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = os.environ | unreachable | {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "PYTHONPATH": str(ROOT)}
    finished = subprocess.run([sys.executable, "-c", SCRIPT, "src/evaluation/weighted_score.py", CHINESE],
                              cwd=ROOT, check=False, input=json.dumps([PREDICTIONS, REFERENCES, WEIGHTS]), text=True,
                              env=environment, capture_output=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    scores, message, chinese = json.loads(finished.stdout)
    return scores, message, chinese


def test_weights_that_name_other_metrics_are_refused(loaded: tuple[dict[str, float], str, float]) -> None:
    assert loaded[1] == "weights name bleu1; expected bleu1, bleu2, bleu3, bleu4, rougeL_precision"


def test_the_metric_takes_a_tokenizer(loaded: tuple[dict[str, float], str, float]) -> None:
    assert loaded[2] == 1.0


def test_evaluate_loads_the_metric_offline_and_gives_our_numbers(loaded: tuple[dict[str, float], str, float]) -> None:
    expected = corpus_scores(row_statistics(PREDICTIONS, REFERENCES, "13a"))
    scores = dict(loaded[0])
    assert scores.pop("weighted_score") == float(weighted_score(expected, WEIGHTS))
    assert scores == expected
    assert tuple(scores) == METRICS
