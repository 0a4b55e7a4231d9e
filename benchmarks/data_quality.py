"""Do the rules and the search for duplicates find what is wrong, and leave alone what is right?

A labelled set is made from public files (drawn with a seed, screened by eye: see SCREENED), from faults put into other
rows of theirs (faults.py) and from rows that look odd and are fine (fine_rows.py). `dsr1-tune data clean` is run on it
as a user would, and what it rejected is held against the labels.

    python benchmarks/data_quality.py                  # the labelled set: a table by kind, and every mistake
    python benchmarks/data_quality.py --gpteacher      # against the author's own thinning of a file at similarity 0.9
    python benchmarks/data_quality.py --utilisation    # how much of every real file is kept, and why not the rest

The files lie in --real, by default ../shared/data next to the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import (
    BLOCKED_WORDS,
    EXACT,
    KINDS,
    LENGTHS,
    Kind,
    Talk,
    contradictions,
    jaccard,
    length_faults,
    nearly,
    own_part,
    shingles,
)
from fine_rows import fine_rows

REPOSITORY = Path(__file__).parents[1]
SEED = 7
FOUND_FLOOR, FALSE_FLOOR = 0.95, 0.01
RECALL_FLOOR, PRECISION_FLOOR = 0.95, 0.98
KEPT_FLOOR = 0.913
LANGUAGES = ("en", "zh")


def main() -> None:
    """Run what the flags ask for, and exit 1 if a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=REPOSITORY.parent / "shared" / "data", help="the public files")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help="keep the labelled set and the results here")
    parser.add_argument("--misses", type=int, default=5, help="how many mistakes of each kind to show")
    parser.add_argument("--gpteacher", action="store_true")
    parser.add_argument("--utilisation", action="store_true")
    parser.add_argument("--sample", type=int, default=30, help="disagreements to show with --gpteacher")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        if args.gpteacher:
            ok = gpteacher(args.real, folder, args.sample)
        elif args.utilisation:
            ok = utilisation(args.real, folder)
        else:
            rows = labelled_set(args.real, args.seed)
            judged = [
                *evaluate(rows, folder / "all"),
                *evaluate(length_set(args.real, args.seed), folder / "lengths", LENGTHS),
            ]
            ok = show(judged, merges(rows, folder / "all"), args.misses)
    sys.exit(0 if ok else 1)


# The rows, drawn ----------------------------------------------------------------------------------------------------

DRAWN = {
    "v1_sft": 90,
    "alpaca_en": 330,
    "alpaca_zh": 480,
    "llama_data": 460,
    "law": 130,
    "cmtmedqa": 260,
    "liver_cancer": 150,
    "gpteacher": 170,
    "glaive": 90,
    "dpo_en": 50,
    "example": 0,
}
"""Clean rows from each file, in this order."""

SPARED = {
    "v1_sft": 999,
    "alpaca_en": 999,
    "alpaca_zh": 999,
    "llama_data": 640,
    "law": 90,
    "cmtmedqa": 340,
    "gpteacher": 80,
    "dpo_en": 999,
    "example": 999,
}
"""At most so many further rows of a file get faults."""

SCREENED = {
    "refuses, or speaks as an AI": (
        "0854bbeb 0b717128 0be0322a 1021083f 1122f43f 17404a06 196cd386 1c1366e0 1d0cee6a 1de1213c 25f452fd 29fc62c5 "
        "2ab2b9bd 2b5daec4 2fb5656d 33783547 3400c3cd 340d5004 3532753e 3b7aae28 3cf5654f 3e34326a 3f812811 45083a8c "
        "4c63e545 516ed7f5 527ef32a 5422fe79 57ff9ee6 5e958565 63e8a7bf 64b89e0f 652c8481 72a67754 76996262 7d26927d "
        "80336607 83424b99 84205c57 848bb54b 8af2a2fc 8d696d33 987cf281 a148d6c9 a8da71d3 ab3bceee b028a34e b349a9d3 "
        "b4a57ee9 bc5e2236 bde4e9a2 c80040d2 c9cefecb cb2e1684 cb98a9a4 d10868a1 d4b4a9a3 d4f6da06 d8f076cb d9ce81f4 "
        "e199f1d4 f7026dfb e6906440 dbeb5cb1 aa12d91e 92006e18 2ea60315 "
        "df09adfb df70f6fb e02341d2 e5fa4c51 ed4aefc6 ee7bc69c ef20af2b fb621f53 fc90f107 fca81e4c"
    ),
    "asks for an input that is missing": (
        "00d570fd 130852e1 17e0a007 18744d79 201ca551 21123e44 2e35ae3c 3c9f701e 40c89c74 6379473e 73a9a8a7 73fc7839 "
        "76ce4595 8946d029 92dd7bee 94ae84dc 99d1ad88 a572ba83 a8a7c7c7 b1c880fd b586206b be7b6fc4 cf4ee6e6 d41c6d6e "
        "c5f37961 29e0dd40 ee0f7359 a36511a8 c5a33510 77442600 619f10c0 d4c9e707 dfe7dac3 e397777f fc67ed76 b6bf9cde"
    ),
    "breaks off": (
        "027283b7 04a4de04 126e1320 20004da0 31d94dd4 3e42e4b4 3fc5be12 485dc4d5 5954194e 84bed8ff 85e1593a 9e64245c "
        "aa650b6c c14b334e c548e5c9 cd215716 ceb9050c e59296f9 f48540ec fdccd4cd"
    ),
    "answers in the wrong language": (
        "0aa84843 0ea51a19 3534fa4b 478109c9 4cc3075a 54ab6dd4 717aff28 a42cb8c9 a61fdfa6 f7ea27d9 "
        "c04b9f69 025bba95 1550a96b"
    ),
    "holds damaged characters": "78a6d08b d27fea31",
}
"""Answers (the start of their SHA-1) that a reader found faulty: they are neither clean nor get a second fault."""

