"""The workflows keep the policy of docs/ci.md, and the tools of the trade find nothing in them."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.actions.expressions import Open, Scope, UnknownExpression, condition, evaluate, interpolated
from tests.fakes.actions.harness import ACTIONS, Event, GitHub, read, triggered
from tests.fakes.scratch_git import MONA, git

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
LINES = [line for file in FILES for line in file.read_text().splitlines()]
CI, PIPELINE = (ROOT / ".github/workflows" / name for name in ("ci.yml", "pipeline.yml"))
TOOLS = Path(sys.executable).parent
ZIZMOR = ("zizmor", "--offline", "--no-progress", "--no-config", "--persona", "pedantic")
SCHEMA = ("check-jsonschema", "--builtin-schema", "vendor.github-workflows")
PINNED = re.compile(r"^ *(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
OURS = re.compile(r"make [\w./-]+|\.venv/bin/python (?P<script>scripts/\w+_script\.py)( [\w-]+)*")
LOOKED_UP = re.compile(r"pipx run pip-audit==[\d.]+( [\w.-]+)*")  # not of this project: its answer is of today
Workflow = dict[Any, Any]


def steps(workflow: Workflow) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in workflow["jobs"].items():
        yield from ((name, step) for step in job["steps"])


def tool(*command: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(TOOLS / str(command[0])), *map(str, command[1:])], capture_output=True, text=True,
                          check=False)


@pytest.mark.parametrize(("judge", "old", "new"), [
    (ZIZMOR, "pipeline_script.py check", "pipeline_script.py check ${{ inputs.reason }}"),
    (ZIZMOR, "permissions: {}", "permissions: write-all"),
    (ZIZMOR, "@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@v7"),
    (ZIZMOR, "persist-credentials: false", "fetch-depth: 1"),
    (SCHEMA, "queue: max", "queue: most"),
], ids=["an expression in a command", "all permissions", "an action that moves", "credentials left behind", "schema"])
def test_what_is_planted_is_found(judge: tuple[str, ...], old: str, new: str, tmp_path: Path) -> None:
    text = PIPELINE.read_text()
    assert old in text
    copy = tmp_path / ".github/workflows" / PIPELINE.name
    copy.parent.mkdir(parents=True)
    copy.write_text(text.replace(old, new, 1))
    found = tool(*judge, copy)
    assert found.returncode == 1 if judge is SCHEMA else found.returncode >= 10, found.stderr


def test_zizmor_finds_nothing_in_the_workflows() -> None:
    found = tool(*ZIZMOR, ROOT / ".github")
    assert (found.returncode, found.stdout.strip().splitlines()[-1:]) == (
        0, ["No findings to report. Good job!"]), found.stdout + found.stderr


def test_no_finding_is_set_aside_without_a_reason() -> None:
    assert [line for line in LINES if "zizmor: ignore" in line
            and not re.search(r"# zizmor: ignore\[[\w-]+\] \w.{10,}", line)] == []


def test_the_workflows_fit_the_schema() -> None:
    found = tool(*SCHEMA, *FILES)
    assert found.returncode == 0, found.stdout


def test_every_action_is_pinned_by_commit() -> None:
    assert [line for line in LINES if "uses:" in line and not PINNED.search(line)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_run_is_one_command_without_an_expression(file: Path) -> None:
    for _, step in steps(read(file)):
        if "run" in step:
            found = OURS.fullmatch(step["run"]) or (file == CI and LOOKED_UP.fullmatch(step["run"]))
            assert found, step["run"]
            script = found.groupdict().get("script")
            assert script is None or (ROOT / script).is_file()


def test_each_job_has_the_permissions_that_it_needs_and_no_more() -> None:
    workflow = read(PIPELINE)
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow["jobs"].items()} == {
        "pipeline": {"contents": "read", "id-token": "write"},
        "records": {"contents": "write"},
        "comment": {"contents": "read", "pull-requests": "write"},
    }
    assert [read(CI)["permissions"], *(job["permissions"] for job in read(CI)["jobs"].values())] == [
        {}, *[{"contents": "read"}] * 3]


def test_secrets_are_those_of_the_protected_environment_and_reach_single_steps() -> None:
    for name, job in read(PIPELINE)["jobs"].items():
        assert (job.get("environment") == "promotion") is ("secrets." in str(job)), name
        assert "secrets." not in str(job.get("env", {})), name
    assert "secrets." not in CI.read_text()


def test_a_step_is_given_the_secrets_of_its_services_alone() -> None:
    given = {step["name"]: {word for value in step.get("env", {}).values()
                            for word in re.findall(r"secrets\.(\w+)", value)}
             for name, step in steps(read(PIPELINE)) if name == "pipeline" and "run" in step}
    remote = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    tracking = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "DAGSHUB_TOKEN", "DAGSHUB_USER_TOKEN"}
    hub = {"HF_TOKEN", "HUGGINGFACE_HUB_TOKEN"}
    assert given == {
        "Set up": set(), "Check every service": remote | tracking | hub,
        "Refuse what could not end in a promotion": set(),
        "Log in to the DVC remote": {"DAGSHUB_TOKEN", "DAGSHUB_USER_TOKEN"},
        "Pull data and cache": remote, "Run the pipeline": remote | tracking | hub, "Push the cache": remote,
        "Write the job summary": set(),
    }


def test_every_setting_of_the_workflow_is_documented() -> None:
    used = set(re.findall(r"(?:secrets|vars)\.(\w+)", PIPELINE.read_text()))
    set_here = set(re.findall(r"^ +([A-Z][A-Z_]+): \$", PIPELINE.read_text(), re.MULTILINE)) - {"GITHUB_TOKEN"}
    page, example = (ROOT / "docs/ci.md").read_text(), (ROOT / ".env.example").read_text()
    assert [name for name in sorted(used) if f"`{name}`" not in page] == []
    assert [name for name in sorted(used | set_here) if f"{name}=" not in example] == []


def test_promotions_queue() -> None:
    assert read(PIPELINE)["concurrency"] == {"group": "promotion", "cancel-in-progress": False, "queue": "max"}


def test_the_button_asks_for_what_a_run_can_be_given() -> None:
    workflow = read(PIPELINE)
    inputs = workflow[True]["workflow_dispatch"]["inputs"]
    assert workflow["name"] == "End-to-End ML Pipeline"
    assert {name: (spec["type"], spec["default"]) for name, spec in inputs.items()} == {
        "force_deploy": ("boolean", False), "reason": ("string", ""), "skip_hf_push": ("boolean", False),
        "min_improvement_threshold": ("string", ""), "profile": ("string", "")}
    assert inputs["force_deploy"]["description"] == "Force deployment regardless of performance"


def test_the_pipeline_starts_on_branches_and_by_hand_and_never_for_a_pull_request() -> None:
    workflow = read(PIPELINE)
    started = {("push", "feature/a"): True, ("push", "main"): True, ("push", "dependabot/pip/x"): False,
               ("workflow_dispatch", "main"): True, ("pull_request", "main"): False,
               ("pull_request_target", "main"): False}
    assert {event: triggered(workflow, Event(*event)) for event in started} == started
    assert set(workflow[True]) == {"push", "workflow_dispatch"}
    assert set(read(CI)[True]) == {"push", "pull_request", "schedule", "workflow_dispatch"}


def test_every_expression_is_known_to_the_harness() -> None:
    workflow, found = read(PIPELINE), 0
    declared = dict.fromkeys(workflow[True]["workflow_dispatch"]["inputs"])
    for job in workflow["jobs"].values():
        scope = Scope({
            "inputs": declared, "vars": Open({}), "secrets": Open({}), "github": {"token": "t"},
            "env": job.get("env", {}),
            "steps": {step["id"]: {"outcome": "success"} for step in job["steps"] if "id" in step},
            "needs": {"pipeline": {"outputs": dict.fromkeys(workflow["jobs"]["pipeline"]["outputs"], "success")}}})
        texts = [*job.get("env", {}).values(), *job.get("outputs", {}).values(),
                 *(value for step in job["steps"] for value in step.get("env", {}).values())]
        found += len([interpolated(text, scope) for text in texts if "${{" in text])
        found += len([condition(each["if"], scope) for each in [job, *job["steps"]] if "if" in each])
        assert {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step} <= set(ACTIONS)
    assert found == PIPELINE.read_text().count("${{") - 1  # one stands in a comment


SCOPE = Scope({"inputs": {"given": "Text", "empty": None, "yes": True}, "vars": Open({"URL": "u"}),
               "steps": {"run": {"outcome": "skipped", "outputs": Open({})}}})
VALUES: list[tuple[str, Any]] = [
    ("'it''s'", "it's"), ("inputs.given == 'text'", True), ("inputs.empty == ''", True),
    ("inputs.yes == 'true'", False), ("inputs.yes == 1", True), ("!inputs.empty && 'a' || 'b'", "a"),
    ("vars.URL || 'x'", "u"), ("vars.NONE || 'x'", "x"),
    ("steps.run.outcome != 'skipped'", False), ("!cancelled() && (failure() || success())", True), ("null", None),
    ("steps.run.outputs.none", None), ("inputs.given != 0", True), ("always() && 0", 0.0),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=[row[0] for row in VALUES])
def test_an_expression_has_githubs_value(text: str, value: Any) -> None:
    assert evaluate(text, SCOPE) == value


@pytest.mark.parametrize("text", [
    "inputs.other", "steps.walk.outcome", "runner.os", "hashFiles('a')", "contains('a', 'b')", "inputs.given < 1",
    "inputs['given']", "'open", "inputs", "a b", "(true", "steps.run", "",
])
def test_an_expression_that_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(UnknownExpression):
        evaluate(text, SCOPE)


@pytest.mark.parametrize(("text", "failed", "holds"), [
    (None, False, True), (None, True, False), ("true", True, False), ("always()", True, True),
    ("failure()", True, True), ("${{ !cancelled() }}", True, True), ("${{ inputs.yes }}", False, True),
    (False, False, False),
])
def test_a_condition_without_a_status_function_holds_while_nothing_failed(
        text: str | bool | None, failed: bool, holds: bool) -> None:
    assert condition(text, Scope(SCOPE.contexts, failed=failed)) is holds


def test_an_expression_within_a_condition_is_refused_as_always_true() -> None:
    with pytest.raises(UnknownExpression, match="always true"):
        condition("${{ inputs.empty }} == 'x'", SCOPE)


@pytest.mark.parametrize("change", [
    {"on": {"pull_request": None}, "steps": [{"uses": "other/action@1", "name": "x"}]},
    {"steps": [{"run": "true", "name": "x", "continue-on-error": True}]},
    {"steps": [{"run": "true", "name": "x", "if": "runner.debug"}]},
    {"steps": [{"uses": "actions/checkout@1", "with": {"ref": "main"}, "name": "x"}]},
    {"strategy": {"matrix": {}}, "steps": []},
])
def test_the_harness_refuses_what_it_does_not_know(change: Mapping[str, Any], tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    git("init", "-q", "-b", "main", str(origin))
    git("-C", str(origin), "commit", "-q", "--allow-empty", "-m", "first", **MONA)
    job = {"runs-on": "ubuntu-24.04", **{key: value for key, value in change.items() if key != "on"}}
    workflow: Workflow = {"name": "x", True: {"push": None}, "jobs": {"one": job}}
    github = GitHub(origin=origin, root=tmp_path / "runs", environment="promotion", secrets={}, variables={})
    with pytest.raises(UnknownExpression):
        github.run(workflow, Event("push", "main"))
