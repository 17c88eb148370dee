"""The repository keeps its own rules, and each rule finds a planted violation."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository import architecture_rules as rules

ROOT = Path(__file__).parents[2]
Rule = Callable[[Path], list[str]]
DOC = '"""A module."""\n'
ORDER, IMPORTS, ASCII, DEFAULTS = RULES = [
    rules.upward_imports, rules.forbidden_imports, rules.non_ascii_code, rules.second_defaults]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository that breaks no rule."""
    for name in ("src/core/params.py", "src/core/records.py", "src/data/rows.py", "src/models/merging.py",
                 "src/decisions/words.py", "src/promotion/release.py", "utils/near.py", "scripts/commands/deploy.py",
                 "space/app.py", "benchmarks/speed.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(DOC)
    (tmp_path / "params.yaml").write_text("seed: 1\ntraining: {batch_size: 8, learning_rate: 0.1, epochs: 3}\n")
    return tmp_path


PLANTED: list[tuple[Rule, str, str, str]] = [
    (ORDER, "src/core/records.py", "from src.data import rows", "src.core.records: imports src.data.rows, which is no"),
    (ORDER, "src/data/rows.py", "def f():\n    import src.models.merging", "src.data.rows: imports src.models.merging"),
    (ORDER, "src/decisions/words.py", "if TYPE_CHECKING:\n    from src.promotion.release import x",
     "src.decisions.words: imports src.promotion.release"),
    (ORDER, "utils/near.py", "import scripts.commands.deploy", "utils.near: imports scripts.commands.deploy"),
    (ORDER, "src/x.py", "X = 1", "src.x: lies in no room of FLOORS"),
    (ORDER, "src/core/x.py", "from src.core import y\n", "a circle of imports: src.core."),
    (IMPORTS, "src/core/x.py", "def f():\n    from mlflow.entities import Run", "src/core/x.py: imports mlflow"),
    (IMPORTS, "src/core/x.py", "from . import params", "src/core/x.py: imports relative"),
    (IMPORTS, "src/core/x.py", "import os\nHOME = os.environ['HOME']", "src/core/x.py: reads os.environ"),
    (IMPORTS, "src/core/x.py", "from os import getenv as g", "src/core/x.py: reads os.getenv"),
    (IMPORTS, "scripts/commands/x.py", "def f():\n    import peft", "scripts/commands/x.py: imports peft, which"),
    (IMPORTS, "utils/x.py", "from src.models import merging", "utils/x.py: imports src.models.merging, which is no"),
    (IMPORTS, "benchmarks/x.py", "import space", "benchmarks/x.py: imports space"),
    (IMPORTS, "space/app.py", "from src.core.params import METRICS", "space/app.py: imports src.core.params"),
    (ASCII, "src/core/x.py", "X = 'na\u00efve'", "src/core/x.py:2: X = 'na\u00efve'"),
    (DEFAULTS, "scripts/x.py", "p.add_argument('--seed', default=3)", "scripts/x.py:2: '--seed' has"),
    (DEFAULTS, "src/core/x.py", "def f(*, learning_rate: float = 1e-3): ...", "src/core/x.py:2: learning_rate has a"),
    (DEFAULTS, "src/core/x.py", "class P:\n    epochs: int = 3", "src/core/x.py:2: epochs has a default"),
]


@pytest.mark.parametrize(("rule", "file", "code", "said"), PLANTED, ids=[f"{row[1]} {row[2][:40]}" for row in PLANTED])
def test_a_planted_violation_is_found(rule: Rule, file: str, code: str, said: str, small: Path) -> None:
    (small / "src/core/y.py").write_text(DOC + "from src.core import x\n")
    (small / file).write_text(DOC + code)
    assert any(line.startswith(said) for line in rule(small)), rule(small)


ALLOWED = [
    ("src/models/merging.py", "import torch\nfrom src.core import params"),
    ("src/core/x.py", "if TYPE_CHECKING:\n    import torch"),
    ("src/promotion/release.py", "from src.decisions import words\nfrom src.models.merging import f"),
    ("src/core/x.py", "from pathlib import Path\nimport os\nos.replace\nTEXT = '''import mlflow'''"),
    ("utils/x.py", "import mlflow, os\nfrom src.core.records import Metrics\nos.environ"),
    ("scripts/x_script.py", "from scripts.commands import deploy\np.add_argument('--seed', default=None, type=int)"),
    ("src/core/x.py", "def f(seed: int, batch_size=None): ...\nclass P:\n    epochs: int"),
]


@pytest.mark.parametrize(("file", "code"), ALLOWED)
def test_what_is_allowed_is_not_found(file: str, code: str, small: Path) -> None:
    (small / file).write_text(DOC + code)
    assert [line for rule in RULES for line in rule(small)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


def test_src_is_the_gate_and_at_most_10_packages() -> None:
    assert {path.name for path in (ROOT / "src").glob("*.py")} == {"__init__.py", "model_selection.py"}
    assert len(list((ROOT / "src").glob("*/__init__.py"))) <= 10


def test_a_reader_of_types_pays_for_no_heavy_library() -> None:
    """What a static rule cannot see: imports through other people's packages."""
    light = (*rules.TYPES, "src.evaluation.significance", "src.evaluation.metrics", "src.models.files")
    names = [name for path in rules.modules(ROOT, "src")
             if (name := rules.dotted(ROOT, path)).startswith(light)]
    heavy = ["torch", "transformers", "peft", "mlflow", "huggingface_hub", "dvc", "datasets", "evaluate"]
    code = f"""import sys, importlib
for name in {names}: importlib.import_module(name)
print([name for name in {heavy} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
