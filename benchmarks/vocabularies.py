"""Unions of real tokenizers beside the peer's: what becomes of text, and how long it takes.

    python benchmarks/vocabularies.py [--no-peer] [--limit SECONDS] [--json FILE]

Prints two Markdown tables. Text: for each pair, whether a corpus of languages, code and emoji comes
back exactly, how many of each input's own pieces are still reached, how many tokens text of the
donor's kind takes, and how much text of the base's kind is cut as before. Time: the same union with
1,600 and 30,000 new tokens, ours as a whole process against what the union adds to the peer's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peer
from benchmarks.machine import cpu_model
from benchmarks.paths import BENCH, ROOT
from benchmarks.real_tokenizers import prepare
from benchmarks.report import table

# Base, donor, and which text is of the base's and of the donor's kind.
PAIRS = (
    ("llama2", "phi3", "prose", "prose"),
    ("starcoder", "refact", "code", "code"),
    ("starcoder", "smollm2", "code", "prose"),
    ("smollm2", "starcoder", "prose", "code"),
    ("llama2", "baichuan", "prose", "chinese"),
    ("llama3", "qwen2", "prose", "chinese"),
)
LANGUAGES = (
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren; Grüße, Straße.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ça va, œuvre?",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺 👍🏽 ☃️ 🤖🧬 — naïve café, e\u0301 \u00e9, ﬁ, ½, ∑∫√, 𝔘𝔫𝔦",
    "def f(x: int) -> str:\n\treturn f'{x:>08_b}'  # 12345 67.89\r\n\n\n    pass\n",
    "x  y   z    \t\t\n \u00a0\u3000.",
)
MODULES = {
    "prose": ("pydoc_data/topics.py",),
    "code": ("argparse.py", "tarfile.py", "inspect.py", "typing.py", "ast.py", "smtplib.py"),
}
SIZES = (1_600, 30_000)
OURS = """
import sys, time
from pathlib import Path
from mergeloom.types import Checkpoint
from mergeloom.vocabulary.files import tokenizer_files
from mergeloom.vocabulary.tokenizer import read_tokenizer
from mergeloom.vocabulary.union import output_vocabulary
names = ("tokenizer.json", "tokenizer_config.json")
read = [read_tokenizer(Checkpoint(f, Path(f), {}, side_files=names)) for f in sys.argv[2:]]
start = time.process_time()
output = output_vocabulary(read, [1 << 31] * 2, "union")
seconds = time.process_time() - start
for name, content in tokenizer_files(output, read)[0].items():
    (Path(sys.argv[1]) / name).write_bytes(content)
print(len(output.appended), *set(output.union_mode.values()), seconds)
"""


@dataclass(frozen=True)
class Text:
    """What one united tokenizer does with text; shares are from 0 to 1, lengths in tokens."""

    new: int
    mode: str
    back: str
    base_reached: float
    donor_reached: float
    donor_length: int
    base_unchanged: float


def corpus(kind: str) -> str:
    """Return text of a kind: ``prose``, ``code`` or ``chinese``."""
    if kind == "chinese":
        return "\n".join(LANGUAGES[10:12])
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    return "\n".join((stdlib / name).read_text("utf-8") for name in MODULES[kind])[:400_000]


def load(folder: Path) -> Any:
    """Return the tokenizer of a folder, as the library reads it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids(machine: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text without what the tokenizer puts around it."""
    return [found.ids for found in machine.encode_batch_fast(list(texts), add_special_tokens=False)]


def reached(own: Any, made: Any) -> float:
    """Return the share of an input's pieces that the union gives for the same text.

    Counted are the pieces that the input itself gives as one token for their text alone.
    """
    vocabulary = sorted(own.get_vocab().items(), key=lambda entry: entry[1])
    special = {t.content for t in own.get_added_tokens_decoder().values()}
    pieces, texts = [], []
    for piece, number in vocabulary:
        text = own.decode([number], skip_special_tokens=False)
        if piece in special or "\ufffd" in text:
            continue
        if piece.startswith("▁") and not text.startswith(" "):
            text = " " + text.replace("▁", " ") if text.startswith("▁") else text
        pieces.append((piece, number))
        texts.append(text)
    alone = ids(own, texts)
    united = ids(made, texts)
    places = made.get_vocab()
    kept = total = 0
    for (piece, number), before, after in zip(pieces, alone, united, strict=True):
        if before == [number]:
            total += 1
            kept += after == [places.get(piece)]
    return kept / total


def unchanged(base: Any, made: Any, text: str) -> float:
    """Return the share of words, with the space before them, that are cut as by the base."""
    words = [f" {word}" for word in text.split()]
    same = zip(ids(base, words), ids(made, words), strict=True)
    return statistics.fmean(a == b for a, b in same)


def text_of(base: Any, donor: Any, made: Any, mode: str, kinds: tuple[str, str]) -> Text:
    """Measure one union."""
    texts = (*LANGUAGES, corpus("code")[:100_000], corpus("prose")[:100_000])
    # What the base itself does not give back exactly, a union cannot.
    exact = [t for t in texts if base.decode(ids(base, [t])[0]) == t]
    back = sum(made.decode(ids(made, [t])[0]) == t for t in exact)
    return Text(
        len(made.get_vocab()) - len(base.get_vocab()),
        mode,
        f"{back} of {len(exact)}",
        reached(base, made),
        reached(donor, made),
        len(ids(made, [corpus(kinds[1])])[0]),
        unchanged(base, made, corpus(kinds[0])),
    )


def run_ours(base: Path, donor: Path, target: Path) -> tuple[str, float, float]:
    """Unite two folders in a process: the mode, the whole wall time, the union's CPU time."""
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", OURS, str(target), str(base), str(donor)]
    start = time.perf_counter()
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True
    )
    wall = time.perf_counter() - start
    _, mode, seconds = done.stdout.split()
    return mode, wall, float(seconds)


