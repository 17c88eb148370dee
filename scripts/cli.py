"""The command `champion`: one command line for the scripts of this folder and of space/."""

import difflib
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line

ROOT = Path(__file__).resolve().parents[1]
SPACE = Path("space")
SERVING, BUILDER = SPACE / ".venv", SPACE / ".venv-builder"
PAGE = Path("results/report/index.html")
_MAKE = ("make", "--no-print-directory")
_BY_HAND = "python3 -m venv {env} && {env}/bin/pip install {flags} -r space/requirements/{file} && touch {env}/.ready"

Start = Callable[[Sequence[str]], int]


def repro(arguments: Sequence[str]) -> int:
    """Run `dvc repro` with the arguments, and name the next steps; returns DVC's exit code."""
    _check_folder("dvc.yaml")
    code = _wait_for([sys.executable, "-m", "dvc", "repro", *arguments])
    if code == 0 and not arguments:
        sys.stdout.write(_next_steps())
    return code


def _wait_for(command: Sequence[str]) -> int:
    """Run a command that ends by itself on Ctrl-C; returns its exit code."""
    child = subprocess.Popen(command, env=_environment())
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)  # the terminal has told the child as well
    signal.signal(signal.SIGTERM, lambda number, _frame: child.send_signal(number))
    code = child.wait()
    return code if code >= 0 else 128 - code


def _environment() -> dict[str, str]:
    """For what we start, `python` is this one, activated or not."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def _next_steps() -> str:
    champion = _own_name()
    steps = ((f"{champion} history", "every evaluated model, and which ones were promoted"),
             (f"{champion} serve", "chat with the champion on http://localhost:8000"),
             (f"{PAGE.resolve().as_uri()}", "the report: open it in a browser"))
    width = max(len(step) for step, _ in steps[:2])
    return "\nNext steps:\n" + "".join(f"  {step:{width}}  {what}\n" for step, what in steps)


def _own_name() -> str:
    """What the shell needs to find this command: its path, if its environment is not activated."""
    file = Path(sys.executable).with_name("champion")
    if shutil.which("champion") == str(file):
        return "champion"
    return shlex.quote(str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file))


def serve(arguments: Sequence[str]) -> int:
    """Hand over to `make serve`, which sets up both serving environments and makes the champion's bundle."""
    from utils.process import Arguments

    parser = Arguments(description="Serve the champion as a chat page and an OpenAI-compatible API on "
                       "http://localhost:8000, as `make serve` does. The first call sets up two environments below "
                       "space/. The app's other settings are environment variables: docs/serving.md")
    parser.add_argument("--release", metavar="FOLDER", help="serve this release; default: the champion's")
    flags = parser.parse_args(arguments)
    return _make("serve", *([f"RELEASE={flags.release}"] if flags.release else []))


def _make(*goals: str) -> NoReturn:
    """Become make; raises InvalidParams without make, or outside of a clone."""
    _check_folder("Makefile")
    _check_make("the serving environments are set up with it")
    # This environment is the one to work with, so make does not set up another one.
    os.execvpe(_MAKE[0], [*_MAKE, "--assume-old=.venv/.ready", f"PYTHON={sys.executable}", *goals], _environment())


def _check_make(otherwise: str) -> None:
    from src.core.errors import InvalidParams

    if not shutil.which(_MAKE[0]):
        raise InvalidParams(f"make: not found; install it, for {otherwise}")


def _check_folder(needed: str) -> None:
    from src.core.errors import InvalidParams

    if not Path(needed).is_file():
        where = f" (`cd {shlex.quote(str(ROOT))}`)" if (ROOT / needed).is_file() else ""
        raise InvalidParams(f"{needed}: not found in {Path.cwd()}; run it in the repository's folder{where}")


def script(name: str, arguments: Sequence[str]) -> int:
    """Run scripts/<name>.py as it runs by itself; it ends this process with its exit code."""
    sys.argv[1:] = arguments
    runpy.run_module(f"scripts.{name}", run_name="__main__")
    return 0


def space_script(name: str, environment: Path | None, arguments: Sequence[str]) -> int:
    """Become space/<name>.py in its own environment, or in this one; set it up first if it is missing."""
    _check_folder(f"space/{name}.py")
    python = sys.executable  # is enough for help, which waits for no environment
    if not {"-h", "--help"}.intersection(arguments):
        for needed in filter(None, (SERVING, environment)):
            _set_up(needed)
        python = str(environment / "bin/python") if environment else python
    code = (f"import sys; sys.argv[0] = {sys.argv[0]!r}; sys.path.insert(0, {str(SPACE.resolve())!r}); "
            f"import {name}; sys.exit({name}.main())")
    os.execv(python, [python, "-P", "-c", code, *arguments])


