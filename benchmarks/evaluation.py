"""Evaluated examples a second: ours, one by one padded to 512, and the text-generation pipeline at its best batch size.

    python -m benchmarks.evaluation [--layers 4] [--rows 120] [--rounds 3] [--json FILE]

The model has TinyLlama's layers with random weights, in the bfloat16 that its profile evaluates in. Random weights
never stop, so their answers would all be as long as the limit. Here each prompt ends with a token that says how many
tokens its reference has, and the embeddings and the output layer are set so that the model counts down from it and
then gives the stop token: real weights, the real stop token and no hook, for all sides alike, and answers as long as
the shipped ones. The layers are computed in full, but have no say in the next token.

Prompts and references are those of the shipped data, evenly spaced over it. All sides decode greedily with up to 512
new tokens. `one by one` pads each prompt to 512, as the pipeline that this project began with did; it answers every
tenth row only. The pipeline takes the prompts in their order; its batch size is the best of a scan over 4 to 64. Each
side runs in a process of its own, in turns; loading and a first answer are not counted. A side whose answers are not
as long as asked ends the benchmark.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, pipeline

from benchmarks import measure, tinyllama
from src.core.params import load_params
from src.core.records import CONFIG
from src.data import prepare
from src.evaluation import generation
from src.models import merging
from src.models.merging import Model, Tokenizer

NEW_TOKENS, PADDED = 512, 512
SIZES = (4, 8, 16, 32, 64)
EVERY = 10
ROOM = 200  # no reference is longer
Prompt = list[dict[str, str]]
Lengths = list[int]


def make(folder: Path, layers: int) -> None:
    """A model and a tokenizer that answer a prompt ending with `<|n|>` by n tokens, the last one the stop token."""
    model = tinyllama.make(folder, layers=layers)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    counts = [f"<|{count}|>" for count in range(1, ROOM + 1)]
    tokenizer.add_tokens(counts, special_tokens=True)
    chain = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(counts)]
    torch.manual_seed(1)
    directions = torch.randint(0, 2, (ROOM, model.config.hidden_size)).to(model.dtype) * 2 - 1
    with torch.no_grad():  # far above what the layers add to it, so that the next count wins
        model.get_input_embeddings().weight[chain[1:]] = 64 * directions
        model.get_output_embeddings().weight[chain[:-1]] = directions
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<|' + messages[-1]['count'] + '|>' }}{% endif %}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read(tokenizer: Tokenizer, rows: int) -> tuple[list[Prompt], Lengths]:
    """Prompts, each with the count that its last message brings, and these counts."""
    params = load_params(CONFIG).data
    found = prepare.read(Path(params.path), params).rows
    chats = [found[place * len(found) // rows].conversation() for place in range(rows)]
    counts = [1 + len(tokenizer(chat[-1]["content"], add_special_tokens=False)["input_ids"]) for chat in chats]
    prompts = [[*chat[:-2], {**chat[-2], "count": str(count)}] for chat, count in zip(chats, counts, strict=True)]
    return prompts, counts


def ours(model: Model, tokenizer: Tokenizer, prompts: list[Prompt], _size: int) -> Lengths:
    """As the evaluation stage does it, under the profile's token budget."""
    params = load_params(CONFIG, profile="tinyllama").evaluation
    answers = generation.answer(model, tokenizer, prompts, tokens_per_batch=params.tokens_per_batch)
    return [len(answer.tokens) for answer in answers]


def one_by_one(model: Model, tokenizer: Tokenizer, prompts: list[Prompt], _size: int) -> Lengths:
    """Each prompt on its own, padded to 512."""
    lengths = []
    for prompt in prompts:
        tokens = generation.prompt_tokens(tokenizer, prompt)
        padded = tokenizer.pad({"input_ids": [tokens]}, padding="max_length", max_length=PADDED, return_tensors="pt")
        lengths.append(model.generate(**padded).shape[1] - PADDED)
    return lengths


def by_pipeline(model: Model, tokenizer: Tokenizer, prompts: list[Prompt], size: int) -> Lengths:
    """The library's pipeline; it gives tokens, so that it need not decode."""
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    found = generate(texts, batch_size=size, return_tensors=True, add_special_tokens=False)
    counts = set(tokenizer.convert_tokens_to_ids([f"<|{count}|>" for count in range(1, ROOM + 1)]))
    return [sum(token in counts for token in row[0]["generated_token_ids"]) for row in found]


SIDES: dict[str, Callable[[Model, Tokenizer, list[Prompt], int], Lengths]] = {
    "ours": ours, "one by one": one_by_one, "pipeline": by_pipeline}


def run_side(side: str, folder: Path, rows: int, size: int) -> None:
    """In the child: answer the rows and print examples a second."""
    model, tokenizer = merging.load(folder, "auto")
    generation.set_greedy(model, tokenizer, max_new_tokens=NEW_TOKENS)
    prompts, counts = read(tokenizer, rows)
    if side == "one by one":
        prompts, counts = prompts[::EVERY], counts[::EVERY]
    SIDES[side](model, tokenizer, prompts[:2], 2)
    start = time.perf_counter()
    lengths = SIDES[side](model, tokenizer, prompts, size)
    seconds = time.perf_counter() - start
    if lengths != counts:
        raise SystemExit(f"{side}: answers are {lengths} tokens long, asked for {counts}")
    print(json.dumps(len(prompts) / seconds))


def measured(side: str, folder: Path, rows: int, size: int = 0) -> tuple[float, float]:
    """Examples a second and peak MB of one side, in a fresh process."""
    found = measure.run([sys.executable, "-m", "benchmarks.evaluation", "--side", side, "--folder", str(folder),
                         "--rows", str(rows), "--size", str(size)])
    return float(found.output.splitlines()[-1]), found.peak_mb


def compare(folder: Path, rows: int, rounds: int) -> list[measure.Row]:
    """Scan the pipeline's batch sizes, then all sides in turns."""
    scanned = {size: measured("pipeline", folder, rows, size)[0] for size in SIZES}
    best = max(scanned, key=lambda size: scanned[size])
    print("pipeline, examples/s by batch size: " + ", ".join(f"{n}: {rate:.2f}" for n, rate in scanned.items()))
    sides = {side: lambda side=side: measured(side, folder, rows, best) for side in SIDES}
    results = measure.interleave(sides, rounds)
    rates = {side: [rate for rate, _ in found] for side, found in results.items()}
    names = {"ours": "ours", "one by one": f"one by one padded to {PADDED}", "pipeline": f"pipeline, batches of {best}"}
    table = [measure.row(f"{name}, examples/s", rates[side], [peak for _, peak in results[side]])
             for side, name in names.items()]
    return [*table, measure.ratio("ours to the pipeline", rates["ours"], rates["pipeline"]),
            measure.ratio("ours to one by one", rates["ours"], rates["one by one"])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model, compare, and print the ratios last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    measure.add_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.side:
        run_side(flags.side, flags.folder, flags.rows, flags.size)
        return
    with tempfile.TemporaryDirectory(prefix="champion-benchmark-") as folder:
        make(Path(folder), flags.layers)
        measure.finish("evaluation", compare(Path(folder), flags.rows, flags.rounds), flags.json)


if __name__ == "__main__":
    main()
