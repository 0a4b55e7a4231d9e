"""The policy of PPO: log-probabilities of answers, those of the reference policy, and values, on one trunk.

Letters: B answers, S tokens of prompt and answer, T tokens of the answer, D model width, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dsr1_tune.align.online.losses import log_probs
from dsr1_tune.config import PpoRun
from dsr1_tune.errors import ModelError
from dsr1_tune.models.head import places_in_a_piece
from dsr1_tune.models.trained.lora import quiet_patterns
from dsr1_tune.models.trained.start import ReferencePolicy
from dsr1_tune.moe.expert_lora import use_grouped_products
from dsr1_tune.moe.replay import FREE, RoutingReplay

POLICY, VALUE = "default", "value"


@dataclass(frozen=True)
class MicroBatch:
    """Prompts with their answers that go through the model in one forward pass, right-padded."""

    ids_BS: Tensor
    attention_BS: Tensor
    before_BT: Tensor
    """Where in S the token stands from which an answer's token is predicted."""
    answer_BT: Tensor
    mask_BT: Tensor
    routing: Tensor | None = None
    """The experts that the rollout chose, (layers, B, S, K); -1 where it chose none."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: Any) -> MicroBatch:
        """A micro-batch of prompts and answers, given as token ids."""
        pairs = list(zip(prompts, answers, strict=True))
        padded = partial(pad_sequence, batch_first=True)
        parts = (
            padded([torch.tensor([*prompt, *answer]) for prompt, answer in pairs]),
            padded([torch.ones(len(prompt) + len(answer), dtype=torch.long) for prompt, answer in pairs]),
            padded([torch.arange(len(answer)) + len(prompt) - 1 for prompt, answer in pairs]),
            padded([torch.tensor(answer, dtype=torch.long) for answer in answers]),
            padded([torch.ones(len(answer)) for answer in answers]),
        )
        return cls(*(part.to(device) for part in parts))

    def without(self, is_left_out: Sequence[bool]) -> MicroBatch:
        """The same, in which none of the tokens of some answers (B) counts."""
        counts_B = torch.tensor([not one for one in is_left_out], device=self.mask_BT.device)
        return replace(self, mask_BT=self.mask_BT * counts_B.unsqueeze(1))

    def with_routing(self, chosen: Sequence[Tensor]) -> MicroBatch:
        """The same, to be sent to the experts that the rollout chose: (L, S, K) of each answer with its prompt."""
        num_layers, _, num_chosen = chosen[0].shape
        routing_LBSK = torch.full((num_layers, *self.ids_BS.shape, num_chosen), FREE, dtype=torch.int16)
        for line, one_LSK in enumerate(chosen):
            routing_LBSK[:, line, : one_LSK.shape[1]] = one_LSK
        return replace(self, routing=routing_LBSK.to(self.ids_BS.device))


@dataclass(frozen=True)
class PolicyOutput:
    """Log-probability, entropy and value at each token of a micro-batch's answers."""

    logp_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor | None


