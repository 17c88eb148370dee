import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.core.errors import IntegrityError, InvalidInput
from src.core.records import manifest
from src.evaluation import generation
from src.evaluation.metrics import row_statistics
from src.evaluation.predictions import Prediction, as_predictions
from src.models import merging
from src.promotion import release
from tests.fakes import tiny_model

TEXTS = {release.CARD: "# A card\n", release.EVAL_RESULTS: "- value: 1\n"}
Rows = list[Prediction]
NEW_TOKENS = {"float32": 16, "bfloat16": 6}  # below float32 a CPU takes 0.1 s for each


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_model.write_models(root)
    return root / "results"


def assemble(models: Path, folder: Path, *, dtype: str = "float32", texts: Mapping[str, str] = TEXTS) -> dict[str, str]:
    model, tokenizer = merging.merge(models / "base_model", models / "adapter", dtype)
    return release.assemble_release(model, tokenizer, folder, max_new_tokens=NEW_TOKENS[dtype], texts=texts)


def scored(models: Path, dtype: str = "float32", count: int = 6, adapter: str | Path = "adapter") -> Rows:
    """What the evaluation stage records: answers of the merged model in memory, two at a time."""
    model, tokenizer = merging.merge(models / "base_model", models / adapter, dtype)
    generation.set_greedy(model, tokenizer, max_new_tokens=NEW_TOKENS[dtype])
    asked = tiny_model.rows()[:count]
    answers = generation.answer(model, tokenizer, [row.prompt() for row in asked], tokens_per_batch=200)
    texts = [answer.text for answer in answers]
    return as_predictions(asked, answers, row_statistics(texts, [row.reference() for row in asked], "13a"))


def verify(models: Path, folder: Path, rows: Rows, dtype: str = "float32", *, again: Sequence[int] | None = None
           ) -> release.Verification:
    """again: the places of the rows that are generated again, all by default."""
    return release.verify_release(folder, base=models / "base_model", adapter=models / "adapter", dtype=dtype,
                                  predictions=rows, again=range(len(rows)) if again is None else again)


@pytest.fixture(scope="module")
def rows(models: Path) -> Rows:
    return scored(models)


