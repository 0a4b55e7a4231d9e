"""TRL's trainer, made to take the same steps however often it was interrupted and however many processes take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, DistributedType
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import SAFE_WEIGHTS_NAME
from trl import SFTTrainer

from dsr1_tune.config import TuneRun
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.models.tokenizer_files import copy_tokenizer
from dsr1_tune.models.trained.own_precision import OwnPrecision
from dsr1_tune.moe.anatomy import is_balancing_bias
from dsr1_tune.moe.monitor import is_token
from dsr1_tune.moe.routing import AuxiliaryLoss
from dsr1_tune.moe.shared_factors import whole_factors
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.trainer.callbacks import BiasRule, real_tokens
from dsr1_tune.runs.trainer.fused_head import as_trl_reads_it, check_fused_head
from dsr1_tune.runs.trainer.optimizers import cosine_after_warmup, for_run, forget_8_bit
from dsr1_tune.runs.trainer.shard_first import shard_first
from dsr1_tune.runs.trainer.shared_experts import SharedExperts, in_8_bits, own_state, save_own_state

# PowerSGD's first steps send gradients whole: the beginning does not take well to approximations.
POWERSGD_START = 10


class Resumable(Trainer):
    """What makes any of TRL's trainers take the same steps again; it stands before TRL's own among the bases."""

    processing_class: Any

    def __init__(self, *, config: TuneRun | None = None, quantized: bool = False, **given: Any) -> None:
        """`config` chooses the optimizer and says what DDP sends; the rest is TRL's."""
        self.optimizer: torch.optim.Optimizer | None = None
        self.lr_scheduler: LambdaLR | None = None
        self._config = config or TuneRun()
        self._sampler: LengthGrouped | None = None
        self.before_clipping: Callable[[float], None] = lambda scale: None
        self._quantized = quantized
        # TRL's trainers replace the forward of the model itself, under PEFT that of the base.
        self._patched = given["model"].get_base_model() if isinstance(given["model"], PeftModel) else given["model"]
        self._forward = vars(self._patched).get("forward")
        args = given["args"]
        self._global_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._num_records = len(given["train_dataset"])
        # DDP need not send what every process has loaded by itself: all that is not trained.
        frozen = [name for name, weight in given["model"].named_parameters() if not weight.requires_grad]
        frozen += [name for name, _ in given["model"].named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(given["model"], frozen)
        self._shared = SharedExperts(given["model"]) if self._config.parallel.strategy == "experts" else None
        its_own = getattr(given["model"].config, "router_aux_loss_coef", None)
        with as_trl_reads_it(given["model"].config):
            super().__init__(**given)
        if vars(self._patched).get("forward") is not self._forward:
            check_fused_head(given["model"], getattr(args, "temperature", 1.0))
        is_mixed = args.bf16 or args.fp16
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        self._own_precision = OwnPrecision(given["model"], dtype) if is_mixed else None
        if its_own is not None:
            # TRL's own auxiliary loss is off (see arguments.py); the model's config is saved as it was.
            given["model"].config.router_aux_loss_coef = its_own

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Ours instead of upstream's."""
        if self.optimizer is None:
            self.optimizer = for_run(self.model if model is None else model, self._config, self._quantized)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Ours instead of upstream's, by which the first step would change nothing."""
        if self.lr_scheduler is None:
            num_warmup = self.args.get_warmup_steps(num_training_steps)
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = cosine_after_warmup(optimizer, num_warmup, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def lengths(self, rows: Any) -> list[int]:
        """The tokens of every row: those of like length share a batch."""
        return [len(ids) for ids in rows["input_ids"]]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = self.lengths(train_dataset or self.train_dataset)
        num_fillers = len(lengths) - self._num_records
        records = lengths[: self._num_records]
        self._sampler = LengthGrouped(records, self._global_batch, self.args.seed, num_fillers)
        return self._sampler

    def _clip_grad_norm(self, model: Any) -> Any:
        scaler = self.accelerator.scaler
        if self._shared:
            self._shared.average_gradients()
        self.before_clipping(scaler.get_scale() if scaler else 1.0)
        return self._shared.clip(self.args.max_grad_norm) if self._shared else super()._clip_grad_norm(model)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # In an epoch that several processes go on with in its middle, accelerate does not tell the sampler which it is.
        if self._sampler:
            self._sampler.set_epoch(kwargs["epoch"])
        # Going on from its very last step, in the middle of an epoch, the trainer would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def close(self) -> None:
        """Remove hooks and TRL's forward from the model, also when training ended by an error."""
        forget_8_bit()
        if self._own_precision:
            self._own_precision.close()
        vars(self._patched).pop("forward", None)
        if self._forward is not None:
            self._patched.forward = self._forward
        if self.neftune_noise_alpha is not None and hasattr(self, "neftune_hook_handle"):
            self.neftune_hook_handle.remove()

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As upstream, with the experts' factors of all processes."""
        with whole_factors(self.model):
            super().save_model(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._shared is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:  # on the CPU: the file holds the factors of all experts, of which each process takes its own
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True, torch_device="cpu")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._shared is None or self.optimizer is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        group.barrier()  # until the folder is there
        if group.any_of(in_8_bits(self.optimizer)):
            save_own_state(self.optimizer, Path(output_dir))
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            with self._shared.whole_state(self.optimizer):
                super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        own = own_state(Path(checkpoint)) if checkpoint else None
        if self._shared is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        file = own or Path(checkpoint, OPTIMIZER_NAME)  # one file of all experts' state is read only where it is cut
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=own is None)
        self.optimizer.load_state_dict(saved if own else self._shared.cut_state(saved, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            tokenizer, self.processing_class = self.processing_class, None
            super()._save(output_dir, state_dict)
            self.processing_class = tokenizer
            if self.args.should_save:  # the base's own files, where upstream would write other ones
                copy_tokenizer(Path(tokenizer.name_or_path), Path(output_dir or self.args.output_dir))
        elif self.args.should_save:
            save_trained(model, state_dict, Path(output_dir or self.args.output_dir))

    def create_accelerator_and_postprocess(self) -> None:
        """As upstream; accelerate forgets FSDP where the processes have CPUs instead of GPUs."""
        is_fsdp = self._config.parallel.strategy == "fsdp2"
        if is_fsdp and PartialState().distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        if self._config.parallel.strategy == "experts":
            # Without DDP, which would take other processes' experts for copies of these.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        if is_fsdp and (plugin := self.accelerator.state.fsdp_plugin) and self.args.bf16:
            # accelerate's own policy hands even the loss over in 16 bits, and sums gradients in them.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
            )
            self.accelerator._prepare_fsdp2 = shard_first(self.accelerator._prepare_fsdp2)

    def _build_accelerator_args(self, **given: Any) -> dict[str, Any]:
        built: dict[str, Any] = super()._build_accelerator_args(**given)
        if rank := self._config.parallel.powersgd_rank:
            use_powersgd(built["kwargs_handlers"][0], rank)
        return built


class ResumableTrainer(Resumable, SFTTrainer):
    """TRL's supervised trainer with batches of like length, in an order that depends on seed and epoch alone."""

    _total_train_tokens: int

    def __init__(self, *, config: TuneRun | None = None, **given: Any) -> None:
        """`config` also balances the routers."""
        args, train = given["args"], given["train_dataset"]
        if args.world_size > 1:
            # accelerate would fill the last batch up with records of the first, which one process does not see twice.
            whole = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            given["train_dataset"] = _filled_up(train, -len(train) % whole)
        super().__init__(config=config, **given)
        self._num_records = len(train)
        router = self._config.router
        self._balance = AuxiliaryLoss(self.model) if router.mode == "aux_loss" else None
        self._bias_rule = BiasRule(router.bias_rate) if router.mode == "bias" else None
        if self._bias_rule:
            self.add_callback(self._bias_rule)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; of packed batches TRL counts the tokens of one row only, without looking for padding."""
        before = self._total_train_tokens
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training and "attention_mask" not in inputs:
            num_tokens = self.accelerator.gather_for_metrics(is_token(inputs["position_ids"]).sum()).sum()
            self._total_train_tokens = before + int(num_tokens)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        if self.model.training and self._balance:
            aux_loss = self._balance.take(real_tokens(inputs))
            of_all = self.accelerator.gather_for_metrics(aux_loss.detach())
            self._metrics["train"]["aux_loss"].append(of_all.mean().item())
            # A mean of this forward pass, whereas TRL's loss is its share of the whole batch's. It adds to the
            # gradient, not to the loss that is reported.
            steps = 1 if kwargs.get("num_items_in_batch") is None else self.current_gradient_accumulation_steps
            loss = loss + self._config.router.aux_loss / steps * (aux_loss - aux_loss.detach())
        return loss

    def close(self) -> None:
        """Stop balancing too."""
        if self._balance:
            self._balance.close()
        if self._bias_rule:
            self._bias_rule.close()
        super().close()


def use_powersgd(ddp: DistributedDataParallelKwargs, rank: int) -> None:
    """Have DDP send low-rank products of its gradients (arXiv 1905.13727)."""
    ddp.comm_hook = DDPCommunicationHookType.POWER_SGD
    ddp.comm_state_option = {"matrix_approximation_rank": rank, "start_powerSGD_iter": POWERSGD_START}
    if not torch.cuda.is_available():
        # Of several buckets under way, gloo mixes up whose products are whose: PowerSGD sends them from many threads.
        ddp.bucket_cap_mb = 2**20


def _filled_up(train: Dataset, num_fillers: int) -> Dataset:
    """The records, and behind them so many of two tokens of which nothing is learned."""
    if not num_fillers:
        return train
    filler = {"input_ids": train[0]["input_ids"][:2], "labels": [IGNORED, IGNORED], "seq_lengths": [2]}
    filler = {column: filler[column] for column in train.column_names}
    return concatenate_datasets([train, Dataset.from_list([filler] * num_fillers, features=train.features)])


class LengthGrouped(Sampler[int]):
    """Random order in which records of like length share a batch; the same for the same seed and epoch.

    transformers' own sampler draws from the global generator, so that a resumed run would see another order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, num_fillers: int = 0) -> None:
        """`num_fillers` more indices come last, which fill the last batch up."""
        self._lengths, self._batch_size, self._num_fillers = lengths, batch_size, num_fillers
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) + self._num_fillers

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)
        yield from range(len(self._lengths), len(self))


def save_trained(model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Write what is trained of `model` (whose `state` is given where it is shared out) for the trainer to load again.

    By the names that it has in memory: transformers would save the whole model, its experts one by one as on disk,
    and when it loads the checkpoint would not find the fused ones in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trained_state(model, state), folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def trained_state(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The trained weights, of tied ones one, and the buffers, which training may move too."""
    state = model.state_dict() if state is None else state
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    moving = {name for name, weight in model.named_parameters() if weight.requires_grad or is_balancing_bias(name)}
    return {name: tensor.contiguous() for name, tensor in state.items() if name in moving or name not in weights}
