"""The base model as a folder: pocket is trained from nothing, reproducibly; a foreign folder is taken over safely."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.core.errors import InvalidInput, InvalidParams, PipelineError, Refused
from src.core.params import PocketParams
from src.core.records import manifest, tree_digest
from src.models import base_model, merging
from tests.fakes.tiny_model import conversations, edit_json

TINY = PocketParams(hidden_size=32, layers=2, epochs=2, seed=3)
CONVERSATIONS = conversations()
FILES = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json"]
ODD_TEXTS = ["", "Where is my order?", "a\n\n- **b**\t  c", "\u00e9t\u00e9 \u4f60\u597d \U0001f600", "12.50 {{Order}}",
             "\x01\ufeff"]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket")
    base_model.build_pocket(CONVERSATIONS, TINY, folder)
    return folder


@pytest.fixture
def foreign(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "foreign")


def test_pocket_is_a_base_like_any_other(pocket: Path) -> None:
    base_model.check(pocket)
    model, tokenizer = merging.load(pocket, "float32")
    assert sorted(manifest(pocket)) == FILES
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.generation_config.do_sample is False


def test_the_seed_decides_every_byte_of_pocket(pocket: Path, tmp_path: Path) -> None:
    base_model.build_pocket(CONVERSATIONS, TINY, tmp_path / "again")
    base_model.build_pocket(CONVERSATIONS, TINY.model_copy(update={"seed": 4}), tmp_path / "other")
    assert manifest(tmp_path / "again") == manifest(pocket)
    assert manifest(tmp_path / "other") != manifest(pocket)


def test_pocket_learns_the_answers_and_not_the_questions(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"question": [], "answer": []}
    for epochs in (1, 60):
        base_model.build_pocket(CONVERSATIONS, TINY.model_copy(update={"epochs": epochs}), tmp_path / str(epochs))
        model, tokenizer = merging.load(tmp_path / str(epochs), "float32")
        tokens = tokenizer.apply_chat_template(CONVERSATIONS[0], return_dict=True)["input_ids"]
        asked = len(tokenizer.apply_chat_template(CONVERSATIONS[0][:-1], return_dict=True)["input_ids"])
        for part, places in (("question", slice(1, asked)), ("answer", slice(asked + 1, None))):
            labels = torch.full((1, len(tokens)), -100)
            labels[0, places] = torch.tensor(tokens[places])
            with torch.inference_mode():
                losses[part].append(model(input_ids=torch.tensor([tokens]), labels=labels).loss.item())
    assert losses["answer"][1] < losses["answer"][0] - 1
    assert losses["question"][1] > losses["question"][0] - 1


def test_a_shape_that_no_llama_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match=r"pocket\.hidden_size: 48 is not a multiple of 32; choose one that is"):
        base_model.build_pocket(CONVERSATIONS, TINY.model_copy(update={"hidden_size": 48}), tmp_path)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_the_tokenizer_of_pocket_encodes_any_text(pocket: Path, text: str) -> None:
    _, tokenizer = merging.load(pocket, "float32")
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_every_turn_ends_with_the_end_of_turn_token(pocket: Path) -> None:
    _, tokenizer = merging.load(pocket, "float32")
    tokens = tokenizer.apply_chat_template(CONVERSATIONS[0], return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(CONVERSATIONS[0][:-1], add_generation_prompt=True, return_dict=True)
    assert tokens.count(tokenizer.eos_token_id) == len(CONVERSATIONS[0])
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokens[: len(prompt["input_ids"])] == prompt["input_ids"]


def test_only_model_files_are_taken_over_and_the_source_stays(foreign: Path, tmp_path: Path) -> None:
    for name in (".env", "README.md", "pytorch_model.bin", "notes.ipynb"):
        (foreign / name).write_text("not part of a model")
    weights = foreign / "model.safetensors"
    weights.rename(tmp_path / "blob")  # the Hub's cache holds links like this one
    weights.symlink_to(tmp_path / "blob")
    before = weights.stat()
    base_model.take_over(foreign, tmp_path / "base")
    assert sorted(manifest(tmp_path / "base")) == FILES
    assert (weights.stat().st_ino, weights.stat().st_nlink) == (before.st_ino, 1)
    merging.load(tmp_path / "base", "float32")


def index(**entries: object) -> Callable[[Path], None]:
    """Shards by an index: a file of the folder for one tensor, and whatever is given for the others."""
    def write(base: Path) -> None:
        weights = base / "model.safetensors"
        shutil.copyfile(weights, base.parent / "outside.safetensors")
        weights.rename(base / "model-00001-of-00001.safetensors")
        (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {
            "lm_head.weight": "model-00001-of-00001.safetensors", **entries}}))

    return write


def test_an_index_of_files_in_the_folder_is_taken_over(foreign: Path, tmp_path: Path) -> None:
    index()(foreign)
    base_model.take_over(foreign, tmp_path / "base")
    merging.load(tmp_path / "base", "float32")


@pytest.mark.parametrize("name", ["../outside.safetensors", "./../outside.safetensors", "ABSOLUTE", "..", "", 7, None,
                                  "absent.safetensors", "sub/model.safetensors"])
def test_an_index_that_names_anything_but_files_of_its_folder_is_refused(
    foreign: Path, tmp_path: Path, name: object
) -> None:
    (foreign / "sub").mkdir()
    shutil.copyfile(foreign / "model.safetensors", foreign / "sub/model.safetensors")
    index(**{"model.norm.weight": str(tmp_path / "outside.safetensors") if name == "ABSOLUTE" else name})(foreign)
    for read in (lambda: base_model.take_over(foreign, tmp_path / "base"), lambda: merging.load(foreign, "float32")):
        with pytest.raises(Refused, match=r"index\.json: weight_map names .* no file of this folder; choose another"):
            read()
    assert not (tmp_path / "base").exists()


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(("spoil", "kind", "message"), [
    (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), Refused,
     "pickled weights are never loaded; save the model as safetensors"),
    (lambda base: edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"}), Refused,
     "config.json: auto_map asks for custom code"),
    (lambda base: edit_json(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Evil", None]}),
     Refused, "tokenizer_config.json: auto_map asks for custom code"),
    (lambda base: (base / "modeling.py").write_text("raise SystemExit"), Refused,
     "modeling.py: custom code in a base model is never run"),
    (lambda base: (base / "config.json").unlink(), InvalidInput, "no config.json, so this is no model"),
    (lambda base: (base / "model.safetensors").unlink(), InvalidInput, "no safetensors file"),
    (without_tokenizer, InvalidInput, "no usable tokenizer"),
    (lambda base: (base / "chat_template.jinja").unlink(), InvalidInput,
     "no chat template; choose a chat model, or put the template into the folder"),
    (lambda base: edit_json(base / "tokenizer_config.json", eos_token=None), InvalidInput,
     "no end-of-turn token; set eos_token"),
])
def test_an_unusable_folder_is_refused_before_anything_is_copied(
    foreign: Path, tmp_path: Path, spoil: Callable[[Path], object], kind: type[PipelineError], message: str
) -> None:
    spoil(foreign)
    with pytest.raises(kind, match=message):
        base_model.take_over(foreign, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_the_record_names_the_folder_and_covers_its_files(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(foreign.parent)
    ref = base_model.reference(Path("foreign"), name="pocket", revision="none")
    assert (ref.path, ref.sha256) == ("foreign", tree_digest(manifest(foreign)))
