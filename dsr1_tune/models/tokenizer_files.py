"""A folder's tokenizer, whose files are copied as they are, and its generation config, which names ends of answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dsr1_tune.data.encode.end_tokens import EndTokens, end_tokens
from dsr1_tune.models.weights.index import read_json

GENERATION = "generation_config.json"
# A tokenizer that is saved anew is written as this release of transformers has it, which earlier ones cannot read.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files from one folder into another, byte by byte."""
    for file in sorted({file for pattern in _TOKENIZER for file in folder.glob(pattern)}):
        place = out / file.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    template = out / "chat_template.jinja"
    if not template.is_file() and (legacy := legacy_template(folder)) and "chat_template" not in _settings(folder):
        template.write_text(legacy, encoding="utf-8")  # where everyone looks for it


def legacy_template(folder: Path) -> str | None:
    """The chat template in a JSON file of its own, where transformers looks for those of processors alone."""
    file = folder / "chat_template.json"
    found = read_json(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else None


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def ends_in(folder: Path, tokenizer: Any) -> EndTokens:
    """What ends the answers of the model in `folder`, whose tokenizer this is. Raises what `end_tokens` does."""
    return end_tokens(tokenizer, _named(_tree(folder)) | _named_in_config(folder))


def write_generation_config(folder: Path, tokenizer: Any, out: Path, always: bool = True) -> str:
    """Write the generation_config.json of `folder` into `out`: as it is, but every token that ends an answer is named.

    Returns what was added, for people; mostly nothing, and then the bytes are the same. Without `always` only a file
    to which something was added is written.
    """
    tree = _tree(folder)
    if missing := unnamed_ends(folder, tokenizer):
        config = _config(folder)
        tree = tree or {name: config[name] for name in ("bos_token_id", "pad_token_id") if config.get(name) is not None}
        tree["eos_token_id"] = sorted(ends_in(folder, tokenizer).ids)
        text = json.dumps(tree, indent=2, ensure_ascii=False)
        (out / GENERATION).write_text(text + "\n", encoding="utf-8")
        return f"{GENERATION}: answers also end at {', '.join(missing)}, which the base's own does not say"
    if always and tree:
        shutil.copyfile(folder / GENERATION, out / GENERATION)
    return ""


def unnamed_ends(folder: Path, tokenizer: Any) -> list[str]:
    """The tokens that end answers, and that whoever loads the folder does not hear of: but of the tokenizer's own."""
    known = _named(_tree(folder)) or _named_in_config(folder)
    missing = ends_in(folder, tokenizer).ids - known
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(missing))]


def _tree(folder: Path) -> dict[str, Any]:
    return read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}


def _config(folder: Path) -> dict[str, Any]:
    tree = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    text = tree.get("text_config")
    return {**text, **tree} if isinstance(text, dict) else tree


def _named_in_config(folder: Path) -> frozenset[int]:
    return _named(_config(folder))


def _named(tree: dict[str, Any]) -> frozenset[int]:
    """The ids in eos_token_id, which is one, several or none."""
    found = tree.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return frozenset(number for number in ids if isinstance(number, int))
