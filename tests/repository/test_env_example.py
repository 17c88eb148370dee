""".env.example names every variable that the code or the workflow reads, and no other."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NAME = re.compile(r"(MLFLOW|HF|HUGGINGFACE|DAGSHUB|AWS|DEPLOY|PIPELINE|CHAMPION)_[A-Z0-9_]*[A-Z0-9]")
_LINE = re.compile(r"^(?:# )?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)
# What the code sets for the libraries, and nobody needs to.
SET_BY_US = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
             "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS",
             "HF_HUB_DISABLE_XET", "HF_HUB_VERBOSITY", "HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_INTERVAL",
             "HF_HUB_OFFLINE",  # for the tools of space/
             "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"}


def documented() -> dict[str, str]:
    return dict(_LINE.findall((ROOT / ".env.example").read_text()))


def named(path: Path) -> Iterator[str]:
    """Strings of a module that are names of variables, the GITHUB_ ones aside, which the runner gives."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value


def read_by_code() -> set[str]:
    files = [path for package in ("src", "utils", "scripts") for path in (ROOT / package).rglob("*.py")]
    return {name for path in files for name in named(path)} - SET_BY_US


def passed_by_workflows() -> set[str]:
    texts = [path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")]
    return {found[0] for text in texts for found in _NAME.finditer(text)}


def test_every_variable_that_is_read_is_documented() -> None:
    assert (read_by_code() | passed_by_workflows()) - documented().keys() == set()


def test_every_variable_that_is_documented_is_read() -> None:
    by_libraries = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_OIDC_ID_TOKEN"}  # boto3, huggingface_hub
    assert documented().keys() - read_by_code() - passed_by_workflows() - by_libraries == set()


def test_the_variables_that_are_set_for_libraries_are_set() -> None:
    code = "".join(path.read_text() for path in (ROOT / "utils").rglob("*.py"))
    assert [name for name in SET_BY_US if name not in code] == []


def test_it_holds_no_value_that_a_copy_would_set() -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]+=", line) for line in lines)


def test_a_shell_can_load_it() -> None:
    done = subprocess.run(["sh", "-uec", "set -a; . ./.env.example; set +a; echo \"[$HF_TOKEN]\""], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
