"""Whether compressed weights may answer in place of those that were released. Standard library alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from bundling.source import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bundling.source import Source

VALIDATION = "validation.json"
IDENTITY = "identity.json"
# Tokens at an answer's end. Of the pocket model's 232 answers, of 72 tokens at most, none ends in anything said three
# times, and the longest end that was said twice has 15 tokens; of the references, none.
_TAIL = 24
_PERIODS = range(1, 41)


@dataclass(frozen=True)
class Answers:
    """A model's answers to all rows, in their order. Shares and scores are in 0..1."""

    predictions: tuple[str, ...]
    metrics: Mapping[str, float]
    weighted_score: float
    empty: float
    looping: float


@dataclass(frozen=True)
class Verdict:
    """SAFE where there is no reason against it."""

    reasons: tuple[str, ...]

    @property
    def safe(self) -> bool:
        """Nothing speaks against it."""
        return not self.reasons

    @property
    def word(self) -> str:
        """SAFE or UNSAFE."""
        return "SAFE" if self.safe else "UNSAFE"


def loops(tokens: Sequence[int]) -> bool:
    """It ends in one run of up to 40 tokens said at least three times, over 24 tokens or more."""
    return any(_repeats(tokens[-max(_TAIL, 3 * period):], period) for period in _PERIODS
               if len(tokens) >= max(_TAIL, 3 * period))


def _repeats(tail: Sequence[int], period: int) -> bool:
    return tail[period:] == tail[:-period]


def judge(released: Answers, bundled: Answers, largest_drop: float) -> Verdict:
    """The score may fall by the largest drop and no further; no share of unusable answers may rise."""
    reasons = []
    drop = Decimal(repr(released.weighted_score)) - Decimal(repr(bundled.weighted_score))
    if drop > Decimal(repr(largest_drop)):
        reasons.append(f"the score falls by {drop:.4f}, more than {largest_drop}")
    for what in ("empty", "looping"):
        before, after = getattr(released, what), getattr(bundled, what)
        if after > before:
            reasons.append(f"{after:.1%} of the answers are {what}, {before:.1%} of the released model's")
    return Verdict(tuple(reasons))


def identity_problems(bundle: Path, release: Source) -> list[str]:
    """Where a bundle is not what its identity says, or not of this release."""
    try:
        identity: dict[str, Any] = json.loads((bundle / IDENTITY).read_text(encoding="utf-8"))
        stated: dict[str, str] = identity["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{IDENTITY} cannot be read: {error!r}"]
    problems = [] if release.model_digest else ["the release does not state its model digest"]
    if identity.get("model_digest") != release.model_digest:
        problems.append(f"it is of the model {str(identity.get('model_digest'))[:12]}, "
                        f"not {str(release.model_digest)[:12]}")
    there = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*")
             if path.is_file() and path.relative_to(bundle).as_posix() not in (IDENTITY, VALIDATION)}
    problems += [f"{name} is missing" for name in sorted(stated.keys() - there)]
    problems += [f"{name} is not listed" for name in sorted(there.keys() - stated)]
    found = {name: sha256(there[name]) for name in sorted(stated.keys() & there)}
    problems += [f"{name} was changed" for name, digest in found.items() if digest != stated[name]]
    problems += [f"{name} is not the release's" for name, digest in found.items()
                 if (release.folder / name).is_file() and sha256(release.folder / name) != digest]
    return problems
