"""Check what is about to be pushed: folder, requirements, the bundle's validation, and the champion's digest."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from bundling.source import SourceError, stated_digest
from dependencies.strategies import applied
from deploying.hub import BadInput, Unsound, fetched, persist
from serving.identity import VALIDATION, BundleIdentity, ServedModel, parse_object

logger = logging.getLogger("space")
_SECONDS = 1800.0  # one program; that which installs takes longest
_ADVICE = 60.0  # a Space that is down waits for it


def folder(root: Path, bundle: Path) -> None:
    """Raise BadInput for what verify_deployment.py finds wrong, with the strategy that may help."""
    code, found = run(root, "verify_deployment.py", MODEL_DIR=str(bundle))
    if code:
        for line in found.splitlines():
            logger.error("%s", line)
        raise BadInput(f"verify_deployment.py finds {root} unfit, see above; {advice(root)}")


def advice(root: Path, log: str | None = None) -> str:
    """The strategy that fix_dependencies.py recommends, for a build's log or for this environment."""
    said = run(root, "fix_dependencies.py", "--recommend", *([] if log is None else ["--log", "-"]), said=log,
               seconds=_ADVICE)[1]
    return f"fix_dependencies.py recommends {(said.splitlines() or ['nothing'])[-1]}"


def resolve(root: Path, strategy: str, ask: Callable[[str], None]) -> None:
    """Try a strategy's requirements and write them to requirements.txt; raises BadInput when they do not work."""
    if strategy == applied(root / "requirements.txt").name:
        logger.info("strategy %s is in place", strategy)
        return
    for flag, doing in (("--test", f"install strategy {strategy} into a scratch environment"),
                        ("--apply", f"write requirements.txt for strategy {strategy}")):
        ask(doing)
        code, said = run(root, "fix_dependencies.py", "--strategy", strategy, flag)
        logger.info("%s", said.strip())
        if code:
            raise BadInput(f"fix_dependencies.py --strategy {strategy} {flag} exits {code}; take another strategy")


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
        return 124, f"nothing: {program} did not end within {seconds:.0f} s"  # the code of timeout(1)
    return done.returncode, done.stdout


def validated(folder: Path, identity: BundleIdentity) -> None:
    """Raise Unsound unless validate_bundle.py found this very bundle SAFE."""
    path, again = folder / VALIDATION, "run validate_bundle.py"
    if not path.is_file():
        raise Unsound(f"{path}: the bundle was not validated; {again}")
    found = parse_object(path.read_text(encoding="utf-8"), path)
    if found.get("verdict") != "SAFE":
        raise Unsound(f"{path}: the verdict is {found.get('verdict')}; see its reasons, and deploy another bundle")
    if (found.get("model_digest"), found.get("serves")) != (identity.model.digest, [*identity.weights]):
        raise Unsound(f"{path}: is about another bundle; {again}")