@pytest.fixture(scope="module")
def assembled(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assembled") / "release"
    assemble(models, folder)
    return folder


@pytest.fixture
def folder(assembled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(assembled, tmp_path / "release")


def test_plain_transformers_give_the_scored_answers_token_for_token(folder: Path, rows: Rows) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for row in rows:
        inputs = tokenizer.apply_chat_template(row.prompt(), add_generation_prompt=True, return_dict=True,
                                               return_tensors="pt")
        output = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
        assert output.tolist() == row.tokens
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == row.prediction
    assert len({row.prediction for row in rows}) == len(rows)  # else equality would say little


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_release_of_the_scored_model_is_verified(models: Path, tmp_path: Path, dtype: str) -> None:
    assemble(models, tmp_path / "release", dtype=dtype)
    found = verify(models, tmp_path / "release", scored(models, dtype), dtype, again=range(5))
    assert (found.rows, found.answers) == (5, 6)
    assert found.equal == 5 or (dtype != "float32" and found.equal >= 3)
    assert found.near_ties == 0 or dtype != "float32"
    assert found.logits_difference <= release.LOGITS_TOLERANCE[dtype]


def scale_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.02
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_answer_alike_but_are_not_the_merge_are_refused(models: Path, folder: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    scale_a_layer(folder)
    seal(folder)
    monkeypatch.setattr(release, "_same_answer", lambda *_: True)
    monkeypatch.setattr(release, "_read", lambda *_: 0)
    with pytest.raises(IntegrityError, match="logits differ from base and adapter by"):
        verify(models, folder, scored(models)[:2])


def seal(folder: Path) -> None:
    """Write a manifest that the files agree with, as somebody might who changed them."""
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest(folder)))


def test_a_release_of_another_model_is_refused(models: Path, folder: Path, rows: Rows) -> None:
    shutil.copy(models / "base_model/model.safetensors", folder / "model.safetensors")
    seal(folder)
    with pytest.raises(IntegrityError, match="is answered differently from token"):
        verify(models, folder, rows)


def test_one_other_token_among_the_scored_ones_is_noticed(models: Path, folder: Path, rows: Rows) -> None:
    tokens = [*rows[2].tokens]
    tokens[5] += 1
    changed = rows[2].model_copy(update={"tokens": tokens})
    with pytest.raises(IntegrityError, match=f"row {changed.id} is answered differently from token 6 on"):
        verify(models, folder, [*rows[:2], changed])


def test_an_answer_of_another_model_is_found_in_a_row_that_is_not_generated_again(models: Path, folder: Path,
                                                                                  rows: Rows, tmp_path: Path) -> None:
    tiny_model.write_adapter(models / "base_model", tmp_path / "other", seed=7)
    for place, other in enumerate(scored(models, adapter=tmp_path / "other")):
        forged = [*rows[:place], other, *rows[place + 1:]]
        pairs = zip(rows[place].tokens, other.tokens, strict=False)
        first = next(number for number, (own, copied) in enumerate(pairs, 1) if own != copied)
        with pytest.raises(IntegrityError, match=f"row {other.id} is answered differently from token {first} on"):
            verify(models, folder, forged, again=[(place + 1) % 6])


@pytest.fixture
def stopping(models: Path, rows: Rows, tmp_path: Path) -> Path:
    """Models with two more stop tokens, so that one answer ends with its first token and others end early."""
    root = shutil.copytree(models, tmp_path / "stopping")
    stops = [2, rows[0].tokens[0], rows[1].tokens[4]]
    tiny_model.edit_json(root / "base_model/generation_config.json", eos_token_id=stops)
    assemble(root, root / "release")
    return root


def test_answers_of_one_token_and_those_without_a_stop_token_are_verified(stopping: Path) -> None:
    answers = scored(stopping)
    assert len(answers[0].tokens) == 1
    assert 1 < len(answers[1].tokens) <= 5
    assert max(len(row.tokens) for row in answers if row.truncated) == 16
    assert verify(stopping, stopping / "release", answers, again=[5]).near_ties == 0


def test_an_answer_that_ends_elsewhere_than_the_model_ends_it_is_found(stopping: Path, rows: Rows) -> None:
    answers = scored(stopping)
    cut = next(place for place, row in enumerate(answers) if row.truncated)
    shortened = answers[cut].model_copy(update={"tokens": answers[cut].tokens[:13], "truncated": False})
    for place, row, token in ((cut, shortened, 14), (0, rows[0], 2)):  # the second goes on after its stop token
        forged = [*answers[:place], row, *answers[place + 1:]]
        with pytest.raises(IntegrityError, match=f"row {row.id} is answered differently from token {token} on"):
            verify(stopping, stopping / "release", forged, again=[(place + 1) % 6])


def test_a_token_that_the_model_does_not_have_is_no_answer(models: Path, folder: Path, rows: Rows) -> None:
    unknown = rows[3].model_copy(update={"tokens": [*rows[3].tokens[:7], 2**31 - 1, *rows[3].tokens[8:]]})
    with pytest.raises(IntegrityError, match=f"row {unknown.id} is answered differently from token 8 on"):
        verify(models, folder, [*rows[:3], unknown], again=[0])


def test_below_float32_only_a_near_tie_may_part_the_answers(models: Path, tmp_path: Path) -> None:
    assemble(models, tmp_path / "release", dtype="bfloat16")
    row = scored(models, "bfloat16", count=1)[0]
    model, tokenizer = merging.load(tmp_path / "release", "auto")
    prompt = generation.prompt_tokens(tokenizer, row.prompt())
    with torch.inference_mode():
        order = model(torch.tensor([prompt])).logits[0, -1].float().argsort(descending=True).tolist()
    unlikely = row.model_copy(update={"tokens": [order[-1], *row.tokens[1:]]})
    assert merging.preference_gaps(model, prompt, [order[0]]) == [0]
    assert merging.preference_gaps(model, prompt, [order[-1]])[0] > release.TIE_TOLERANCE["bfloat16"]
    with pytest.raises(IntegrityError, match="from token 1 on"):
        verify(models, tmp_path / "release", [unlikely], "bfloat16")


def test_another_precision_than_the_scored_one_is_refused(models: Path, folder: Path, rows: Rows) -> None:
    with pytest.raises(IntegrityError, match=r"weights are torch\.float32, expected bfloat16"):
        verify(models, folder, rows, "bfloat16")


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (scale_a_layer, "model.safetensors: is not what manifest.json says"),
    "missing": (lambda f: (f / "chat_template.jinja").unlink(), "chat_template.jinja: is not what"),
    "additional": (lambda f: (f / "added_tokens.json").write_text("{}"), "added_tokens.json: is not what"),
    "secret": (lambda f: (f / ".env").write_text("HF_TOKEN=hf_x"), ".env: is no part of a release"),
    "in a folder": (lambda f: (f / ".eval_results/other.yaml").write_text("[]"), "other.yaml: is no part of a release"),
    "code": (lambda f: (f / "modeling.py").write_text(""), "modeling.py: is no part of a release"),
    "manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
    "link": (lambda f: (f / "vocab.json").symlink_to("/etc/hostname"), "is a link"),
}


