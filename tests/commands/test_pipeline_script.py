"""The workflow's own steps: what is asked for, and DVC's part with real DVC; test_git_records.py has the commit."""

import stat
import sys
from pathlib import Path

import pytest

from scripts import pipeline_script
from src.core.errors import InvalidParams, PipelineError, Refused, RunAgain
from tests.fakes.history_store import write_params
from tests.fakes.promoted import run
from tests.fakes.scratch_git import EVIL, MONA, git, write
from tests.utils.test_dagshub_utils import TOKEN, dagshub
from utils import dvc_utils, github_utils

__all__ = ["dagshub"]  # a fixture
SOURCE = Path(__file__).parents[2] / "params.yaml"
STAGE = f"""import sys; sys.path.append({str(SOURCE.parent)!r})
from utils import environment; open('out', 'w').write(sys.executable + ' ' + environment.git_identity().commit)
"""


REFUSED = [
    ({"GITHUB_EVENT_NAME": "pull_request"}, Refused, "a pull_request event never promotes"),
    ({"GITHUB_EVENT_NAME": "pull_request_target"}, Refused, "never promotes"),
    ({"GITHUB_EVENT_NAME": "push", "GITHUB_REF_TYPE": "tag"}, Refused, "this is a tag"),
    ({github_utils.PROFILE: EVIL}, InvalidParams, "is unknown; choose one of pocket, production, tinyllama"),
    ({github_utils.PROFILE: "pocket,tinyllama"}, InvalidParams, "is unknown"),
    *(({github_utils.THRESHOLD: text}, InvalidParams, "is no usable threshold")
      for text in (EVIL, "nan", "-1", "1e-3", "0.00001", "0.1,0.2", "range(1)", ".5")),
    ({github_utils.THRESHOLD: "1.5"}, InvalidParams, "min_improvement_threshold"),
    ({"DEPLOY_FORCE": "perhaps"}, InvalidParams, "neither true nor false"),
    ({"DEPLOY_FORCE": "true"}, InvalidParams, "force_requires_reason"),
    ({"DEPLOY_FORCE": "true", "DEPLOY_REASON": " \t "}, InvalidParams, "force_requires_reason"),
]


