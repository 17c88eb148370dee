"""The deployment, step by step. Each looks first and does what is missing, so a killed one is completed by another."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploying import bundle, checks, live, tree
from deploying.errors import DeployError, HubFailed, Unsound, Usage, clean
from deploying.hub import connect
from deploying.live import Expected
from deploying.record import Record
from deploying.space import RUNNING, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from deploying.space import Head

logger = logging.getLogger("space")

_SHOWN = 10  # lines of a log
_IDENTITY = tree.ASSETS + bundle.IDENTITY


@dataclass(frozen=True)
class Plan:
    """What is wanted."""

    root: Path
    bundle: Path
    space: str | None
    strategy: str | None
    push: bool
    private: bool
    on_failure: str  # rollback or fallback
    address: str | None  # where the Space answers, if not where the Hub says
    champion: str | None  # the model repository whose main the bundle has to be of
    wait: float  # seconds for the build and the start
    settle: float  # seconds for a running Space to answer as it should


@dataclass(frozen=True)
class Tree:
    """What is to be pushed, and who answers then."""

    files: Mapping[str, Path]
    expected: Expected
    title: str


class Deployment:
    """`ask` is told each effect before it happens, and raises where it is not wanted."""

    def __init__(self, plan: Plan, ask: Callable[[str], None]) -> None:
        self.plan, self.ask = plan, ask
        self.stages: list[str] = []

    def run(self) -> Record:
        """Check, push, see it answer; where it does not, put back what did, or the fallback."""
        wanted = self._prepared()
        if not self.plan.push or not self.plan.space:
            return self._planned(wanted)
        space = Space(connect(), self.plan.space, self.ask)
        head, again = self._pushed(space, wanted)
        reason, record = self._answering(space, head, wanted.expected, again=again)
        if not reason:
            space.mark_live(head.oid)
            return record
        logger.error("%s: %s", space.name, reason)
        return self._recovered(space, head, reason)

    def _prepared(self) -> Tree:
        plan = self.plan
        identity = bundle.whole(plan.bundle)
        bundle.validated(plan.bundle)
        if plan.champion:
            checks.champion(connect(), plan.champion, identity)
        checks.folder(plan.root, plan.bundle)
        if plan.strategy:
            checks.resolve(plan.root, plan.strategy, self.ask)
        if checks.serves_fallback(checks.chosen(plan.root)):
            return self._fallback(identity)
        return Tree(tree.of_app(plan.root, plan.bundle), Expected(identity.answers), identity.shown)

    def _fallback(self, identity: bundle.Identity) -> Tree:
        return Tree(tree.of_fallback(self.plan.root, self.plan.bundle), Expected(identity.answers, fallback=True),
                    f"fallback for {identity.shown}")

    def _planned(self, wanted: Tree) -> Record:
        size = sum(path.stat().st_size for path in wanted.files.values())
        would = f"would push {len(wanted.files)} files, {size / 1e6:.1f} MB, for {wanted.title}; --push does it"
        return Record("planned", 0, would, self.plan.space)

    def _pushed(self, space: Space, wanted: Tree) -> tuple[Head, bool]:
        """The head with the wanted tree, and whether it failed before and is now built from scratch.

        Variables go first, since each change of one starts the Space anew.
        """
        before = space.head()
        space.create(private=self.plan.private)
        text = (self.plan.root / tree.VARIABLES).read_text(encoding="utf-8")
        space.set_variables(text, space.read(tree.VARIABLES, before.oid) if before else None)
        oid = space.push(wanted.files, wanted.title)
        again = before is not None and oid == before.oid and space.runtime().stage.endswith("_ERROR")
        if again:
            space.restart(from_scratch=True)
        return self._head(space, oid), again

    def _head(self, space: Space, oid: str) -> Head:
        if head := space.head(oid):
            return head
        raise HubFailed(f"{space.name}: commit {oid} was made and is gone; run it again")

    def _answering(self, space: Space, head: Head, expected: Expected, *, again: bool = False) -> tuple[str, Record]:
        """What is wrong with the Space at this commit (empty where nothing is), and the record if nothing is."""
        logger.info("%s at %s: waiting for at most %.0f s", space.name, head.oid[:12], self.plan.wait)
        runtime = space.wait(head.oid, self.plan.wait, self._heard, again=again)
        if runtime.stage != RUNNING:
            self._explain(space, runtime.stage)
            why = f": {runtime.reason}" if runtime.reason else ""
            return f"{head.oid[:12]} ends in {runtime.stage}{why}", Record("failed", HubFailed.code)
        address = self.plan.address or head.address
        seen = live.settle(address, expected, self.plan.settle, token=_token(space, head, self.plan))
        return seen.wrong, Record("deployed", 0, "", space.name, address, head.oid, dict(seen.health), self.stages)

    def _explain(self, space: Space, stage: str) -> None:
        """Show the end of the Hub's log, and what fix_dependencies.py makes of it; the recovery does without."""
        try:
            lines = space.log(build=stage == "BUILD_ERROR") if stage in ("BUILD_ERROR", "RUNTIME_ERROR") else []
        except DeployError as error:
            logger.warning("no log: %s", error)
            return
        for line in lines[-_SHOWN:]:
            logger.error("| %s", clean(line))
        if lines:
            logger.error("%s", checks.advice(self.plan.root, "\n".join(lines)))

    def _heard(self, stage: str) -> None:
        logger.info("stage %s", stage)
        self.stages.append(stage)

    def _recovered(self, space: Space, failed: Head, reason: str) -> Record:
        """The Space after the way of --on-failure, by one commit; it was a failure in any case."""
        good = space.last_live(but=failed.oid) if self.plan.on_failure == "rollback" else None
        lost = Record("failed", HubFailed.code, reason, space.name, self.plan.address or failed.address, failed.oid,
                      stages=self.stages)
        if good:
            result, (head, expected) = "rolled_back", self._restored(space, failed, good)
        elif self.plan.on_failure == "fallback":
            result, (head, expected) = "fallback", self._fallen_back(space)
        else:
            logger.error("%s: there is no commit that was seen answering to go back to; --on-failure fallback would "
                         "serve the fallback", space.name)
            return lost
        wrong, record = self._answering(space, head, expected)
        if wrong:
            logger.error("%s: %s", space.name, wrong)
            return lost
        if good:  # the fallback is nothing to go back to
            space.mark_live(head.oid)
        return Record(result, HubFailed.code, reason, space.name, record.address, head.oid, record.health, self.stages)

    def _restored(self, space: Space, failed: Head, good: str) -> tuple[Head, Expected]:
        space.set_variables(space.read(tree.VARIABLES, good), space.read(tree.VARIABLES, failed.oid))
        head = self._head(space, space.restore(good, f"back to {good[:12]}"))
        text = space.read(_IDENTITY, good)
        answers = bundle.read(text, f"{space.name} {_IDENTITY}").answers if text else {}
        return head, Expected(answers, fallback=None)

    def _fallen_back(self, space: Space) -> tuple[Head, Expected]:
        wanted = self._fallback(bundle.whole(self.plan.bundle))
        return self._head(space, space.push(wanted.files, wanted.title)), wanted.expected


def verify(plan: Plan) -> Record:
    """Check the live Space alone, against the bundle here if there is one; raises HubFailed or Unsound."""
    address, token = plan.address, None
    if plan.space and not address:
        space = Space(connect(), plan.space, logger.info)
        head = space.head()
        if head is None:
            raise HubFailed(f"{plan.space}: there is no such Space; --push makes it")
        address, token = head.address, _token(space, head, plan)
    if not address:
        raise Usage("--verify-only needs --space OWNER/NAME or --url ADDRESS")
    there = (plan.bundle / bundle.IDENTITY).is_file()
    answers = bundle.whole(plan.bundle).answers if there else {}
    seen = live.check(address, Expected(answers, fallback=None), token=token)
    if seen.wrong:
        raise (Unsound if seen.reached else HubFailed)(f"{plan.space or ''} {seen.wrong}".strip())
    return Record("live", 0, "" if there else "no bundle here to compare with", plan.space, address,
                  health=dict(seen.health))


def _token(space: Space, head: Head, plan: Plan) -> str | None:
    """For a private Space, and for the Hub's own address of it alone."""
    return str(space.api.token) if head.private and not plan.address else None