def run_peer(program: Path, models: Sequence[Path], source: str, target: Path,
             limit: float) -> float | None:  # fmt: skip
    """Merge models with the peer: the wall time, None when it takes longer than ``limit``."""
    recipe = target.with_suffix(".yml")
    lines = "".join(f"  - {{model: {m}, parameters: {{weight: 0.5}}}}\n" for m in models)
    recipe.write_text(f"merge_method: linear\nbase_model: {models[0]}\nmodels:\n{lines}"
                      f"tokenizer_source: {source}\ndtype: float32\n")  # fmt: skip
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(program), str(recipe), str(target)], capture_output=True, text=True,
            timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.perf_counter() - start


def as_model(tokenizer: Path, folder: Path) -> Path:
    """Return a Llama of a few weights that has this tokenizer."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    rows = max(load(tokenizer).get_vocab().values()) + 1
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
        "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_hidden_layers": 1, "vocab_size": rows, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    square = [f"{layer}self_attn.{p}_proj.weight" for p in "qkvo"]
    square += [f"{layer}mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    norms = [f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight"]
    tensors = {name: torch.randn(8, 8) for name in square}
    tensors |= {name: torch.ones(8) for name in (*norms, "model.norm.weight")}
    tensors |= {n: torch.randn(rows, 8) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def trimmed(base: Path, donor: Path, count: int, folder: Path) -> Path:
    """Return the donor's tokenizer with only its first ``count`` tokens that the base lacks.

    It cuts text into words as the base does, so that the two can be united.
    """
    document = json.loads((donor / "tokenizer.json").read_text())
    ours = json.loads((base / "tokenizer.json").read_text())
    document["pre_tokenizer"], known = ours["pre_tokenizer"], ours["model"]["vocab"]
    vocab = document["model"]["vocab"]
    new = sorted((i, t) for t, i in vocab.items() if t not in known)
    gone = {token for _, token in new[count:]}
    kept = {t: i for t, i in vocab.items() if t not in gone}
    document["model"]["vocab"] = {t: i for i, t in enumerate(sorted(kept, key=kept.__getitem__))}
    rules = (r.split(" ") if isinstance(r, str) else r for r in document["model"]["merges"])
    document["model"]["merges"] = [
        [a, b] for a, b in rules if a in kept and b in kept and a + b in kept
    ]
    document["added_tokens"] = []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    shutil.copy(donor / "tokenizer_config.json", folder)
    return folder


def measure_text(program: Path | None, limit: float, scratch: Path) -> list[dict[str, Any]]:
    """Unite every pair, with the peer too where it ends in time."""
    found = []
    for base_name, donor_name, *kinds in PAIRS:
        folders = [prepare(base_name), prepare(donor_name)]
        base, donor = map(load, folders)
        ours = scratch / f"{base_name}-{donor_name}"
        mode, _, _ = run_ours(*folders, ours)
        row = {
            "base": base_name, "donor": donor_name, "kinds": kinds,
            "alone": [len(ids(m, [corpus(kinds[1])])[0]) for m in (base, donor)],
            "ours": asdict(text_of(base, donor, load(ours), mode, (kinds[0], kinds[1]))),
        }  # fmt: skip
        new = set(donor.get_vocab()) - set(base.get_vocab())
        if program and len(new) < 2_000:
            models = [as_model(f, scratch / f"model-{f.name}") for f in folders]
            theirs = scratch / f"peer-{ours.name}"
            if run_peer(program, models, "union", theirs, limit) is not None:
                row["peer"] = asdict(text_of(base, donor, load(theirs), "", (kinds[0], kinds[1])))
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return found


def measure_trimmed(program: Path | None, limit: float, scratch: Path) -> list[dict[str, Any]]:
    """Unite StarCoder with GPT-2 cut to so many new tokens; time and text."""
    found = []
    base_folder = prepare("starcoder")
    for size in SIZES:
        donor_folder = trimmed(base_folder, prepare("gpt2"), size, scratch / f"donor-{size}")
        target = scratch / f"ours-{size}"
        mode, wall, seconds = run_ours(base_folder, donor_folder, target)
        base, donor, made = load(base_folder), load(donor_folder), load(target)
        kinds = ("code", "prose")
        row: dict[str, Any] = {"size": size, "ours_wall": wall, "ours_union_cpu": seconds}
        row["alone"] = [len(ids(m, [corpus("prose")])[0]) for m in (base, donor)]
        row["ours"] = asdict(text_of(base, donor, made, mode, kinds))
        if program:
            models = [as_model(f, scratch / f"model-{f.name}") for f in (base_folder, donor_folder)]
            theirs = scratch / f"peer-{size}"
            row["peer_base_wall"] = run_peer(program, models, "base", scratch / "p", limit)
            row["peer_wall"] = run_peer(program, models, "union", theirs, limit)
            if row["peer_wall"] is not None:
                row["peer"] = asdict(text_of(base, donor, load(theirs), "", kinds))
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return found


def percent(value: float) -> str:
    """Return a share as per cent, rounded down so that 100 means all."""
    return f"{int(value * 1000) / 10:g} %"


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of what unions do with text."""
    header = ("base + donor", "by", "new tokens", "text comes back", "base's pieces reached",
              "donor's pieces reached", "donor text: base, donor, union",
              "base text cut as before")  # fmt: skip
    lines = []
    for row in rows:
        for by in ("ours", "peer"):
            if by not in row:
                continue
            text = row[by]
            name = f"{row['base']} + {row['donor']}"
            mode = f" ({text['mode']})" if by == "ours" and text["mode"] != "merge" else ""
            lengths = (*row["alone"], text["donor_length"])
            lines.append(
                (name, f"{by}{mode}", f"{text['new']:,}", text["back"],
                 percent(text["base_reached"]), percent(text["donor_reached"]),
                 ", ".join(f"{n:,}" for n in lengths), percent(text["base_unchanged"]))
            )  # fmt: skip
    return table(header, lines)