@pytest.mark.parametrize(("tamper", "message"), TAMPERED.values(), ids=TAMPERED)
def test_a_release_that_was_changed_is_refused(folder: Path, tamper: Callable[[Path], object], message: str) -> None:
    tamper(folder)
    with pytest.raises((IntegrityError, InvalidInput), match=re.escape(message)):
        release.check_release(folder)


def test_a_release_holds_the_expected_files_and_a_manifest_of_them(models: Path, tmp_path: Path) -> None:
    files = assemble(models, tmp_path / "release")
    assert set(files) == {".eval_results/evaluation.yaml", "README.md", "chat_template.jinja", "config.json",
                          "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert release.check_release(tmp_path / "release") == files
    assert set(files) - set(assemble(models, tmp_path / "bare", texts={})) == set(TEXTS)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_stored_generation_settings_are_greedy_and_without_the_bases_sampling(models: Path, folder: Path) -> None:
    assert json.loads((models / "base_model/generation_config.json").read_bytes())["temperature"] == 0.7
    found = json.loads((folder / "generation_config.json").read_bytes())
    found.pop("transformers_version")
    assert found == {"do_sample": False, "max_new_tokens": 16, "bos_token_id": 1, "eos_token_id": [2],
                     "pad_token_id": 0}


def test_equal_models_give_equal_bytes_whatever_was_generated_and_set_before(models: Path, tmp_path: Path) -> None:
    first = assemble(models, tmp_path / "first")
    program = ("from pathlib import Path; from tests.promotion.test_release import assemble, scored; import json, sys; "
               "folder = Path(sys.argv[1]); scored(folder); "
               "print(json.dumps(assemble(folder, Path(sys.argv[2]))))")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "5", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", program, str(models), str(tmp_path / "second")], check=True,
                          capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == first


def test_shards_are_made_and_load(models: Path, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SHARD_SIZE", "40KB")
    files = assemble(models, tmp_path / "release")
    assert "model-00001-of-00005.safetensors" in files
    assert "model.safetensors.index.json" in files
    verify(models, tmp_path / "release", rows)


def test_a_failed_assembly_leaves_the_old_release_and_a_good_one_replaces_it(
        models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = release.check_release(folder)
    monkeypatch.setattr(release, "_ALLOWED", re.compile("config.json"))
    with pytest.raises(IntegrityError, match="is no part of a release"):
        assemble(models, folder)
    monkeypatch.undo()
    assert release.check_release(folder) == before
    (folder / "left_over.bin").write_text("")
    assert assemble(models, folder) == release.check_release(folder)  # a foreign file would be an error
    assert [path.name for path in folder.parent.iterdir()] == ["release"]


def test_too_small_a_disk_is_told_in_two_figures(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(IntegrityError, match=r"1000 bytes are free, a release needs \d+"):
        assemble(models, tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_removed_and_those_of_live_ones_kept(models: Path, tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True)
    names = {f".release.{int(dead.stdout)}.abc": False, f".release.{os.getpid()}.abc": True, ".release.1.abc": True}
    for name in names:
        (tmp_path / name).mkdir()
    assemble(models, tmp_path / "release")
    assert {name: (tmp_path / name).exists() for name in names} == names
