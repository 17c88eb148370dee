"""Requirements that an environment does not meet, as chains from what was asked for down to what is missing or wrong.

Finding is apart from saying: unmet yields, sentence words a chain as `pip check` would.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from dependencies.strategies import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Installed:
    """A distribution as it says itself."""

    version: str
    requires: tuple[str, ...]


@dataclass(frozen=True)
class Unmet:
    """A chain of requirements, each asked for by the one before it; the last is not met."""

    chain: tuple[str, ...]
    by: str  # name and version of what asks for the last
    found: str | None  # the version that is installed



@cache
def find_installed(name: str) -> Installed | None:
    """In this environment."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Installed(found.version, tuple(found.requires or ()))


def unmet(asked: str, find: Callable[[str], Installed | None] = find_installed, *, by: str = "the strategy",
          above: tuple[str, ...] = ()) -> Iterator[Unmet]:
    """The chains below a requirement that end in one which is not met; a circle is followed once."""
    wanted = Requirement(asked)
    if str(wanted) in above:
        return
    chain = (*above, str(wanted))
    found = find(canonical(wanted.name))
    if found is None:
        yield Unmet(chain, by, None)
    elif not wanted.specifier.contains(found.version, prereleases=True):
        yield Unmet(chain, by, found.version)
    else:
        for below in found.requires:
            if _applies(Requirement(below), wanted.extras):
                yield from unmet(below, find, by=f"{canonical(wanted.name)} {found.version}", above=chain)


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def sentence(broken: Unmet) -> str:
    """One line, with the chain where it is longer than one step."""
    last = Requirement(broken.chain[-1])
    name = canonical(last.name)
    through = f" ({' -> '.join(broken.chain)})" if len(broken.chain) > 1 else ""
    if broken.found is None:
        return f"{broken.by} requires {name}, which is not installed.{through}"
    return f"{broken.by} has requirement {name}{last.specifier}, but you have {name} {broken.found}.{through}"
