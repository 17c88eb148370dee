"""Sampled answers of the trained model to the evaluation split, for benchmarks/gate_noise.py.

    python -m benchmarks.sample_answers OUT.jsonl [--samples 20] [--rows N] [--temperature 1.0] [--seed 20]

Reads what `make repro` left in results/: the adapter is merged into its base and the split read as the evaluation
stage does it, and the answers are as long as `evaluation.max_new_tokens` allows. Only the decoding differs: tokens are
drawn from the model's whole distribution, no top-k and no top-p. The seed and the batches fix the answers. A line
is {"id": ..., "reference": "...", "samples": ["...", ...]}.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.commands import evaluate
from src.core.params import load_params
from src.core.records import CONFIG
from src.evaluation import generation
from src.models.merging import Model, Tokenizer
from utils import json_utils, process

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("output", type=Path, metavar="OUT.jsonl")
PARSER.add_argument("--config", type=Path, default=CONFIG, metavar="FILE")
PARSER.add_argument("--samples", type=int, default=20, help="answers to each row, default 20")
PARSER.add_argument("--rows", type=int, help="the first so many rows of the split, default all of it")
PARSER.add_argument("--temperature", type=float, default=1.0, help="default 1.0, the model's own distribution")
PARSER.add_argument("--tokens-per-batch", type=int, default=16384, help="prompts and room for answers")
PARSER.add_argument("--seed", type=int, default=20)


def main() -> int:
    """Write the sampled answers; returns the exit code."""
    flags = PARSER.parse_args()
    params = load_params(flags.config)
    split, rows = evaluate.read_split(params.evaluation)
    rows = rows[: flags.rows]
    candidate = evaluate.challenger(params.model)
    set_sampling(candidate.model, candidate.tokenizer, max_new_tokens=params.evaluation.max_new_tokens,
                 temperature=flags.temperature)
    torch.manual_seed(flags.seed)
    prompts = [row.prompt() for row in rows for _ in range(flags.samples)]
    answers = generation.answer(candidate.model, candidate.tokenizer, prompts, tokens_per_batch=flags.tokens_per_batch)
    texts = by_row([answer.text for answer in answers], len(rows))
    json_utils.write_lines(flags.output, [{"id": row.id, "reference": row.reference(), "samples": samples}
                                          for row, samples in zip(rows, texts, strict=True)])
    distinct = statistics.fmean(len(set(samples)) for samples in texts)
    process.say(f"{flags.output}: {flags.samples} answers to each of {len(rows)} rows of {split.path}, temperature "
                f"{flags.temperature}, {distinct:.1f} of a row's answers distinct, "
                f"{sum(answer.truncated for answer in answers) / len(answers):.1%} cut at the limit; "
                f"model {candidate.identity.digest()[:12]}")
    return 0


def set_sampling(model: Model, tokenizer: Tokenizer, *, max_new_tokens: int, temperature: float) -> None:
    """The scored settings with draws in the place of the best token; top_k is named since its default is 50."""
    generation.set_greedy(model, tokenizer, max_new_tokens=max_new_tokens)
    model.generation_config.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)


def by_row(texts: Sequence[str], rows: int) -> list[list[str]]:
    """The answers of each row, which stand one after the other and are equally many."""
    count, rest = divmod(len(texts), rows)
    if rest or not count:
        raise ValueError(f"{len(texts)} answers to {rows} rows; every row needs the same number")
    return [list(texts[start : start + count]) for start in range(0, len(texts), count)]


if __name__ == "__main__":
    process.run(main)
