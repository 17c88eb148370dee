"""Mark training checkpoints as complete once they are written, and find the newest complete one to resume from."""

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


class CheckpointMarker(TrainerCallback):  # type: ignore[misc]
    """Mark each checkpoint as complete."""

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        """Write the digest of the checkpoint's files next to it, on rank 0, after all processes have saved."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _mark(folder).write_text(tree_digest(manifest(folder)), encoding="ascii")


def resumable_by_all(checkpoints: Path) -> str | None:
    """The result of `resumable`, in every process. Raises InvalidInput if machines find different checkpoints."""
    with PartialState().main_process_first():  # it removes broken checkpoints
        found = resumable(checkpoints)
    if len(set(gather_object([found]))) > 1:
        raise InvalidInput(f"{checkpoints}: the machines hold different checkpoints; share the folder among them, or "
                           "remove it on each")
    return found


def resumable(checkpoints: Path) -> str | None:
    """The newest complete checkpoint whose best checkpoint is complete too; incomplete ones are removed."""
    complete = {path for path in checkpoints.glob("checkpoint-*") if path.is_dir() and _is_complete(path)}
    for path in set(checkpoints.glob("checkpoint-*")) - complete - {_mark(path) for path in complete}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(complete, key=lambda path: -int(path.name.rpartition("-")[2])):
        best = json.loads((path / "trainer_state.json").read_bytes())["best_model_checkpoint"]
        if Path(best) in complete:
            logger.info("resuming from %s", path)
            return str(path)
    return None


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def _is_complete(checkpoint: Path) -> bool:
    mark = _mark(checkpoint)
    return mark.is_file() and mark.read_text(encoding="ascii") == tree_digest(manifest(checkpoint))
