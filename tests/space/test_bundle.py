"""Making the bundle, its settings and limits, and the fall-back engine: what needs no environment of its own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.space_process import SPACE, run_to_end, unpack

pytestmark = pytest.mark.usefixtures("modules_of_space")


def prepare(release: Path, *more: Path | str) -> subprocess.CompletedProcess[str]:
    """Make the bundle `new` beside the release."""
    return run_to_end(sys.executable, SPACE / "prepare_assets.py", "--model", release, "--output",
                      release.with_name("new"), *more)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return unpack(tmp_path).with_name("tiny-chat")


def test_what_is_no_release_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = prepare(tmp_path / "empty")
    assert ended.returncode == 2
    assert "has no config.json" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_release_that_differs_from_its_manifest_or_has_a_loose_adapter_is_refused(release: Path) -> None:
    (release / "manifest.json").write_text(json.dumps({"config.json": "0" * 64}))
    ended = prepare(release)
    assert ended.returncode == 2
    assert "config.json: is not what manifest.json says" in ended.stderr
    (release / "adapter_config.json").write_text("{}")
    ended = prepare(release)
    assert (ended.returncode, "has an unmerged adapter" in ended.stderr) == (2, True)


def test_a_release_whose_index_leads_out_of_its_folder_is_refused_by_the_builder_and_by_the_app(release: Path) -> None:
    from bundling.source import foreign_weights
    from serving.settings import SettingError
    from serving.transformers_model import TransformersModel

    (release / "model.safetensors").rename(release / "model-00001-of-00001.safetensors")
    (release.parent / "outside.safetensors").write_bytes((release / "model-00001-of-00001.safetensors").read_bytes())
    index = release / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert foreign_weights(release) == []
    for name in ("../outside.safetensors", str(release.parent / "outside.safetensors"), "absent.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors", "b": name}}))
        ended = prepare(release)
        assert ended.returncode == 7
        assert f"names {name!r}, which is no file of this folder" in ended.stderr
        with pytest.raises(SettingError, match="which is no file of this folder; run prepare_assets"):
            TransformersModel(release, threads=0)
    assert not release.with_name("new").exists()


@pytest.mark.parametrize("record", ["deployment_info", "failed"])
def test_beside_the_record_of_another_challenger_the_champion_keeps_name_and_version(
        release: Path, tmp_path: Path, record: str) -> None:
    champion: dict[str, Any] = {"model_name": "shop", "champion": {"key": "cd" * 32, "version": 7, "score": "0.5"}}
    kept = {**champion, "result": "kept", "version": None, "model_digest": "ef" * 32, "hub": {"commit": "c" * 40}}
    failed = {"result": "invalid", "code": 3, "last_known": champion}
    told: dict[str, Any] = kept if record == "deployment_info" else failed
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment/deployment_info.json").write_text(json.dumps(told))
    (release / "champion.json").write_text(json.dumps(
        {"key": "cd" * 32, "model_digest": "ab" * 32, "model_name": "shop"}))
    assert prepare(release, "--weights", "safetensors").returncode == 0
    identity = json.loads((tmp_path / "new/identity.json").read_text())
    assert identity == {**identity, "model": "shop", "version": 7, "model_digest": "ab" * 32,
                        "commit": told.get("hub", {}).get("commit")}


def test_if_nothing_can_compress_a_bundle_has_the_released_weights_and_says_so(release: Path, tmp_path: Path) -> None:
    deployed = {"model_name": "shop", "version": 7, "model_digest": "ab" * 32, "hub": {"commit": "c" * 40}}
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment/deployment_info.json").write_text(json.dumps(deployed))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [
        {"role": "user", "content": "Do you sell tea?"}, {"role": "assistant", "content": "We do."}]}) + "\n")
    ended = prepare(release, "--questions", tmp_path / "rows.jsonl")
    assert ended.returncode == 0
    assert "not compressed: optimum.intel, nncf, openvino missing in this environment" in ended.stderr
    identity = json.loads((tmp_path / "new/identity.json").read_text())
    assert identity == {**identity, "model": "shop", "version": 7, "commit": "c" * 40, "model_digest": "ab" * 32,
                        "weights": ["safetensors"]}
    assert (tmp_path / "new/model.safetensors").read_bytes() == (release / "model.safetensors").read_bytes()
    stored = json.loads((tmp_path / "new/questions.json").read_text())
    assert stored[-1] == {"question": "Do you sell tea?", "answer": "We do."}


def test_a_bundle_states_how_large_the_model_is_and_what_it_was_made_of(release: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    (release / "champion.json").write_text(json.dumps({"model_digest": "ab" * 32, "base_model": "pocket"}))
    assert prepare(release, "--weights", "safetensors").returncode == 0
    identity = json.loads((tmp_path / "new/identity.json").read_text())
    held = sum(tensor.size for tensor in load_file(release / "model.safetensors").values())
    assert (identity["base_model"], identity["parameters"]) == ("pocket", held)

    from serving.identity import BundleIdentity, Origin

    assert BundleIdentity.load(tmp_path / "new").origin.sentence == (
        f"A stand-in model with {held:,} parameters, made in minutes on a laptop: expect mistakes.")
    assert BundleIdentity.load(tmp_path / "assets").origin == Origin()  # a bundle from before this was recorded
    assert Origin().sentence == ""
    assert Origin(1_100_048_384, "acme/base").sentence == "1.1 billion parameters, fine-tuned from acme/base."
    (release / "model.safetensors").write_bytes(b"no header")
    assert Origin.of_release(release).parameters is None


def test_the_fallbacks_questions_hold_every_answer_before_any_answer_twice(tmp_path: Path) -> None:
    import prepare_assets

    def line(question: str, answer: str) -> str:
        return json.dumps({"messages": [{"role": "user", "content": question},
                                        {"role": "assistant", "content": answer}]})

    rows = [line(f"question {n} about {about}", f"answer {about}") for about in range(300) for n in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    stored = prepare_assets._first_turns(tmp_path / "train.jsonl")
    assert len(stored) == 500
    assert len({each["answer"] for each in stored}) == 300


def test_what_libraries_print_goes_to_a_file_which_is_named_if_something_fails(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text("""
import os, sys, prepare_assets
from pathlib import Path
prepare_assets.logging.basicConfig()
with prepare_assets.output_to(Path(sys.argv[1])):
    print("a warning"); os.system("echo from C++ >&2"); sys.exit() if sys.argv[2:] else 1 / 0
