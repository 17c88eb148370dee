"""The examples, run as they stand, with a smaller model."""

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.fakes.clones import ROOT, SHRUNK, Clone, copy_of_this_tree, shell_environment
from tests.fakes.local_http import free_port
from tests.fakes.pages import carry_out


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    made = Clone(tmp_path / "champion", "")
    copy_of_this_tree(made, rows=300)
    made.change(SHRUNK)
    return made


def page(name: str) -> str:
    return (ROOT / "examples" / name / "README.md").read_text()


def test_the_example_with_own_data_gets_a_history_of_its_own_beside_the_demos(clone: Clone, tmp_path: Path) -> None:
    printed = carry_out(page("own-data"), clone.root, shell_environment(clone, tmp_path), replaced={}, limit_s=600)
    assert "now ecommerce-chatbot version 1" in printed[-1]  # back to the demo: a first model there


def test_the_example_with_an_own_server_registers_there(clone: Clone, tmp_path: Path) -> None:
    port = str(free_port())
    carry_out(page("own-server"), clone.root, shell_environment(clone, tmp_path), replaced={"5000": port}, limit_s=600)
    assert list((tmp_path / "mlflow/artifacts").rglob("*.safetensors"))
    assert not (clone.root / "mlflow.db").exists()


def run_notebook(clone: Clone, profile: str, environment: dict[str, str]) -> Any:
    notebook: Any = nbformat.read(ROOT / "examples/gpu.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f'PROFILE = "{profile}"'
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(clone.root / "examples")}})
    client.execute(env=environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"})
    return notebook


def test_the_notebook_stops_at_a_stage_that_fails(clone: Clone, tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="profile: 'none' is unknown"):
        run_notebook(clone, "none", shell_environment(clone, tmp_path))


def test_the_notebook_ends_with_a_champion_that_answers(clone: Clone, tmp_path: Path) -> None:
    notebook = run_notebook(clone, "pocket", shell_environment(clone, tmp_path))
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells
            if cell.cell_type == "code"]
    assert any("PROMOTED: first model" in text for text in said)
    assert said[-1].strip()
