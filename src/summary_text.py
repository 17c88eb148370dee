"""A summary as Markdown (GitHub's) and as plain text. Text from data stays text in both."""

import re
from collections.abc import Sequence

from src.summary import Line, Link, Summary

MARKER = "<!-- champion -->"
_URL = re.compile(r"https?://[\w.~:/?#@!$&*+,;=%-]+", re.ASCII)
# Whatever begins Markdown, HTML, a formula or a table cell; `:` begins an address that GitHub would make a link.
_SPECIAL = re.compile(r"""[\\`*_{}\[\]<>|~&"'$!:@#]""")
# GitHub sends mail to @name and links #1; its own bots too keep it from that by a space of no width.
_CALLING = re.compile(r"(?<=[@#])(?=\w)")
_GAP = "\u200b"
_HEADER = ("", "value", "", "weight", "contribution", "best promoted")


def markdown(told: Summary) -> str:
    """The summary for a job's page or a pull request."""
    parts = [f"## {escaped(told.title)}", escaped(told.sentence)]
    parts += ["\n".join(f"- {escaped(note)}" for note in told.notes)] if told.notes else []
    parts += [_score_table(told.scores, told.level)] if told.scores else []
    rows = [[name, escaped(text)] for name, text in told.comparisons]
    rows += [[name, _link(link)] for name, link in told.facts]
    parts += [_table(["", ""], rows, "|---|---|")] if rows else []
    parts += ["Missing:\n\n" + "\n".join(f"- {escaped(each)}" for each in told.problems)] if told.problems else []
    return "\n\n".join(parts) + "\n"


def comment(told: Summary) -> str:
    """The same with a first line that nobody sees, by which the comment is found again."""
    return f"{MARKER}\n{markdown(told)}"


def text(told: Summary) -> str:
    """The summary for a terminal."""
    lines = [plain(told.title), plain(told.sentence), *(f"- {plain(note)}" for note in told.notes)]
    if told.scores:
        rows = [_HEADER, *(_cells(line) for line in told.scores)]
        rows[0] = (*_HEADER[:2], told.level, *_HEADER[3:])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                        for row in rows)]
    facts = [*told.comparisons, *((name, _spelt(link)) for name, link in told.facts)]
    width = max((len(name) for name, _ in facts), default=0)
    lines += ["", *(f"{name:{width}}  {plain(value)}" for name, value in facts)] if facts else []
    lines += ["", *(f"missing: {plain(each)}" for each in told.problems)] if told.problems else []
    return "\n".join(lines)


def escaped(value: str) -> str:
    """A text as one line of Markdown that shows exactly it: no markup, no HTML, no link, no mention."""
    line = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", _CALLING.sub(_GAP, plain(value)))
    return re.sub(r"^(?=[-+=]|\d+[.)])", _GAP, line)  # a list, a rule, a heading's underline


def plain(value: str) -> str:
    """A text as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _score_table(scores: Sequence[Line], level: str) -> str:
    return _table([*_HEADER[:2], level, *_HEADER[3:]], [list(_cells(line)) for line in scores],
                  "|---|--:|---|--:|--:|--:|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], rule: str) -> str:
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _cells(line: Line) -> tuple[str, ...]:
    return line.name, line.value, line.interval, line.weight, line.contribution, line.other


def _link(link: Link) -> str:
    if link.url and _URL.fullmatch(link.url):
        return f"[{escaped(link.text)}]({link.url})"
    return escaped(link.text)


def _spelt(link: Link) -> str:
    return f"{link.text}  {link.url}" if link.url else link.text
