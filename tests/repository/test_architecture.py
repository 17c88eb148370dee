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
RULES: list[Rule] = [rules.forbidden_imports, rules.oversized_files, rules.non_ascii_code, rules.missing_docstrings,
                     rules.second_defaults]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository that breaks no rule."""
    for name in ("src/models/merging.py", "src/evaluation/generation.py", "src/core/params.py", "src/core/records.py", "utils/near.py",
                 "scripts/commands/deploy.py", "scripts/commands/assemble.py", "space/app.py", "benchmarks/speed.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(DOC)
    (tmp_path / "params.yaml").write_text("seed: 1\ntraining: {batch_size: 8, learning_rate: 0.1, epochs: 3}\n")
    return tmp_path


IMPORTS, SIZES, ASCII, DEFAULTS = RULES[0], RULES[1], RULES[2], RULES[4]
PLANTED: list[tuple[Rule, str, str, str]] = [
    (IMPORTS, "src/x.py", "import mlflow", "src/x.py: imports mlflow"),
    (IMPORTS, "src/x.py", "from mlflow.entities import Run", "src/x.py: imports mlflow.entities"),
    (IMPORTS, "src/x.py", "def f():\n    import huggingface_hub.utils", "src/x.py: imports huggingface_hub"),
    (IMPORTS, "src/x.py", "import dagshub as d", "src/x.py: imports dagshub"),
    (IMPORTS, "src/x.py", "from dvc import api", "src/x.py: imports dvc"),
    (IMPORTS, "src/x.py", "if TYPE_CHECKING:\n    from mlflow import MlflowClient", "src/x.py: imports mlflow"),
    (IMPORTS, "src/x.py", "import os\nHOME = os.environ['HOME']", "src/x.py: reads os.environ"),
    (IMPORTS, "src/x.py", "from os import getenv as g", "src/x.py: reads os.getenv"),
    (IMPORTS, "src/x.py", "from utils import process", "src/x.py: imports utils"),
    (IMPORTS, "src/x.py", "import scripts.wiring", "src/x.py: imports scripts.wiring"),
    (IMPORTS, "src/x.py", "from . import params", "src/x.py: imports relative"),
    (IMPORTS, "src/x.py", "import torch.nn", "src/x.py: imports torch.nn, which is heavy"),
    (IMPORTS, "utils/x.py", "def f():\n    import peft", "utils/x.py: imports peft, which is heavy"),
    (IMPORTS, "scripts/commands/assemble.py", "import transformers", "scripts/commands/assemble.py: imports transformers"),
    (IMPORTS, "utils/x.py", "from src import merging", "utils/x.py: imports src.merging, which is no mod"),
    (IMPORTS, "utils/x.py", "from src.evaluation import f", "utils/x.py: imports src.evaluation, which is"),
    (IMPORTS, "utils/x.py", "import scripts", "utils/x.py: imports scripts"),
    (IMPORTS, "benchmarks/x.py", "import space", "benchmarks/x.py: imports space"),
    (IMPORTS, "space/app.py", "from src.core.params import METRICS", "space/app.py: imports src.core.params"),
    (SIZES, "scripts/x_script.py", "#\n" * 100, "scripts/x_script.py: 101 lines, 100 allowed"),
    (SIZES, "src/x.py", "#\n" * 260, "src/x.py: 261 lines, 260 allowed"),
    (ASCII, "src/x.py", "X = 'na\u00efve'", "src/x.py:2: X = 'na\u00efve'"),
    (ASCII, "utils/x.py", "# \U0001f680", "utils/x.py:2: # \U0001f680"),
    (DEFAULTS, "scripts/x.py", "p.add_argument('--seed', default=3)", "scripts/x.py:2: '--seed' has"),
    (DEFAULTS, "src/x.py", "def f(a, batch_size=8): ...", "src/x.py:2: batch_size has a default"),
    (DEFAULTS, "src/x.py", "def f(*, learning_rate: float = 1e-3): ...", "src/x.py:2: learning_rate has a"),
    (DEFAULTS, "src/x.py", "class P:\n    epochs: int = 3", "src/x.py:3: epochs has a default"),
]


@pytest.mark.parametrize(("rule", "file", "code", "said"), PLANTED, ids=[f"{row[1]} {row[2][:40]}" for row in PLANTED])
def test_a_planted_violation_is_found(rule: Rule, file: str, code: str, said: str, small: Path) -> None:
    path = small / file
    path.write_text((path.read_text() if path.exists() else DOC) + code)
    assert any(line.startswith(said) for line in rule(small)), rule(small)


def test_a_module_without_a_docstring_is_found(small: Path) -> None:
    (small / "src" / "x.py").write_text("X = 1\n")
    assert rules.missing_docstrings(small) == ["src/x.py: no docstring"]


ALLOWED = [
    ("src/models/merging.py", "import torch"), ("src/x.py", "if TYPE_CHECKING:\n    import torch"),
    ("src/x.py", "from pathlib import Path\nimport os\nos.replace"), ("src/x.py", "TEXT = '''import mlflow'''"),
    ("utils/x.py", "import mlflow, os\nfrom src.core.records import Metrics\nos.environ"),
    ("scripts/x_script.py", "from scripts import wiring\np.add_argument('--seed', default=None, type=int)"),
    ("src/x.py", "def f(seed: int, batch_size=None): ...\nclass P:\n    epochs: int"),
]


@pytest.mark.parametrize(("file", "code"), ALLOWED)
def test_what_is_allowed_is_not_found(file: str, code: str, small: Path) -> None:
    path = small / file
    path.write_text((path.read_text() if path.exists() else DOC) + code)
    assert [line for rule in RULES for line in rule(small) if line.startswith(file)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


def test_a_reader_of_types_pays_for_no_heavy_library() -> None:
    """What a static rule cannot see: imports through other people's packages."""
    names = [path.stem for path in (ROOT / "src").glob("*.py")
             if path.stem in rules.TYPES | {"significance", "metrics", "adapter"}]
    heavy = ["torch", "transformers", "peft", "mlflow", "huggingface_hub", "dvc", "datasets", "evaluate"]
    code = f"""import sys, importlib
for name in {names}: importlib.import_module("src." + name)
print([name for name in {heavy} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
