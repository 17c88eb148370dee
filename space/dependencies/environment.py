"""Compare an environment with a strategy: versions, imports, torch's build, NumPy's ABI; and make a scratch one."""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dependencies.strategies import SPACE, Strategy, canonical

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_GIVEN = {"pip", "setuptools", "wheel"}  # a fresh environment may have them
_NUMPY_WARNS = "compiled using NumPy 1.x cannot be run"  # on stderr, and the import goes on
_SECONDS = 300
# Read from the compiled parts: _get_ndarray_c_version is NPY_ABI_VERSION, 0x01000009 or 0x02000000.
_TORCH = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
_NUMPY = """import json, numpy
try:
    from numpy._core import _multiarray_umath as compiled
except ImportError:
    from numpy.core import _multiarray_umath as compiled
print(json.dumps([numpy.__version__, compiled._get_ndarray_c_version() >> 24]))"""


def problems(strategy: Strategy) -> Iterator[str]:
    """One line for each difference between this environment and the lock."""
    yield from _versions(strategy.complete)
    yield from import_problems(strategy)
    yield from _compiled(strategy.complete)


def _versions(locked: Mapping[str, str]) -> Iterator[str]:
    found: dict[str, list[str]] = defaultdict(list)
    for each in importlib.metadata.distributions():
        found[canonical(each.name)].append(each.version)
    for name, version in sorted(locked.items()):
        if name not in found:
            yield f"{name}: the lock has {version}, and it is not installed"
        elif set(found[name]) != {version}:
            yield f"{name}: the lock has {version}, installed is {' and '.join(found[name])}"
    for name in sorted(found.keys() - locked.keys() - _GIVEN):
        yield f"{name}: installed is {found[name][0]}, and the lock has none"


def one_line(problem: str) -> str:
    """The first and the last line of a traceback, which name the place and the reason."""
    first, *rest = problem.splitlines()
    return f"{first} ... {rest[-1]}" if rest else first


def import_problems(strategy: Strategy) -> Iterator[str]:
    """One line, with Python's own words, for each module of the direct requirements that does not import."""
    modules: dict[str, list[str]] = defaultdict(list)
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            modules[canonical(name)].append(module)
    wanted = sorted({each for name in strategy.direct for each in modules[name] if each.isidentifier()})
    if import_error(*wanted):  # all in one process first, which is faster
        yield from (f"{module}: does not import: {said}" for module in wanted if (said := import_error(module)))


def import_error(*modules: str) -> str:
    """What Python prints when modules fail to import in a process of their own; empty if they import."""
    ended = _run("\n".join(f"import {module}" for module in modules))
    return ended.stderr.strip() if ended.returncode or _NUMPY_WARNS in ended.stderr else ""


def _compiled(locked: Mapping[str, str]) -> Iterator[str]:
    """What torch and NumPy say of themselves, which their metadata need not tell."""
    for name, code in (("torch", _TORCH), ("numpy", _NUMPY)):
        if name not in locked:
            continue
        version, build = _told(code)
        if version != locked[name]:
            yield f"{name}: the lock has {locked[name]}, the module says {version}"
        if name == "torch" and build is not None:
            yield f"torch: is the build for CUDA {build}; the CPU build is wanted"
        if name == "numpy" and build is not None and str(build) != locked[name].partition(".")[0]:
            yield f"numpy: the ABI of its compiled part is {build}, of the lock's {locked[name]} it is another"


def _told(code: str) -> tuple[object, object]:
    ended = _run(code)
    first, second = json.loads(ended.stdout) if ended.returncode == 0 else ("nothing: it does not import", None)
    return first, second


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=_SECONDS)


@dataclass(frozen=True)
class Installed:
    """A distribution as it says itself."""

    version: str
    requires: tuple[str, ...]


@cache
def find_installed(name: str) -> Installed | None:
    """In this environment."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Installed(found.version, tuple(found.requires or ()))


def unmet(asked: str, find: Callable[[str], Installed | None] = find_installed, *, by: str = "the strategy",
          above: tuple[str, ...] = ()) -> Iterator[str]:
    """A line for each requirement below this one that is not met, with the chain to it; a circle is followed once."""
    wanted = _parsed(asked)
    if str(wanted) in above:
        return
    name, chain = canonical(wanted.name), (*above, str(wanted))
    through = f" ({' -> '.join(chain)})" if above else ""
    found = find(name)
    if found is None:
        yield f"{by} requires {name}, which is not installed.{through}"
    elif not wanted.specifier.contains(found.version, prereleases=True):
        yield f"{by} has requirement {name}{wanted.specifier}, but you have {name} {found.version}.{through}"
    else:
        for below in map(_parsed, found.requires):
            if not below.marker or any(below.marker.evaluate({"extra": extra}) for extra in wanted.extras | {""}):
                yield from unmet(str(below), find, by=f"{name} {found.version}", above=chain)


def _parsed(requirement: str) -> "Requirement":
    from packaging.requirements import Requirement  # not in an environment of the strategy minimal

    return Requirement(requirement)


class ScratchError(Exception):
    """The strategy cannot be installed, or the result is not sound; the text is the tools' output."""


def build(strategy: Strategy, folder: Path) -> tuple[float, float]:
    """Make the environment with pip, and assert it as the image's build does; raises ScratchError.

    Returns its size in MB (1,000,000 bytes) and the seconds that the installation took.
    """
    begun = time.monotonic()
    _run_command(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin/python")
    with tempfile.NamedTemporaryFile("w", dir=SPACE, prefix=".scratch.", suffix=".txt") as requirements:
        requirements.write(strategy.text)  # beside requirements/, which it names
        requirements.flush()
        _run_command(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements.name)
        seconds = time.monotonic() - begun
        _run_command(python, "-m", "pip", "check", "--disable-pip-version-check")
        size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        _run_command(python, str(SPACE / "verify_deployment.py"), "--build", "--requirements", requirements.name)
    return size / 1e6, seconds


def _run_command(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ScratchError((ended.stdout + ended.stderr).strip())