""")
    log = tmp_path / "assets.log"
    ended = run_to_end(sys.executable, tmp_path / "noisy.py", log, "well", PYTHONPATH=str(SPACE))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert sorted(log.read_text().splitlines()) == ["a warning", "from C++"]
    ended = run_to_end(sys.executable, tmp_path / "noisy.py", log, PYTHONPATH=str(SPACE))
    assert f"what the libraries printed is in {log}" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr
    assert ended.stdout == ""
    assert log.read_text().count("a warning") == 2


def test_a_deployment_of_another_model_gives_no_version(release: Path) -> None:
    release.with_name("deployment").mkdir()
    deployed = {"version": 9, "model_digest": "cd" * 32}
    (release.parent / "deployment/deployment_info.json").write_text(json.dumps(deployed))
    from bundling import source

    assert source.find(str(release), None).version is None
    assert source.find(str(release), 4).version == 4


@pytest.mark.parametrize("wrong", [{"PORT": "http"}, {"PORT": "0"}, {"MAX_QUEUE": "-1"}, {"WEIGHTS": "int2"},
                                   {"MODEL_DIR": "/nowhere"}], ids=str)
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, str]) -> None:
    from serving import settings

    with pytest.raises(settings.SettingError, match=next(iter(wrong))):
        settings.find_model(settings.Settings.read(wrong))


def test_offline_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "APP", tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        with pytest.raises(settings.SettingError, match="no bundle here, and shop/chat may not be downloaded: "):
            settings.find_model(settings.Settings.read({"HF_MODEL_ID": "shop/chat", name: "1"}))


def test_a_space_a_container_and_a_laptop_are_told_apart() -> None:
    from serving.settings import Settings, host_kind

    assert host_kind({"SPACE_ID": "a/b"}, lambda _: True) == "Space"
    assert host_kind({}, lambda path: path.name == ".dockerenv") == "container"
    assert host_kind({}, lambda _: False) == "laptop"
    assert (Settings.read({"SPACE_ID": "a/b"}).port, Settings.read({}).port) == (7860, 5000)


def test_a_client_over_its_rate_waits_as_long_as_it_is_told() -> None:
    from serving.limits import Rate, TooBusy

    now = 0.0
    rate = Rate(2, clock=lambda: now)
    rate.take("a")
    rate.take("a")
    with pytest.raises(TooBusy) as refused:
        rate.take("a")
    rate.take("b")
    now += refused.value.retry_after
    rate.take("a")


def test_a_client_that_does_not_read_its_answer_is_cut_off_and_leaves_its_place() -> None:
    from serving.limits import Gate
    from serving.schema import HeldStream

    gate = Gate(concurrency=1, queue=0)

    async def wait_for_ever(*_: object) -> Any:
        await asyncio.Event().wait()

    async def events() -> AsyncGenerator[str, None]:
        yield "data: hello\n\n"

    async def answer() -> None:
        place = AsyncExitStack()
        await place.enter_async_context(gate.enter())
        stream = HeldStream(events(), place, 0.05, {})
        assert gate.inside == 1
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, wait_for_ever, wait_for_ever)

    asyncio.run(asyncio.wait_for(answer(), 60))
    assert gate.inside == 0


def test_an_adapter_is_refused_where_there_is_no_peft(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (release / "adapter_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "peft", None)
    from serving.settings import SettingError
    from serving.transformers_model import TransformersModel

    with pytest.raises(SettingError, match=r"has an adapter that is not merged, and .*peft.* strategy cpu-only"):
        TransformersModel(release, threads=1)


def test_released_weights_answer_as_transformers_itself_does_several_at_once(release: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from serving.bundle import Bundle
    from serving.engine import Options
    from serving.transformers_model import TransformersModel

    bundle = Bundle.open(release)
    prompt = bundle.encode([{"role": "user", "content": "Where is my order?"}])
    model = TransformersModel(bundle.folder, threads=1)
    for number, options in enumerate((Options(12, [], 0.0, 1.0, 0), Options(20_000, [], 0.0, 1.0, 0),
                                      Options(12, [], 2.0, 0.9, 1), Options(12, [], 2.0, 0.9, 1))):
        model.start(number, prompt, options)
    steps = [model.step() for _ in range(12)]
    greedy, endless, one, again = ([piece.tokens[0] for pieces in steps for piece in pieces if piece.number == number]
                                   for number in range(4))
    whole = AutoModelForCausalLM.from_pretrained(bundle.folder).generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert greedy == endless == whole[0, len(prompt):].tolist()
    assert one == again != greedy
    assert [piece.finish_reason for piece in steps[-1]] == ["length", None, "length", "length"]
    model.stop(1)
    assert model.idle()
