"""GitHub's `${{ }}` expressions, as far as our workflows use them; what is not known here is an error, not a guess.

docs.github.com/en/actions/reference/workflows-and-actions/expressions: operators, literals, coercion.
"""

import ast
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Value = str | float | bool | None
_TOKEN = re.compile(r"'(?:[^']|'')*'|\d+(?:\.\d+)?|[A-Za-z_]\w*|&&|\|\||==|!=|[!().]|\s+|(?P<unknown>.)")
_PYTHON = {"&&": " and ", "||": " or ", "!": "~"}  # `~` binds as GitHub's `!` does, which Python's `not` does not
_SEGMENT = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
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
    try:
        value = _value(ast.parse(_TOKEN.sub(_python, text).strip(), mode="eval").body, scope)
    except (SyntaxError, UnknownExpression) as error:
        raise UnknownExpression(f"{text!r}: {error}") from None
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


def _python(found: re.Match[str]) -> str:
    """A token as Python has it."""
    token = found[0]
    if found["unknown"] or keyword.iskeyword(token):
        raise UnknownExpression(f"{token!r} was not expected")
    if token.startswith("'"):
        return "({!r})".format(token[1:-1].replace("''", "'"))
    return " " if token.isspace() else _PYTHON.get(token, token)


def _value(node: ast.expr, scope: Scope) -> Any:
    """Every part is evaluated, so that an unknown name is an error wherever it stands."""
    match node:
        case ast.Constant(str() | int() | float() as value):
            return value if isinstance(value, str) else float(value)
        case ast.BoolOp(operator, parts):
            *values, last = [_value(part, scope) for part in parts]
            return next((value for value in values if truth(value) is isinstance(operator, ast.Or)), last)
        case ast.UnaryOp(ast.Invert(), part):
            return not truth(_value(part, scope))
        case ast.Compare(left, [ast.Eq() | ast.NotEq() as sign], [right]):
            return equal(_value(left, scope), _value(right, scope)) is isinstance(sign, ast.Eq)
        case ast.Call(ast.Name(name), [], []):
            return _status(name, scope)
    return _named(node, scope)


def _named(node: ast.expr, scope: Scope) -> Any:
    if isinstance(node, ast.Attribute):
        context, name = _value(node.value, scope), node.attr
    else:
        context, name = {**_WORDS, **scope.contexts}, ast.unparse(node)
    if isinstance(context, Open):
        return context.values.get(name)
    if isinstance(context, Mapping) and name in context:
        return context[name]
    raise UnknownExpression(f"{name} is not declared here")


def _status(name: str, scope: Scope) -> bool:
    answers = {"always": True, "cancelled": scope.cancelled, "failure": scope.failed,
               "success": not scope.failed and not scope.cancelled}
    if name not in answers:
        raise UnknownExpression(f"no function {name!r} here")
    scope.asked.append(name)
    return answers[name]
