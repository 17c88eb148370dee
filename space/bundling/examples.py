"""Choose the questions that the chat page suggests: evaluation questions that the bundle answered best."""

import re
from collections import Counter
from collections.abc import Sequence

from files import JsonLine

_MOST = 4
_LEAST = 0.6  # score of an answer worth showing; at 0.5 a third of its words is often wrong
_LONGEST = 90  # characters


def choose(rows: Sequence[JsonLine], *scores: Sequence[float]) -> list[str]:
    """Up to four questions, the best answered first; each of another intent, with another answer.

    scores: 0..1 for each row, once for each kind of weights that may be served; the lowest one counts, and without any
    nothing is chosen. A row with a system message or more than one question is left out, since the page asks without
    them. Among answers that are about as good, a question of common words comes first (a rare word may be mistyped),
    then a short one.
    """
    words = Counter(word for row in rows for word in _words(row["messages"][0]["content"]))
    lowest = map(min, zip(*scores, strict=True))
    ranked = sorted((-round(score, 1), sum(words[word] == 1 for word in _words(question)), len(question), row["id"])
                    for row, score in zip(rows if scores else [], lowest, strict=True)
                    if score >= _LEAST and (question := _question(row)))
    by_id = {row["id"]: row for row in rows}
    chosen: list[JsonLine] = []
    for *_, name in ranked:
        row = by_id[name]
        if len(chosen) < _MOST and not any(_alike(row, other) for other in chosen):
            chosen.append(row)
    return [_question(row) for row in chosen]


def _question(row: JsonLine) -> str:
    """What the page would ask; empty if it cannot ask this row."""
    messages = row["messages"]
    text = str(messages[0]["content"]).strip()
    is_plain = [each["role"] for each in messages] == ["user", "assistant"] and "\n" not in text
    return text if is_plain and len(text) <= _LONGEST else ""


def _alike(row: JsonLine, other: JsonLine) -> bool:
    same_intent = row.get("intent") is not None and row.get("intent") == other.get("intent")
    return same_intent or row["messages"][-1] == other["messages"][-1]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))
