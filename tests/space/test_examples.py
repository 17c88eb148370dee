"""The questions that the page suggests: evaluation questions that this very bundle answered well."""

from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("modules_of_space")


def row(question: str, *, intent: str | None = None, answer: str = "", before: tuple[str, ...] = ()) -> dict[str, Any]:
    messages = [{"role": role, "content": "x"} for role in before]
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer or f"of {question}"}]
    return {"id": question, "intent": intent, "messages": messages}


def chosen(rows: list[dict[str, Any]], *scores: list[float]) -> list[str]:
    """With answers in the reference's own words."""
    from bundling.examples import choose

    sides = [[(each["messages"][-1]["content"], score) for each, score in zip(rows, side, strict=True)]
             for side in scores]
    found: list[str] = choose(rows, *sides)
    return found


def test_what_was_answered_badly_or_by_nothing_is_not_suggested() -> None:
    rows = [row("Where is it?"), row("How is it?")]
    assert chosen(rows) == []
    assert chosen(rows, [0.59, 0.2]) == []
    assert chosen(rows, [0.9, 0.9], [0.9, 0.3]) == ["Where is it?"]  # another kind of weights answers the second badly


@pytest.mark.parametrize(("answer", "suggested"), [
    ("Yes: for 3 euros you get red paper.", False), ("Yes: for 4 euros you get brown paper.", False),
    ("Yes: for 3 or 5 euros you get brown paper.", False), ("You get brown paper for 3 euros, yes.", True)])
def test_an_answer_with_another_number_or_about_another_thing_is_not_good(answer: str, suggested: bool) -> None:
    from bundling.examples import choose

    asked = row("Do you have brown paper?", answer="Yes: for 3 euros you get brown paper.")
    assert choose([asked], [(answer, 0.8)]) == (["Do you have brown paper?"] if suggested else [])


def test_what_the_page_cannot_ask_is_not_suggested() -> None:
    rows = [row("After a system message?", before=("system",)), row("Later?", before=("user", "assistant")),
            row("Long " * 20), row("In two\nlines?"), row("Short?")]
    assert chosen(rows, [1.0] * 5) == ["Short?"]


def test_the_best_answered_come_first_each_of_another_intent_with_another_answer_four_at_most() -> None:
    rows = [row("May I pay later?", intent="pay"), row("May I pay?", intent="pay"), row("May I swap?", intent="swap"),
            row("May I go?", answer="Yes."), row("May I stay?", answer="Yes."), *(row(f"May I {n}?") for n in "abc")]
    scores = [0.99, 0.98, 0.7, 0.8, 0.8, 0.6, 0.6, 0.6]
    assert chosen(rows, scores) == ["May I pay?", "May I go?", "May I swap?", "May I a?"]


def test_among_answers_as_good_a_whole_sentence_comes_before_key_words() -> None:
    rows = [row("return order"), row("May I return my order?"), row("may I return it?")]
    assert chosen(rows, [1.0, 1.0, 1.0])[0] == "May I return my order?"


def test_among_answers_as_good_a_question_with_a_mistyped_word_comes_last() -> None:
    rows = [row("May I retrun it?"), row("It is green, may I return it?"), row("Is it green, may I return?")]
    assert chosen(rows, [1.0, 1.0, 1.0])[-1] == "May I retrun it?"
