"""params.yaml, read safely."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from src.core.errors import InvalidParams
from src.core.params import Params, parse


class _Loader(yaml.SafeLoader):
    """YAML's safe subset; a key given twice, of which PyYAML keeps the last in silence, is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node; raises ConstructorError with the line of the second key."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_node
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_params(path: Path, overrides: Mapping[str, Any] | None = None, *, profile: str | None = None) -> Params:
    """The parameters in a YAML file, its profile and then the overrides laid over it, validated whole.

    A profile takes the place of the file's own, as `dvc exp run -S profile=` does. Raises InvalidParams with the line
    for a missing or malformed file, a Python tag or a wrong value.
    """
    try:
        values = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InvalidParams(f"{path}: {error.strerror}; give the parameter file with --config") from None
    except RecursionError:
        raise InvalidParams(f"{path}: nested too deeply; correct the file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise InvalidParams(f"{path}{line}: {problem}; correct the file") from None
    if not isinstance(values, dict):
        raise InvalidParams(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return parse({**values, "profile": profile} if profile else values, overrides or {})
