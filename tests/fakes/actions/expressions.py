"""GitHub's `${{ }}` expressions, as far as our workflows use them; what is not known here is an error, not a guess.

docs.github.com/en/actions/reference/workflows-and-actions/expressions: operators, literals, coercion.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = str | float | bool | None
_TOKEN = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[A-Za-z_][\w-]*)"
                    r"|(?P<sign>&&|\|\||==|!=|[!().,\[\]]))")
_SEGMENT = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_STATUS = ("success", "failure", "always", "cancelled")
_WORDS: Mapping[str, Value] = {"true": True, "false": False, "null": None}


class UnknownExpression(AssertionError):
    """Something that this evaluator does not know, or that the workflow does not declare."""


@dataclass(frozen=True)
class Open:
    """A context whose names are set outside of the workflow, as secrets and vars are: an unknown one is empty."""

    values: Mapping[str, Value]


@dataclass(frozen=True)
class Scope:
    """What an expression may name: contexts, and how the job stands for the status functions."""

    contexts: Mapping[str, Any]
    failed: bool = False
    cancelled: bool = False
    asked: list[str] = field(default_factory=list)  # the status functions that the expression called


def condition(text: str | bool | None, scope: Scope) -> bool:
    """An `if:`; one that names no status function holds only while nothing failed, as GitHub has it."""
    if text is None:
        return not scope.failed and not scope.cancelled
    inner = str(text).lower() if isinstance(text, bool) else text.strip()
    if segment := _SEGMENT.fullmatch(inner):
        inner = segment.group(1)
    elif "${{" in inner:
        raise UnknownExpression(f"{text}: an expression within a text is always true")
    scope.asked.clear()
    found = truth(evaluate(inner, scope))
    return found if scope.asked else found and not scope.failed and not scope.cancelled


def interpolated(text: object, scope: Scope) -> str:
    """A value of the workflow with its expressions replaced, as a step's environment gets it."""
    if isinstance(text, bool):
        return str(text).lower()
    return _SEGMENT.sub(lambda found: shown(evaluate(found.group(1), scope)), str(text))


def evaluate(text: str, scope: Scope) -> Value:
    """The value of one expression, without its `${{ }}`."""
    parser = _Parser(text, scope)
    value = parser.either()
    if parser.rest():
        raise UnknownExpression(f"{text!r}: {parser.rest()!r} was not understood")
    if value is not None and not isinstance(value, str | float | bool):
        raise UnknownExpression(f"{text!r}: is a context, not a value")
    return value


def truth(value: Value) -> bool:
    return not (value in ("", None, False) or (isinstance(value, float) and (value == 0 or math.isnan(value))))


def shown(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else value


def equal(left: Value, right: Value) -> bool:
    """Loosely, as GitHub does: texts without case, unlike kinds as numbers."""
    if isinstance(left, str) and isinstance(right, str):
        return left.lower() == right.lower()
    if type(left) is type(right):
        return left == right
    return _number(left) == _number(right)


def _number(value: Value) -> float:
    if isinstance(value, str):
        try:
            return float(value) if value.strip() else 0.0
        except ValueError:
            return math.nan
    return float(value or 0)


class _Parser:
    def __init__(self, text: str, scope: Scope) -> None:
        self._text, self._scope, self._at = text, scope, 0

    def rest(self) -> str:
        return self._text[self._at:].strip()

    def either(self) -> Any:
        value = self._both()
        while self._take("||"):
            other = self._both()
            value = value if truth(value) else other
        return value

    def _both(self) -> Any:
        value = self._compared()
        while self._take("&&"):
            other = self._compared()
            value = other if truth(value) else value
        return value

    def _compared(self) -> Any:
        left = self._single()
        for sign, wanted in (("==", True), ("!=", False)):
            if self._take(sign):
                return equal(left, self._single()) is wanted
        return left

    def _single(self) -> Any:
        if self._take("!"):
            return not truth(self._single())
        if self._take("("):
            value = self.either()
            self._need(")")
            return value
        kind, token = self._next()
        if kind == "text":
            return token[1:-1].replace("''", "'")
        if kind == "number":
            return float(token)
        if kind != "name":
            raise UnknownExpression(f"{self._text!r}: {token!r} was not expected")
        if self._take("("):
            self._need(")")
            return self._status(token)
        return _WORDS[token] if token in _WORDS else self._named(token)

    def _named(self, name: str) -> Any:
        if name not in self._scope.contexts:
            raise UnknownExpression(f"{self._text!r}: no context {name!r} here")
        value: Any = self._scope.contexts[name]
        while self._take("."):
            kind, key = self._next()
            if kind != "name":
                raise UnknownExpression(f"{self._text!r}: {key!r} is no name")
            if isinstance(value, Open):
                value = value.values.get(key)
            elif isinstance(value, Mapping) and key in value:
                value = value[key]
            else:
                raise UnknownExpression(f"{self._text!r}: {key!r} is not declared")
        return value

    def _status(self, name: str) -> bool:
        if name not in _STATUS:
            raise UnknownExpression(f"{self._text!r}: no function {name!r} here")
        scope = self._scope
        scope.asked.append(name)
        answers: Mapping[str, Callable[[], bool]] = {
            "always": lambda: True, "cancelled": lambda: scope.cancelled, "failure": lambda: scope.failed,
            "success": lambda: not scope.failed and not scope.cancelled}
        return answers[name]()

    def _next(self) -> tuple[str, str]:
        found = _TOKEN.match(self._text, self._at)
        if not found or not found.lastgroup:
            raise UnknownExpression(f"{self._text!r}: {self.rest()!r} was not understood")
        self._at = found.end()
        return found.lastgroup, found.group(found.lastgroup)

    def _take(self, sign: str) -> bool:
        found = _TOKEN.match(self._text, self._at)
        if not found or found.group("sign") != sign:
            return False
        self._at = found.end()
        return True

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise UnknownExpression(f"{self._text!r}: {sign!r} is missing at {self.rest()!r}")
