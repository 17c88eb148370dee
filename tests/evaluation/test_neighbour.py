import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from src.core.params import DataParams, WeightedScoringParams
from src.core.records import digest_of
from src.data import prepare
from src.data.rows import EvaluationRow
from src.evaluation import neighbour
from src.evaluation.neighbour import nearest_answers, nearest_neighbour

ROOT = Path(__file__).parents[2]
WEIGHTS = WeightedScoringParams().weights


def row(*turns: str, system: str = "") -> EvaluationRow:
    """A conversation whose last text is the answer; user and assistant take turns before it."""
    roles = ("assistant", "user")
    messages = [{"role": roles[(len(turns) - place) % 2 == 0], "content": text} for place, text in enumerate(turns)]
    messages = ([{"role": "system", "content": system}] if system else []) + messages
    return EvaluationRow.parse({"id": digest_of(messages)[:16], "intent": None, "messages": messages}, where="")


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[EvaluationRow]]:
    params = DataParams()
    splits = prepare.split(prepare.read(ROOT / params.path, params).rows, params)
    return {name: [EvaluationRow.parse(each.as_json(), where="") for each in found] for name, found in splits.items()}


def sklearn_answers(train: Sequence[EvaluationRow], rows: Sequence[EvaluationRow]) -> list[str]:
    vectorizer = TfidfVectorizer()
    known = vectorizer.fit_transform([each.messages[-2].content for each in train])
    asked = vectorizer.transform([each.messages[-2].content for each in rows])
    return [train[place].reference() for place in np.round((asked @ known.T).toarray(), 9).argmax(axis=1)]


@pytest.mark.parametrize("cells", [1, 5000, 2**22])
def test_it_copies_the_answers_that_scikit_learn_finds_in_blocks_of_any_size(
    shipped: dict[str, list[EvaluationRow]], monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr(neighbour, "_CELLS", cells)
    train, rows = shipped["train"], shipped["evaluation"][:100]
    assert nearest_answers(train, rows, "13a") == sklearn_answers(train, rows)


def test_questions_that_were_trained_on_score_1(shipped: dict[str, list[EvaluationRow]]) -> None:
    train = shipped["train"]
    found = nearest_neighbour(train, train[:50], weights=WEIGHTS, tokenizer="13a")
    assert found.scores() == pytest.approx(dict.fromkeys(found.scores(), 1.0))


def test_the_first_of_equally_similar_questions_answers_also_if_no_word_is_known() -> None:
    train = [row("Where is it?", "First."), row("where IS it", "Second."), row("Something else", "Third.")]
    asked = [row("Where is it now?", "x"), row("Hallo", "x"), row("?", "x")]
    assert nearest_answers(train, asked, "13a") == ["First."] * 3


def test_training_questions_without_a_single_word_are_no_error() -> None:
    assert nearest_answers([row("?", "What?"), row("!", "Hey.")], [row("Who?", "x")], "13a") == ["What?"]


def test_earlier_turns_of_a_chat_belong_to_its_question_and_the_system_prompt_does_not() -> None:
    train = [row("My sofa is torn.", "Sorry.", "What now?", "Send us a picture of the sofa.", system="blue lamp blue"),
             row("My lamp is dark.", "Sorry.", "What now?", "Change the bulb.", system="red sofa red")]
    asked = row("This sofa has a hole.", "Oh.", "What now?", "x", system="red sofa red lamp")
    assert nearest_answers(train, [asked], "13a") == ["Send us a picture of the sofa."]


def test_a_language_without_spaces_is_split_by_the_tokenizer_of_the_score() -> None:
    train = [row("请问运费是多少", "免费。"), row("我的订单在哪里", "在路上。")]
    assert nearest_answers(train, [row("订单现在在哪里", "x")], "zh") == ["在路上。"]
    assert nearest_answers(train, [row("订单现在在哪里", "x")], "13a") == ["免费。"]  # 13a sees no word that both have


def test_the_deployment_computes_it_without_scikit_learn_and_torch() -> None:
    code = ("import sys, scripts.commands.claims\n"
            "print([name for name in ('sklearn', 'torch') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n"
