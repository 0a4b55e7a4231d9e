"""What the Hub refuses or breaks off, as the user hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HTTPError

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import load


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty Hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def locate(folder: Path | str, **settings: Any) -> load.Located:
    return load.locate(Base(model=str(folder), **settings))


def test_hub_id_fails_at_once_offline(offline: None) -> None:
    with pytest.raises(ModelError, match="not in the local cache, and the Hub cannot be reached") as caught:
        locate("somebody/some-model")
    assert "HF_HUB_OFFLINE" in caught.value.hint


def fake_response(status: int) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url="", method="GET"), text="")


@pytest.mark.parametrize(
    ("error", "says", "mend"),
    [
        ("GatedRepoError", "only approved accounts", "accept its terms"),
        ("RepositoryNotFoundError", "neither a folder here nor a public model", "hf auth login"),
        ("RevisionNotFoundError", "has no revision 'v9'", "commits"),
        ("HfHubHTTPError", "the Hub does not give it: boom", "try again later"),
    ],
)
def test_hub_refusals_are_explained(monkeypatch: pytest.MonkeyPatch, error: str, says: str, mend: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> None:
        raise getattr(errors, error)("boom\nmore", response=fake_response(403))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=says) as caught:
        locate("somebody/some-model", revision="v9")
    assert mend in caught.value.hint


@pytest.mark.parametrize("error", [OSError("consistency check failed"), HTTPError("timed out")])
def test_hub_download_that_breaks_off_can_go_on(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import huggingface_hub

    def break_off(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    with pytest.raises(ModelError, match=f"some-model: the download broke off: {error}") as caught:
        locate("somebody/some-model")
    assert "goes on where it stopped" in caught.value.hint
