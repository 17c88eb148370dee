"""The pages docs/dependencies.md and docs/compatibility.md, from the tables: `python -m dependencies.pages ../docs`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from dependencies import strategies
from dependencies import strategies as diagnosis

_HEAD = """# Requirements of the Space

The app installs from one of five strategies: `space/requirements/NAME.txt` says what is asked for, `NAME.lock` all \
that is installed, with hashes. `space/requirements.txt`, which the Dockerfile installs, names the one that is \
taken. What works with each and in which versions is in [compatibility](compatibility.md).

```
python space/fix_dependencies.py --list
python space/fix_dependencies.py --recommend --log build.log      # or - for stdin; without it, this environment
python space/fix_dependencies.py --strategy NAME --test --apply   # in a scratch environment, then for the Dockerfile
python space/fix_dependencies.py --undo                           # the requirements.txt before the last --apply
python space/verify_deployment.py --verbose                       # requirements, imports, assets, front matter, ports
python space/assert_build.py                                      # what is installed against the lock, in the image
```

The last two look at the environment of the Python that runs them (`space/.venv/bin/python`), and exit 1 with a line \
for each thing that is wrong.

| strategy | |
|---|---|
"""
_TREE = """
## From an error to a strategy
The first row that the text shows decides; `--recommend` goes by the same table, `space/dependencies/errors.toml`, \
and names the versions where the text has them.
"""
_BRANCHES = {
    "pip": "pip ends with an error",
    "import": "transformers, peft or NumPy fail on import",
    "torch": "torch is of the wrong build",
    "start": "the app ends at its start",
    "check": "else",
}
_LOCKS = """
## Locks
torch is in a file of its own, `torch-cpu.lock`, with pytorch's index of CPU builds, since PyPI has the CUDA build \
alone. `+cpu` in its version keeps that one out, and the hash is of the wheel for Python 3.11 on x86-64 Linux. Where \
that index cannot be reached and the wheel is on the disk (`PIP_FIND_LINKS`), `PIP_RETRIES=0` spares the waiting.

A lock is made in `space/`, with uv:
```
uv pip compile --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-package torch --no-annotate \\
  --custom-compile-command "see docs/dependencies.md" requirements/NAME.txt -o requirements/NAME.lock
```
This page and the next one are written from the tables by `cd space && python -m dependencies.pages ../docs`.
"""
_MATRIX = """# Compatibility of the Space's requirements

Written from `space/dependencies/strategies.toml` and the locks; which to take when something fails is in \
[dependencies](dependencies.md). What works was tried by starting the app in an environment of its own (`pytest -m \
slow tests/space/test_strategies.py`).

"""
_SHOWN = ("openvino", "openvino-genai", "torch", "transformers", "peft", "numpy", "tokenizers", "huggingface-hub",
          "fastapi", "starlette", "pydantic", "uvicorn", "jinja2", "prometheus-client", "httpx2")


def dependencies_page() -> str:
    """The strategies, and the decision tree from error to strategy."""
    rows = [f"| `{each.name}` | {each.summary} |" for each in strategies.load().values()]
    tree = []
    for branch, found in groupby(diagnosis.errors(), key=lambda error: error.branch):
        tree += [f"\n### {_BRANCHES[branch][0].upper()}{_BRANCHES[branch][1:]}",
                 "| it says | change | strategy | why |", "|---|---|---|---|"]
        tree += [f"| {error.says} | {_change(error)} | `{error.strategy}` | {error.why} |" for error in found]
    return _HEAD + "\n".join(rows) + "\n" + _TREE + "\n".join(tree) + "\n" + _LOCKS


def _change(error: diagnosis.Error) -> str:
    package = f"`{error.package}`" if error.package else "the package that it names"
    return f"{package} ({error.wanted})" if error.wanted else package


def compatibility_page() -> str:
    """What works with each strategy, and the versions that are locked."""
    known = strategies.load().values()
    head = "| | " + " | ".join(f"`{each.name}`" for each in known) + " |"
    rows = [(meaning, ["yes" if name in each.works else "no" for each in known])
            for name, meaning in strategies.features().items()]
    rows += [("Python", [", ".join(each.python) for each in known]),
             ("NumPy's ABI", [each.complete.get("numpy", "-").partition(".")[0] for each in known]),
             ("torch's build", ["CPU" if "torch" in each.complete else "-" for each in known]),
             ("packages", [str(len(each.complete)) for each in known]),
             ("MB of the environment", [str(each.megabytes) for each in known])]
    rows += [(f"`{name}`", [each.complete.get(name, "-") for each in known]) for name in _SHOWN]
    lines = [f"| {first} | {' | '.join(rest)} |" for first, rest in rows]
    return _MATRIX + "\n".join([head, "|---" * (len(known) + 1) + "|", *lines]) + "\n"


PAGES = {"dependencies.md": dependencies_page, "compatibility.md": compatibility_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(sys.argv[1], name).write_text(page(), encoding="utf-8")
