"""The rules of docs/architecture.md as functions of a repository's root; each gives the violations that it found."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("src", "utils", "scripts")
SERVICES = {"mlflow", "huggingface_hub", "dagshub", "dvc"}
HEAVY = {"torch", "transformers", "peft"}
TRAINERS = {"src/models/base_model.py", "src/training/encoding.py", "src/training/checkpoints.py", "src/evaluation/generation.py", "src/training/fine_tuning.py",
            "src/evaluation/generation.py", "src/models/placement.py", "src/training/model.py", "src/training/model.py", "src/models/merging.py",
            "src/training/fine_tuning.py"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
# The modules of src that hold types, small values and their checks, and nothing that computes a result.
TYPES = {"errors", "evidence", "hub_records", "ledger", "manifest", "model_card", "model_selection", "params", "ports",
         "predictions", "promotion", "records", "deployment_record", "evaluation_record", "report_records"}
SCRIPT_LINES, FILE_LINES = 100, 260


def modules(root: Path, *packages: str) -> list[Path]:
    """But for those of an environment below it, as space/ has."""
    return sorted(path for name in packages for path in (root / name).rglob("*.py")
                  if not any(part.startswith(".") for part in path.relative_to(root).parts))


def imported(path: Path, *, typing_too: bool) -> list[str]:
    """Dotted names that a file imports, wherever in it; `from src import x` gives both src and src.x."""
    found = []
    for node in _nodes(_tree(path), typing_too=typing_too):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):
            found.append("relative")
    return found


def _tree(path: Path) -> ast.Module:
    return _parsed(path.read_bytes())


@cache
def _parsed(source: bytes) -> ast.Module:
    return ast.parse(source)


def _nodes(tree: ast.AST, *, typing_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not typing_too and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _nodes(node, typing_too=typing_too)


def _local(root: Path, name: str) -> Path | None:
    """The file of a dotted name of ours."""
    path = root / (name.replace(".", "/") + ".py")
    return path if name.partition(".")[0] in PACKAGES and path.is_file() else None


def closure(root: Path, path: Path) -> set[str]:
    """Our files that a file imports, directly or through others, as paths below the root; itself included."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(root).as_posix()
        if name not in found:
            found.add(name)
            waiting += filter(None, (_local(root, each) for each in imported(file, typing_too=False)))
    return found


def forbidden_imports(root: Path) -> list[str]:
    """src is pure of services and of the environment; scripts import utils and src, utils types of src, src itself."""
    found = []
    for path in modules(root, "src", "utils", "scripts", "benchmarks", "space"):
        name, package = path.relative_to(root).as_posix(), path.relative_to(root).parts[0]
        for each in imported(path, typing_too=True):
            top, _, rest = each.partition(".")
            if top in _barred_from(package) or each == "relative":
                found.append(f"{name}: imports {each}")
            if package == "utils" and top == "src" and rest and rest.partition(".")[0] not in TYPES:
                found.append(f"{name}: imports {each}, which is no module of types")
        if package in PACKAGES and name not in TRAINERS:
            found += [f"{name}: imports {each}, which is heavy" for each in imported(path, typing_too=False)
                      if each.partition(".")[0] in HEAVY]
        if package == "src":
            found += [f"{name}: reads os.{each}" for each in _environment(path)]
    return found


def _barred_from(package: str) -> set[str]:
    return {
        "src": {*SERVICES, "utils", "scripts", "dotenv"},
        "utils": {"scripts"},
        "scripts": set(),
        "benchmarks": {"space"},
        "space": {*PACKAGES},
    }[package]


def _environment(path: Path) -> list[str]:
    names = [node.attr if isinstance(node, ast.Attribute) else node.name for node in ast.walk(_tree(path))
             if isinstance(node, ast.Attribute | ast.alias)]
    return sorted(ENVIRONMENT.intersection(names))


