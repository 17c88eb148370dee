"""The rules of docs/architecture.md as functions of a repository's root; each gives the violations that it found."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("src", "utils", "scripts")
# Who may import whom: a room imports from itself and from the rooms of earlier lines.
FLOORS = (
    ("src.core",),
    ("src.data", "src.models", "src.ledger"),
    ("src.training", "src.model_selection"),
    ("src.evaluation", "src.decisions"),
    ("src.promotion", "src.report"),
    ("utils",),
    ("scripts.commands",),
    ("scripts",),
)
_FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What utils may take of src: types, small values and their checks, and nothing that computes a result.
TYPES = ("src.core", "src.ledger", "src.model_selection", "src.evaluation.predictions", "src.promotion.card",
         "src.promotion.protocol")
HEAVY_ROOMS = ("src.models", "src.training", "src.evaluation.generation")
SERVICES = {"mlflow", "huggingface_hub", "dagshub", "dvc"}
BARRED = {"src": {*SERVICES, "dotenv"}, "benchmarks": {"space"}, "space": {*PACKAGES}}
HEAVY = {"torch", "transformers", "peft"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def modules(root: Path, *packages: str) -> list[Path]:
    """But for those of an environment below it, as space/ has."""
    return sorted(path for name in packages for path in (root / name).rglob("*.py")
                  if not any(part.startswith(".") for part in path.relative_to(root).parts))


def dotted(root: Path, path: Path) -> str:
    """The name by which a file is imported."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


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


def upward_imports(root: Path) -> list[str]:
    """Imports run down the floors of FLOORS, those for types too, and never in a circle."""
    found, graph = [], {}
    for path in modules(root, *PACKAGES):
        name = dotted(root, path)
        ours = {each for each in imported(path, typing_too=True) if _local(root, each) and each != name}
        graph[name] = ours
        if name in PACKAGES:
            continue
        room = _room(name)
        found += [] if room else [f"{name}: lies in no room of FLOORS"]
        found += [f"{name}: imports {each}, which is not below it" for each in sorted(ours)
                  if room and (other := _room(each)) and other != room and _FLOOR[other] >= _FLOOR[room]]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a circle of imports: {' <- '.join(error.args[1])}")
    return found


def _room(name: str) -> str | None:
    """The longest name of FLOORS that this module lies in."""
    return max((room for room in _FLOOR if _within(name, (room,))), key=len, default=None)


def _within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def forbidden_imports(root: Path) -> list[str]:
    """src knows no service and no environment, utils only types of src, and few modules know torch."""
    found = []
    for path in modules(root, *PACKAGES, "benchmarks", "space"):
        file, package = path.relative_to(root).as_posix(), path.relative_to(root).parts[0]
        for each in imported(path, typing_too=True):
            if each.partition(".")[0] in BARRED.get(package, ()) or each == "relative":
                found.append(f"{file}: imports {each}")
            if package == "utils" and _local(root, each) and each.startswith("src.") and not _within(each, TYPES):
                found.append(f"{file}: imports {each}, which is no module of types")
        if package in PACKAGES and not _within(dotted(root, path), HEAVY_ROOMS):
            found += [f"{file}: imports {each}, which is heavy" for each in imported(path, typing_too=False)
                      if each.partition(".")[0] in HEAVY]
        if package == "src":
            found += [f"{file}: reads os.{each}" for each in _environment(path)]
    return found


def _environment(path: Path) -> list[str]:
    names = [node.attr if isinstance(node, ast.Attribute) else node.name for node in ast.walk(_tree(path))
             if isinstance(node, ast.Attribute | ast.alias)]
    return sorted(ENVIRONMENT.intersection(names))


def non_ascii_code(root: Path) -> list[str]:
    """Code is ASCII, its texts and comments included; data is not."""
    return [f"{path.relative_to(root)}:{number}: {line.strip()}" for path in modules(root, *PACKAGES, "benchmarks")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1) if not line.isascii()]


def second_defaults(root: Path) -> list[str]:
    """Only params.yaml and src/core/params.py (a test holds them equal) state defaults: no flag, argument or class."""
    keys = set(_keys(yaml.safe_load((root / "params.yaml").read_text())))
    found = []
    for path in modules(root, *PACKAGES):
        for node in ast.walk(_tree(path)):
            if path == root / "src/core/params.py" and isinstance(node, ast.ClassDef):
                continue
            found += [f"{path.relative_to(root)}:{line}: {name} has a default" for line, name in _defaults(node, keys)]
    return found


def _defaults(node: ast.AST, keys: set[str]) -> Iterator[tuple[int, str]]:
    given: list[tuple[str, ast.expr | None]] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
        given = [(ast.unparse(node.args[0]), each.value) for each in node.keywords if each.arg == "default"]
    elif isinstance(node, ast.FunctionDef):
        named = [*node.args.posonlyargs, *node.args.args][::-1], node.args.defaults[::-1]
        named_only = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        given = [(each.arg, value) for each, value in [*zip(*named, strict=False), *named_only] if each.arg in keys]
    elif isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        given = [(name, each.value) for each in fields if (name := ast.unparse(each.target)) in keys]
    yield from ((node.lineno, name) for name, value in given if value and ast.unparse(value) != "None")  # type: ignore[attr-defined]


def _keys(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def undeclared_sources(root: Path) -> list[str]:
    """Each stage of dvc.yaml depends on its script, and on all of src and scripts/commands that its command imports."""
    found = []
    for name, stage in _stages(root).items():
        declared = [str(dep) for dep in stage.get("deps", [])]
        scripts = _scripts(stage)
        reached = {each for script in scripts for each in closure(root, root / script)}
        needed = {scripts[-1], *(each for each in reached if each.startswith(("src/", "scripts/commands/")))}
        found += [f"{name}: deps lack {each}" for each in sorted(needed)
                  if not any(f"{each}/".startswith(f"{dep}/") for dep in declared)]
        found += [f"{name}: {each} does not exist" for each in declared
                  if each.startswith(PACKAGES) and not (root / each).exists()]
    return found


def _scripts(stage: Mapping[str, Any]) -> list[str]:
    """The scripts that a command starts: its stage's own, and before that the one that launches it."""
    return [word for word in stage["cmd"].split() if word.endswith(".py")]


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
        script = root / _scripts(stage)[-1]
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
