"""Merge and save at full size: time and peak memory against PEFT alone, and of merge, assembly and verification in one.

    python -m benchmarks.merge [--layers 22] [--rounds 3] [--base FOLDER]

The base has TinyLlama's shape in bfloat16 with random weights, the adapter the profile's settings in float32. Each
side is a process of its own: `champion` is src.models.merging (which checks both, merges safely, looks for infinities
and saves in shards), `peft` the usual lines, `from_pretrained`, `merge_and_unload` and `save_pretrained`, `peft_safe`
the same with safe_merge=True, which alone computes what Champion does: their files must have the same bytes.
Seconds are by the
clock, from the first file read to the last one written, without imports; files are in the page cache. `verified` is
what a promotion does: merge, assemble, free, load, answer eight rows again, compare the logits with base and adapter
unmerged. Peaks are of whole processes: libraries, and pages of mapped files, count. The last line is the ratio of the
peak of `verified` to the model's bytes; 1.3 and 500 MB are allowed.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import measure, tinyllama
from src.core.params import load_params
from src.core.records import CONFIG
from utils import json_utils

DTYPE, ROWS, NEW_TOKENS = "bfloat16", 8, 48
FACTOR, BESIDE_MB = 1.3, 500

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--layers", type=int, default=22)
PARSER.add_argument("--rounds", type=int, default=3)
PARSER.add_argument("--base", type=Path, metavar="FOLDER", help="made by benchmarks.tinyllama; default: made anew")
PARSER.add_argument("--side", nargs=3, metavar=("NAME", "BASE", "FOLDER"), help=argparse.SUPPRESS)
measure.add_flags(PARSER)


def make_adapter(base: Path, folder: Path) -> None:
    """A LoRA adapter of the profile's shape that moves the base's answers."""
    from peft import LoraConfig, get_peft_model

    from src.models import merging

    lora = load_params(CONFIG).fine_tuning.lora
    torch.manual_seed(1)
    wrapped = get_peft_model(merging.load(base, DTYPE)[0], LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    wrapped.save_pretrained(folder, save_embedding_layers=False)


def champion(base: Path, folder: Path) -> None:
    """Merge and save as a promotion does."""
    from src.models import merging

    merging.save(*merging.merge(base, folder / "adapter", DTYPE), folder / "champion")


def peft(base: Path, folder: Path, *, safe_merge: bool = False) -> None:
    """Merge and save as PEFT's documentation does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from src.models.merging import SHARD_SIZE

    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=DTYPE), folder / "adapter")
    out = folder / ("peft_safe" if safe_merge else "peft")
    wrapped.merge_and_unload(safe_merge=safe_merge).save_pretrained(out, max_shard_size=SHARD_SIZE)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


def peft_safe(base: Path, folder: Path) -> None:
    """The same, in the way that tells of broken adapters."""
    peft(base, folder, safe_merge=True)


def answers(base: Path, folder: Path) -> None:
    """Score a few rows, as the evaluation stage does before any promotion."""
    from scripts.commands import evaluate
    from src.core.records import ModelIdentity
    from src.data import prepare
    from src.data.rows import parse_rows
    from src.evaluation.predictions import score_contract
    from src.models import merging

    params = load_params(CONFIG)
    params = params.model_copy(update={"evaluation": params.evaluation.model_copy(
        update={"max_new_tokens": NEW_TOKENS})})
    raw = prepare.read(Path(params.data.path), params.data).rows[:ROWS]
    rows = parse_rows([row.as_json() for row in raw], where=Path(params.data.path), max_rows=0)
    identity = ModelIdentity(adapter_sha256="0" * 64, base_name=str(base), base_revision="none", base_sha256="0" * 64,
                             dtype=DTYPE, safe_merge=True)
    candidate = evaluate.Candidate(*merging.merge(base, folder / "adapter", DTYPE), identity)
    scored = evaluate.score(candidate, rows, params, score_contract(rows, max_new_tokens=NEW_TOKENS, tokenizer="13a"))
    json_utils.write_lines(folder / "predictions.jsonl", [row.model_dump() for row in scored.predictions])
    scored.partial.remove()


