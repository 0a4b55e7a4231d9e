"""What is measured of one model: the plain losses, the same tokens, and distributions within their room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.export.comparison import measure
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.kept_rows import eval_subset_examples
from tests.export.conftest import QUICK, compared


def test_measured_numbers_are_the_plain_ones(run: RunFolder, base: Path, trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    models = [load_with_adapter(path) for path in (base, run.path)]
    examples = eval_subset_examples(run, models[0].tokenizer)
    losses = [held_out_loss(one.model, examples, 1).loss for one in models]
    assert found.domain is not None and found.domain.name == f"held-out rows of {run.path}"
    assert (found.domain.loss_a.value, found.domain.loss_b.value) == pytest.approx(tuple(losses), rel=1e-5)
    assert found.domain.increase.value == pytest.approx(losses[1] / losses[0] - 1, rel=1e-4)

    divergences, same = [], []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        is_learned_T = torch.tensor(example.labels[1:]) != IGNORED
        with torch.no_grad():
            a_TV, b_TV = (one.model(ids).logits[0, :-1][is_learned_T].double().log_softmax(-1) for one in models)
        divergences.append((a_TV.exp() * (a_TV - b_TV)).sum(-1))
        same.append(a_TV.argmax(-1) == b_TV.argmax(-1))
    assert found.domain.divergence is not None and found.domain.agreement is not None
    assert found.domain.divergence.value == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3, abs=1e-5)
    assert found.domain.agreement.value == pytest.approx(float(torch.cat(same).double().mean()))
    assert found.domain.num_diverged == found.domain.num_tokens == len(torch.cat(same))


def test_distributions_of_too_many_tokens_are_thinned(base: Path, run: RunFolder, monkeypatch: Any) -> None:
    settings = QUICK.model_copy(update={"answers": 0, "max_rows": 3})
    whole = compared(base, run.path, settings)
    monkeypatch.setattr(measure.Distributions.__init__, "__defaults__", (40 * 258 * 2,))
    some = compared(base, run.path, settings)
    assert whole.domain and some.domain and whole.general.divergence and some.general.divergence
    assert whole.domain.loss_b == some.domain.loss_b and whole.domain.agreement == some.domain.agreement
    kept = some.domain.num_diverged + some.general.num_diverged
    assert 20 <= kept <= 40 < whole.domain.num_diverged + whole.general.num_diverged
    assert some.general.divergence.value == pytest.approx(whole.general.divergence.value, rel=0.5)