def set_all(patch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    for name, value in names.items():
        patch.setenv(name, value)


@pytest.mark.parametrize(("given", "error", "said"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_what_could_not_end_in_a_promotion_is_refused(
        given: dict[str, str], error: type[PipelineError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_params(tmp_path, SOURCE, force_requires_reason=True)
    set_all(monkeypatch, given)
    with pytest.raises(error, match=said):
        run(pipeline_script, "check", "--config", config)


def test_a_run_may_be_given_parameters_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_params(tmp_path, SOURCE, force_requires_reason=True)
    set_all(monkeypatch, {"GITHUB_EVENT_NAME": "workflow_dispatch", "GITHUB_REF_TYPE": "branch", "DEPLOY_FORCE": "true",
                          "DEPLOY_REASON": EVIL, github_utils.PROFILE: "tinyllama", github_utils.THRESHOLD: "0.5"})
    assert run(pipeline_script, "check", "--config", config) == 0
    params = github_utils.checked_params(config)  # with the profile's push_to_hub, and no token at hand
    assert (params.profile, params.deployment.min_improvement_threshold) == ("tinyllama", 0.5)
    settings = ["profile=tinyllama", "deployment.min_improvement_threshold=0.5"]
    assert github_utils.overrides().settings(config) == [
        *settings, "profiles.tinyllama.deployment.min_improvement_threshold=0.5"]
    config.write_text(config.read_text().replace("      min_improvement_threshold: 0.01\n", ""))
    assert github_utils.overrides().settings(config) == settings


def test_a_run_that_asks_for_nothing_has_no_parameters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(github_utils.PROFILE, " ")
    assert github_utils.overrides().settings(SOURCE) == []


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of one stage, on a machine where git knows nobody."""
    home = tmp_path / "home"
    home.mkdir()
    set_all(monkeypatch, {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "DVC_NO_ANALYTICS": "1"})
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    git("init", "-q", "-b", "main")
    write(".dvc/config", "")
    write(".dvc/.gitignore", "/tmp\n/cache\n")
    write("params.yaml", "profile: pocket\ndeployment: {min_improvement_threshold: 0.001}\n")
    write("dvc.yaml", "stages:\n  one:\n    cmd: python stage.py\n    params: [profile, deployment]\n    outs: [out]\n")
    write("stage.py", STAGE)
    git("add", "-A")
    git("commit", "-q", "-m", "first", **MONA)
    return work


def remote(url: str) -> None:
    with (Path(".dvc") / "config").open("a") as config:
        config.write(f"[core]\n    remote = here\n['remote \"here\"']\n    url = {url}\n")


@pytest.fixture
def dagshubs(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose remote is on DagsHub, of which the environment knows nothing."""
    for name in ("DAGSHUB_USERNAME", "DAGSHUB_TOKEN", "DAGSHUB_USER_TOKEN", "DAGSHUB_CLIENT_HOST"):
        monkeypatch.delenv(name, raising=False)
    remote("https://dagshub.com/acme/shop.dvc")
    return pipeline


def test_dagshubs_credentials_are_only_in_the_file_that_git_ignores(
    dagshubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSHUB_USERNAME", "alice")
    monkeypatch.setenv("DAGSHUB_TOKEN", TOKEN)
    assert run(pipeline_script, "credentials") == 0
    local = dagshubs / ".dvc/config.local"
    assert {"    auth = basic", "    user = alice", f"    password = {TOKEN}"} < set(local.read_text().splitlines())
    assert stat.S_IMODE(local.stat().st_mode) == 0o600
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err + (dagshubs / ".dvc/config").read_text()


def test_dagshub_is_asked_whose_token_it_is(pipeline: Path, dagshub: str, capsys: pytest.CaptureFixture[str]) -> None:
    remote(f"{dagshub}/acme/shop.dvc")
    assert run(pipeline_script, "credentials") == 0
    assert "credentials: those of alice" in capsys.readouterr().out
    assert f"password = {TOKEN}" in (pipeline / ".dvc/config.local").read_text()


@pytest.mark.usefixtures("dagshubs")
def test_a_dagshub_remote_without_a_token_says_where_to_get_one() -> None:
    with pytest.raises(InvalidParams, match=r"DAGSHUB_TOKEN: not set; make a token at https://dagshub\.com"):
        run(pipeline_script, "credentials")


def test_credentials_have_nothing_to_do_for_other_remotes(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(pipeline_script, "credentials")
    remote("s3://bucket/prefix")
    run(pipeline_script, "credentials")
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert not (pipeline / ".dvc/config.local").exists()


def test_without_a_remote_nothing_is_pulled_and_it_is_said(pipeline: Path, caplog: pytest.LogCaptureFixture) -> None:
    dvc_utils.pull()
    assert "dvc pull: no default remote" in caplog.text


def test_parameters_of_a_run_reach_it_and_the_cache_the_remote(pipeline: Path) -> None:
    remote(str(pipeline.parent / "there"))
    dvc_utils.pull()  # nobody has pushed yet
    assert dvc_utils.reproduce(["deployment.min_improvement_threshold=0.0001"]) == 0
    assert "min_improvement_threshold: 0.0001" in (pipeline / "params.yaml").read_text()
    python, commit = (pipeline / "out").read_text().split()
    assert (Path(python).parent, commit) == (Path(sys.executable).parent, git("rev-parse", "HEAD"))
    dvc_utils.push()
    assert len([path for path in (pipeline.parent / "there").rglob("*") if path.is_file()]) == 2  # out, and its run


def test_a_failed_pipeline_and_a_lost_remote_are_told(pipeline: Path) -> None:
    write("dvc.yaml", "stages:\n  one:\n    cmd: python -c 'raise SystemExit(4)'\n    outs: [out]\n")
    assert dvc_utils.reproduce([]) == 255
    remote("s3://nowhere/at-all")
    write("dvc.lock", "schema: '2.0'\nstages:\n  one:\n    cmd: x\n    outs:\n    - path: out\n      hash: md5\n"
                      "      md5: d41d8cd98f00b204e9800998ecf8427e\n      size: 0\n")
    with pytest.raises(RunAgain, match=r"dvc pull: remote here failed.*champion doctor"):
        dvc_utils.pull()
