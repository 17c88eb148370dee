"""The steps of a deployment. Each step does only what is missing, so the next run completes an interrupted one."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dependencies.strategies import applied
from deploying import checks, live, tree
from deploying.hub import BadUsage, DeployError, HubFailed, Unsound, clean, connect
from deploying.live import Expected
from deploying.space import RUNNING, Head, Runtime, Space
from files import write_object
from serving.identity import BundleError, BundleIdentity, ServedModel, verified
from serving.settings import IDENTITY

logger = logging.getLogger("space")
_SHOWN = 10  # lines of a log
_IDENTITY = tree.ASSETS + IDENTITY
_BACK = "the model is not running; --strategy modern deploys it again"


@dataclass(frozen=True)
class Plan:
    """What is wanted."""

    root: Path
    bundle: Path
    space: str | None
    strategy: str | None
    push: bool
    private: bool
    delete_others: bool  # files of the Space that somebody else pushed
    on_failure: str  # rollback or fallback
    address: str | None  # of the live Space, if it is not the one that the Hub states
    champion: str | None  # the model repository whose main the bundle has to be of
    wait: float  # seconds for the build and the start
    settle: float  # seconds for a running Space to answer as it should


@dataclass(frozen=True)
class Tree:
    """What is to be pushed, and who answers then."""

    files: Mapping[str, Path]
    expected: Expected
    title: str


@dataclass(frozen=True)
class Outcome:
    """What is wrong with a commit (empty if nothing is), and whether it stays on main all the same."""

    wrong: str
    stands: bool = False
    health: Mapping[str, Any] = field(default_factory=dict)  # as the Space told it


@dataclass(frozen=True)
class DeploymentResult:
    """result: planned, deployed, live (--verify-only), rolled_back, fallback or failed; what serves now."""

    result: str
    code: int
    reason: str = ""
    space: str | None = None
    address: str | None = None
    commit: str | None = None  # of the Space
    health: dict[str, Any] = field(default_factory=dict)  # as the Space told it
    stages: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The result for a person."""
        version = f" version {self.health['version']}" if self.health.get("version") else ""
        who = f"{self.health['model']}{version}" if self.health.get("model") else ""
        if self.health.get("fallback"):
            who = f"the fallback (stored answers) in place of {who}"
        reason = self.reason.removeprefix(f"{self.space}: ")
        return " ".join(filter(None, [f"{self.result}:", self.space, self.commit and f"at {self.commit[:12]}",
                                      self.address, who, reason and f"({reason})"]))

    def write(self, path: Path) -> None:
        """As JSON."""
        write_object(path, asdict(self))


