"""Whether space/ can be deployed as it stands: requirements, imports, assets, front matter and ports.

Each check yields one line for each thing that is wrong.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dependencies import environment
from dependencies.strategies import SPACE, StrategyError, applied

_JOINERS = "\u200d\ufe0f"  # make one emoji of several signs


def requirements() -> Iterator[str]:
    """Chains of requirements that are not met in this environment, and versions that are not the lock's."""
    strategy = applied()
    if strategy.complete:
        asked = [f"{name}=={version}" for name, version in strategy.direct.items()]
        yield from dict.fromkeys(line for each in asked for line in environment.unmet(each))


def imports() -> Iterator[str]:
    """Modules of the direct requirements that do not import here."""
    yield from environment.import_problems(applied())


def assets() -> Iterator[str]:
    """Whether the bundle is there, whole, and of the kind that the strategy serves."""
    strategy = applied()
    fallback = SPACE / "app_minimal_fallback.py"
    if strategy.program != "app.py":  # deploy.py pushes it as app.py, so that app.py itself stays what it is
        if not (SPACE / strategy.program).is_file():
            yield f"{strategy.program}: is missing; take it from git again"
        return
    if fallback.is_file() and (SPACE / "app.py").read_bytes() == fallback.read_bytes():
        yield f"app.py: is the fallback, strategy {strategy.name} serves the app; git checkout {SPACE.name}/app.py"
    folder = Path(os.environ.get("MODEL_DIR") or SPACE / "assets")
    from serving.identity import BundleError, BundleIdentity, check_safe

    try:
        identity = BundleIdentity.load(folder)
        check_safe(identity.weights, folder)
    except BundleError as error:
        yield str(error)
        return
    for line in identity.differences(folder, contents=False):
        yield f"{folder}: {line}; run prepare_assets.py again"
    needed = {"safetensors" if each == "safetensors" else "compressed" for each in identity.weights}
    needed |= {"adapter"} if (folder / "adapter_config.json").is_file() else set()
    for kind in sorted(needed - set(strategy.works)):
        yield f"{folder}: is {kind}, which strategy {strategy.name} does not serve; see fix_dependencies.py --list"


def front_matter() -> Iterator[str]:
    """What the Hub reads at the head of README.md."""
    found = _front_matter()
    if not found:
        yield "README.md: has no front matter (lines between ---), which the Hub needs; git checkout space/README.md"
        return
    if found.get("sdk") != "docker":
        yield f"README.md: sdk is {found.get('sdk') or 'missing'}, expected docker"
    if not is_one_emoji(found.get("emoji", "")):
        yield f"README.md: emoji is {found.get('emoji') or 'missing'}, expected exactly one"
    for name in ("title", "colorFrom", "colorTo"):
        if not found.get(name):
            yield f"README.md: {name} is missing"


def port_numbers() -> Iterator[str]:
    """README's app_port, Dockerfile's EXPOSE and PORT, and the app's own default on a Space are one number."""
    from serving.settings import Settings

    ports = {"the app on a Space": str(Settings.read({"SPACE_ID": "a/b"}).port),
            "README.md: app_port": _front_matter().get("app_port", "missing")}
    dockerfile = _text("Dockerfile")
    exposed = re.findall(r"^EXPOSE\s+(\S+)", dockerfile, re.MULTILINE)
    ports["Dockerfile: EXPOSE"] = " ".join(exposed) or "missing"
    if found := re.search(r"^ENV\b.*\bPORT=(\d+)", dockerfile, re.MULTILINE):
        ports["Dockerfile: ENV PORT"] = found[1]
    if len(set(ports.values())) > 1:
        yield "; ".join(f"{where} {port}" for where, port in ports.items()) + ": these have to be one port"


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    "requirements": requirements, "imports": imports, "assets": assets, "front matter": front_matter,
    "ports": port_numbers}
OF_PACKAGES = ("requirements", "imports")


def run(checks: Mapping[str, Callable[[], Iterator[str]]]) -> Iterator[tuple[str, list[str]]]:
    """Each check's name and what it found wrong; a check that cannot be done says why."""
    for name, check in checks.items():
        try:
            yield name, list(check())
        except (StrategyError, OSError, ImportError) as error:
            yield name, [str(error)]


def is_one_emoji(text: str) -> bool:
    """One sign, its parts joined or not, or the two letters of a flag."""
    signs = [sign for sign in text if sign not in _JOINERS and unicodedata.category(sign) != "Sk"]
    flag = len(signs) == 2 and all("\U0001f1e6" <= sign <= "\U0001f1ff" for sign in signs)
    pictures = bool(signs) and all(unicodedata.category(sign) == "So" for sign in signs)
    return flag or (pictures and len(signs) == 1 + text.count("\u200d"))


def _front_matter() -> dict[str, str]:
    """`key: value` lines between the first two ---; the Hub takes more YAML than a Space's card needs."""
    found = re.match(r"---\n(.*?)\n---\n", _text("README.md"), re.DOTALL)
    lines = [line.partition(":") for line in found[1].splitlines()] if found else []
    return {key.strip(): value.strip().strip("'\"") for key, colon, value in lines if colon}


def _text(name: str) -> str:
    return (SPACE / name).read_text(encoding="utf-8")

