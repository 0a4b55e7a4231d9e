from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.align import ppo
from dsr1_tune.align.online import losses as objective
from dsr1_tune.align.online.checkpoint import load_state, save_state
from dsr1_tune.align.online.experience import Experience, rewards_and_advantages
from dsr1_tune.align.online.generate import Answers, generate
from dsr1_tune.align.online.learner import PpoLearner
from dsr1_tune.align.online.policy import MicroBatch, Policy
from dsr1_tune.align.online.session import PromptExample, encode_prompts
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import PpoRun
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.record import Message, Place, Prompt, Record
from dsr1_tune.errors import RunError, TuneError
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.start import begin_adapter
from tests.conftest import TinyModel
from tests.export.conftest import sums, tiny_run  # noqa: F401

FAMILIES = ["deepseek_v3", "qwen3_moe", "gpt_oss"]
PROMPTS = ((5, 6, 7), (9, 8, 7, 6, 5, 4), (20, 21), (30, 31, 32, 33))
ANSWERS = ((40, 41, 1), (42, 43, 44, 45), (46,), (47, 48, 49, 50, 51, 1))

PpoConfig = Callable[..., PpoRun]


def _policy(base: Path, config: PpoRun, is_trained: bool = False) -> Policy:
    torch.manual_seed(0)
    model = begin_adapter(load(config.base), config)
    policy = Policy(model, config)
    if is_trained:
        with torch.no_grad():
            for weight in policy.trained.values():
                weight.add_(torch.randn_like(weight) * 0.05)
    return policy


def _asked(ids: tuple[int, ...]) -> PromptExample:
    prompt = Prompt((Message("user", "?"),), None, Place("x", 1, 0))
    return PromptExample(prompt, Record(prompt.messages, prompt.place), ids)


def _batches(policy: Policy, config: PpoRun, scores: tuple[float, ...] = (1.0, 0.0, 0.5, 2.0)) -> list[Experience]:
    answers = Answers(ANSWERS, tuple(ids[-1] == 1 for ids in ANSWERS))
    verdicts = [RewardResult(score) for score in scores]
    minibatches = rewards_and_advantages(
        policy, config, [_asked(ids) for ids in PROMPTS], answers, verdicts, config.ppo.kl, step=1
    )
    return [batch for minibatch in minibatches for batch in minibatch]


@pytest.mark.parametrize("family", FAMILIES)
def test_before_anything_is_learned_the_ratio_is_exactly_one_and_the_kl_nought(
    tiny_model: TinyModel, ppo_run: PpoConfig, family: str
) -> None:
    base = tiny_model(family)
    config = ppo_run(base, schedule={"batch_size": 2, "gradient_checkpointing": True})
    policy = _policy(base, config)
    learner = PpoLearner.create(policy, config, 4)
    for batch in _batches(policy, config):
        assert torch.equal(batch.old_BT, batch.reference_BT)
        told = learner._backward(batch, torch.tensor(1.0))
        assert float(told["policy/ratio"]) == 1.0
        assert float(told["policy/approx_kl"]) == 0.0
        assert float(told["policy/clip_fraction"]) == 0.0
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in policy.trained.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_base_with_the_adapter_off(tiny_model: TinyModel, ppo_run: PpoConfig, family: str) -> None:
    config = ppo_run(tiny_model(family))
    policy = _policy(tiny_model(family), config, is_trained=True)
    micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
    now = policy.forward(micro_batch).logp_BT
    with policy.model.disable_adapter():
        off = policy.forward(micro_batch).logp_BT
    reference = policy.reference(micro_batch)
    mask = micro_batch.mask_BT.bool()
    torch.testing.assert_close(reference[mask], off[mask], rtol=0, atol=2e-5)
    assert (reference - now)[mask].abs().max() > 1e-2
    assert torch.equal(policy.forward(micro_batch).logp_BT, now), "the policy is as it was"
    num_base = sum(p.numel() for name, p in policy.model.named_parameters() if ".lora_" not in name)
    assert num_base == sum(p.numel() for p in load(config.base).model.parameters()), "the base is there once"


