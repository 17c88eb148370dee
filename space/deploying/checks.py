"""Check what is about to be pushed: folder, requirements, the bundle's validation, and the champion's digest."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from bundling.source import SourceError, stated_digest
from dependencies.environment import unmet
from dependencies.strategies import Strategy, applied, load
from deploying.hub import BadInput, BadUsage, Unsound, fetched, persist
from serving.identity import VALIDATION, BundleIdentity, ServedModel, parse_object

logger = logging.getLogger("space")
_SECONDS = 1800.0  # one program; that which installs takes longest
_ADVICE = 60.0  # a Space that is down waits for it
_TIMED_OUT = 124  # the code of timeout(1)


def folder(root: Path, bundle: Path) -> None:
    """Raise BadInput for what verify_deployment.py finds wrong, with the strategy that may help.

    The packages here are compared with the strategy only if they are not another strategy's: then they say nothing of
    it. The image compares its own packages in any case.
    """
    wanted, others = applied(root / "requirements.txt"), [each.name for each in load().values() if _is_installed(each)]
    foreign = others if wanted.complete and wanted.name not in others else []
    if foreign:
        logger.info("the packages here are strategy %s's, so those of %s are checked when the image is built",
                    foreign[0], wanted.name)
    code, found = run(root, "verify_deployment.py", *(["--folder"] if foreign else []), MODEL_DIR=str(bundle))
    if code:
        for line in found.splitlines():
            logger.error("%s", line)
        raise BadInput(f"{root} cannot be deployed as it is, see the lines above; {advice(root)}")


def _is_installed(strategy: Strategy) -> bool:
    """Whether this environment has a strategy's packages."""
    asked = [f"{name}=={version}" for name, version in strategy.direct.items()]
    return bool(asked) and not any(line for each in asked for line in unmet(each))


def advice(root: Path, log: str | None = None) -> str:
    """The strategy that fix_dependencies.py recommends, for a build's log or for this environment."""
    code, said = run(root, "fix_dependencies.py", "--recommend", *([] if log is None else ["--log", "-"]), said=log,
                     seconds=_ADVICE)
    if code == _TIMED_OUT:
        return f"fix_dependencies.py recommends {said}"
    strategy = (said.splitlines() or [""])[-1].removeprefix("strategy: ")
    if strategy in load():
        return f"fix_dependencies.py recommends to deploy with --strategy {strategy}"
    return "fix_dependencies.py knows no other requirements that would help"


def resolve(root: Path, strategy: str, ask: Callable[[str], None]) -> bool:
    """Try a strategy's requirements and write them to requirements.txt; returns whether that changed anything.

    Raises BadUsage for an unknown strategy, BadInput for requirements that do not work.
    """
    known = load()
    if strategy not in known:
        raise BadUsage(f"--strategy {strategy}: expected one of {', '.join(known)}")
    if strategy == applied(root / "requirements.txt").name:
        logger.info("strategy %s is in place already", strategy)
        return False
    steps = [("--test", f"install strategy {strategy} into a scratch environment")] if known[strategy].complete else []
    for flag, doing in (*steps, ("--apply", f"write requirements.txt for strategy {strategy}")):
        ask(doing)
        code, said = run(root, "fix_dependencies.py", "--strategy", strategy, flag)
        logger.info("%s", said.strip())
        if code:
            raise BadInput(f"fix_dependencies.py --strategy {strategy} {flag} exits {code}; take another strategy")
    return True


def put_back(root: Path) -> None:
    """The requirements.txt before the last `resolve`."""
    logger.info("%s", run(root, "fix_dependencies.py", "--undo")[1].strip())


def champion(api: HfApi, name: str, model: ServedModel) -> None:
    """Raise Unsound unless the bundle's model is the one that main of this model repository shows."""
    try:
        digest = stated_digest(lambda file: persist(lambda: fetched(api, name, file, "main", "model"), name), name)
    except SourceError as error:
        raise Unsound(str(error)) from error
    if not digest:
        raise Unsound(f"{name}: states no model digest; is it the repository where the champion is published?")
    if digest != model.digest:
        raise Unsound(f"{name}: the champion's digest is {digest[:12]}, the bundle's "
                      f"{(model.digest or 'unknown')[:12]}; run prepare_assets.py --model {name}")


def run(root: Path, program: str, *flags: str, said: str | None = None, seconds: float = _SECONDS,
        **more: str) -> tuple[int, str]:
    """Run one of this folder's programs, without any token and with a time limit; returns exit code and output."""
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name} | more
    try:
        done = subprocess.run([sys.executable, str(root / program), *flags], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, env=environment, input=said or "", check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return _TIMED_OUT, f"nothing: {program} did not end within {seconds:.0f} s"
    return done.returncode, done.stdout


def validated(folder: Path, identity: BundleIdentity) -> None:
    """Raise Unsound unless validate_bundle.py found this very bundle SAFE."""
    path, again = folder / VALIDATION, "run `python space/validate_bundle.py`"
    if not path.is_file():
        raise Unsound(f"{path}: missing, so the bundle was not validated; {again}")
    found = parse_object(path.read_text(encoding="utf-8"), path)
    if found.get("verdict") != "SAFE":
        raise Unsound(f"{path}: the verdict is {found.get('verdict')}; see its reasons, and deploy another bundle")
    if (found.get("model_digest"), found.get("serves")) != (identity.model.digest, [*identity.weights]):
        raise Unsound(f"{path}: is about another bundle than the one here; {again}")