def time_table(rows: Sequence[dict[str, Any]], limit: float) -> str:
    """Return the table of times: ours as a process, the peer's union beyond its plain merge."""
    header = ("new tokens", "ours: union alone (CPU)", "ours: process", "peer: merge with base",
              "peer: with union", "union: peer / our process")  # fmt: skip
    lines = []
    for row in rows:
        base, union, ratio = row.get("peer_base_wall"), row.get("peer_wall"), "–"
        if base is not None:
            more = (union if union is not None else limit) - base
            ratio = f"{'' if union is not None else 'over '}{more / row['ours_wall']:.1f}"
        lines.append(
            (f"{row['ours']['new']:,}", f"{row['ours_union_cpu']:.1f} s",
             f"{row['ours_wall']:.1f} s",
             "–" if base is None else f"{base:.1f} s",
             f"stopped after {limit:.0f} s" if union is None else f"{union:.1f} s", ratio)
        )  # fmt: skip
    return table(header, lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peer-venv", type=Path, metavar="PATH")
    parser.add_argument("--limit", type=float, default=150, help="seconds for one run of the peer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    arguments = parser.parse_args()
    program = None if arguments.no_peer else peer.program(arguments.peer_venv)
    BENCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BENCH, prefix="vocabularies-") as folder:
        pairs = measure_text(program, arguments.limit, Path(folder))
        sizes = measure_trimmed(program, arguments.limit, Path(folder))
    cut = [
        {**row, "base": "starcoder", "donor": f"gpt2 cut to {row['size']:,} new"}
        for row in sizes
        if "peer" in row
    ]
    versions = ", ".join(f"{p} {version(p)}" for p in ("tokenizers", "transformers"))
    print(text_table([*pairs, *cut]), time_table(sizes, arguments.limit), sep="\n\n")
    print(f"\n{time.strftime('%Y-%m-%d')}, {cpu_model()}, {versions}, peer: mergekit "
          f"{peer.VERSION if program else 'not run'}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({"pairs": pairs, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
