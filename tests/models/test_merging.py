import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.core.errors import IntegrityError, InvalidInput, PipelineError, Refused
from src.models import merging
from src.models.files import check_adapter, check_sources, inside
from tests.fakes import tiny_model
from tests.fakes.tiny_model import edit_json

BASE, ADAPTER = "results/base_model", "results/adapter"
BASE_WEIGHTS = f"{BASE}/model.safetensors"
WEIGHTS, CONFIG = f"{ADAPTER}/adapter_model.safetensors", f"{ADAPTER}/adapter_config.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    tiny_model.write_models(root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "repository")


def merge(root: Path, dtype: str = "float32") -> tuple[merging.Model, merging.Tokenizer]:
    """As the evaluation does it: recorded afresh, so that only what the files hold can be wrong."""
    base, adapter = check_sources(tiny_model.fine_tuned(root), tiny_model.base_ref(root), root=root)
    return merging.merge(base, adapter, dtype)


def change_tensor(path: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(path)
    save_file({name: change(tensor) if part in name else tensor for name, tensor in weights.items()}, path)


def rename_tensors(path: Path, old: str, new: str) -> None:
    save_file({name.replace(old, new): tensor for name, tensor in load_file(path).items()}, path)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_a_pickle(root: Path) -> None:
    (root / WEIGHTS).rename(root / ADAPTER / "adapter_model.bin")


def drop_tensor(root: Path) -> None:
    weights = load_file(root / WEIGHTS)
    weights.pop(sorted(weights)[0])
    save_file(weights, root / WEIGHTS)


def edited(path: str, **changes: object) -> Callable[[Path], None]:
    return lambda root: edit_json(root / path, **changes)


def changed(path: str, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda root: change_tensor(root / path, part, change)


# Rows 17 to 29 and 31 of the bad-input table: what is done to the files, the error, and a part of its message. Custom
# code in a base (row 29) and the rest of what check_base refuses are in test_base_model.py.
BAD_FILES: dict[str, tuple[Callable[[Path], object], type[PipelineError], str]] = {
    "17_no_config": (lambda r: (r / CONFIG).unlink(), InvalidInput, "adapter_config.json: No such file"),
    "17_no_weights": (lambda r: (r / WEIGHTS).unlink(), InvalidInput, "no adapter_model.safetensors"),
    "18_pickle": (only_a_pickle, IntegrityError, "pickle refused"),
    "19_truncated": (lambda r: cut_in_half(r / WEIGHTS), IntegrityError, "damaged safetensors"),
    "19_truncated_base": (lambda r: cut_in_half(r / BASE_WEIGHTS), IntegrityError, "does not load"),
    "20_nan": (changed(WEIGHTS, "lora_A", lambda t: t * float("nan")), IntegrityError, "NaN"),
    "20_inf": (changed(WEIGHTS, "lora_B", lambda t: t / 0), IntegrityError, "infinity"),
    "20_merged_overflows": (changed(WEIGHTS, "lora_", lambda t: t * 1e21), IntegrityError, "does not merge"),
    "20_nan_base": (changed(BASE_WEIGHTS, "norm", lambda t: t * float("nan")), IntegrityError,
                    "NaN or infinity in model.layers"),
    "21_no_such_layer": (lambda r: rename_tensors(r / WEIGHTS, "layers.1", "layers.7"), IntegrityError,
                         "no layer of the base takes"),
    "21_missing_keys": (drop_tensor, IntegrityError, "weights are missing for"),
    "22_zero_b": (changed(WEIGHTS, "lora_B", torch.zeros_like), IntegrityError, "adapter changes nothing"),
    "23_rank": (edited(CONFIG, r=8), IntegrityError, "r is 8, the training recorded 4"),
    "23_alpha": (edited(CONFIG, lora_alpha=16), IntegrityError, "lora_alpha is 16"),
    "23_targets": (edited(CONFIG, target_modules=["q_proj"]), IntegrityError, "target_modules"),
    "23_shapes": (changed(WEIGHTS, "q_proj.lora_A", lambda t: t[:2].clone()), IntegrityError,
                  "has shape (2, 32), the settings give (4, 32)"),
    "24_another_repository": (edited(CONFIG, base_model_name_or_path="evil/model"), Refused,
                              "'evil/model', expected pocket"),
    "24_path_that_climbs": (edited(CONFIG, base_model_name_or_path=f"results/../{BASE}"), Refused, "expected pocket"),
    "24_no_base": (edited(CONFIG, base_model_name_or_path=None), Refused, "expected pocket"),
    "26_large_tokenizer": (edited(f"{BASE}/config.json", vocab_size=3), IntegrityError, "does not load"),
    "28_quantised": (edited(f"{BASE}/config.json", quantization_config={"load_in_4bit": True}), Refused,
                     "merge needs a full precision base"),
    "29_auto_mapping": (edited(CONFIG, auto_mapping={"parent_library": "evil"}), Refused, "custom code"),
    "31_newline_in_name": (lambda r: (r / ADAPTER / "a\nb").write_text(""), InvalidInput, "not plain ASCII"),
    "31_long_name": (lambda r: (r / BASE / ("x" * 200)).write_text(""), InvalidInput, "not plain ASCII"),
    "31_not_utf8": (lambda r: (r / ADAPTER / os.fsdecode(b"\xff")).write_text(""), InvalidInput, "not plain ASCII"),
    "not_lora": (edited(CONFIG, peft_type="IA3"), IntegrityError, "expected 'LORA'"),
    "config_is_a_list": (lambda r: (r / CONFIG).write_text("[]"), InvalidInput, "expected a JSON object"),
    "config_is_cut": (lambda r: cut_in_half(r / CONFIG), InvalidInput, "not JSON"),
    "no_chat_template": (lambda r: (r / BASE / "chat_template.jinja").unlink(), IntegrityError, "no chat template"),
    "base_lacks_a_layer": (lambda r: rename_tensors(r / BASE_WEIGHTS, "layers.1.mlp", "layers.9.mlp"), IntegrityError,
                           "no weights for model.layers.1.mlp"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_stops_the_merge_with_one_line_that_names_it(
    root: Path, spoil: Callable[[Path], object], error: type[PipelineError], message: str
) -> None:
    spoil(root)
    with pytest.raises(error) as caught:
        merge(root)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_other_than_those_recorded_are_refused(root: Path) -> None:
    model, base = tiny_model.fine_tuned(root), tiny_model.base_ref(root)
    tiny_model.write_adapter(root / BASE, root / ADAPTER, seed=2)
    with pytest.raises(IntegrityError, match="results/adapter: sha256 is"):
        check_sources(model, base, root=root)
    tiny_model.write_base(root / BASE, spare_rows=1)
    with pytest.raises(IntegrityError, match="results/base_model: sha256 is"):
        check_sources(model, base, root=root)


def test_a_base_that_moved_since_the_training_is_refused(root: Path) -> None:
    base = tiny_model.base_ref(root).model_copy(update={"revision": "abc"})
    with pytest.raises(Refused, match=r"belongs to base pocket at none .* not pocket at abc"):
        check_sources(tiny_model.fine_tuned(root), base, root=root)


@pytest.mark.parametrize("path", ["/tmp", "../elsewhere", "results/../../elsewhere", "link"])
def test_a_path_that_leads_out_of_the_repository_is_invalid(root: Path, path: str) -> None:
    (root / "link").symlink_to(root.parent)
    with pytest.raises(InvalidInput, match="leads out of the repository"):
        inside(root, path, what="adapter")


def test_a_file_that_is_no_part_of_an_adapter_is_named_and_stays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / ADAPTER / ".env").write_text("SECRET=1")
    check_adapter(root / ADAPTER, tiny_model.fine_tuned(root).lora, names=("pocket", BASE))
    assert [record.message.rpartition("/")[2] for record in caplog.records] == [
        ".env: not part of an adapter, left out of the release"]


def test_a_tokenizer_beyond_the_embeddings_is_refused(root: Path) -> None:
    tokenizer = json.loads((root / BASE / "tokenizer.json").read_bytes())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 5000, "content": "<new>"})
    (root / BASE / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(IntegrityError, match="the tokenizer's ids go to"):
        merging.load(root / BASE, "float32")


def test_spare_embedding_rows_are_mentioned_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model.write_base(tmp_path, spare_rows=5)
    with caplog.at_level(logging.WARNING):
        merging.load(tmp_path, "float32")
    assert "the rest is taken for padding" in caplog.text


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_on_tied_embeddings_is_refused(tmp_path: Path, layer: str) -> None:
    tiny_model.write_base(tmp_path / "base", tied=True)
    tiny_model.write_base(tmp_path / "untied")
    tiny_model.write_adapter(tmp_path / "untied", tmp_path / "adapter", targets=[layer, "q_proj"])
    with pytest.raises(IntegrityError, match="tied embeddings"):
        merging.merge(tmp_path / "base", tmp_path / "adapter", "float32")


def test_a_tied_model_whose_output_layer_differs_is_refused(tmp_path: Path) -> None:
    tiny_model.write_base(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    with pytest.raises(IntegrityError, match="tied embeddings"):
        merging.load(tmp_path, "float32")


def apart(first: merging.Model, second: merging.Model, texts: list[list[int]]) -> float:
    """How far their logits are, over whole texts."""
    return merging.logits_difference(*(merging.logits(model, texts, last=1000) for model in (first, second)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_merged_and_unmerged_logits_agree(root: Path, dtype: str, tolerance: float) -> None:
    merged, tokenizer = merge(root, dtype)
    unmerged, _ = merging.load_with_adapter(root / BASE, root / ADAPTER, dtype)
    base, _ = merging.load(root / BASE, dtype)
    texts = [list(range(3, 60)), tokenizer("Where is my order?")["input_ids"]]
    assert merged.dtype == getattr(torch, dtype)
    assert apart(unmerged, merged, texts) < tolerance
    assert apart(unmerged, base, texts) > 10 * tolerance


def test_an_adapter_on_a_tied_model_merges_where_it_leaves_the_embeddings_alone(tmp_path: Path) -> None:
    tiny_model.write_base(tmp_path / "base", tied=True)
    tiny_model.write_adapter(tmp_path / "base", tmp_path / "adapter")
    merged, _ = merging.merge(tmp_path / "base", tmp_path / "adapter", "float32")
    unmerged, _ = merging.load_with_adapter(tmp_path / "base", tmp_path / "adapter", "float32")
    assert apart(unmerged, merged, [list(range(3, 60))]) < 1e-5


def test_logits_that_are_not_numbers_are_never_taken_for_equal() -> None:
    good, bad = torch.ones(2, 3), torch.full((2, 3), float("nan"))
    assert merging.logits_difference([good, good], [good, good]) == 0
    for first, second in (([good, bad], [good, good]), ([bad, good], [bad, good])):
        assert merging.logits_difference(first, second) != merging.logits_difference(first, second)  # NaN


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_merge_is_pefts_own_bit_for_bit_though_it_needs_the_memory_of_one_model(root: Path, dtype: str) -> None:
    wrapped, _ = merging.load_with_adapter(root / BASE, root / ADAPTER, dtype)
    theirs, ours = wrapped.merge_and_unload(safe_merge=True).state_dict(), merge(root, dtype)[0].state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    base = merging.load(root / BASE, dtype)[0].state_dict()
    assert sum(not torch.equal(ours[name], base[name]) for name in base) == 2 * len(tiny_model.TARGETS)


@pytest.mark.parametrize("held", [1, 700, 2**24])  # one token at a time, two or three, all of them
def test_the_gap_of_each_token_is_that_of_the_complete_logits(
    root: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    model, _ = merge(root)
    prompt, answer = [5, 6, 7], [9, 30, 2, 41, 8, 8, 120]
    with torch.inference_mode():
        complete = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    gaps = [((row.max() - row[token]) / row.std()).item() for row, token in zip(complete, answer, strict=True)]
    monkeypatch.setattr(merging, "_LOGITS_HELD", held)
    assert merging.preference_gaps(model, prompt, answer) == pytest.approx(gaps, abs=1e-5)
    best = complete[0].argmax().item()
    assert merging.preference_gaps(model, prompt, [best]) == [0]
    assert merging.preference_gaps(model, prompt, []) == []