def verified(base: Path, folder: Path) -> None:
    """What scripts.commands.assemble does in a promotion, from the two folders to a release that proved itself."""
    from src.evaluation.predictions import Prediction
    from src.models import merging
    from src.promotion import release

    model, tokenizer = merging.merge(base, folder / "adapter", DTYPE)
    release.assemble_release(model, tokenizer, folder / "release", max_new_tokens=NEW_TOKENS, texts={})
    del model
    scored = Prediction.load_lines(folder / "predictions.jsonl")
    found = release.verify_release(folder / "release", base=base, adapter=folder / "adapter", dtype=DTYPE,
                                   predictions=scored, again=range(len(scored)))
    print(f"{found.equal} of {found.rows} answers equal, logits within {found.logits_difference:.1e}", file=sys.stderr)


SIDES: dict[str, Callable[[Path, Path], None]] = {
    "champion": champion, "peft": peft, "peft_safe": peft_safe, "answers": answers, "verified": verified}


def run_side(name: str, base: Path, folder: Path) -> None:
    """In the child: do it, and print the seconds."""
    for module in ("peft.tuners.lora", "transformers.models.llama.modeling_llama", "scripts.commands.assemble"):
        importlib.import_module(module)  # what a deployment has loaded by then
    start = time.monotonic()
    SIDES[name](base, folder)
    print(json.dumps(time.monotonic() - start))


def timed(name: str, base: Path, folder: Path) -> tuple[float, measure.Measured]:
    """One side in a fresh process: its own seconds, and what the process took."""
    done = measure.run([sys.executable, "-m", "benchmarks.merge", "--side", name, str(base), str(folder)])
    return float(done.output.splitlines()[-1]), done


def compare(base: Path, folder: Path, rounds: int) -> list[measure.Row]:
    """The rows of the table."""
    from src.core.records import manifest

    sides = ("champion", "peft", "peft_safe", "verified")
    found = measure.interleave({name: partial(timed, name, base, folder) for name in sides}, rounds)
    ours, theirs = ({path: digest for path, digest in manifest(folder / name).items() if path.startswith("model")}
                    for name in ("champion", "peft_safe"))
    if ours != theirs:
        raise SystemExit("the merged weights are not those of PEFT's merge_and_unload(safe_merge=True)")
    seconds = {name: [one for one, _ in found[name]] for name in sides}
    peaks = {name: [one.peak_mb for _, one in found[name]] for name in sides}
    size = sum(file.stat().st_size for file in (folder / "release").glob("*.safetensors")) / measure.MB
    allowed = FACTOR * size + BESIDE_MB
    print(f"model {size:.0f} MB; peak of merge and verification {max(peaks['verified']):.0f} MB of {allowed:.0f} "
          f"allowed: {'PASS' if max(peaks['verified']) < allowed else 'FAIL'}")
    return [
        *(measure.row(f"{name}, s", seconds[name], peaks[name]) for name in sides),
        measure.ratio("PEFT's seconds to Champion's", seconds["peft"], seconds["champion"]),
        measure.ratio("PEFT's seconds, safe merge, to Champion's", seconds["peft_safe"], seconds["champion"]),
        measure.ratio("PEFT's peak memory to Champion's", peaks["peft"], peaks["champion"]),
        measure.ratio("peak of merge and verification to the model's bytes", peaks["verified"], [size] * rounds),
    ]


def main() -> None:
    """Make the models, compare, and print the table."""
    flags = PARSER.parse_args()
    if flags.side:
        run_side(flags.side[0], *map(Path, flags.side[1:]))
        return
    with tempfile.TemporaryDirectory(prefix="champion-merge-", dir=flags.base and flags.base.parent) as name:
        folder = Path(name)
        base = flags.base or folder / "base"
        if not flags.base:
            tinyllama.make(base, layers=flags.layers)
        make_adapter(base, folder / "adapter")
        timed("answers", base, folder)
        measure.finish("merge", compare(base, folder, flags.rounds), flags.json)


if __name__ == "__main__":
    main()