class SpaceDeployment:
    """Deploy a bundle to a Space. `ask` is called before each effect, and raises to refuse it."""

    def __init__(self, plan: Plan, ask: Callable[[str], None]) -> None:
        self.plan, self.ask = plan, ask
        self.stages: list[str] = []
        self.same = False  # whether the Space had these files already

    def run(self) -> DeploymentResult:
        """Check, push, wait for the right answer; if it does not come, roll back or push the fallback."""
        wanted = self._prepared()
        if not self.plan.push or not self.plan.space:
            size = sum(path.stat().st_size for path in wanted.files.values())
            would = f"would push {len(wanted.files)} files, {size / 1e6:.1f} MB, for {wanted.title}; --push does it"
            return DeploymentResult("planned", 0, would, self.plan.space)
        space = Space(connect(), self.plan.space, self.ask)
        head, again = self._pushed(space, wanted)
        outcome = self._answering(space, head, wanted.expected, again=again)
        if not outcome.wrong:
            space.mark_live(head.oid)
            done = self._record("deployed", space, head, outcome)
            notes = ["the Space has these files already, nothing was pushed"] if self.same else []
            notes += [_BACK] if wanted.expected.fallback else []
            return replace(done, reason="; ".join(notes))
        logger.error("%s: %s", space.name, outcome.wrong)
        return self._record("failed", space, head, outcome) if outcome.stands else self._recovered(space, head, outcome)

    def _prepared(self) -> Tree:
        plan = self.plan
        changed = bool(plan.strategy) and checks.resolve(plan.root, str(plan.strategy), self.ask)
        try:
            return self._checked()
        except (DeployError, BundleError):
            if changed:
                checks.put_back(plan.root)
            raise

    def _checked(self) -> Tree:
        plan = self.plan
        if applied(plan.root / "requirements.txt").program != "app.py":
            checks.folder(plan.root, plan.bundle)
            return self._fallback()
        identity = verified(plan.bundle)
        checks.validated(plan.bundle, identity)
        if plan.champion:
            checks.champion(connect(), plan.champion, identity.model)
        checks.folder(plan.root, plan.bundle)
        return Tree(tree.of_app(plan.root, plan.bundle), Expected(asdict(identity.model)), _title(identity.model))

    def _fallback(self) -> Tree:
        """The fallback, with the name and the questions of the bundle if there is a sound one; it needs none."""
        plan = self.plan
        try:
            model = verified(plan.bundle).model
        except BundleError as error:
            logger.info("no bundle for the fallback, which answers from the shipped questions then: %s", error)
            return Tree(tree.of_fallback(plan.root, None), Expected({}, fallback=True), "fallback")
        return Tree(tree.of_fallback(plan.root, plan.bundle), Expected(asdict(model), fallback=True),
                    f"fallback for {_title(model)}")

    def _pushed(self, space: Space, wanted: Tree) -> tuple[Head, bool]:
        """The head with the wanted tree, and whether it failed before and is now built from scratch."""
        before = space.head()
        if before:
            space.refuse_others(wanted.files, before, delete=self.plan.delete_others)
        space.create(private=self.plan.private)
        text = (self.plan.root / tree.VARIABLES).read_text(encoding="utf-8")
        oid = self._committed(space, text, space.read(tree.VARIABLES, before.oid) if before else None,
                              lambda: space.push(wanted.files, wanted.title, before.oid if before else None))
        self.same = before is not None and oid == before.oid
        again = self.same and space.runtime().stage.endswith("_ERROR")
        if again:
            space.restart(from_scratch=True)
        return self._head(space, oid), again

    def _committed(self, space: Space, text: str | None, before: str | None, commit: Callable[[], str]) -> str:
        """The commit's id. Variables go first, since each change of one starts the Space anew, and back without it."""
        were = json.dumps(space.variables())
        try:
            space.set_variables(text, before)
            return commit()
        except DeployError as error:
            logger.warning("%s; putting its variables back", error)
            space.set_variables(were, text)
            raise

    def _head(self, space: Space, oid: str) -> Head:
        if head := space.head(oid):
            return head
        raise HubFailed(f"{space.name}: commit {oid} was made and is gone; run it again")

    def _answering(self, space: Space, head: Head, expected: Expected, *, again: bool = False) -> Outcome:
        """Wait for this commit and ask it.

        A commit that runs is kept if it was seen answering before, or if this machine cannot reach the Space: then
        nothing says that another version would do better.
        """
        logger.info("%s at %s: waiting up to %.0f s until it runs", space.name, head.oid[:12], self.plan.wait)
        runtime = space.wait(head.oid, self.plan.wait, self._heard, again=again)
        if wrong := _not_running(runtime, head):
            self._explain(space, runtime.stage)
            return Outcome(wrong)
        seen = live.settle(self.plan.address or head.address, expected, self.plan.settle,
                           token=_token(space, head, self.plan))
        stands = bool(seen.wrong) and (not seen.connected or head.oid in space.live())
        return Outcome(f"{head.oid[:12]} runs; {seen.wrong}" if stands else seen.wrong, stands, seen.health)

    def _explain(self, space: Space, stage: str) -> None:
        """Show the end of the Hub's log, and what fix_dependencies.py makes of it; the recovery does without."""
        try:
            lines = space.log(build=stage == "BUILD_ERROR") if stage in ("BUILD_ERROR", "RUNTIME_ERROR") else []
        except DeployError as error:
            logger.warning("the Hub gives no log: %s", error)
            return
        for line in lines[-_SHOWN:]:
            logger.error("| %s", clean(line))
        if lines:
            logger.error("%s", checks.advice(self.plan.root, "\n".join(lines)))

    def _heard(self, stage: str) -> None:
        logger.info("stage %s", stage)
        self.stages.append(stage)

    def _recovered(self, space: Space, failed: Head, outcome: Outcome) -> DeploymentResult:
        """The Space after the way of --on-failure, by one commit; it was a failure in any case."""
        good = space.last_live(but=failed.oid) if self.plan.on_failure == "rollback" else None
        if good:
            result, (head, expected) = "rolled_back", self._restored(space, failed, good)
        elif self.plan.on_failure == "fallback":
            result, (head, expected) = "fallback", self._fallen_back(space, failed)
        else:
            logger.error("%s: no earlier commit is known to have answered, so there is nothing to roll back to; "
                         "--strategy minimal serves stored answers meanwhile", space.name)
            return self._record("failed", space, failed, outcome)
        then = self._answering(space, head, expected)
        if then.wrong:
            logger.error("%s: %s", space.name, then.wrong)
            return self._record("failed", space, head, Outcome(f"{outcome.wrong}; {then.wrong}", health=then.health))
        if good:  # the fallback is nothing to go back to
            space.mark_live(head.oid)
        return self._record(result, space, head, Outcome(outcome.wrong, health=then.health))

    def _record(self, result: str, space: Space, head: Head, outcome: Outcome) -> DeploymentResult:
        return DeploymentResult(result, HubFailed.code if outcome.wrong else 0, outcome.wrong, space.name,
                                self.plan.address or head.address, head.oid, dict(outcome.health), self.stages)

    def _restored(self, space: Space, failed: Head, good: str) -> tuple[Head, Expected]:
        space.hold(failed.oid)
        oid = self._committed(space, space.read(tree.VARIABLES, good), space.read(tree.VARIABLES, failed.oid),
                              lambda: space.restore(good, f"back to {good[:12]}", failed.oid))
        head = self._head(space, oid)
        text = space.read(_IDENTITY, good)
        answers = asdict(BundleIdentity.parse(text, f"{space.name} {_IDENTITY}").model) if text else {}
        return head, Expected(answers, fallback=None)

    def _fallen_back(self, space: Space, failed: Head) -> tuple[Head, Expected]:
        wanted = self._fallback()
        return self._head(space, space.push(wanted.files, wanted.title, failed.oid)), wanted.expected


