"""A Llama of two layers with a byte-level tokenizer, a LoRA adapter for it, and their records: made on the spot."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from src.core.records import (
    BaseModelRef,
    DatasetRef,
    Datasets,
    FineTunedModel,
    LoraSettings,
    digest_of,
    file_sha256,
    manifest,
    tree_digest,
)
from src.data.rows import EvaluationRow, parse_rows
from utils.json_utils import write_lines, write_object

TARGETS = ["down_proj", "q_proj", "v_proj"]
RANK, ALPHA = 4, 8
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTIONS = ("Where is my order?", "How do I return an item that does not fit me?", "Cancel it", "Do you ship abroad?",
             "I was charged twice for one order, what now?", "May I pay later?")
SPLIT = DatasetRef(path="results/data/evaluation.jsonl", sha256="d" * 64, rows=len(QUESTIONS))


def write_base(folder: Path, *, tied: bool = False, spare_rows: int = 0) -> None:
    """A base whose answers vary (wide initial weights) and that asks for sampling, as TinyLlama's settings may."""
    transformers_logging.disable_progress_bar()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(QUESTIONS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                        chat_template=TEMPLATE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer) + spare_rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.2, tie_word_embeddings=tied))
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapter(base: Path, folder: Path, *, targets: list[str] | None = None, seed: int = 1) -> None:
    """An adapter that moves the base's answers."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=targets or TARGETS, task_type="CAUSAL_LM"))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    edit_json(folder / "adapter_config.json", base_model_name_or_path="pocket")


def edit_json(path: Path, **changes: object) -> None:
    """Overwrite keys of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def write_models(root: Path) -> None:
    """results/base_model and results/adapter below a root."""
    write_base(root / "results/base_model")
    write_adapter(root / "results/base_model", root / "results/adapter")


def write_stages(root: Path) -> None:
    """Results of all stages before the evaluation: models, records, and a split of six rows."""
    write_models(root)
    path = "results/data/evaluation.jsonl"
    write_lines(root / path, row_objects())
    split = DatasetRef(path=path, sha256=file_sha256(root / path), rows=len(QUESTIONS))
    splits = Datasets(raw=split, train=split, validation=split, evaluation=split)
    write_object(root / "results/data/datasets.json", splits.model_dump())
    write_records(root)


def write_records(root: Path) -> None:
    """Of the base and the adapter as they are."""
    write_object(root / "results/base_model.json", base_ref(root).model_dump())
    write_object(root / "results/fine_tuned_model_location.json", fine_tuned(root).model_dump())


def base_ref(root: Path) -> BaseModelRef:
    """The record of results/base_model."""
    path = "results/base_model"
    return BaseModelRef(name="pocket", revision="none", path=path, sha256=tree_digest(manifest(root / path)))


def fine_tuned(root: Path) -> FineTunedModel:
    """The record of results/adapter."""
    path = "results/adapter"
    return FineTunedModel(
        run_id="training-run", tracking_uri="sqlite:///mlflow.db", adapter_path=path,
        adapter_sha256=tree_digest(manifest(root / path)), base_model=base_ref(root), train=SPLIT,
        lora=LoraSettings(r=RANK, alpha=ALPHA, dropout=0.0, target_modules=TARGETS), git_commit="none")


def conversations() -> list[list[dict[str, str]]]:
    """A question each, with its answer."""
    return [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": question},
             {"role": "assistant", "content": f" Answer {number}: within {number} days. "}]
            for number, question in enumerate(QUESTIONS, start=1)]


def row_objects() -> list[dict[str, object]]:
    """Evaluation rows as they stand in a split's file."""
    return [{"id": digest_of(chat)[:16], "intent": "order", "messages": chat} for chat in conversations()]


def rows() -> list[EvaluationRow]:
    """The same as records."""
    return parse_rows(row_objects(), where=Path("evaluation.jsonl"), max_rows=0)