_FAULTY = {digest: reason for reason, digests in SCREENED.items() for digest in digests.split()}

_DECLINES = re.compile(r"^(?:很?抱歉|对不起|I'?m sorry|I am sorry|I apologi[sz]e)")


@dataclass(frozen=True)
class Labelled:
    """A row, and what should become of it.

    `kind` is a fault, a class of fine rows, or "clean"; `group` names rows that are copies of one another. `good` is
    the answer before the fault, where mending it counts.
    """

    talk: Talk
    kind: str
    is_faulty: bool
    variant: int | str = 0
    codes: frozenset[str] = frozenset()
    group: str = ""
    good: str = ""


def labelled_set(
    real: Path, seed: int = SEED, each: int = 32, drawn: dict[str, int] = DRAWN, spared: dict[str, int] = SPARED
) -> list[Labelled]:
    """Clean rows, rows with faults (`each` of a kind and language) and fine rows, shuffled; the same for a seed."""
    rng = random.Random(seed)
    clean, hosts = draw(real, rng, drawn, spared)
    rows = [Labelled(talk, "clean", False) for talk in clean]
    rows += faulty_rows(hosts, rng, each)
    rows += [Labelled(talk, name, False) for name, talk in fine_rows(rng)]
    rng.shuffle(rows)
    return rows


def draw(
    real: Path, rng: random.Random, drawn: dict[str, int] = DRAWN, spared: dict[str, int] = SPARED
) -> tuple[list[Talk], dict[str, list[Talk]]]:
    """Clean rows, and by language the rows that may be spoilt; no two of all are nearly the same."""
    clean: list[Talk] = []
    hosts: dict[str, list[Talk]] = {language: [] for language in LANGUAGES}
    seen = Seen()
    for source, num in drawn.items():
        good = [talk for talk in real_rows(real, source) if not screened_out(talk)]
        rng.shuffle(good)
        fresh = (talk for talk in good if seen.adds(talk))
        clean += itertools.islice(fresh, num)
        for talk in itertools.islice(fresh, spared.get(source, 0)):
            if len(talk.text) < 6000:
                hosts[talk.language].append(talk)
    for language in LANGUAGES:
        rng.shuffle(hosts[language])
    return clean, hosts


def screened_out(talk: Talk) -> str:
    """Why a row is not taken for clean, or nothing."""
    if not talk.question.strip() or not talk.answer.strip():
        return "blank"
    if talk.source == "glaive" and _DECLINES.match(talk.answer):
        return "declines for want of a tool: arguable"
    return _FAULTY.get(hashlib.sha1(talk.answer.strip().encode()).hexdigest()[:8], "")


class Seen:
    """Rows drawn so far; a row that nearly says the same is not drawn again, since one may argue about it."""

    def __init__(self) -> None:
        self._rows: list[tuple[frozenset[str], frozenset[str]]] = []
        self._holders: dict[str, list[int]] = defaultdict(list)
        self._questions: set[str] = set()

    def adds(self, talk: Talk) -> bool:
        """Take the row down, unless its like is known: text 0.65 and answer 0.5 alike, or the same question."""
        asked = plain("\n".join(text for _, text in talk.turns[:-1]))
        whole, answer = shingles(talk.text), shingles(talk.answer)
        rare = [gram for gram in whole if hash_of(gram) % 8 == 0]
        near = Counter(row for gram in rare for row in self._holders[gram][:50])
        for row, _ in near.most_common(20):
            if jaccard(whole, self._rows[row][0]) >= 0.65 and jaccard(answer, self._rows[row][1]) >= 0.5:
                return False
        if asked in self._questions:
            return False
        for gram in rare:
            self._holders[gram].append(len(self._rows))
        self._rows.append((whole, answer))
        self._questions.add(asked)
        return True


