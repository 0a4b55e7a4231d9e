"""Tokenizers that come as a tiktoken file with Python of their own, read without running that where the kind is known.

A tiktoken file lists byte strings with their ranks; how a text is cut before, and what the special tokens are, stands
in the Python beside it. That of Moonshot AI's models (Moonlight, Kimi-Linear, Kimi-K2) is written down here.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.index import COPY_AGAIN, read_json

FILE = "tiktoken.model"
_READABLE = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_MODULES = ("tokenization_kimi", "tokenization_moonshot")
# `pat_str` and `num_reserved_special_tokens` in tokenization_kimi.py of huggingface.co/moonshotai/Kimi-K2-Instruct.
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_END = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PIECES = (
    *(r"[\p{Han}]+", f"{_WORD}*{_END}+{_SHORT}", f"{_WORD}+{_END}*{_SHORT}", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
)
NUM_RESERVED = 256
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def tiktoken_file(folder: Path) -> Path | None:
    """The tiktoken file that is all that a folder has of its tokenizer; None where others can be read."""
    if any((folder / name).is_file() for name in _READABLE):
        return None
    return next(iter([*sorted(folder.glob(FILE)), *sorted(folder.glob("*.tiktoken"))]), None)


def read_tiktoken(file: Path, name: str) -> Any:
    """The tokenizer of the folder `file` lies in, without a chat template where that is not in a usual place.

    Raises ModelError, calling the model `name`, for a kind that is not known, and for files that do not fit together.
    """
    from transformers import PreTrainedTokenizerFast

    folder = file.parent
    place = folder / "tokenizer_config.json"
    settings = read_json(place) if place.is_file() else {}
    _check_known(file, settings, name)
    backend, ranks = _byte_pairs(file)
    _add_special(backend, len(ranks), settings.get("added_tokens_decoder") or {}, file)
    template = folder / "chat_template.jinja"
    told = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    roles = {role: _content(settings[role]) for role in _ROLES if settings.get(role)}
    longest = settings.get("model_max_length")
    more = {"model_max_length": longest} if isinstance(longest, int) else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=told, clean_up_tokenization_spaces=False, **roles, **more
    )


def _check_known(file: Path, settings: dict[str, Any], name: str) -> None:
    mapped = settings.get("auto_map")
    named = str(mapped.get("AutoTokenizer")) if isinstance(mapped, dict) else str(settings.get("tokenizer_class"))
    module = next((one for one in _MODULES if one in named), None)
    code = file.parent / f"{module}.py"
    # The file need not be there; where it is, it must cut texts as it is written down here.
    differs = code.is_file() and not all(piece in code.read_text(encoding="utf-8") for piece in PIECES)
    if module is None or differs or file.name != FILE:
        other = f": its {code.name} is another than is known here" if differs else ""
        raise ModelError(
            f"{name}: all that it has of a tokenizer is {file.name}, and how that cuts texts stands in Python, which "
            f"is not run{other}",
            hint="put the model's tokenizer.json into the folder: its publisher may have one, or make it with "
            "transformers.integrations.tiktoken.convert_tiktoken_to_fast of the encoding that its code builds",
        )


def _byte_pairs(file: Path) -> tuple[Any, dict[bytes, int]]:
    """The Rust library's tokenizer, and the ranks in the file."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = _ranks(file)

    class Converter(TikTokenConverter):
        """Its own reader asks for another library."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return ranks

    return Converter(vocab_file=str(file), pattern="|".join(PIECES)).converted(), ranks


def _ranks(file: Path) -> dict[bytes, int]:
    ranks = {}
    try:
        for line in file.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
        raise ModelError(f"{file}: is damaged: {error}", hint=COPY_AGAIN) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise ModelError(f"{file}: is damaged: its ranks do not count from 0 on", hint=COPY_AGAIN)
    return ranks


def _add_special(backend: Any, first: int, named: dict[str, Any], file: Path) -> None:
    """The tokens behind the ranks, each with its id: those with a name, and between them reserved ones."""
    from tokenizers import AddedToken

    by_id = {int(number): token for number, token in named.items()}
    last = max([first + NUM_RESERVED - 1, *by_id])
    tokens = []
    for number in range(first, last + 1):
        token = by_id.get(number) or {"content": f"<|reserved_token_{number}|>", "special": True}
        flags = {flag: bool(token.get(flag)) for flag in ("lstrip", "rstrip", "single_word", "special")}
        tokens.append(AddedToken(str(token["content"]), normalized=False, **flags))
    backend.add_tokens(tokens)
    for number, token in by_id.items():
        if backend.token_to_id(str(token["content"])) != number:
            raise ModelError(
                f"{file}: holds {first} tokens, with which {token['content']} cannot be number {number}, as "
                "tokenizer_config.json says",
                hint=COPY_AGAIN,
            )


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)