def test_log_probs_are_those_of_the_whole_model(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), rollout={"max_new_tokens": 6, "temperature": 1.0})
    policy = _policy(tiny_model("qwen3_moe"), config, is_trained=True)
    micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
    ours = policy.forward(micro_batch).logp_BT
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        told = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(ours[row, : len(answer)], told, rtol=1e-4, atol=1e-4)


def test_what_is_drawn_is_as_likely_as_the_policy_says(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    """The greedy answer's tokens are the likeliest of those that the policy can say, at every place."""
    config = ppo_run(tiny_model("deepseek_v3"))
    loaded = load(config.base)
    policy = Policy(begin_adapter(loaded, config), config)
    answers = generate(policy.model, PROMPTS, loaded.tokenizer, config.rollout, is_greedy=True)
    policy.be_deterministic()
    micro_batch = MicroBatch.of(PROMPTS, answers.ids, "cpu")
    logits = policy.model.get_output_embeddings()(policy._hidden(micro_batch))
    mask = micro_batch.mask_BT.bool()
    assert torch.equal(logits.argmax(-1)[mask], micro_batch.answer_BT[mask])


@pytest.mark.parametrize("value", ["shared", "own"])
def test_padding_changes_nothing(tiny_model: TinyModel, ppo_run: PpoConfig, value: str) -> None:
    """All answers together, padded to the longest, and each by itself: the same loss and the same gradients."""
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"answers": 4, "minibatches": 1, "value": value, "entropy": 0.01})
    policy = _policy(tiny_model("qwen3_moe"), config, is_trained=True)
    learner = PpoLearner.create(policy, config, 4)
    gradients, losses = [], []
    for size in (4, 1):
        sized = config.model_copy(update={"schedule": config.schedule.model_copy(update={"batch_size": size})})
        batches = _batches(policy, sized)
        # As in the middle of an update: the old policy is another one.
        batches = [replace(batch, old_BT=batch.old_BT - 0.1 * torch.cos(batch.old_BT)) for batch in batches]
        num_tokens = sum(batch.num_tokens for batch in batches)
        told = [learner._backward(batch, torch.tensor(batch.num_tokens / num_tokens)) for batch in batches]
        losses.append({name: sum(float(one[name]) for one in told) for name in told[0]})
        gradients.append({name: weight.grad.clone() for name, weight in policy.trained.items()})
        learner.optimizer.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


