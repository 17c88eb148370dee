"""params.yaml, read as DVC reads it: YAML 1.2, where 4e-3 is a number, 013 is thirteen and yes is a word."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from src.core.errors import InvalidParams
from src.core.params import Params, parse


class _Constructor(SafeConstructor):
    """The safe subset of YAML without the types that no parameter has."""

    def refuse(self, node: Node) -> NoReturn:
        """Raise ConstructorError with the line of the value."""
        kind = str(node.tag).rpartition(":")[2]
        raise ConstructorError(None, None, f"a parameter is no {kind}; put text in quotes", node.start_mark)


for _kind in ("timestamp", "binary", "set", "omap", "pairs"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.refuse)


def load_params(path: Path, overrides: Mapping[str, Any] | None = None, *, profile: str | None = None) -> Params:
    """The parameters in a YAML file, its profile and then the overrides laid over it, validated whole.

    A profile takes the place of the file's own, as `dvc exp run -S profile=` does. Raises InvalidParams with the line
    for a missing or malformed file, a key given twice, a date, a Python tag or a wrong value.
    """
    values = read_values(path)
    return parse({**values, "profile": profile} if profile else values, overrides or {})


def read_values(path: Path) -> dict[str, Any]:
    """The content of the file as it stands there; raises InvalidParams if it is not a mapping in YAML."""
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        values = yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidParams(f"{path}: {error.strerror}; give the parameter file with --config") from None
    except RecursionError:
        raise InvalidParams(f"{path}: nested too deeply; correct the file") from None
    except YAMLError as error:
        raise InvalidParams(f"{path}{_problem(error)}; correct the file") from None
    except (ValueError, KeyError) as error:  # of bytes that are not UTF-8, or a value that its tag does not fit
        raise InvalidParams(f"{path}: {error}; correct the file") from None
    if not isinstance(values, dict):
        raise InvalidParams(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return values


def _problem(error: YAMLError) -> str:
    """The line of an error, and what is wrong there."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f": {str(error).splitlines()[0]}"
    problem = str(error.problem)
    if isinstance(error, DuplicateKeyError):
        problem = problem.partition(" with value ")[0]
    return f":{error.problem_mark.line + 1}: {problem}"
