"""transformers' Trainer where several processes train: what it learns and reports is what one alone would."""

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from src.batches import Batch


class SharedTrainer(Trainer):  # type: ignore[misc]
    """The same conversations in each step, and a validation loss that differs by its batches alone."""

    def _get_train_sampler(self, train_dataset: object = None) -> object:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
        return sampler

    def compute_loss(self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False,
                     num_items_in_batch: torch.Tensor | None = None) -> object:
        """In validation each process's own mean: the rows that one repeats, to have as many, are then left out."""
        count = num_items_in_batch if model.training or self.args.world_size == 1 else None
        return super().compute_loss(model, inputs, return_outputs, count)
