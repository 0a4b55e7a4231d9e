"""Files of a model on the Hugging Face Hub: the local cache's, or downloaded; without a network it fails at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsr1_tune.atomic import is_disk_full
from dsr1_tune.errors import ModelError

TIMEOUT_SECONDS = 10.0
# What describes a model; never code, never weights.
DESCRIPTIVE = ("*.json", "*.jinja", "*.txt", "*.model")
_GIVE = "give an existing folder, or a Hub id such as deepseek-ai/DeepSeek-V2-Lite-Chat"


def fetch(repo_id: str, revision: str | None = None, patterns: Sequence[str] = DESCRIPTIVE) -> tuple[Path, str]:
    """(a local folder with the files that match `patterns`, the commit they are of).

    Offline the local cache must hold them. Raises ModelError for an id, a revision or an access that is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=[*patterns], etag_timeout=TIMEOUT_SECONDS)
    except HFValidationError as error:
        raise ModelError(f"{repo_id}: is neither a folder here nor a Hub id", hint=_GIVE) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{repo_id}: its owner lets only approved accounts download it",
            hint=f"accept its terms on https://huggingface.co/{repo_id}, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo_id}: is neither a folder here nor a public model on the Hub",
            hint=f"{_GIVE}; for a private model run: hf auth login",
        ) from error
    except (RevisionNotFoundError, LocalEntryNotFoundError) as error:
        if isinstance(error, RevisionNotFoundError) or isinstance(error.__cause__, RevisionNotFoundError):
            raise ModelError(
                f"{repo_id}: has no revision {revision!r}", hint=f"see https://huggingface.co/{repo_id}/commits/main"
            ) from error
        raise ModelError(
            f"{repo_id}: is no folder here and not in the local cache, and the Hub cannot be reached",
            hint="connect to the internet, check HF_HUB_OFFLINE, or give a folder that holds the model",
        ) from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"{repo_id}: the Hub does not give it: {_first_line(error)}",
            hint="try again later; if it says 401 or 403 run: hf auth login",
        ) from error
    except (HTTPError, OSError) as error:
        if is_disk_full(error):
            raise
        raise ModelError(
            f"{repo_id}: the download broke off: {_first_line(error)}",
            hint="run the same command again: it goes on where it stopped",
        ) from error
    return Path(folder), Path(folder).name


def file_sizes(repo_id: str, revision: str) -> dict[str, int] | None:
    """Bytes of every file in the Hub's copy, by name; None when the Hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT_SECONDS, files_metadata=True)
    except (HTTPError, OfflineModeIsEnabled):
        return None
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
