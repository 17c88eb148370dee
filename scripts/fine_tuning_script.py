"""Fine-tune a LoRA adapter on the base model: the challenger."""

import shutil
from functools import partial
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core import records
from src.core.params import load_params
from src.core.records import BASE_MODEL, CONFIG, DATASETS, MODEL_LOCATION
from utils import process

ADAPTER = Path("results/adapter")
CHECKPOINTS = Path("results/checkpoints")
LOSS = Path("results/training/loss.csv")

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Train, and write the adapter, its location and the loss curve; returns the exit code."""
    flags = PARSER.parse_args()
    process.set_up()

    import mlflow

    from src.data.rows import parse_rows
    from src.training import fine_tuning
    from utils import environment, json_utils, mlflow_utils
    from utils.tracking import runs

    params = load_params(flags.config or CONFIG)
    data = records.Datasets.load(DATASETS)
    base = records.BaseModelRef.load(BASE_MODEL)
    train, validation = (
        [row.conversation() for row in parse_rows(records.read_lines(path), where=path, max_rows=0)]
        for path in (Path(data.train.path), Path(data.validation.path)))
    checkpoints = CHECKPOINTS / fine_tuning.fingerprint(params.fine_tuning, base=base, train=data.train,
                                                        validation=data.validation)
    train_it = partial(fine_tuning.fine_tune, train, validation, params.fine_tuning, base=Path(base.path),
                       base_name=base.path if base.revision == "none" else base.name, checkpoints=checkpoints,
                       adapter=ADAPTER)
    if not process.is_first():
        train_it()
        return 0
    git = environment.git_identity()
    tags = runs.fine_tuning_tags(params.deployment.model_registry_name, git, base, data)
    with mlflow_utils.stage_run(params.mlflow, kind="fine_tuning", name="fine_tuning", tags=tags) as run_id:
        shutil.rmtree(ADAPTER, ignore_errors=True)
        curve = train_it()
        rows = (f"{epoch.epoch},{epoch.train_loss:.6f},{epoch.validation_loss:.6f}\n" for epoch in curve)
        json_utils.write_text(LOSS, "epoch,train_loss,validation_loss\n" + "".join(rows))
        model = records.FineTunedModel(
            run_id=run_id, tracking_uri=mlflow.get_tracking_uri(), adapter_path=ADAPTER.as_posix(),
            adapter_sha256=records.tree_digest(records.manifest(ADAPTER)), base_model=base, train=data.train,
            lora=records.LoraSettings(**params.fine_tuning.lora.model_dump()), git_commit=git.commit)
        json_utils.write_object(MODEL_LOCATION, model.model_dump(mode="json"))
        curves = {name: [(epoch.epoch, getattr(epoch, name)) for epoch in curve]
                  for name in ("train_loss", "validation_loss")}
        runs.log_fine_tuning(run_id, params, curves, adapter=ADAPTER, adapter_sha256=model.adapter_sha256,
                            base=Path(base.path), location=MODEL_LOCATION)
    shutil.rmtree(checkpoints, ignore_errors=True)
    best = min(curve, key=lambda epoch: epoch.validation_loss)
    process.say(f"fine_tuning: trained {len(curve)} epoch{'' if len(curve) == 1 else 's'}, took epoch {best.epoch}, "
                f"which has the lowest validation loss ({best.validation_loss:.3f}); MLflow run {run_id[:8]}")
    return 0


if __name__ == "__main__":
    process.run(main)