def hash_of(text: str) -> int:
    """A number that is the same in every run, unlike hash()."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def plain(text: str) -> str:
    """The text without width, case, signs and spaces."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


# Reading, on its own: the yardstick does not use what it measures -----------------------------------------------------


def real_rows(real: Path, source: str) -> list[Talk]:
    """A file's rows; none if it is not there."""
    if source == "example":
        return _rows(REPOSITORY / "examples" / "medical" / "medical.json", source, _from_alpaca)
    name, convert = _FILES[source]
    return _rows(real / name, source, convert)


def _rows(path: Path, source: str, convert: Any) -> list[Talk]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    talks = []
    for row in rows:
        try:
            turns, tools = convert(row)
        except (KeyError, TypeError, AttributeError, ValueError):
            continue
        if all(isinstance(text, str) for _, text in turns):
            talks.append(Talk(tuple(turns), _language(turns[-1][1]), source, tools))
    return talks


def _from_alpaca(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    asked = [row[name] for name in ("instruction", "instruct", "input") if row.get(name)]
    before = [turn for pair in row.get("history") or [] for turn in zip(("user", "assistant"), pair, strict=True)]
    answer = row["output"] if "output" in row else row["response"]
    return [*before, ("user", "\n".join(asked)), ("assistant", answer)], ""


def _from_messages(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    return [(turn["role"], "".join(part["value"] for part in turn["content"])) for turn in row["messages"]], ""


def _from_sharegpt(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    names = {"human": "user", "gpt": "assistant"}
    turns = [(names.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]]
    if "chosen" in row:
        turns.append(("assistant", row["chosen"]["value"]))
    return turns, row.get("tools") or ""


_FILES: dict[str, tuple[str, Any]] = {
    "v1_sft": ("LLaMA-Factory/v1_sft_demo.jsonl", _from_messages),
    "alpaca_en": ("LLaMA-Factory/alpaca_en_demo.json", _from_alpaca),
    "alpaca_zh": ("LLaMA-Factory/alpaca_zh_demo.json", _from_alpaca),
    "llama_data": ("Huatuo/llama_data.json", _from_alpaca),
    "law": ("DISC-LawLLM/qa_short_answer.json", _from_alpaca),
    "cmtmedqa": ("Zhongjing/CMtMedQA_test.json", _from_alpaca),
    "liver_cancer": ("Huatuo/liver_cancer.json", _from_alpaca),
    "gpteacher": ("GPTeacher/toolformer-similarity-0.9-dataset.json", _from_alpaca),
    "glaive": ("LLaMA-Factory/glaive_toolcall_zh_demo.json", _from_sharegpt),
    "dpo_en": ("LLaMA-Factory/dpo_en_demo.json", _from_sharegpt),
}


def _language(text: str) -> str:
    return "zh" if len(re.findall(r"[\u4e00-\u9fff]", text)) * 5 >= len(text) else "en"


# The rows, spoilt -----------------------------------------------------------------------------------------------------

NEAR_EACH = 110
"""Near-duplicates of each language; more than of other kinds, since a precision of 98 % is to be told from 97 %."""


def faulty_rows(hosts: dict[str, list[Talk]], rng: random.Random, each: int) -> Iterator[Labelled]:
    """So many rows of each kind and language, each made of a row of its own; choosy kinds choose first."""
    order = sorted(KINDS, key=lambda name: name not in _CHOOSY)
    for language in LANGUAGES:
        free = list(hosts[language])
        # Tool prompts begin alike, so they are good for copies only.
        alike = [talk for talk in free if talk.source == "gpteacher"]
        free = [talk for talk in free if talk.source != "gpteacher"]
        yield from _copies([*alike, *free[:: max(1, len(free) // 150)]], free, language, rng, each)
        for name in order:
            yield from _spoilt(name, KINDS[name], free, language, rng, each)
        for n, rows in enumerate(contradictions(language, rng)[: each if each > 8 else 2]):
            for talk in rows:
                codes = frozenset({"contradictory_answer"})
                yield Labelled(talk, "contradictory answers", True, codes=codes, group=f"contradiction-{language}-{n}")


_CHOOSY = (
    "truncated",
    "repeated lines",
    "text in circles",
    "wrong language",
    "HTML left in",
    "mojibake, mendable",
    "turn order",
    "answer restates the question",
    "answer repeats the question",
)


def _spoilt(
    name: str, kind: Kind, free: list[Talk], language: str, rng: random.Random, each: int
) -> Iterator[Labelled]:
    """Rows of one kind; every variant in turn finds the first free row that suits it."""
    variants = kind.en if language == "en" else kind.zh
    made = 0
    for n in range(each * 4):
        which = n % len(variants)
        for place, talk in enumerate(free):
            spoilt = variants[which](talk, rng)
            if spoilt is not None and spoilt != talk:
                del free[place]
                yield Labelled(spoilt, name, True, which, kind.codes, good=talk.answer if kind.mend else "")
                made += 1
                break
        if made == each:
            return


def _copies(choice: list[Talk], free: list[Talk], language: str, rng: random.Random, each: int) -> Iterator[Labelled]:
    """Rows with a copy or two: exact but for their form, and nearly the same."""
    for n, talk in enumerate(choice[:each]):
        which = n % len(EXACT[language])
        copy = EXACT[language][which](talk, rng)
        if talk in free:
            free.remove(talk)
        if copy is not None:
            for member in (talk, copy):
                group = f"exact-{language}-{n}"
                yield Labelled(member, "exact duplicate", True, which, frozenset({"exact_duplicate"}), group)
    wanted = NEAR_EACH if each > 8 else each
    made = 0
    for talk in [*choice[each:], *reversed(free)]:
        edits = [edited for edited in (nearly(talk, rng) for _ in range(6)) if edited is not None]
        if made == wanted:
            return
        if not edits:
            continue
        if talk in free:
            free.remove(talk)
        # Every sixth has two copies.
        for member, how in ((talk, "as it was"), *edits[: 2 if made % 6 == 0 else 1]):
            group = f"near-{language}-{made}"
            yield Labelled(member, "near-duplicate", True, how, frozenset({"near_duplicate"}), group)
        made += 1


def length_set(real: Path, seed: int, each: int = 20) -> list[Labelled]:
    """Rows that are too short or too long by the settings in LENGTHS, and rows at the border that are not."""
    rng = random.Random(seed + 1)
    _, hosts = draw(real, rng)
    rows = []
    for language in LANGUAGES:
        at = iter(hosts[language])
        for code in ("question_too_short", "answer_too_short", "question_too_long", "answer_too_long"):
            for _ in range(each):
                talk = next(
                    talk for talk in at if len(talk.text) < 1500 and len(talk.turns) == 2 and len(talk.answer) > 20
                )
                spoilt = length_faults(talk, rng)[code]
                rows.append(Labelled(spoilt, code.replace("_", " "), True, codes=frozenset({code})))
        for _ in range(each):
            talk = next(talk for talk in at if len(talk.turns) == 2 and len(talk.question) >= 6)
            short = "fine" if language == "en" else "没有问题"
            rows.append(Labelled(talk.answering(short), "as short as allowed", False))
    rng.shuffle(rows)
    return rows


# The tool, run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What became of a labelled row: dropped with a code, or kept with the text that is left."""

    row: Labelled
    code: str
    detail: str = ""
    kept: str = ""

    @property
    def is_found(self) -> bool:
        """Dropped, or mended where that is as good; mended only, where a repair is known to bring the text back."""
        if "mended" in self.row.codes:
            return self.is_mended
        return bool(self.code) if not self.row.good else bool(self.code) or self.is_mended

    @property
    def is_right(self) -> bool:
        """Found for the reason that is the true one."""
        if "mended" in self.row.codes:
            return self.is_mended
        return self.code in self.row.codes or (bool(self.row.good) and not self.code and self.is_mended)

    @property
    def is_mended(self) -> bool:
        """Kept, and the text is again what it was but for spaces and typographic signs."""
        return not self.code and loosely(self.row.good) in loosely(self.kept)


def loosely(text: str) -> str:
    """The text without spaces, and with plain quotes and dashes: what repair may change besides."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub("[\u2018\u2019]", "'", re.sub("[\u201c\u201d]", '"', text)).replace("\u2014", "-")
    return re.sub(r"\s+", "", text.replace(" - ", "-"))


def evaluate(rows: Sequence[Labelled], folder: Path, lengths: dict[str, int] | None = None) -> list[Judged]:
    """Write the rows, clean them with the command line, and read what became of each."""
    places = write_rows(rows, folder)
    run_clean(sorted({folder / name for name, _ in places}), folder, lengths)
    codes = read_codes(folder / "out")
    kept = {}
    for name in ("train.jsonl", "eval.jsonl"):
        for row in read_lines(folder / "out" / name):
            source = row["source"]
            kept[(Path(source["file"]).name, source["line"])] = "\n".join(turn["content"] for turn in row["messages"])
    lost = [place for place in places if place not in codes and place not in kept]
    if lost:
        sys.exit(f"{len(lost)} rows are neither kept nor rejected, such as {lost[0]}")
    return [
        Judged(row, *codes.get(place, ("", "")), kept.get(place, "")) for row, place in zip(rows, places, strict=True)
    ]


def write_rows(rows: Sequence[Labelled], folder: Path) -> list[tuple[str, int]]:
    """Plain pairs as Alpaca, everything else as ShareGPT; returns file and line of every row."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"pairs.jsonl": [], "talks.jsonl": []}
    places = []
    for row in rows:
        talk = row.talk
        if [role for role, _ in talk.turns] == ["user", "assistant"] and not talk.tools:
            name, written = "pairs.jsonl", {"instruction": talk.question, "output": talk.answer}
        else:
            names = {"user": "human", "assistant": "gpt"}
            said = [{"from": names.get(role, role), "value": text} for role, text in talk.turns]
            name, written = "talks.jsonl", {"conversations": said, **({"tools": talk.tools} if talk.tools else {})}
        lines[name].append(json.dumps(written, ensure_ascii=False))
        places.append((name, len(lines[name])))
    for name, of_file in lines.items():
        if of_file:
            (folder / name).write_text("\n".join(of_file) + "\n", encoding="utf-8", newline="\n")
    return places


def run_clean(files: Iterable[Path], folder: Path, lengths: dict[str, int] | None) -> None:
    """`dsr1-tune data clean` with the general pack and the list of blocked words."""
    changes: dict[str, Any] = {"blocked_word": {"words": list(BLOCKED_WORDS)}}
    if lengths:
        changes["lengths"] = lengths
    pack = folder / "pack.yaml"
    pack.write_text(json.dumps({"extends": "general", "rules": changes}, ensure_ascii=False), encoding="utf-8")
    command("clean", *map(str, files), "--rules", str(pack), "--out", str(folder / "out"))


def command(verb: str, *arguments: str) -> None:
    """Run a verb of `dsr1-tune data`, and stop with what it says if it fails, or if a rule hangs on some row."""
    line = [sys.executable, "-m", "dsr1_tune", "data", verb, *arguments]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        sys.exit(f"dsr1-tune data {verb}: not done in five minutes; a few thousand rows take seconds")
    if done.returncode:
        sys.exit(f"dsr1-tune data {verb}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def read_codes(out: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(code, detail) of every row that is not kept, by file and line; merged rows count, wherever they are listed."""
    codes = {}
    for group in read_lines(out / "duplicates.jsonl"):
        for merged in group["merged"]:
            kept = group["kept"]
            detail = f"like {Path(kept['file']).name}:{kept['line']} ({merged['similarity']:.2f})"
            codes[(Path(merged["file"]).name, merged["line"])] = (f"{group['kind']}_duplicate", detail)
    for row in read_lines(out / "rejected.jsonl"):
        codes[(Path(row["file"]).name, row["line"])] = (row["code"], row["detail"])
    return codes


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none if there is no such file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.exists() else []


# The tables -----------------------------------------------------------------------------------------------------------


@dataclass
class Merges:
    """How many merges of one kind and language are of rows that are copies of one another; the others, by place."""

    num: int = 0
    right: int = 0
    wrong: list[tuple[str, Labelled, Labelled]] = field(default_factory=list)


def merges(rows: Sequence[Labelled], folder: Path) -> dict[tuple[str, str], Merges]:
    """(kind, language) → merges, without those of rows that are faulty anyway."""
    at = dict(zip(write_rows(rows, folder), rows, strict=True))
    table: dict[tuple[str, str], Merges] = defaultdict(Merges)
    for group in read_lines(folder / "out" / "duplicates.jsonl"):
        kept = at[(Path(group["kept"]["file"]).name, group["kept"]["line"])]
        for place in group["merged"]:
            merged = at[(Path(place["file"]).name, place["line"])]
            if merged.is_faulty and not merged.group:
                continue
            counts = table[(group["kind"], merged.talk.language)]
            counts.num += 1
            if merged.group and merged.group == kept.group:
                counts.right += 1
            else:
                counts.wrong.append((f"{place['similarity']:.2f}", merged, kept))
    return table


COPIES = ("exact duplicate", "near-duplicate")


def show(judged: Sequence[Judged], merged: dict[tuple[str, str], Merges], misses: int) -> bool:
    """Print the tables and the mistakes; returns whether every floor holds."""
    verdicts = [*_faults_table(judged), *_copies_table(judged, merged), *_fine_table(judged)]
    _show_mistakes(judged, merged, misses)
    failed = [name for name, ok in verdicts if not ok]
    print("\nEvery floor holds." if not failed else f"\nBelow the floor: {'; '.join(failed)}")
    return not failed


def _faults_table(judged: Sequence[Judged]) -> Iterator[tuple[str, bool]]:
    print(
        f"\n| fault (floor {FOUND_FLOOR:.0%}) | rows | found | with the right code | en | zh | codes given |\n"
        + "|---" * 7
        + "|"
    )
    by_kind: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.row.is_faulty and one.row.kind not in COPIES:
            by_kind[one.row.kind].append(one)
    for name, ones in sorted(by_kind.items()):
        found = share(one.is_found for one in ones)
        by_language = [share(one.is_found for one in ones if one.row.talk.language == lang) for lang in LANGUAGES]
        codes = Counter(one.code or ("mended" if one.row.good and one.is_mended else "kept") for one in ones)
        listed = ", ".join(f"{code} {n}" for code, n in codes.most_common(4))
        right = share(one.is_right for one in ones)
        print(
            f"| {name} | {len(ones)} | {found:.1%} | {right:.1%} "
            f"| {by_language[0]:.0%} | {by_language[1]:.0%} | {listed} |"
        )
        if name not in KINDS or KINDS[name].floor:
            yield name, found >= FOUND_FLOOR


def _copies_table(judged: Sequence[Judged], merged: dict[tuple[str, str], Merges]) -> Iterator[tuple[str, bool]]:
    print("\n| copies | groups | rows to merge | recall | merges | precision |\n" + "|---" * 6 + "|")
    for kind, short in zip(COPIES, ("exact", "near"), strict=True):
        for language in LANGUAGES:
            groups = _groups(judged, kind, language)
            due = sum(len(ones) - 1 for ones in groups.values())
            done = sum(min(len(ones) - 1, sum(bool(one.code) for one in ones)) for ones in groups.values())
            counts = merged.get((short, language), Merges())
            recall, precision = done / max(1, due), counts.right / max(1, counts.num)
            print(f"| {kind}, {language} | {len(groups)} | {due} | {recall:.1%} | {counts.num} | {precision:.1%} |")
            yield f"recall of {kind} {language}", recall >= RECALL_FLOOR
            yield f"precision of {kind} {language}", precision >= PRECISION_FLOOR
    print("\n| near-duplicates by likeness | to merge | recall |\n" + "|---" * 3 + "|")
    for low, high in ((0.8, 0.85), (0.85, 0.9), (0.9, 0.95), (0.95, 1.0)):
        edited = [ones for lang in LANGUAGES for ones in _groups(judged, COPIES[1], lang).values() if len(ones) == 2]
        inside = [ones for ones in edited if low <= likeness(ones[0].row.talk, ones[1].row.talk) < high]
        print(f"| {low} to {high} | {len(inside)} | {share(any(one.code for one in ones) for ones in inside):.1%} |")


def likeness(a: Talk, b: Talk) -> float:
    """How alike two rows are by this yardstick."""
    return jaccard(shingles(own_part(a)), shingles(own_part(b)))


def _groups(judged: Sequence[Judged], kind: str, language: str) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.row.kind == kind and one.row.talk.language == language:
            groups[one.row.group].append(one)
    return groups


def _fine_table(judged: Sequence[Judged]) -> Iterator[tuple[str, bool]]:
    print(
        f"\n| fine rows (at most {FALSE_FLOOR:.0%} dropped) | rows | dropped | share | codes given |\n"
        + "|---" * 5
        + "|"
    )
    by_kind: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if not one.row.is_faulty:
            by_kind[f"clean: {one.row.talk.source}" if one.row.kind == "clean" else one.row.kind].append(one)
    clean = [one for name, ones in by_kind.items() if name.startswith("clean: ") for one in ones]
    odd = [one for name, ones in by_kind.items() if not name.startswith("clean: ") for one in ones]
    for name, ones in (*sorted(by_kind.items()), ("**all clean rows**", clean), ("**all odd but fine rows**", odd)):
        dropped = [one for one in ones if one.code]
        codes = ", ".join(f"{code} {n}" for code, n in Counter(one.code for one in dropped).most_common())
        print(f"| {name} | {len(ones)} | {len(dropped)} | {len(dropped) / max(1, len(ones)):.1%} | {codes} |")
    lost = _lost_groups(judged)
    print(f"| groups of copies of which none is left | {lost[1]} | {lost[0]} | {lost[0] / max(1, lost[1]):.1%} | |")
    yield "groups of copies of which none is left", lost[0] <= FALSE_FLOOR * lost[1]
    yield "false drops of clean rows", share(bool(one.code) for one in clean) <= FALSE_FLOOR
    yield "false drops of odd but fine rows", share(bool(one.code) for one in odd) <= FALSE_FLOOR


def _lost_groups(judged: Sequence[Judged]) -> tuple[int, int]:
    """How many groups of copies left nothing, of how many."""
    groups = [ones for kind in COPIES for lang in LANGUAGES for ones in _groups(judged, kind, lang).values()]
    return sum(all(one.code for one in ones) for ones in groups), len(groups)


def _show_mistakes(judged: Sequence[Judged], merged: dict[tuple[str, str], Merges], misses: int) -> None:
    missed: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.row.is_faulty and one.row.kind not in COPIES and not one.is_found:
            missed[f"{one.row.kind}, {one.row.talk.language}"].append(one)
    for kind in COPIES:
        for language in LANGUAGES:
            for ones in _groups(judged, kind, language).values():
                if sum(bool(one.code) for one in ones) < len(ones) - 1:
                    missed[f"{kind}, {language}"] += ones
    print("\n## Missed")
    for name, ones in sorted(missed.items()):
        print(f"\n{name}: {len(ones)}; variants {dict(Counter(one.row.variant for one in ones))}")
        for one in ones[:misses]:
            print(f"- {excerpt(one.row.talk)}")
    print("\n## Copies of which none is left")
    for kind in COPIES:
        for language in LANGUAGES:
            for ones in _groups(judged, kind, language).values():
                if all(one.code for one in ones):
                    said = "; ".join(f"{one.row.variant}: {one.code} ({one.detail[:80]})" for one in ones)
                    print(f"- {kind}, {language}: {said}\n  {excerpt(ones[0].row.talk)}")
    print("\n## Dropped, though fine")
    for one in sorted(
        (one for one in judged if one.code and not one.row.is_faulty), key=lambda one: (one.row.kind, one.code)
    ):
        print(
            f"- {one.row.kind} ({one.row.talk.source}, {one.row.talk.language}) {one.code}: {one.detail[:110]}\n"
            f"  {excerpt(one.row.talk)}"
        )
    print("\n## Merged, though different")
    for (kind, language), counts in sorted(merged.items()):
        for alike, row, kept in counts.wrong:
            print(f"- {kind}, {language}, {alike}: {row.kind}\n  {excerpt(row.talk)}\n  {excerpt(kept.talk)}")


def share(values: Iterable[bool]) -> float:
    """How many are true; 1 of none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 1.0


def excerpt(talk: Talk, width: int = 150) -> str:
    """Question and answer in one line, their middles left out."""

    def short(text: str) -> str:
        text = json.dumps(text, ensure_ascii=False)[1:-1]
        return text if len(text) <= width else f"{text[: width * 2 // 3]} … {text[-width // 3 :]}"

    return f"Q: {short(talk.question)} | A: {short(talk.answer)}"


# Another author's thinning --------------------------------------------------------------------------------------------


def gpteacher(real: Path, folder: Path, sample: int) -> bool:
    """What we merge in a file against what its author removed at similarity 0.9; shows where we disagree."""
    before = real / "GPTeacher" / "toolformer-dedupe-only-dataset.json"
    after = real / "GPTeacher" / "toolformer-similarity-0.9-dataset.json"
    rows = json.loads(before.read_text(encoding="utf-8"))
    left = Counter(_key(row) for row in json.loads(after.read_text(encoding="utf-8")))
    removed = []
    for number, row in enumerate(rows):
        if left[_key(row)]:
            left[_key(row)] -= 1
        else:
            removed.append(number)
    print(
        f"{len(rows)} rows; the author removed {len(removed)}; {sum(left.values())} rows of the thinned file are new\n"
    )
    print(
        "| similarity | we remove | both | only the author | only we | of ours, the author's too |\n" + "|---" * 6 + "|"
    )
    ours: dict[int, tuple[int, float]] = {}
    for similarity in (0.9, 0.8, 0.7):
        out = folder / f"gpteacher-{similarity}"
        command("dedup", str(before), "--similarity", str(similarity), "--out", str(out))
        found = _merged_indices(out, before)
        both = set(found) & set(removed)
        print(
            f"| {similarity} | {len(found)} | {len(both)} | {len(set(removed) - both)} | {len(set(found) - both)} "
            f"| {len(both) / max(1, len(found)):.1%} |"
        )
        ours = found if similarity == 0.8 else ours
    rng = random.Random(SEED)
    grams = [shingles(_said(row)) for row in rows]
    print(f"\n## Only the author removed ({sample} drawn), with the nearest other row")
    theirs = sorted(set(removed) - set(ours))
    for number in sorted(rng.sample(theirs, min(sample, len(theirs)))):
        alike, near = max((jaccard(grams[number], other), i) for i, other in enumerate(grams) if i != number)
        print(f"- {alike:.2f}\n  {_said(rows[number])[-220:]!r}\n  {_said(rows[near])[-220:]!r}")
    print(f"\n## Only we removed ({sample} drawn), with the row that we kept")
    only = sorted(set(ours) - set(removed))
    for number in sorted(rng.sample(only, min(sample, len(only)))):
        kept, alike = ours[number]
        print(f"- {alike:.2f}\n  {_said(rows[number])[-220:]!r}\n  {_said(rows[kept])[-220:]!r}")
    return True


def _key(row: dict[str, str]) -> str:
    return json.dumps([row.get(name, "").strip() for name in ("instruction", "input", "response")])


def _said(row: dict[str, str]) -> str:
    return "\n".join(row.get(name, "") for name in ("instruction", "input", "response"))


def _merged_indices(out: Path, file: Path) -> dict[int, tuple[int, float]]:
    """Index of each merged row → (index of the row that stands for it, similarity)."""
    index_at = {}
    for name in ("train.jsonl", "eval.jsonl", "rejected.jsonl"):
        for row in read_lines(out / name):
            source = row.get("source", row)
            index_at[source["line"]] = source["index"]
    found = {}
    for group in read_lines(out / "duplicates.jsonl"):
        for merged in group["merged"]:
            found[index_at[merged["line"]]] = (index_at[group["kept"]["line"]], merged["similarity"])
    return found


# How much is kept -----------------------------------------------------------------------------------------------------

WELL_KEPT = (
    "alpaca_en_demo.json",
    "alpaca_zh_demo.json",
    "v1_sft_demo.jsonl",
    "llama_data.json",
    "CMtMedQA_test.json",
    "qa_short_answer.json",
    "liver_cancer.json",
    "toolformer-similarity-0.9-dataset.json",
)
"""Files that somebody looked after; the others are samples of something, or messy on purpose."""


def utilisation(real: Path, folder: Path) -> bool:
    """A waterfall for every file: rows, kept, merged, dropped by code."""
    print("| file | rows | kept | merged | dropped | kept | kept of unmerged | reasons |\n" + "|---" * 8 + "|")
    ok = True
    for path in sorted(path for path in real.rglob("*") if path.suffix in (".json", ".jsonl", ".csv")):
        out = folder / f"kept-{path.stem}"
        command("clean", str(path), "--out", str(out))
        kept = sum(len(read_lines(out / name)) for name in ("train.jsonl", "eval.jsonl"))
        codes = Counter(code for code, _ in _all_codes(out))
        merged = codes.pop("exact_duplicate", 0) + codes.pop("near_duplicate", 0)
        rows = kept + merged + codes.total()
        of_unmerged = kept / max(1, rows - merged)
        reasons = ", ".join(f"{code} {n}" for code, n in codes.most_common())
        well_kept = path.name in WELL_KEPT
        ok &= of_unmerged >= KEPT_FLOOR or not well_kept
        name = f"**{path.name}**" if well_kept else path.name
        print(
            f"| {name} | {rows} | {kept} | {merged} | {codes.total()} "
            f"| {kept / max(1, rows):.1%} | {of_unmerged:.1%} | {reasons} |"
        )
    return ok


def _all_codes(out: Path) -> Iterator[tuple[str, str]]:
    """(code, detail) of every row that is not kept, each once; places may repeat where a line holds several rows."""
    rejected = read_lines(out / "rejected.jsonl")
    yield from ((row["code"], row["detail"]) for row in rejected)
    if not any(row["code"].endswith("_duplicate") for row in rejected):
        for group in read_lines(out / "duplicates.jsonl"):
            yield from ((f"{group['kind']}_duplicate", "") for _ in group["merged"])


if __name__ == "__main__":
    main()
