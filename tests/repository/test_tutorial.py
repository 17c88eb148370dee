"""Every line of the tutorial, run as it stands on the page."""

import json
import os
from pathlib import Path

import pytest

from tests.fakes.clones import ROOT, SHRUNK, Clone, copy_of_this_tree, shell_environment
from tests.fakes.local_http import free_port
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from tests.fakes.pages import carry_out

PAGE = (ROOT / "docs/tutorial.md").read_text()


def test_a_command_that_fails_or_prints_something_else_is_found(tmp_path: Path) -> None:
    def run(page: str) -> None:
        carry_out(page, tmp_path, os.environ, replaced={}, limit_s=20)

    with pytest.raises(AssertionError, match=r"false\nended with 1"):
        run("```bash\ntrue\n```\n\n```bash\nfalse\n```\n")
    with pytest.raises(AssertionError, match="no line begins with 'version '"):
        run("```bash\necho vision 3\n```\n\n```text\nversion 2\n```\n")
    with pytest.raises(ValueError, match="neither bash, yaml, ini nor text"):
        run("```\ntrue\n```\n")
    run("```bash\necho version 3\n```\n\n```text\nversion 2\n```\n")


@pytest.mark.parametrize("shrunk", [pytest.param(True, id="with a small model"),
                                    pytest.param(False, id="as it stands", marks=pytest.mark.slow)])
def test_the_tutorial_ends_with_the_champion_on_the_servers_of_its_reader(shrunk: bool, tmp_path: Path) -> None:
    clone = Clone(tmp_path / "champion", "")
    copy_of_this_tree(clone, rows=300)
    if shrunk:
        clone.change(SHRUNK)
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = carry_out(PAGE, clone.root, shell_environment(clone, tmp_path) | {"HF_ENDPOINT": hub.url},
                            replaced={"5000": str(free_port()), "hf_your_token": WRITE, "your-name/": "acme/"},
                            limit_s=1200)
        print("".join(printed))
        info = json.loads((clone.root / "results/deployment/deployment_info.json").read_text())
        assert f"v{info['champion']['version']}" in hub.repos["models/acme/library-chatbot"]["tags"]
