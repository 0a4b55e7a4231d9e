"""Tiktoken files read without the Python beside them, against byte pairs merged by hand."""

from __future__ import annotations

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex

from dsr1_tune.errors import ModelError
from dsr1_tune.models.folder import ModelFolder
from tests.conftest import CHATML

# As tokenization_kimi.py has it; written out here once more.
PAT_STR = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
TEXTS = [
    "Hello, world! I'll say DON'T, we're HereWeGo and they'VE 1234567 events.",
    "你好世界，欢迎使用Kimi！ こんにちは mixed中文English 文字abc",
    "a  b\n\n\nc\t\r\n   end   ",
    "café naïve Zürich Ελληνικά Русский 한국어 🎉🚀",
    "def f(x: int) -> bool:\n    return x >= 10 ** 3",
]
TOKENS = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_start|>"]


def learned() -> dict[bytes, int]:
    """All bytes, and the most frequent pairs of the texts, merged as byte-pair encoding learns them."""
    ranks = {bytes([number]): number for number in range(256)}
    pieces = [
        [bytes([one]) for one in piece.encode()] for text in TEXTS for piece in regex.findall(PAT_STR, text, regex.V1)
    ]
    for _ in range(120):
        counts: dict[tuple[bytes, bytes], int] = {}
        for piece in pieces:
            for pair in pairwise(piece):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        pieces = [merged(piece, best) for piece in pieces]
    return ranks


def merged(piece: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for one in piece:
        if out and (out[-1], one) == pair:
            out[-1] += one
        else:
            out.append(one)
    return out


def by_hand(text: str, ranks: dict[bytes, int]) -> list[int]:
    """What tiktoken makes of a text: pieces of the pattern, of each the pair of the lowest rank first."""
    ids = []
    for piece in regex.findall(PAT_STR, text, regex.V1):
        parts = [bytes([one]) for one in piece.encode()]
        while len(parts) > 1:
            places = [place for place in range(len(parts) - 1) if parts[place] + parts[place + 1] in ranks]
            if not places:
                break
            place = min(places, key=lambda place: ranks[parts[place] + parts[place + 1]])
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return learned()


@pytest.fixture
def folder(tmp_path: Path, ranks: dict[bytes, int]) -> Path:
    """The tokenizer of a folder as Moonlight and Kimi-Linear come."""
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (tmp_path / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    decoder = {str(len(ranks) + place): {"content": one, "special": True} for place, one in enumerate(TOKENS)}
    settings = {
        "added_tokens_decoder": decoder,
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "tokenizer_class": "TikTokenTokenizer",
        "bos_token": "[BOS]",
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": CHATML,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    pieces = "\n".join(f'        r"""{piece}""",' for piece in PAT_STR_PIECES)
    (tmp_path / "tokenization_kimi.py").write_text(f"raise SystemExit('run')\n{pieces}\n")
    return tmp_path


PAT_STR_PIECES = [
    *PAT_STR.split("|[^\\r\\n")[:1],
    *(f"[^\\r\\n{piece}" for piece in PAT_STR.split("|\\p{N}{1,3}")[0].split("|[^\\r\\n")[1:]),
    *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
]


def test_ids_are_those_of_byte_pairs_merged_by_hand(folder: Path, ranks: dict[bytes, int]) -> None:
    assert "|".join(PAT_STR_PIECES) == PAT_STR
    tokenizer = ModelFolder(folder, "moonlight").read_tokenizer()
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == by_hand(text, ranks)
        assert tokenizer.decode(ids) == text
    assert any(rank > 255 for text in TEXTS for rank in tokenizer.encode(text))


def test_special_tokens_have_their_numbers(folder: Path, ranks: dict[bytes, int]) -> None:
    tokenizer = ModelFolder(folder, "moonlight").read_tokenizer()
    first = len(ranks)
    assert len(tokenizer) == first + 256
    assert tokenizer.convert_tokens_to_ids(TOKENS) == list(range(first, first + 4))
    assert tokenizer.convert_ids_to_tokens(first + 9) == f"<|reserved_token_{first + 9}|>"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("[BOS]", "<|im_end|>")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], return_dict=False)
    assert ids[0] == first + 3 and first + 2 in ids
    assert ModelFolder(folder, "moonlight").has_tokenizer


def spoil(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("how", ["another class", "another pattern", "another file"])
def test_what_is_not_known_is_refused(how: str, folder: Path) -> None:
    if how == "another class":
        spoil(folder, auto_map={"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]})
    if how == "another pattern":
        code = folder / "tokenization_kimi.py"
        code.write_text(code.read_text().replace("{1,3}", "{1,2}"))
    if how == "another file":
        shutil.move(folder / "tiktoken.model", folder / "qwen.tiktoken")
    with pytest.raises(ModelError, match=r"named: all that it has of a tokenizer is .* not run") as error:
        ModelFolder(folder, "named").read_tokenizer()
    assert "tokenizer.json" in error.value.hint


def test_files_that_do_not_fit_together_are_refused(folder: Path, ranks: dict[bytes, int]) -> None:
    spoil(folder, added_tokens_decoder={str(len(ranks) - 1): {"content": "<|im_end|>"}})
    with pytest.raises(ModelError, match=r"im_end\|> cannot be number"):
        ModelFolder(folder, "named").read_tokenizer()
    (folder / "tiktoken.model").write_bytes(b"IQ== 0\nIg== 2\n")
    with pytest.raises(ModelError, match="do not count from 0"):
        ModelFolder(folder, "named").read_tokenizer()
    (folder / "tiktoken.model").write_bytes(b"no base64 at all\n")
    with pytest.raises(ModelError, match=r"tiktoken\.model: is damaged"):
        ModelFolder(folder, "named").read_tokenizer()
