"""Checkpoints of a training: marked as whole once they are, and the newest whole one found again."""

import json
import logging
import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from src.core.errors import InvalidInput
from src.core.records import manifest, tree_digest

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"
_COMPLETE = ".sha256"


class Marks(TrainerCallback):  # type: ignore[misc]
    """Marks checkpoints as whole."""

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        """Once one is written, by all processes, the first puts the digest of its files beside it."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _mark(folder).write_text(tree_digest(manifest(folder)), encoding="ascii")


def resumable_by_all(checkpoints: Path) -> str | None:
    """What `resumable` finds, in every process; raises InvalidInput where machines find different ones."""
    with PartialState().main_process_first():  # it removes broken ones
        found = resumable(checkpoints)
    if len(set(gather_object([found]))) > 1:
        raise InvalidInput(f"{checkpoints}: the machines hold different checkpoints; share the folder among them, or "
                           "remove it on each")
    return found


def resumable(checkpoints: Path) -> str | None:
    """The newest checkpoint that is whole, as is the best one that it builds on; others are removed."""
    whole = {path for path in checkpoints.glob("checkpoint-*") if path.is_dir() and _is_whole(path)}
    for path in set(checkpoints.glob("checkpoint-*")) - whole - {_mark(path) for path in whole}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(whole, key=lambda path: -int(path.name.rpartition("-")[2])):
        best = json.loads((path / _STATE).read_bytes())["best_model_checkpoint"]
        if Path(best) in whole:
            logger.info("resuming from %s", path)
            return str(path)
    return None


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + _COMPLETE)


def _is_whole(checkpoint: Path) -> bool:
    mark = _mark(checkpoint)
    return mark.is_file() and mark.read_text(encoding="ascii") == tree_digest(manifest(checkpoint))
