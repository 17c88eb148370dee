"""How many copied answers a release takes for its own when it reads them (`src.promotion.release`).

    python -m benchmarks.copied_answers [--dtype float32]        (after `make repro`)

The challenger is the adapter in results/, merged into its base. Rivals answer the evaluation split in its place: the
same adapter at other strengths (0.5 is half as much fine-tuning, 0.99 next to all of it), and samples of the
challenger's own distribution at temperature 1. Of their answers that differ from the challenger's, a line counts those
in which no token lies further below the challenger's first choice than honest answers may. The first line is of the
challenger's own answers: what reading them finds, and how long it takes beside generating them.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.sample_answers import set_sampling
from scripts.commands import evaluate
from src.core.params import EvaluationParams, load_params
from src.core.records import BASE_MODEL, CONFIG, BaseModelRef
from src.evaluation import generation
from src.evaluation.generation import Conversation
from src.models import merging
from src.promotion.release import READ_TOLERANCE

STRENGTHS = (0.0, 0.5, 0.9, 0.99)
SAMPLES = 4
Tokens = list[int]


def answer(candidate: evaluate.Candidate, prompts: Sequence[Conversation], params: EvaluationParams) -> list[Tokens]:
    """The tokens of every answer, as the model's settings have it."""
    found = generation.answer(candidate.model, candidate.tokenizer, prompts, tokens_per_batch=params.tokens_per_batch)
    return [each.tokens for each in found]


def rivals(candidate: evaluate.Candidate, base: merging.Model, prompts: Sequence[Conversation],
           params: EvaluationParams) -> Iterator[tuple[str, list[Tokens]]]:
    """A name and answers each; in between, the candidate is as it was."""
    model = candidate.model
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for strength in STRENGTHS:
        with torch.no_grad():
            for merged, plain in zip(model.parameters(), base.parameters(), strict=True):
                merged.copy_(plain.float() + strength * (merged.float() - plain.float()))
        found = answer(candidate, prompts, params)
        model.load_state_dict(own)
        yield f"adapter x {strength}", found
    torch.manual_seed(SAMPLES)
    set_sampling(model, candidate.tokenizer, max_new_tokens=params.max_new_tokens, temperature=1.0)
    for number in range(SAMPLES):
        yield f"sample {number + 1}", answer(candidate, prompts, params)


def main() -> int:
    """Print a line for each rival; 1 if one of the challenger's own answers is not taken for its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(READ_TOLERANCE), default="float32")
    asked, params = parser.parse_args(), load_params(CONFIG)
    allowed, base = READ_TOLERANCE[asked.dtype], BaseModelRef.load(BASE_MODEL)
    candidate = evaluate.challenger(params.model.model_copy(update={"release_dtype": asked.dtype}))
    model, tokenizer = candidate.model, candidate.tokenizer
    generation.set_greedy(model, tokenizer, max_new_tokens=params.evaluation.max_new_tokens)
    prompts = [row.prompt() for row in evaluate.read_split(params.evaluation)[1]]
    encoded = [generation.prompt_tokens(tokenizer, prompt) for prompt in prompts]

    def furthest(place: int, tokens: Tokens) -> float:
        return max(merging.preference_gaps(model, encoded[place], tokens))

    start = time.monotonic()
    own = answer(candidate, prompts, params.evaluation)
    generated = time.monotonic()
    gaps = [furthest(place, tokens) for place, tokens in enumerate(own)]
    read = time.monotonic()
    print(f"own answers: {len(own)}, {sum(map(len, encoded))} tokens of prompts and {sum(map(len, own))} of answers, "
          f"generated in {generated - start:.1f} s, read in {read - generated:.1f} s; furthest below the first choice "
          f"{max(gaps):.2g}, {allowed:.2g} is allowed", flush=True)
    for name, found in rivals(candidate, merging.load(Path(base.path), asked.dtype)[0], prompts, params.evaluation):
        differing = [place for place, tokens in enumerate(found) if tokens != own[place]]
        taken = sum(furthest(place, found[place]) <= allowed for place in differing)
        print(f"{name}: {len(differing)} answers differ, {taken} of them are taken for the challenger's", flush=True)
    return 0 if max(gaps) <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
