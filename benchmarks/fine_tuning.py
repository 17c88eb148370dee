"""Fine-tuning speed in real tokens per second: the pipeline's batches, padding to 512, and TRL's SFTTrainer, packing.

    python -m benchmarks.fine_tuning [--trl PYTHON] [--base FOLDER] [--steps 5] [--rounds 3] [--json FILE]

PYTHON has benchmarks/requirements.txt beside the project's packages, by default in benchmarks/.venv-trl; without it,
TRL is left out. To make it:

    python3 -m venv benchmarks/.venv-trl
    echo "$PWD/.venv/lib/python3.11/site-packages" > benchmarks/.venv-trl/lib/python3.11/site-packages/project.pth
    benchmarks/.venv-trl/bin/pip install -r benchmarks/requirements.txt

If no folder is given, the base is made with 4 of TinyLlama's layers and random weights. bfloat16, data, LoRA and
optimiser are the same on all sides, and a step has about 1024 tokens, or two rows of 512 with padding. Each side runs
in a process of its own, in turns, from the end of the first step to that of the last. Only the conversations' own
tokens count. Ratios are by the clock; tokens per processor second tell whether other work on the machine came between.
TRL packs by its default, `bfd`, into rows of 1024 whose positions restart, with the same sdpa attention (for flash
attention, which it recommends, a CPU has no kernel), and learns the answers alone, as the pipeline does.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import measure

LENGTH, PADDED, CONVERSATIONS, ROWS = 1024, 512, 20, 2
SIDES = ("champion", "trl", "padded")
TRL = Path(__file__).parent / ".venv-trl/bin/python"
Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Speed:
    """Real tokens per second by the clock and of processor time, and the process's peak memory in MB."""

    clock: float
    processor: float
    peak_mb: float


def conversations(count: int) -> list[Chat]:
    """So many of the shipped ones, the same ones each time."""
    from src.core.params import load_params
    from src.core.records import CONFIG
    from src.data import prepare

    params = load_params(CONFIG).data
    rows = [row.conversation() for row in prepare.read(Path(params.path), params).rows]
    return random.Random(3).sample(rows, count)


def train(side: str, base: Path, steps: int) -> None:
    """In the child: train, and print tokens per second by the clock and of processor time."""
    import transformers
    from transformers import AutoTokenizer

    pad = AutoTokenizer.from_pretrained(base).pad_token_id
    seen, ends = [0], []
    step = transformers.Trainer.training_step

    def counted(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        seen.append(int((inputs["input_ids"] != pad).sum()))
        return step(self, model, inputs, *rest)

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), time.process_time(), sum(seen)))

    transformers.Trainer.training_step = counted
    transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
    chats = conversations(steps * (ROWS if side == "padded" else CONVERSATIONS))
    with tempfile.TemporaryDirectory() as folder:
        (_trl if side == "trl" else partial(_pipeline, side))(chats, base, Path(folder), steps)
    clock, processor, tokens = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    print(json.dumps([tokens / clock, tokens / processor]))


def _pipeline(side: str, chats: list[Chat], base: Path, folder: Path, _steps: int) -> None:
    """One epoch of the fine-tuning stage, its rows padded to 512 for the side of that name."""
    from transformers import DataCollatorForSeq2Seq

    from src.core.params import load_params
    from src.training import fine_tuning

    params = load_params(measure.ROOT / "params.yaml", {"fine_tuning": {
        "epochs": 1, "batch_size": ROWS if side == "padded" else CONVERSATIONS, "max_length": LENGTH,
        "precision": "bfloat16", "batches": "padded" if side == "padded" else "end_to_end"}}).fine_tuning
    padded = partial(DataCollatorForSeq2Seq, padding="max_length", max_length=PADDED)
    with patch.object(fine_tuning, "DataCollatorForSeq2Seq", padded):
        fine_tuning.fine_tune(chats, chats[:1], params, base=base, base_name="base", checkpoints=folder / "checkpoints",
                              adapter=folder / "adapter")


def _trl(chats: list[Chat], base: Path, folder: Path, steps: int) -> None:
    """SFTTrainer on the same conversations, with the pipeline's LoRA."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from src.core.params import load_params
    from src.models import merging

    params = load_params(measure.ROOT / "params.yaml").fine_tuning
    model, tokenizer = merging.load(base, "bfloat16")
    lora = LoraConfig(task_type="CAUSAL_LM", r=params.lora.r, lora_alpha=params.lora.alpha,
                      lora_dropout=params.lora.dropout, target_modules=params.lora.target_modules)
    settings = SFTConfig(
        output_dir=str(folder), packing=True, max_length=LENGTH, per_device_train_batch_size=1, max_steps=steps,
        bf16=True, use_cpu=True, gradient_checkpointing=False, save_strategy="no", report_to="none",
        learning_rate=params.learning_rate, dataloader_pin_memory=False, disable_tqdm=True)
    SFTTrainer(model, args=settings, processing_class=tokenizer, peft_config=lora, train_dataset=Dataset.from_list(
        [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])).train()


def _measured(side: str, flags: argparse.Namespace, base: Path) -> Speed:
    python = str(flags.trl) if side == "trl" else sys.executable
    done = measure.run([python, "-m", "benchmarks.fine_tuning", "--side", side, "--base", str(base), "--steps",
                        str(flags.steps)], env={"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"})
    clock, processor = json.loads(done.output.splitlines()[-1])
    speed = Speed(clock, processor, done.peak_mb)
    print(speed, file=sys.stderr)
    return speed


def main() -> None:
    """Compare all sides, and print the ratio to SFTTrainer last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, metavar="PYTHON", help="of an environment with TRL",
                        default=TRL if TRL.exists() else None)
    parser.add_argument("--base", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    measure.add_flags(parser)
    flags = parser.parse_args()
    if flags.side:
        train(flags.side, flags.base, flags.steps)
        return
    sides = SIDES if flags.trl else ("champion", "padded")
    with tempfile.TemporaryDirectory() as folder:
        base = flags.base or Path(folder)
        if not flags.base:
            measure.run([sys.executable, "-m", "benchmarks.tinyllama", folder, "--layers", "4"])
        speeds = measure.interleave({side: partial(_measured, side, flags, base) for side in sides}, flags.rounds)
    tokens = {side: [speed.clock for speed in found] for side, found in speeds.items()}
    rows = [measure.row(f"{side}, tokens per second", tokens[side], [speed.peak_mb for speed in found])
            for side, found in speeds.items()]
    rows += [measure.row(f"{side}, tokens per processor second", [speed.processor for speed in found])
             for side, found in speeds.items()]
    rows += [measure.ratio(f"champion to {side}", tokens["champion"], tokens[side]) for side in reversed(sides[1:])]
    measure.finish("fine_tuning", rows, flags.json)


if __name__ == "__main__":
    main()
