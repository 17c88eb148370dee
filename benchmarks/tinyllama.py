"""A model of TinyLlama's shape with random weights, made on the spot, so that size and speed need no download.

    python -m benchmarks.tinyllama FOLDER [--layers 22] [--dtype bfloat16]

The shape is that of TinyLlama-1.1B-Chat-v1.0 (https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0): 22 layers of
2048 by 5632, 32 heads of which 4 hold keys and values, 32,000 tokens, a context of 2048. The tokenizer is learned from
the shipped conversations, so texts have a real length; the rest of the 32,000 rows is never met.
"""

import argparse
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from src.core.params import load_params
from src.core.records import CONFIG
from src.data import prepare
from src.models import base_model
from utils import process

_VOCABULARY = 32_000
CONTEXT = 2048

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("folder", type=Path, metavar="FOLDER")
PARSER.add_argument("--layers", type=int, default=22)
PARSER.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")


def config(layers: int) -> LlamaConfig:
    """TinyLlama's configuration with so many layers."""
    return LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


def make(folder: Path, *, layers: int = 22, dtype: str = "bfloat16", seed: int = 0) -> LlamaForCausalLM:
    """Write a random model of this shape and a tokenizer to a folder; returns the model."""
    params = load_params(CONFIG).data
    conversations = [row.conversation() for row in prepare.read(Path(params.path), params).rows]
    tokenizer = base_model.train_tokenizer(conversations, vocabulary=_VOCABULARY, context=CONTEXT)
    torch.manual_seed(seed)
    shape = config(layers)
    shape.bos_token_id, shape.eos_token_id, shape.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    previous = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = LlamaForCausalLM(shape)
    finally:
        torch.set_default_dtype(previous)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id,
                                               pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def main() -> int:
    """Write one; returns the exit code."""
    flags = PARSER.parse_args()
    model = make(flags.folder, layers=flags.layers, dtype=flags.dtype)
    process.say(f"{flags.folder}: {model.num_parameters() / 1e6:.0f} million parameters, {flags.dtype}")
    return 0


if __name__ == "__main__":
    process.run(main)
