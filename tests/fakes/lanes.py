"""Which test files need more than this interpreter: torch, a server, a browser or another process."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = {"torch", "transformers", "peft", "accelerate", "evaluate", "mlflow", "playwright"}
HEAVY = {*LIBRARIES, "subprocess", "multiprocessing", "socketserver", "http.server"}
# Audit events of Python: a light test in which one happens fails (tests/conftest.py).
EVENTS = {"subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "socket.bind"}


@cache
def needs(file: Path, root: Path = ROOT) -> frozenset[str]:
    """What of HEAVY a file imports, itself or through the modules of this repository that it imports."""
    found, known, left = set(), {file}, [file]
    while left:
        for name in _imported(left.pop(), root):
            found |= {heavy for heavy in HEAVY if f"{name}.".startswith(f"{heavy}.")}
            path = root / name.replace(".", "/")
            new = {each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()} - known
            known |= new
            left += new
    return frozenset(found)


def _imported(file: Path, root: Path) -> Iterator[str]:
    """What any line of a test, its helpers or a script imports; of other modules what comes with them."""
    tree = ast.parse(file.read_bytes())
    lazy = file.is_relative_to(root / "tests") or file.name.endswith("_script.py")
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*file.relative_to(root).parts[: -node.level], module]).rstrip(".")
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytest_plugins":
            yield from ast.literal_eval(node.value)
