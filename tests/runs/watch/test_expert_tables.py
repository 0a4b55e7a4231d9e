"""The tables of a run's expert routing."""

from __future__ import annotations

from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.watch.expert_tables import ExpertTables
from tests.runs.watch.conftest import log_of


def test_expert_tables_hold_the_eval_subset_and_all_that_was_trained_on(healthy: tuple[RunFolder, str]) -> None:
    folder, _ = healthy
    tables = ExpertTables.read(folder.path)
    assert tables.before is not None and tables.training is not None and tables.after is not None
    assert tables.before.layers == tables.after.layers == ("model.layers.1.mlp.experts",)
    assert tables.before.num_chosen == 2
    assert tables.before.rows_L.tolist() == tables.after.rows_L.tolist()  # the same probe
    assert tables.training.rows_L.tolist() == [2 * log_of(folder.path)[-1]["num_tokens"]]
