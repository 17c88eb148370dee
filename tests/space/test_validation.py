"""A bundle is SAFE only where it answers as well as its release; the release may come from the Hub."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.space_process import PYTHON, SPACE, needs_serving, run_to_end, unpack

BUILDER = SPACE / ".venv-builder/bin/python"
DIGEST = "ab" * 32
QUESTIONS = ("Where is my order?", "May I pay later?")

pytestmark = pytest.mark.usefixtures("modules_of_space")


@dataclass(frozen=True)
class World:
    """The tiny release, its bundle in int8, and rows to answer; an answer ends after 24 tokens."""

    root: Path

    @property
    def release(self) -> Path:
        return self.root / "tiny-chat"

    @property
    def bundle(self) -> Path:
        return self.root / "assets"

    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bundle / "identity.json").read_text())
        return found

    def add_int4(self) -> None:
        """The same weights once more, under the other name."""
        shutil.copytree(self.bundle / "int8", self.bundle / "int4")
        self.identify(self.identity() | {"weights": ["int4", "int8"]})

    def identify(self, identity: dict[str, Any]) -> None:
        """Write the identity of the files that are there."""
        files = {path.relative_to(self.bundle).as_posix(): path.read_bytes() for path in self.bundle.rglob("*")
                 if path.is_file() and path.name not in ("identity.json", "validation.json")}
        sums = {"sizes": {name: len(data) for name, data in files.items()},
                "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
        (self.bundle / "identity.json").write_text(json.dumps(identity | sums))

    def problems(self) -> list[str]:
        from bundling.comparison import identity_problems
        from bundling.source import find

        found: list[str] = identity_problems(self.bundle, find(str(self.release), None))
        return found

    def validate(self, *more: str) -> subprocess.CompletedProcess[str]:
        return run_to_end(sys.executable, SPACE / "validate_bundle.py", "--bundle", self.bundle, "--timed-rows", "1",
                          "--model", self.release, "--evaluation-rows", self.root / "rows.jsonl",
                          "--evaluation", self.root / "evaluations", *more)

    def evaluate(self, *answers: str, digest: str = DIGEST) -> None:
        """Records of an evaluation stage that got these answers."""
        folder = self.root / "evaluations"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(
            {"model_digest": digest, "contract": {"generation": {"max_new_tokens": 24}}}))
        lines = [{"id": row["id"], "messages": row["messages"][:-1], "reference": row["messages"][-1]["content"],
                  "prediction": text, "tokens": [5, 6, 2], "truncated": False}
                 for row, text in zip(rows(), answers, strict=True)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows() -> list[dict[str, Any]]:
    return [{"id": str(n), "messages": [{"role": "user", "content": question},
                                        {"role": "assistant", "content": f"You will find it on page {n}."}]}
            for n, question in enumerate(QUESTIONS)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    unpack(tmp_path)
    for folder in (world.release, world.bundle):
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_new_tokens": 24}))
    (world.release / "champion.json").write_text(json.dumps({"format": 1, "model_digest": DIGEST}))
    world.identify(world.identity() | {"model_digest": DIGEST})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return world


def test_a_changed_a_missing_and_an_unlisted_file_are_named(world: World) -> None:
    assert world.problems() == []
    (world.bundle / "int8/openvino_model.bin").write_bytes(b"other")
    (world.bundle / "tokenizer.json").unlink()
    (world.bundle / "more.txt").write_text("x")
    assert world.problems() == ["tokenizer.json is missing", "more.txt is not listed",
                                "int8/openvino_model.bin was changed"]


def test_a_bundle_of_another_release_is_found_by_digest_and_by_its_files(world: World) -> None:
    (world.release / "champion.json").write_text(json.dumps({"model_digest": "cd" * 32}))
    (world.release / "README.md").write_text("another card")
    (world.release / "chat_template.jinja").write_text("other")
    assert world.problems() == [f"it is of the model {'ab' * 6}, not {'cd' * 6}", "README.md is not the release's",
                                "chat_template.jinja is not the release's"]


def test_after_a_rollback_a_bundle_is_compared_with_the_release_that_was_fetched(
        world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import validate_bundle

    monkeypatch.setattr(validate_bundle, "ROOT", tmp_path)
    for name, digest in (("release", "ef" * 32), ("champion", DIGEST)):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "champion.json").write_text(json.dumps({"model_digest": digest}))
    assert validate_bundle._release_of(world.bundle) == str(tmp_path / "results/champion")
    shutil.rmtree(tmp_path / "results/champion")
    assert validate_bundle._release_of(world.bundle) == str(tmp_path / "results/release")


def test_a_release_that_does_not_state_its_digest_cannot_be_matched(world: World) -> None:
    (world.release / "champion.json").unlink()
    (world.release / "README.md").write_text("no digest\n")
    assert "the release does not state its model digest" in world.problems()


def test_a_bundle_without_an_identity_is_nobodys(world: World) -> None:
    (world.bundle / "identity.json").write_text("[]")
    assert len(world.problems()) == 1


def test_answers_of_the_evaluation_are_taken_only_for_this_model_these_rows_and_this_limit(world: World) -> None:
    from bundling.comparison import evaluated
    from bundling.source import find

    release = find(str(world.release), None)
    assert evaluated(world.root / "evaluations", release, rows()) is None
    world.evaluate("one", "two")
    found = evaluated(world.root / "evaluations", release, rows())
    assert found is not None
    assert [(line["prediction"], line["tokens"]) for line in found] == [("one", [5, 6]), ("two", [5, 6])]
    changed = rows()
    changed[0]["messages"][1]["content"] = "other"
    assert evaluated(world.root / "evaluations", release, changed) is None
    settings = json.loads((world.release / "generation_config.json").read_text())
    (world.release / "generation_config.json").write_text(json.dumps({**settings, "max_new_tokens": 25}))
    assert evaluated(world.root / "evaluations", release, rows()) is None
    shutil.rmtree(world.root / "evaluations")
    world.evaluate("one", "two", digest="cd" * 32)
    assert evaluated(world.root / "evaluations", release, rows()) is None


def test_a_scorer_that_fails_is_no_verdict(world: World) -> None:
    from bundling.comparison import MeasuringError, score

    with pytest.raises(MeasuringError, match=r"ended with 3: .*prediction is missing"):
        score((sys.executable, "-m", "scripts.score_script"), world.root / "rows.jsonl")
    ended = world.validate("--evaluation-rows", "/nowhere")
    assert ended.returncode == 2
    assert not (world.bundle / "validation.json").exists()


def test_int8_goes_first_and_what_is_unsafe_leaves_the_bundle_unless_nothing_else_is_in_it(world: World) -> None:
    import validate_bundle

    world.add_int4()
    judged = validate_bundle.kinds_in(world.bundle)
    assert judged == ["int8", "int4"]
    validate_bundle.serve_only(world.bundle, [], judged)
    assert (world.identity()["weights"], world.problems()) == ([], [])
    validate_bundle.serve_only(world.bundle, ["int8"], judged)
    assert (world.identity()["weights"], world.problems()) == (["int8"], [])
    assert not (world.bundle / "int4").exists()
    assert (world.bundle / "int8").exists()


@needs_serving
def test_a_bundle_that_answers_worse_is_unsafe_and_neither_app_nor_image_takes_it(world: World) -> None:
    world.evaluate(*(row["messages"][-1]["content"] for row in rows()))
    ended = world.validate()
    assert ended.returncode == 5, ended.stderr
    assert ended.stdout.splitlines() == [
        "int8: UNSAFE, score 0.000, the release 1.000; the score falls by 1.0000, more than 0.01",
        ("UNSAFE: nothing may be served. validation.json in the bundle has the details. Either make a bundle of the "
         "released weights (prepare_assets.py --weights safetensors), or accept a larger loss (space.max_score_drop in "
         "params.yaml)")]
    record = json.loads((world.bundle / "validation.json").read_text())
    assert record["released"]["source"] == "evaluation"
    assert record["released"]["weighted_score"] == pytest.approx(1)
    assert record["weights"]["int8"]["reasons"][0] == "the score falls by 1.0000, more than 0.01"
    started = run_to_end(PYTHON, SPACE / "app.py", MODEL_DIR=str(world.bundle))
    assert started.returncode == 2
    assert "none of its weights is SAFE" in started.stderr
    baked = run_to_end(sys.executable, "-m", "serving.identity", world.bundle, cwd=SPACE)
    assert baked.returncode == 5
    assert "none of its weights is SAFE" in baked.stderr


@needs_serving
def test_a_bundle_that_answers_as_well_is_safe_and_everything_measured_is_recorded(world: World) -> None:
    ended = world.validate("--max-score-drop", "1")
    assert ended.returncode == 0, ended.stderr
    record = json.loads((world.bundle / "validation.json").read_text())
    assert (record["verdict"], record["serves"], record["rows"]) == ("SAFE", ["int8"], 2)
    assert record["released"]["source"] == "generated"
    for side in (record["released"], record["weights"]["int8"]):
        assert set(side["metrics"]) == {"bleu1", "bleu2", "bleu3", "bleu4", "rougeL_precision"}
        assert side["figures"]["tokens"] == 24
        assert min(side["figures"][name] for name in ("load_seconds", "first_token_seconds", "tokens_per_second")) > 0
        assert side["figures"]["peak_mib"] > 20
    assert world.identity()["weights"] == ["int8"]
    assert world.problems() == []
    assert ended.stdout.splitlines()[-1] == "SAFE: int8 is served"
    assert record["examples"] == []  # a model that says letters answers nothing well


def test_a_bundle_that_was_found_safe_is_not_validated_again_unless_it_is_another_one(world: World) -> None:
    from validate_bundle import is_safe_already

    stated = {"verdict": "SAFE", "serves": ["int8"], "model_digest": DIGEST, "examples": ["May I pay later?"]}
    path = world.bundle / "validation.json"
    assert not is_safe_already(world.bundle)
    for changes in ({"verdict": "UNSAFE"}, {"serves": ["int4"]}, {"model_digest": "cd" * 32}):
        path.write_text(json.dumps(stated | changes))
        assert not is_safe_already(world.bundle)
    path.write_text(json.dumps({name: value for name, value in stated.items() if name != "examples"}))
    assert not is_safe_already(world.bundle)  # from before there were examples
    path.write_text(json.dumps(stated))
    ended = world.validate("--if-changed")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", f"{world.bundle}: validated, up to date\n")
    assert json.loads(path.read_text()) == stated


@pytest.mark.parametrize("python", [
    sys.executable,
    pytest.param(str(BUILDER), marks=pytest.mark.skipif(not BUILDER.exists(), reason=f"{BUILDER} is missing")),
], ids=["project", "builder"])
def test_a_release_on_the_hub_is_fetched_at_its_revision_and_its_tag_gives_the_version(
    python: str, world: World, tmp_path: Path
) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        commit = hub.put("shop/chat", {path.name: path.read_bytes() for path in world.release.iterdir()})
        hub.put("shop/chat", {"config.json": b"{}"})  # later, and not what is asked for
        hub.repos["models/shop/chat"]["tags"]["v3"] = commit
        for model, code in ((f"shop/chat@{commit}", 0), ("shop/chat@nowhere", 2), ("shop/none", 2)):
            ended = run_to_end(
                python, SPACE / "prepare_assets.py", "--model", model, "--output", tmp_path / "made", "--weights",
                "safetensors", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0",
                NO_PROXY="127.0.0.1")
            assert (ended.returncode, "HTTP Request" in ended.stderr) == (code, False), ended.stderr
    assert "is no folder here and cannot be fetched from the Hub" in ended.stderr
    identity = json.loads((tmp_path / "made/identity.json").read_text())
    assert (identity["model"], identity["version"], identity["commit"]) == ("shop/chat", 3, commit)
    assert identity["model_digest"] == DIGEST
    assert (tmp_path / "made/model.safetensors").read_bytes() == (world.release / "model.safetensors").read_bytes()


@pytest.mark.skipif(not BUILDER.exists(), reason=f"{BUILDER} is missing: make space/.venv-builder/.ready")
@pytest.mark.slow
def test_the_builder_compresses_the_release_and_falls_back_where_it_is_too_narrow(world: World, tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = (BUILDER, SPACE / "prepare_assets.py", "--model", world.release, "--output", made)
    ended = run_to_end(*command)
    assert "cannot be compressed to int4" in ended.stderr
    assert json.loads((made / "identity.json").read_text())["weights"] == ["safetensors"]
    assert not (made / "int8").exists()
    assert run_to_end(*command, "--weights", "int8").returncode == 0
    assert json.loads((made / "identity.json").read_text())["weights"] == ["int8"]
    shutil.rmtree(world.bundle)
    made.rename(world.bundle)
    assert world.problems() == []