class Policy:
    """A PEFT model with a value head, and itself as it began as the reference policy. The base is in memory once."""

    def __init__(self, model: PeftModel, config: PpoRun) -> None:
        self.model = model
        self._temperature = config.rollout.temperature
        self._has_own_value_trunk = config.ppo.value == "own"
        self._reference = ReferencePolicy.of(model)
        self.replay = RoutingReplay(model) if config.ppo.routing_replay else None
        if self._has_own_value_trunk:
            self._add_value_adapter()
        weight = model.get_output_embeddings().weight
        # Zero, so that the first values are neutral; float32, so that small steps are not rounded away.
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._checkpoints = config.schedule.gradient_checkpointing
        if self._checkpoints:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.be_deterministic()

    def _add_value_adapter(self) -> None:
        """A second adapter on the same trunk, of the same layers and ranks, for the value head alone."""
        with quiet_patterns():
            # Without the routers that a supervised run may have trained: they stay as they are.
            own = copy.deepcopy(self.model.peft_config[POLICY])
            own.modules_to_save = None
            self.model.add_adapter(VALUE, own)
        use_grouped_products(self.model)
        self._switch(POLICY)

    def _switch(self, adapter: str) -> None:
        """PEFT freezes the adapters that it does not switch to; those of ours stay trainable."""
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                layer.set_adapter(adapter)
        own = [weight for name, weight in self.model.named_parameters() if f".{VALUE}." in name and ".lora_" in name]
        for parameter in (*self._reference.parameters, *own):
            parameter.requires_grad_(True)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves: the adapter, the value head, and its adapter where it has one."""
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        return weights | {f"value_head.{name}": weight for name, weight in self.head.named_parameters()}

    def be_deterministic(self) -> None:
        """Turn off dropout and noise: old and new probabilities differ by training alone.

        Layers are in training mode for gradient checkpointing only; the modules inside them are not.
        """
        self.model.eval()
        self.model.config.use_cache = False
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = self._checkpoints

    def forward(
        self, micro_batch: MicroBatch, learns_entropy: bool = False, counts_replay: bool = False
    ) -> PolicyOutput:
        """Log-probabilities and entropies of the answers' tokens, and the values before each of them.

        With `counts_replay`, how often routers would now choose other experts than in the rollout is counted.
        """
        hidden_BTD = self._hidden(micro_batch, counts_replay)
        logp_BT, entropy_BT = self._log_probs(hidden_BTD, micro_batch.answer_BT, learns_entropy)
        return PolicyOutput(logp_BT, entropy_BT, None if self._has_own_value_trunk else self._value(hidden_BTD))

    def _log_probs(self, hidden_BTD: Tensor, answer_BT: Tensor, learns_entropy: bool) -> tuple[Tensor, Tensor]:
        """As `losses.log_probs`, with the logits of a piece of the tokens in memory at once, also in the backward."""
        head, size = self.model.get_output_embeddings(), places_in_a_piece(self.model)

        def of_piece(hidden_CD: Tensor, answer_C: Tensor) -> tuple[Tensor, Tensor]:
            return log_probs(head(hidden_CD), answer_C, self._temperature, learns_entropy)

        pieces = list(zip(hidden_BTD.flatten(0, 1).split(size), answer_BT.flatten().split(size), strict=True))
        if len(pieces) == 1:
            found = [of_piece(*pieces[0])]
        else:
            found = [checkpoint(of_piece, *piece, use_reentrant=False) for piece in pieces]
        logp_S, entropy_S = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logp_S.view(answer_BT.shape), entropy_S.view(answer_BT.shape)

    def values(self, micro_batch: MicroBatch) -> Tensor:
        """The values (B, T) where they come from a trunk with an adapter of its own.

        Call `with policy.value_trunk():` around it and its backward pass, in which checkpoints are computed again.
        """
        return self._value(self._hidden(micro_batch))

    @contextmanager
    def value_trunk(self) -> Iterator[None]:
        """Inside, the value head's own adapter is on."""
        self._switch(VALUE)
        try:
            yield
        finally:
            self._switch(POLICY)

    def reference(self, micro_batch: MicroBatch) -> Tensor:
        """Log-probabilities (B, T) of the answers under the reference policy."""
        with self._reference.active():
            return self.forward(micro_batch).logp_BT

    def _hidden(self, micro_batch: MicroBatch, counts_replay: bool = False) -> Tensor:
        """The trunk's last states before each token of the answers: only they need logits."""
        if self.replay:
            self.replay.use(micro_batch.routing)
            self.replay.is_counting = counts_replay
        hidden_BSD = self.model.get_decoder()(
            input_ids=micro_batch.ids_BS, attention_mask=micro_batch.attention_BS, use_cache=False
        ).last_hidden_state
        places_BTD = micro_batch.before_BT.unsqueeze(-1).expand(-1, -1, hidden_BSD.shape[-1])
        return hidden_BSD.gather(1, places_BTD)

    def _value(self, hidden_BTD: Tensor) -> Tensor:
        # A step of AdamW moves a sum over D states of size 1 by D times the learning rate; scaled, by √D times.
        return self.head(hidden_BTD.float() * hidden_BTD.shape[-1] ** -0.5).squeeze(-1)

    def close(self) -> None:
        """Remove the value adapter and all hooks from the model."""
        if self.replay:
            self.replay.close()
        if self._has_own_value_trunk:
            self.model.delete_adapter(VALUE)
        if self._checkpoints:
            self.model.activation_checkpointing_disable()


@torch.no_grad()
def check_output(model: PeftModel) -> None:
    """Raise ModelError for a model whose logits are not simply hidden states times the output embeddings."""
    was_training = model.training
    ids = torch.arange(1, 9, device=model.device).unsqueeze(0)
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits.float()
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    ours = model.get_output_embeddings()(hidden).float()
    model.train(was_training)
    if not torch.allclose(logits, ours, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        kind = model.config.model_type
        raise ModelError(f"ppo does not know how {kind} makes its logits", hint="grpo trains such a model too")
