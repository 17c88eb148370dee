"""Before anything is pushed: the folder, its requirements, the bundle, and whether it is the champion's."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dependencies import strategies
from deploying.hub import BadInput, DeployError, Unsound, fetched, persist

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from huggingface_hub import HfApi

logger = logging.getLogger("space")
_STRATEGY = re.compile(r"^# strategy: (\S+)", re.MULTILINE)
_SECONDS = 1800.0  # one program; that which installs takes longest
_ADVICE = 60.0  # a Space that is down waits for it
_STOPPED = 124  # as timeout(1) has it
_DIGEST = re.compile(r"\| model digest \| `([0-9a-f]{64})` \|")
IDENTITY, VALIDATION = "identity.json", "validation.json"


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
    """Take over a strategy's requirements, once they have been tried; raises BadInput where they do not work."""
    if strategy == chosen(root):
        logger.info("strategy %s is in place", strategy)
        return
    for flag, doing in (("--test", f"install strategy {strategy} into a scratch environment"),
                        ("--apply", f"write requirements.txt for strategy {strategy}")):
        ask(doing)
        code, said = run(root, "fix_dependencies.py", "--strategy", strategy, flag)
        logger.info("%s", said.strip())
        if code:
            raise BadInput(f"fix_dependencies.py --strategy {strategy} {flag} exits {code}; take another strategy")


def chosen(root: Path) -> str:
    """The strategy whose requirements the image installs."""
    found = _STRATEGY.search((root / "requirements.txt").read_text(encoding="utf-8"))
    if not found:
        raise BadInput(f"{root / 'requirements.txt'}: names no strategy; run fix_dependencies.py --apply")
    return found[1]


def serves_fallback(strategy: str) -> bool:
    """Whether the strategy's program is the fallback."""
    return strategies.load()[strategy].program != "app.py"


def champion(api: HfApi, name: str, identity: Identity) -> None:
    """Raise Unsound unless the bundle's model is the one that main of this model repository shows."""
    found = _DIGEST.search(persist(lambda: fetched(api, name, "README.md", "main", "model"), name))
    if not found:
        raise Unsound(f"{name}: its card states no model digest; is it where the champion is published?")
    if found[1] != identity.digest:
        raise Unsound(f"{name}: the champion's digest is {found[1][:12]}, the bundle's "
                      f"{(identity.digest or 'unknown')[:12]}; run prepare_assets.py --model {name}")


def run(root: Path, program: str, *flags: str, said: str | None = None, seconds: float = _SECONDS,
        **more: str) -> tuple[int, str]:
    """Exit code and output of one of this folder's programs, which get no token and end in time."""
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name} | more
    try:
        done = subprocess.run([sys.executable, str(root / program), *flags], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, env=environment, input=said or "", check=False,
                              timeout=seconds)
    except subprocess.TimeoutExpired:
        return _STOPPED, f"nothing: {program} did not end within {seconds:.0f} s"
    return done.returncode, done.stdout


@dataclass(frozen=True)
class Identity:
    """Which model answers; None for what nobody recorded."""

    model: str
    version: int | None
    commit: str | None
    digest: str | None = None

    @property
    def shown(self) -> str:
        """As a person reads it."""
        return f"{self.model} {f'v{self.version}' if self.version else 'of unknown version'}"

    @property
    def answers(self) -> dict[str, Any]:
        """What /healthz has to say."""
        return {"model": self.model, "version": self.version, "commit": self.commit, "digest": self.digest}


def read(text: str, where: str) -> Identity:
    """The identity in a bundle's identity.json; raises BadInput."""
    found = _object(text, where)
    if not isinstance(found.get("model"), str):
        raise BadInput(f"{where}: names no model; run prepare_assets.py again")
    return Identity(found["model"], found.get("version"), found.get("commit"), found.get("model_digest"))


def whole(folder: Path) -> Identity:
    """The bundle's identity, once each of its files has the sha256 that it states.

    Raises BadInput where there is no bundle, Unsound where it is another one than was made or may not be served.
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise BadInput(f"{path}: there is no bundle; make one with prepare_assets.py")
    text = path.read_text(encoding="utf-8")
    found = _object(text, str(path))
    if not found.get("weights"):
        raise Unsound(f"{folder}: none of its weights is SAFE, see {VALIDATION}; deploy another bundle")
    stated = found.get("sha256")
    if not isinstance(stated, dict) or not stated:
        raise BadInput(f"{path}: lists no files; run prepare_assets.py again")
    there = {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()}
    for name in (IDENTITY, VALIDATION):
        there.pop(name, None)
    wrong = [name for name in sorted(stated.keys() | there.keys())
             if name not in stated or name not in there or _sha256(there[name]) != stated[name]]
    if wrong:
        raise Unsound(f"{folder}: {', '.join(wrong[:5])}: not what {IDENTITY} says; run prepare_assets.py again")
    return read(text, str(path))


def validated(folder: Path) -> None:
    """Raise Unsound unless validate_bundle.py found this very bundle SAFE."""
    path, again = folder / VALIDATION, "run validate_bundle.py"
    if not path.is_file():
        raise Unsound(f"{path}: the bundle was not validated; {again}")
    found = _object(path.read_text(encoding="utf-8"), str(path))
    identity = _object((folder / IDENTITY).read_text(encoding="utf-8"), str(folder / IDENTITY))
    if found.get("verdict") != "SAFE":
        raise Unsound(f"{path}: the verdict is {found.get('verdict')}; see its reasons, and deploy another bundle")
    if (found.get("model_digest"), found.get("serves")) != (identity.get("model_digest"), identity.get("weights")):
        raise Unsound(f"{path}: is about another bundle; {again}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{where}: expected an object")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """The image's build step."""
    try:
        identity = whole(Path(sys.argv[1]))
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    sys.stdout.write(f"{identity.shown}: whole\n")
    return 0

if __name__ == "__main__":
    sys.exit(main())