def oversized_files(root: Path) -> list[str]:
    """A script holds flags and wiring: 100 lines; any other file 260."""
    found = []
    for path in modules(root, *PACKAGES, "tests", "benchmarks", "space"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        limit = SCRIPT_LINES if path.match("scripts/*_script.py") else FILE_LINES
        if lines > limit:
            found.append(f"{path.relative_to(root)}: {lines} lines, {limit} allowed")
    return found


def non_ascii_code(root: Path) -> list[str]:
    """Code is ASCII, its texts and comments included; data is not."""
    return [f"{path.relative_to(root)}:{number}: {line.strip()}" for path in modules(root, *PACKAGES, "benchmarks")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1) if not line.isascii()]


def missing_docstrings(root: Path) -> list[str]:
    """Each module says what it is for."""
    return [f"{path.relative_to(root)}: no docstring" for path in modules(root, *PACKAGES, "benchmarks")
            if path.name != "__init__.py" and not ast.get_docstring(_tree(path))]


def second_defaults(root: Path) -> list[str]:
    """params.yaml is the only place where a default is written: no flag has one, no argument named like a key."""
    keys = set(_keys(yaml.safe_load((root / "params.yaml").read_text())))
    found = []
    for path in modules(root, *PACKAGES):
        for node in ast.walk(_tree(path)):
            found += [f"{path.relative_to(root)}:{line}: {name} has a default" for line, name in _defaults(node, keys)]
    return found


def _defaults(node: ast.AST, keys: set[str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
        for keyword in node.keywords:
            if keyword.arg == "default" and not _is_none(keyword.value):
                yield node.lineno, ast.unparse(node.args[0])
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        given = [*zip(positional[::-1], arguments.defaults[::-1], strict=False),
                 *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        yield from ((node.lineno, each.arg) for each, value in given if each.arg in keys and not _is_none(value))
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
        yield from ((each.lineno, each.target.id) for each in fields
                    if isinstance(each.target, ast.Name) and each.target.id in keys and each.value is not None)


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _keys(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def undeclared_sources(root: Path) -> list[str]:
    """Each stage of dvc.yaml depends on its script and on every module of src that the script comes to import."""
    found = []
    for name, stage in _stages(root).items():
        script = stage["cmd"].split()[1]
        declared = {str(dep) for dep in stage.get("deps", [])}
        needed = {script, *(each for each in closure(root, root / script) if each.startswith("src/"))}
        found += [f"{name}: deps lack {each}" for each in sorted(needed - {"src/__init__.py"})
                  if each not in declared and Path(each).parts[0] not in declared]
        found += [f"{name}: {each} does not exist" for each in sorted(declared)
                  if each.startswith(PACKAGES) and not (root / each).exists()]
    return found


def undeclared_params(root: Path) -> list[str]:
    """Each stage depends on its profile, and on what a profile may change wherever it depends on a section.

    Sections that appear as `params.<section>` in its script, or in modules of scripts that this imports, must be
    declared too: but for deployment and mlflow, which say where things go, and for a stage that always runs.
    """
    params = yaml.safe_load((root / "params.yaml").read_text())
    profiles = params.get("profiles", {})
    found = []
    for name, stage in _stages(root).items():
        declared = [str(each) for each in stage.get("params", [])]
        found += [f"{name}: params lack profile"] if "profile" not in declared else []
        found += [f"{name}: params.yaml has no {each}" for each in declared if not _has(params, each)]
        profiled = [f"profiles.{profile}.{each}" for profile, changes in profiles.items() for each in declared
                    if each != "profile" and not each.startswith("profiles") and _has(changes, each)]
        found += [f"{name}: params lack {each}" for each in profiled if not _covered(each, declared)]
        script = root / stage["cmd"].split()[1]
        files = [root / each for each in closure(root, script) if each.startswith("scripts/")]
        read = {section for file in files for section in _sections_read(file, set(params))}
        known = {"deployment", "mlflow", "profiles", *(each.partition(".")[0] for each in declared)}
        found += [f"{name}: params lack {each}" for each in sorted(read - known) if not stage.get("always_changed")]
    return found


def _sections_read(path: Path, sections: set[str]) -> set[str]:
    return {node.attr for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)
            and node.attr in sections and ast.unparse(node.value).rpartition(".")[2] == "params"}


def _stages(root: Path) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return stages


def _covered(key: str, declared: list[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in declared)


def _has(section: Any, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(section, dict) or key not in section:
            return False
        section = section[key]
    return True
