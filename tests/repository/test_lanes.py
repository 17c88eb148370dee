"""Which tests `make check` runs follows from what they import."""

from pathlib import Path

import pytest

from tests.fakes.lanes import ROOT, needs


@pytest.mark.parametrize(("test", "expected"), [
    ("import os.path\nimport shop", set()),
    ("def test():\n    import torch.nn", {"torch"}),
    ("from http import server", {"http.server"}),
    ("from http import HTTPStatus", set()),
    ("from tests.fakes import helper", {"subprocess"}),
    ("from .fakes.helper import run", {"subprocess"}),
    ("pytest_plugins = ['tests.fakes.helper']", {"subprocess"}),
    ("from shop import model", {"mlflow"}),
    ("import torchless", set()),
])
def test_a_file_needs_what_it_and_its_helpers_import(test: str, expected: set[str], tmp_path: Path) -> None:
    for name, text in {"tests/test_it.py": test, "tests/fakes/helper.py": "import shop\nimport subprocess",
                       "shop/__init__.py": "", "shop/model.py": "import mlflow\ndef late():\n    import torch"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert needs(tmp_path / "tests/test_it.py", tmp_path) == expected


def test_the_gate_is_light_and_what_trains_starts_or_serves_is_not() -> None:
    assert not needs(ROOT / "tests/decisions/test_model_selection.py")
    assert needs(ROOT / "tests/training/test_fine_tuning.py") >= {"torch", "subprocess"}
    assert "http.server" in needs(ROOT / "tests/utils/hub/test_hub_reader.py")
    assert "mlflow" in needs(ROOT / "tests/commands/test_history_explain.py")
