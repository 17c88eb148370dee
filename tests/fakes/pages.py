"""A page of the documentation carried out as a reader would: in one shell, from its first line to its last.

```bash blocks are run; ```yaml blocks are laid over params.yaml; ```ini blocks are added to .env. What a ```text block
shows must have been printed by the block before it: each of its lines up to the first digit, for figures differ.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.fakes.clones import ROOT, laid_over

_BLOCK = re.compile(r"^```(bash|yaml|ini|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "@@ block "


@dataclass(frozen=True)
class Block:
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page; raises ValueError if some fence is none of the four kinds."""
    found = [Block(*match.groups()) for match in _BLOCK.finditer(page)]
    if f"\n{page}".count("\n```") != 2 * len(found):
        raise ValueError("the page has a block that is neither bash, yaml, ini nor text")
    return found


def carry_out(page: str, folder: Path, environment: Mapping[str, str], *, replaced: Mapping[str, str],
              limit_s: int) -> list[str]:
    """Run the blocks in a shell in the folder; returns what each one printed, stdout and stderr together.

    `replaced` are texts of the page and what stands for them here: a port, an account. Raises AssertionError with what
    was printed if a command fails, the limit passes, or a line of a text block is not there.
    """
    for text, other in replaced.items():
        assert text in page, f"{text!r} stands nowhere on the page"
        page = page.replace(text, other)
    found = blocks(page)
    script = ["set -e", *(line for number, block in enumerate(found) for line in _commands(number, block))]
    shell = subprocess.Popen(["bash", "-c", "\n".join(script)], cwd=folder, env=dict(environment), text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
    try:
        said, _ = shell.communicate(timeout=limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # the servers that the page started
    printed = [part.split("\n", 1)[1] for part in said.split(_MARK)[1:]]
    assert shell.returncode == 0, f"{found[len(printed) - 1].text}ended with {shell.returncode}:\n{printed[-1]}"
    for number, block in enumerate(found):
        if block.kind == "text":
            _compare(block, printed[number - 1])
    return printed


def _commands(number: int, block: Block) -> list[str]:
    mark = f"echo '{_MARK}{number}'"
    if block.kind == "yaml":
        return [mark, f"PYTHONPATH='{ROOT}' '{sys.executable}' -m {__name__} <<'END'\n{block.text}END"]
    if block.kind == "ini":
        return [mark, f"cat >> .env <<'END'\n{block.text}END"]
    return [mark, block.text] if block.kind == "bash" else [mark]


def _compare(expected: Block, printed: str) -> None:
    for line in expected.text.splitlines():
        start = re.split(r"\d", line, maxsplit=1)[0]
        assert re.search(f"^{re.escape(start)}", printed, re.MULTILINE), f"no line begins with {start!r}:\n{printed}"


def _edit(block: str) -> None:
    path = Path("params.yaml")
    params = laid_over(yaml.safe_load(path.read_text()), yaml.safe_load(block))
    path.write_text(yaml.safe_dump(params, sort_keys=False))


if __name__ == "__main__":
    _edit(sys.stdin.read())
