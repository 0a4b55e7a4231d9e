"""Our settings as TRL's arguments."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from transformers import TrainingArguments
from trl import SFTConfig

from dsr1_tune.config import TuneRun
from dsr1_tune.runs.distributed.group import ACCELERATES_STRATEGY
from dsr1_tune.runs.folder import RunFolder

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def to_arguments(config: TuneRun, folder: RunFolder, dtype: torch.dtype) -> SFTConfig:
    """TRL's SFTConfig for `config`, for a model that computes in `dtype`."""
    return as_arguments(
        SFTConfig,
        config,
        folder,
        dtype,
        # Frozen routers want no auxiliary loss, which TRL would take from the model's config; ours is moe.routing's.
        router_aux_loss_coef=0.0,
        # The records come encoded and labelled; none is truncated.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def as_arguments(
    kind: type[Arguments], config: TuneRun, folder: RunFolder, dtype: torch.dtype, **own: Any
) -> Arguments:
    """The arguments of any of TRL's trainers: what all of them share, and what is its `own`."""
    schedule = config.schedule
    sharing: dict[str, Any] = {}
    if config.parallel.strategy == "fsdp2" and not ACCELERATES_STRATEGY:  # else `accelerate launch` says it
        # Whole layers: an expert's weights are read while its layer runs. Checkpoints for any number of processes.
        settings = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}
        sharing = {"fsdp": True, "fsdp_config": settings}
    arguments = kind(
        output_dir=str(folder.checkpoints),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation_steps,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=schedule.warmup_share,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        activation_checkpointing=schedule.gradient_checkpointing,
        gradient_checkpointing=None,
        neftune_noise_alpha=schedule.neftune_noise_alpha or None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        seed=schedule.seed,
        data_seed=schedule.seed,
        save_steps=schedule.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Every trained weight gets a gradient in every step, that of an expert without tokens is zero.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        **sharing,
        **own,
    )
    if arguments.n_gpu > 1:
        # One process trains on one GPU; transformers would split each batch over all it sees (nn.DataParallel).
        arguments._n_gpu = 1
    return arguments


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype of the weights that are not quantized, in which matrix products are computed."""
    return next(weight.dtype for weight in model.get_input_embeddings().parameters())