def test_checkpointing_changes_no_gradient(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    base = tiny_model("qwen3_moe")
    gradients = []
    for is_on in (False, True):
        config = ppo_run(base, schedule={"gradient_checkpointing": is_on}, ppo={"value": "own", "routing_replay": True})
        policy = _policy(base, config, is_trained=True)
        learner = PpoLearner.create(policy, config, 4)
        for batch in _batches(policy, config):
            learner._backward(batch, torch.tensor(1.0))
        gradients.append({name: weight.grad for name, weight in policy.trained.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


def test_an_own_value_trunk_leaves_the_policy_alone(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"value": "own", "value_weight": 1.0})
    policy = _policy(tiny_model("qwen3_moe"), config, is_trained=True)
    micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
    with policy.value_trunk():
        (policy.values(micro_batch) * micro_batch.mask_BT).sum().backward()
    moved = {name for name, weight in policy.trained.items() if weight.grad is not None and weight.grad.any()}
    assert moved and all(name.endswith(".value.weight") or name.startswith("value_head") for name in moved)
    policy.close()
    assert list(policy.model.peft_config) == ["default"]


def test_rewards_and_advantages_of_a_batch(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    """The score lands on the last token, less the penalty where the answer did not end; the KL on each token."""
    config = ppo_run(
        tiny_model("qwen3_moe"), schedule={"batch_size": 4}, ppo={"missing_eos": 0.25, "kl": 0.1, "minibatches": 1}
    )
    policy = _policy(tiny_model("qwen3_moe"), config, is_trained=True)
    (batch,) = _batches(policy, config)
    assert sorted(batch.score_B.tolist()) == sorted([1.0, 0.0 - 0.25, 0.5 - 0.25, 2.0])
    kl_BT = (batch.old_BT - batch.reference_BT) * batch.mask_BT
    torch.testing.assert_close((batch.rewards_BT + 0.1 * kl_BT).sum(1), batch.score_B)
    assert float(objective.masked_mean(batch.advantages_BT, batch.mask_BT)) == pytest.approx(0, abs=1e-6)


def test_a_run_learns_from_its_answers_and_leaves_what_others_leave(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console
) -> None:
    # More minibatches than schedule.batch_size has portions for.
    changes: dict[str, Any] = {"ppo": {"kl_target": 0.01, "minibatches": 4}, "schedule": {"batch_size": 8}}
    folder = ppo.run(ppo_run(tiny_model("qwen3_moe"), **changes), console=quiet)
    lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    first, last = lines[0], lines[-1]
    for name in ("policy/entropy", "value/explained_variance", "answer/tokens", "experts/entropy_mean", "grad_norm"):
        assert name in last
    assert {"reward/form", "reward/task", "reward/task/letters", "reward/form/length"} <= set(last)
    assert first["policy/kl"] == 0.0 and last["policy/kl"] != 0.0
    assert last["kl/beta"] != first["kl/beta"]
    assert folder.manifest()["status"] == "finished"
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    assert folder.evaluation()["after"]["num_prompts"] == 2


@pytest.mark.parametrize("value", ["shared", "own"])
def test_broken_off_and_gone_on_with_it_ends_where_it_would_have(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    base = tiny_model("qwen3_moe")
    changes: dict[str, Any] = {"ppo": {"value": value, "kl_target": 0.01, "routing_replay": value == "own"}}
    unbroken = ppo.run(ppo_run(base, out="unbroken", **changes), console=quiet)
    answer = ppo._answer

    def interrupted(session: Any, policy: Any, asked: Any, step: int) -> Answers:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(session, policy, asked, step)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ppo.run(ppo_run(base, out="broken", **changes), console=quiet)
    broken = unbroken.path.with_name("broken")
    assert json.loads((broken / "manifest.json").read_text())["status"] == "interrupted"
    resumed = ppo.run(PpoRun(), resume=broken, console=quiet)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (resumed, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    timed = ("seconds", "tokens_per_second", "num_tokens", "memory/rss_gib", "epoch")
    logs = [
        [{k: v for k, v in json.loads(line).items() if k not in timed and not k.startswith("experts/")} for line in
         run.log_file.read_text().splitlines()]
        for run in (resumed, unbroken)
    ]  # fmt: skip
    assert logs[0] == logs[1]


def test_replayed_experts_are_those_of_the_rollout(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("deepseek_v3"), ppo={"routing_replay": True})
    loaded = load(config.base)
    policy = Policy(begin_adapter(loaded, config), config)
    torch.manual_seed(3)
    answers = generate(policy.model, PROMPTS, loaded.tokenizer, config.rollout, replay=policy.replay)
    policy.be_deterministic()
    assert [one.shape[1] for one in answers.routing] == [
        len(prompt) + len(answer) for prompt, answer in zip(PROMPTS, answers.ids, strict=True)
    ]
    micro_batch = MicroBatch.of(PROMPTS, answers.ids, "cpu")
    free = policy.forward(micro_batch).logp_BT
    with policy.counting_replay():
        replayed = policy.forward(micro_batch.with_routing(answers.routing)).logp_BT
    torch.testing.assert_close(replayed, free, rtol=1e-4, atol=1e-4)
    # In float32 rollout and update choose alike: nothing is replaced. Others' experts give another answer.
    assert policy.replay is not None and policy.replay.take_share() < 0.02
    others = [torch.where(one < 0, one, (one + 1) % 4) for one in answers.routing]
    with policy.counting_replay():
        assert (policy.forward(micro_batch.with_routing(others)).logp_BT - free).abs().max() > 1e-2
    assert policy.replay.take_share() > 0.3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": "nowhere.yaml"}, "nowhere.yaml"),
        ({"rollout": {"max_new_tokens": 128}}, "none of the 20 records can be trained on"),
        ({"schedule": {"max_tokens": 600}, "rollout": {"max_new_tokens": 500}}, "longer than its context of 512"),
        ({"ppo": {"routing_replay": True}}, "routing_replay"),
        ({"schedule": {"gradient_accumulation_steps": 2}}, "schedule.gradient_accumulation_steps"),
        ({"start": {"run": "/nowhere"}}, "/nowhere: holds no adapter"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, changes: dict[str, Any], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("dsr1_tune.runs.session.load_located", lambda *args, **given: pytest.fail("weights are read"))
    base = tiny_model("llama" if said == "routing_replay" else "qwen3_moe")
    with pytest.raises((TuneError, ValidationError), match=said):
        ppo.run(ppo_run(base, **changes), console=quiet)
    assert not (tmp_path / "run").exists()


def test_the_batch_size_is_a_matter_of_memory_alone(tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console) -> None:
    base = tiny_model("qwen3_moe")
    runs = [
        ppo.run(ppo_run(base, out=f"by{size}", schedule={"batch_size": size, "max_steps": 2}), console=quiet)
        for size in (1, 8)
    ]
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in runs)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=2e-4)


def test_a_prompt_is_not_held_out_and_learned_from(
    tiny_model: TinyModel, ppo_run: PpoConfig, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    file = tmp_path / "twice.jsonl"
    rows = [{"prompt": f"say {n % 6}", "ground_truth": str(n)} for n in range(24)]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = ppo_run(tiny_model("qwen3_moe"), data={"files": [str(file)], "eval_share": 0.3})
    data = encode_prompts(prepare(config.data, Prompt), tiny_tokenizer, config)
    learned, held_out = ({one.input_ids for one in side} for side in (data.train, data.held_out))
    assert len(data.train) + len(data.held_out) == 24
    assert held_out and learned and not learned & held_out


def test_what_the_base_does_to_its_own_answers_is_left_out(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"))
    loaded = load(config.base)
    torch.manual_seed(1)
    plain = generate(loaded.model, PROMPTS, loaded.tokenizer, config.rollout)
    loaded.model.generation_config.suppress_tokens = list(range(20, 250))
    loaded.model.generation_config.min_new_tokens = 3
    loaded.model.generation_config.num_return_sequences = 2
    torch.manual_seed(1)
    assert generate(loaded.model, PROMPTS, loaded.tokenizer, config.rollout) == plain
    assert loaded.model.generation_config.min_new_tokens == 3


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "ppo_state.json"])
def test_a_damaged_checkpoint_is_told(tmp_path: Path, name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trained = dict(layer.named_parameters())
    save_state(tmp_path, trained, optimizer, scheduler, 0.3)
    assert load_state(tmp_path, trained, optimizer, scheduler) == 0.3
    (tmp_path / name).write_bytes(b"rubbish")
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path, trained, optimizer, scheduler)


def test_a_reward_that_fails_is_counted_or_ends_the_run(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console, tmp_path: Path
) -> None:
    base = tiny_model("qwen3_moe")
    config = ppo_run(base)
    (tmp_path / "own.py").write_text(
        "def letters(question, answer, expected=None, row=None):\n"
        "    if question.endswith('7'):\n        raise ValueError('no sevens')\n"
        "    return float('nan') if question.endswith('8') else 1.0\n"
    )
    folder = ppo.run(config, console=quiet)
    lines = [json.loads(line) for line in (folder.path / "reward_errors.jsonl").read_text().splitlines()]
    assert folder.manifest()["metrics"]["reward_errors"] == {"task/letters": len(lines)}
    assert {line["question"].split()[-1] for line in lines} <= {"7", "17", "8", "18"} and len(lines) > 2
    assert any("no sevens" in line["error"] for line in lines)
    stopped = ppo_run(base, out="stopped", on_reward_error="stop", data={"eval_share": 0.05})
    with pytest.raises(RunError, match="letters failed"):
        ppo.run(stopped, console=quiet)


def test_a_value_trunk_beside_an_adapter_with_routers(tiny_run: Any, ppo_run: PpoConfig, quiet: Console) -> None:  # noqa: F811
    run = tiny_run("qwen3_moe", "lora", router={"mode": "train"})
    changes: dict[str, Any] = {"ppo": {"value": "own"}, "schedule": {"max_steps": 1}}
    folder = ppo.run(ppo_run(run.path, **changes), console=quiet)
    old, new = (load_file(one.adapter / "adapter_model.safetensors") for one in (run, folder))
    routers = [name for name in old if ".lora_" not in name]
    assert routers and all(torch.equal(old[name], new[name]) for name in routers)
