"""A reward model: a language model's trunk, and a head that says in one number how good the last answer is.

Letters: N conversations, T tokens, D model width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import SequenceClassifierOutput

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Loaded, Located, load_located, locate
from dsr1_tune.models.ref import REWARD_CONFIG, ModelRef, RewardModel, base_of, local_path, manifest_in
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.full import save_model
from dsr1_tune.models.trained.lora import save_adapter
from dsr1_tune.models.weights.index import gist, read_json

HEAD_FILE = "reward_head.safetensors"
# Of scores that begin with a spread of 1 (1 / √D for normed states): small, so that no answer is preferred at first.
_HEAD_SCALE = 0.1


class ScalarModel(nn.Module):
    """Scores conversations: `trunk` is a causal language model, PEFT-wrapped or not, whose own head is left alone.

    The score is read from the final hidden state of the last real token, in float32. Several of them can stand on one
    trunk: a head is all that is their own.
    """

    # What transformers' trainer asks of a model of whose weights a checkpoint holds only those that are trained.
    _keys_to_ignore_on_save = None

    def __init__(self, trunk: Any, tokenizer: Any, facts: RewardFacts | None = None) -> None:
        """Put a new head on `trunk`; `facts` are those of the folder that it was loaded from."""
        super().__init__()
        self.trunk = trunk
        embeddings = trunk.get_input_embeddings().weight
        self.head = nn.Linear(
            trunk.config.get_text_config().hidden_size, 1, bias=False, dtype=torch.float32, device=embeddings.device
        )
        nn.init.normal_(self.head.weight, std=_HEAD_SCALE / math.sqrt(self.head.in_features + 1))
        self.tokenizer = tokenizer
        self.facts = facts or RewardFacts()
        # A copy: what trainers note in it is not true of the trunk.
        self.config = deepcopy(trunk.config)
        self.config.num_labels = 1
        # No gradient reaches the language head here; where it is the embeddings too, it is trained as those.
        if (head := trunk.get_output_embeddings()) is not None:
            for weight in head.parameters():
                weight.requires_grad_(weight.requires_grad and weight is embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """`logits` (N, 1) of N conversations (N, T), padded on either side where `attention_mask` is 0."""
        mask_NT = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        positions_NT = (mask_NT.cumsum(1) - 1).clamp(min=0)
        hidden_NTD = self.get_decoder()(
            input_ids=input_ids, attention_mask=mask_NT, position_ids=positions_NT, use_cache=False
        ).last_hidden_state
        places_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_N = (places_T * mask_NT).argmax(1)
        last_ND = hidden_NTD[torch.arange(len(last_N), device=last_N.device), last_N]
        # Mixed precision would round the scores to 8 bits.
        with torch.autocast(last_ND.device.type, enabled=False):
            scores_N1 = self.head(last_ND.float())
        return SequenceClassifierOutput(logits=scores_N1)

    @torch.no_grad()
    def score(
        self,
        conversations: Sequence[str] | Sequence[Sequence[int]],
        batch_size: int = 8,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """(N,) scores, on the CPU, of conversations as token ids or as text that the chat template has made."""
        ids = [
            self.tokenizer(one, add_special_tokens=False)["input_ids"] if isinstance(one, str) else one
            for one in conversations
        ]
        was_training = self.training
        self.eval()
        scores_N = torch.zeros(len(ids))
        for numbers in _batches([len(one) for one in ids], batch_size):
            batch = [torch.tensor(ids[number]) for number in numbers]
            ids_NT = pad_sequence(batch, True, self.tokenizer.pad_token_id).to(self.device)
            mask_NT = pad_sequence(list(map(torch.ones_like, batch)), True).to(self.device)
            scores_N[numbers] = self(ids_NT, mask_NT).logits.squeeze(1).float().cpu()
            advance(len(batch))
        self.train(was_training)
        return scores_N

    @property
    def device(self) -> torch.device:
        """Where it stands."""
        return self.head.weight.device

    def get_decoder(self) -> Any:
        """The trunk without its language head."""
        return self.trunk.get_decoder()

    def get_input_embeddings(self) -> Any:
        """The trunk's."""
        return self.trunk.get_input_embeddings()

    def activation_checkpointing_enable(self, **given: Any) -> None:
        """As the trunk does it."""
        self.trunk.activation_checkpointing_enable(**given)

    def add_model_tags(self, tags: Any) -> None:
        """TRL's trainers tag what they train; what they would tag is not saved."""


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of conversations of like length, the longest first: if memory is short, it shows at once."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True)
class RewardFacts:
    """What reward_config.json says: that this is a reward model, of which base, over what chat template."""

    base: str = ""
    revision: str | None = None
    is_quantized: bool = False
    """Whether the base was held in 4 bits."""
    think: str = "keep"
    """Whether answers were shown with their thoughts (keep) or without (strip)."""
    max_tokens: int = 0
    """The longest conversation that it may have been trained on; 0 where that is not known."""
    chat_template_sha256: str = ""
    template: dict[str, Any] = field(default_factory=dict)
    """How that template was asked: the section `template` of the run's settings."""
    special_tokens: str = "text"
    """What control tokens in texts were: text, or kept as tokens."""

    @classmethod
    def read(cls, folder: Path) -> RewardFacts:
        """Raises ModelError for a file that is damaged."""
        told = read_json(folder / REWARD_CONFIG)
        if "is_quantised" in told:  # as earlier versions spell it
            told["is_quantized"] = told["is_quantised"]
        told = {"template": {}, "special_tokens": "text"} | told
        try:
            return cls(**{one.name: told[one.name] for one in fields(cls)})
        except KeyError as error:
            raise ModelError(f"{folder / REWARD_CONFIG}: has no {error}", hint="copy the folder again") from error


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the chat template that conversations are shown in."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def save_scalar(model: ScalarModel, base: Located, folder: Path, facts: RewardFacts) -> None:
    """Write the adapter, or the whole trunk, with the head and what must be known of it; whole or not at all."""
    with atomic_folder(folder) as part:
        save = save_adapter if isinstance(model.trunk, PeftModel) else save_model
        save(model.trunk, base, part)
        save_file({"weight": model.head.weight.detach().contiguous()}, part / HEAD_FILE)
        told = {"kind": "reward model of dsr1-tune", **asdict(facts)}
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        (part / REWARD_CONFIG).write_text(text, encoding="utf-8")


