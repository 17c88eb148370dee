"""The scorer of a file of predictions agrees with the evaluation."""

import json
from pathlib import Path

import pytest

from scripts import score_script
from src.core.errors import InvalidInput
from src.evaluation.metrics import corpus_scores, row_statistics
from tests.fakes.promoted import run
from tests.fakes.space_process import ROOT

PREDICTIONS, REFERENCES = ["a b c d e", "we ship abroad on Mondays"], ["a b c d e f", "we ship on Mondays"]


def score(folder: Path, lines: list[dict[str, object]]) -> None:
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(score_script, "--predictions", path, "--config", ROOT / "params.yaml") == 0


@pytest.mark.parametrize(("lines", "said"), [
    ([], "no rows to score"), ([{"prediction": "a"}], "predictions.jsonl:1: reference is missing or no text"),
    ([{"prediction": "a", "reference": "b"}, {"prediction": 3, "reference": "b"}],
     "predictions.jsonl:2: prediction is missing or no text"),
])
def test_what_cannot_be_scored_is_named(lines: list[dict[str, object]], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=said):
        score(tmp_path, lines)


def test_the_tokenizer_of_the_file_is_the_one_that_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "params.yaml"
    config.write_text((ROOT / "params.yaml").read_text().replace("tokenizer: 13a", "tokenizer: zh"))
    line = {"prediction": "您的订单已经发货。", "reference": "您的订单已经发货。"}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line))
    assert run(score_script, "--predictions", tmp_path / "predictions.jsonl", "--config", config) == 0
    assert json.loads(capsys.readouterr().out)["weighted_score"] == 1


def test_the_figures_are_those_of_the_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(tmp_path, [{"id": "x", "prediction": prediction, "reference": reference}
                     for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)])
    told = json.loads(capsys.readouterr().out)
    expected = corpus_scores(row_statistics(PREDICTIONS, REFERENCES, "13a"))
    assert told["metrics"] == expected
    weights = (0.10, 0.15, 0.25, 0.40, 0.10)
    assert told["weighted_score"] == pytest.approx(sum(w * m for w, m in zip(weights, expected.values(), strict=True)))
    assert (told["rows"], told["max_score_drop"]) == (2, 0.01)