def _title(model: ServedModel) -> str:
    return f"{model.model} {f'v{model.version}' if model.version else 'of unknown version'}"


def _not_running(runtime: Runtime, head: Head) -> str:
    if runtime.stage != RUNNING:
        return f"{head.oid[:12]} ends in {runtime.stage}{f': {runtime.reason}' if runtime.reason else ''}"
    still = "" if runtime.sha in (None, head.oid) else runtime.sha
    return f"{head.oid[:12]} does not run in time, {still[:12]} still does" if still else ""


def verify(plan: Plan) -> DeploymentResult:
    """Check the live Space alone, against the bundle here if there is one; raises HubFailed or Unsound."""
    address, token = plan.address, None
    if plan.space and not address:
        space = Space(connect(), plan.space, logger.info)
        head = space.head()
        if head is None:
            raise HubFailed(f"{plan.space}: there is no such Space, or HF_TOKEN may not see it; --push creates it")
        address, token = head.address, _token(space, head, plan)
    if not address:
        raise BadUsage("--verify-only needs --space OWNER/NAME or --url ADDRESS")
    there = (plan.bundle / IDENTITY).is_file()
    answers = asdict(verified(plan.bundle).model) if there else {}
    seen = live.check(address, Expected(answers, fallback=None), token=token)
    if seen.wrong:
        raise (Unsound if seen.reached else HubFailed)(f"{plan.space}: {seen.wrong}" if plan.space else seen.wrong)
    alone = "" if there else "there is no bundle here to compare it with"
    return DeploymentResult("live", 0, alone, plan.space, address, health=dict(seen.health))


def _token(space: Space, head: Head, plan: Plan) -> str | None:
    """For a private Space, and for the Hub's own address of it alone."""
    return str(space.api.token) if head.private and not plan.address else None