def load_scalar(
    path: str | Path, device: str | torch.device | None = None, progress: Callable[[str], None] | None = None
) -> ScalarModel:
    """The reward model of a run folder of `reward`, or of its adapter/ or model/ folder; in eval mode.

    Raises ModelError for anything else, and for what is damaged or no longer fits its base.
    """
    folder = check_reward(path)
    facts = RewardFacts.read(folder)
    if (folder / "adapter_config.json").is_file():
        base, is_quantized = base_of(folder), facts.is_quantized
    else:
        base, is_quantized = Base(model=str(folder)), False
    located = locate(base, progress, quantized=is_quantized, may_score=True)
    model = attach_reward_head(load_located(located, base.dtype, quantized=is_quantized), folder)
    return model if device is None else model.to(device)


def check_reward(path: str | Path) -> Path:
    """The folder of the reward model at `path`, before any weights are loaded. Raises ModelError if it is none."""
    found = ModelRef.resolve(path)
    manifest = manifest_in(local_path(str(path)))
    if manifest.get("command") == "reward" and manifest.get("status") != "finished":
        raise ModelError(
            f"{path}: is a reward run that is not finished ({manifest.get('status')})",
            hint=f"go on with it: dsr1-tune reward --resume {path}",
        )
    if not isinstance(found, RewardModel):
        raise ModelError(f"{path}: is no reward model", hint="train one: dsr1-tune reward --data preferences.jsonl")
    return found.path


def attach_reward_head(loaded: Loaded, folder: Path) -> ScalarModel:
    """The reward model in `folder` on its loaded base, or on the whole trunk that was loaded from there."""
    facts = RewardFacts.read(folder)
    if facts.chat_template_sha256 != template_hash(loaded.tokenizer):
        raise ModelError(
            f"{folder}: was trained over another chat template than {loaded.name} has now",
            hint="put the base's chat template back; the one that is needed lies beside the reward model",
        )
    has_adapter = (folder / "adapter_config.json").is_file()
    model = ScalarModel(attach_adapter(loaded, folder) if has_adapter else loaded.model, loaded.tokenizer, facts)
    try:
        weight = load_file(folder / HEAD_FILE)["weight"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"{folder / HEAD_FILE}: cannot be read: {gist(error)}", hint="copy the folder again"
        ) from error
    if weight.shape != model.head.weight.shape:
        raise ModelError(
            f"{folder / HEAD_FILE}: is for a model of width {weight.shape[-1]}, {loaded.name} has "
            f"{model.head.in_features}",
            hint="give the reward model together with the base that it was trained on",
        )
    with torch.no_grad():
        model.head.weight.copy_(weight)
    return model.eval()