def _set_up(environment: Path) -> None:
    from src.core.errors import InvalidParams

    if (environment / ".ready").exists():
        return
    flags, file = (("--require-hashes", "modern.lock") if environment == SERVING else ("--no-deps", "builder.txt"))
    _check_make(f"`{_BY_HAND.format(env=environment, flags=flags, file=file)}`")
    if subprocess.run([*_MAKE, f"{environment}/.ready", f"PYTHON={sys.executable}"], check=False).returncode:
        raise InvalidParams(f"{environment}: not set up; see what make says above")


def bundle(arguments: Sequence[str]) -> int:
    """Make the champion's bundle as `make bundle` does, or with arguments the one that they name."""
    return space_script("prepare_assets", BUILDER, arguments) if arguments else _make("bundle")


def space(arguments: Sequence[str]) -> int:
    """Run one of the commands of SPACE_COMMANDS."""
    _dispatch("champion space", SPACE_PAGE, SPACE_COMMANDS, arguments)


COMMANDS: Mapping[str, Start] = {
    "repro": repro,
    "doctor": partial(script, "doctor_script"),
    "serve": serve,
    "deploy": partial(script, "deployment_script"),
    "history": partial(script, "history_script"),
    "report": partial(script, "report_script"),
    "summary": partial(script, "summary_script"),
    "status": partial(script, "status_script"),
    "rollback": partial(script, "rollback_script"),
    "space": space,
    "pipeline": partial(script, "pipeline_script"),
    "score": partial(script, "score_script"),
}
SPACE_COMMANDS: Mapping[str, Start] = {
    "bundle": bundle,
    "validate": partial(space_script, "validate_bundle", None),
    "deploy": partial(space_script, "deploy", SERVING),
    "verify": partial(space_script, "verify_deployment", SERVING),
    "fix-dependencies": partial(space_script, "fix_dependencies", SERVING),
    "force-cache-bust": partial(space_script, "force_cache_bust", SERVING),
}
MAIN_PAGE = """usage: champion COMMAND [ARGUMENT ...]

Score every newly fine-tuned chat model against the one in production, and
promote it if it is better.

start
  repro      run the pipeline, from data to decision and report (dvc repro)
  doctor     check this machine, MLflow, the Hub and the DVC remote
  serve      chat with the champion on http://localhost:8000

decide
  deploy     decide again about the latest model, and promote it if it wins
  history    list the evaluated models; explain, replay, exclude or promote one
  report     write the report on the last decision, results/report/index.html
  summary    print the result of the last run

operate
  status     show champion, registry and Hub, and whether they agree; --repair
  rollback   make an earlier champion the champion again
  space      bundle, validate and deploy the champion as a Hugging Face Space
  pipeline   one step of the workflow: check, pull, run, push, commit, ...
  score      score a file of predictions

examples
  champion repro                     the first run: no account and no GPU needed
  champion history --help            the flags of a command
  champion deploy --dry-run          what would be decided now
  champion rollback --reason "slow"  back to the previous champion

champion --version prints the version. Commands run in the folder of a clone.
Documentation: docs/README.md; exit codes: docs/exit-codes.md
"""
SPACE_PAGE = """usage: champion space COMMAND [ARGUMENT ...]

The champion as a Hugging Face Space. The usual order: bundle, validate, deploy.

  bundle            make the champion's bundle, or that of --model FOLDER
  validate          check that the bundle answers as well as the release
  deploy            deploy the bundle; roll back if it does not come up
  verify            check space/ and its packages before a deployment
  fix-dependencies  list, recommend, test or apply sets of requirements
  force-cache-bust  make the next build of the image start from scratch

example
  champion space deploy --auto --push --space OWNER/NAME

champion space COMMAND --help lists the flags of a command.
Documentation: docs/space.md
"""


def main() -> NoReturn:
    """Run the command that the first word names."""
    words = sys.argv[1:]
    if words == ["--version"]:
        from importlib.metadata import version

        sys.stdout.write(f"champion {version('champion')}\n")
        sys.exit(0)
    _dispatch("champion", MAIN_PAGE, COMMANDS, words)


def _dispatch(name: str, page: str, commands: Mapping[str, Start], words: Sequence[str]) -> NoReturn:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(page)
        sys.exit(0)

    from src.core.errors import InvalidParams
    from utils import process

    def start() -> int:
        if words[0] not in commands:
            near = difflib.get_close_matches(words[0], commands, n=1)
            meant = f"did you mean `{name} {near[0]}`?" if near else f"`{name} --help` lists the commands"
            raise InvalidParams(f"{name} {words[0]}: there is no such command; {meant}")
        sys.argv[0] = f"{name} {words[0]}"  # the name in the usage line
        return commands[words[0]](words[1:])

    process.run(start)


if __name__ == "__main__":
    main()
