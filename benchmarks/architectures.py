"""How much of a model is understood from names, shapes and config.json: scores over transformers.

    python benchmarks/architectures.py [MODEL_TYPE ...] [--jobs N] [--json FILE]

Every (model type, class) of five auto mappings of the installed transformers is built on the meta
device from its default config. Its names and shapes, as `save_pretrained` would write them, and
its config go through `understand`; what comes out is compared with the module tree. Then the main
stack is rebuilt with an overlap (the first half, then the last three quarters), and the plan's
tensors are compared with those of the class that is built from the rewritten config: names and
shapes must be the same, or the plan must have been refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

MAPPINGS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM",
            "SPEECH_SEQ_2_SEQ")  # fmt: skip
SECONDS = 120  # for one class; the slowest takes about ten
EXPERTS = 8  # hundreds of them are hundreds of times the same question
EXPERT_COUNT = re.compile(r"^(n_routed|num|num_local|moe_num|num_routed)_experts$")
Result = dict[str, Any]


def pairs() -> list[tuple[str, str]]:
    """Every (model type, class name) of the mappings, once."""
    from transformers.models.auto import modeling_auto

    found = []
    for mapping in MAPPINGS:
        for kind, classes in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in [classes] if isinstance(classes, str) else classes:
                found.append((kind, name))
    return list(dict.fromkeys(found))


def build(kind: str, name: str) -> Any:
    """The class with its default config on the meta device, with at most `EXPERTS` experts."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[kind]()
    whole = json.loads(config.to_json_string(use_diff=False))
    few = with_few_experts(whole)
    with torch.device("meta"):
        if few != whole:
            try:
                return getattr(transformers, name)(type(config).from_dict(few))
            except Exception as error:  # noqa: BLE001 - a class that wants its number of experts
                print(f"{name} with all its experts: {error}", file=sys.stderr)
        return getattr(transformers, name)(config)


def with_few_experts(config: Any) -> Any:
    """A config with the numbers of routed experts cut, at every depth."""
    if not isinstance(config, dict):
        return config
    return {
        key: min(value, EXPERTS)
        if EXPERT_COUNT.search(key) and type(value) is int
        else with_few_experts(value)
        for key, value in config.items()
    }


def kept_tensors(model: Any) -> dict[str, Any]:
    """The state dict without what `save_pretrained` leaves out: ignored names, tied ones."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = model._keys_to_ignore_on_save or ()
    state = {name: t for name, t in model.state_dict().items() if name not in ignored}
    return dict(remove_tied_weights_from_state_dict(state, model))


def stored_tensors(model: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Name on disk → meta tensor; a tensor that only changes its name is the object in `kept`."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(kept)))


def config_of(model: Any) -> Result:
    """config.json as plain JSON."""
    config: Result = json.loads(model.config.to_json_string(use_diff=False))
    return {**config, "architectures": [type(model).__name__]}


# --- what is true ------------------------------------------------------------------------------


def true_stacks(model: Any, on_disk: Mapping[str, str]) -> dict[str, int]:
    """Prefix on disk → layers, of every ModuleList of what the library calls layers."""
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    whole = {str(c) for m in model.modules() for c in getattr(m, "_no_split_modules", None) or ()}
    found = {}
    for name, module in model.named_modules():
        inside = any(part.isdigit() for part in name.split("."))
        if not isinstance(module, torch.nn.ModuleList) or inside or not len(module):
            continue
        layers = all(
            isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in whole for m in module
        )
        if layers and (prefix := _prefix_on_disk(name, on_disk)):
            found[prefix] = len(module)
    return found


def _prefix_on_disk(name: str, on_disk: Mapping[str, str]) -> str | None:
    """Where most tensors of a ModuleList's first layer are on disk."""
    found: Counter[str] = Counter()
    for inner, outer in on_disk.items():
        parts = outer.split(".")
        if inner.startswith(f"{name}.0.") and "0" in parts[1:]:
            found[".".join(parts[: parts.index("0", 1)])] += 1
    return found.most_common(1)[0][0] if found else None


def true_tables(model: Any, on_disk: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Names on disk of the input embedding and of the head; None where there is none of its own."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)

    def stored(getter: str) -> tuple[int, str | None]:
        try:
            weight = getattr(getattr(model, getter)(), "weight", None)
        except NotImplementedError:
            weight = None
        same = names.get(id(weight), [])
        return id(weight), next((on_disk[n] for n in same if n in on_disk), None)

    one, embedding = stored("get_input_embeddings")
    other, head = stored("get_output_embeddings")
    return embedding, head if one != other and head != embedding else None


# --- one class ---------------------------------------------------------------------------------


def measure(kind: str, name: str) -> Result:
    """Everything about one class; `error` when it cannot be built here."""
    import transformers

    from mergeloom.architecture import understand

    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    result: Result = {"type": kind, "class": name}
    try:
        try:
            model = build(kind, name)
        except Exception as error:  # noqa: BLE001 - incomplete default configs, missing packages
            return {**result, "error": f"{type(error).__name__}: {str(error)[:80]}"}
        kept = kept_tensors(model)
        tensors, config = stored_tensors(model, kept), config_of(model)
        outer = {id(t): n for n, t in tensors.items()}
        on_disk = {n: outer[id(t)] for n, t in kept.items() if id(t) in outer}
        shapes = {n: tuple(t.shape) for n, t in tensors.items()}
        layout = understand(shapes, config)
        found = {s.prefix: s.length for s in layout.stacks}
        truth = true_stacks(model, on_disk)
        embedding, head = true_tables(model, on_disk)
        result |= {
            "stacks": [truth, found],
            "stacks_right": all(found.get(p) == n for p, n in truth.items()),
            "keys": {s.prefix: s.count_key and ".".join(s.count_key) for s in layout.stacks},
            "main": layout.main.prefix if layout.main else None,
            "embedding": [embedding, list(layout.embeddings)],
            "embedding_right": list(layout.embeddings) == ([embedding] if embedding else []),
            "head": [head, list(layout.heads)],
            "head_right": list(layout.heads) == ([head] if head else [])
            or (not layout.heads and layout.tied_to == head),
        }
        if layout.main and layout.main.length >= 3:
            result["restack"] = restack(layout, tensors, config)
        return result
    finally:
        signal.alarm(0)


def _stop(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def restack(layout: Any, tensors: Mapping[str, Any], config: Result) -> Result:
    """Rebuild the main stack: `ok`, `refused` with the reason, or `wrong` with the misfits."""
    import mergeloom
    from mergeloom.architecture.modules import is_encoder_decoder, part_of
    from mergeloom.checkpoint import StoredTensor
    from mergeloom.errors import MergeloomError
    from mergeloom.planning import plan_opened
    from mergeloom.types import DTYPES_BY_TORCH_NAME, Checkpoint

    n = layout.main.length
    ranges = [(0, n // 2), (n - (3 * n) // 4, n)]
    slices = [{"sources": [{"model": "A", "layer_range": list(r)}]} for r in ranges]
    body: Result = {"slices": slices}
    if is_encoder_decoder(layout):
        body = {"modules": {part_of(layout, f"{layout.main.prefix}.0"): body}}
    recipe = mergeloom.load_recipe({"merge_method": "passthrough", **body})
    views = {
        name: StoredTensor(
            Path(__file__), number, DTYPES_BY_TORCH_NAME[str(t.dtype)[6:]].name, tuple(t.shape)
        )
        for number, (name, t) in enumerate(tensors.items())
    }
    opened = {recipe.models()[0]: Checkpoint("A", Path(), views, config)}
    try:
        plan = plan_opened(recipe, opened)
    except MergeloomError as error:
        return {"outcome": "refused", "why": str(error)}
    written = {job.name: tuple(job.shape) for job in plan.jobs}
    try:
        wanted = expected(plan.config or {})
    except Exception as error:  # noqa: BLE001 - whatever the class says about its config
        return {"outcome": "wrong", "why": f"{type(error).__name__}: {str(error)[:300]}"}
    if wanted == written:
        return {"outcome": "ok", "warnings": [str(w) for w in plan.warnings]}
    off = [f"{n} {wanted.get(n)} {written.get(n)}" for n in sorted({*wanted, *written})
           if wanted.get(n) != written.get(n)]  # fmt: skip
    return {"outcome": "wrong", "why": f"{len(off)} tensors: {off[:3]}"}


def expected(config: Result) -> dict[str, tuple[int, ...]]:
    """Name → shape on disk of the class with this config.json."""
    import torch
    import transformers

    from mergeloom.verify import decoded

    kind = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = kind(kind.config_class.from_dict(decoded(config)))
    stored = stored_tensors(model, kept_tensors(model))
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}


# --- all of them -------------------------------------------------------------------------------


def run(wanted: list[str], jobs: int) -> Iterator[Result]:
    """The results as they come."""
    todo = [pair for pair in pairs() if not wanted or pair[0] in wanted]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(measure, *pair): pair for pair in todo}
        for number, done in enumerate(as_completed(waiting), 1):
            if sys.stderr.isatty():
                print(f"\r{number}/{len(todo)}", end="", file=sys.stderr)
            try:
                yield done.result()
            except Exception as error:  # noqa: BLE001 - a defect is a result too
                kind, name = waiting[done]
                yield {"type": kind, "class": name, "crash": f"{type(error).__name__}: {error}"}


def table(results: list[Result]) -> Iterator[str]:
    """The scores as a Markdown table, then every class that is not right."""
    built = [r for r in results if "error" not in r]
    restacked = [r for r in built if "restack" in r]
    outcomes = [r["restack"]["outcome"] for r in restacked]

    def score(key: str) -> str:
        return f"{sum(bool(r.get(key)) for r in built)} of {len(built)}"

    yield from ("| question | right |", "|---|---|")
    yield f"| every layer stack found, with its prefix and length | {score('stacks_right')} |"
    yield f"| the input embedding, and no other table | {score('embedding_right')} |"
    yield f"| the head, or that it is tied | {score('head_right')} |"
    for outcome, words in (
        ("ok", "stack rebuilt with an overlap: loads, every layer of the right shapes"),
        ("refused", "stack rebuilt with an overlap: refused, because config.json cannot say it"),
        ("wrong", "stack rebuilt with an overlap: neither"),
    ):
        yield f"| {words} | {outcomes.count(outcome)} of {len(outcomes)} |"
    yield ""
    for result in sorted(built, key=lambda r: (r["type"], r["class"])):
        for key in ("stacks", "embedding", "head"):
            if not result.get(f"{key}_right"):
                true, found = result.get(key, ("", result.get("crash")))
                yield f"{key}: {result['type']} {result['class']}: true {true}, found {found}"
        if result.get("restack", {}).get("outcome", "ok") != "ok":
            why = result["restack"]
            yield f"{why['outcome']}: {result['type']} {result['class']}: {why['why']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", help="only these model types")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--json", type=Path, help="write results to this file, one a line")
    arguments = parser.parse_args()
    started = time.time()
    results = []
    with (arguments.json or Path(os.devnull)).open("w") as sink:
        for result in run(arguments.types, arguments.jobs):
            results.append(result)
            print(json.dumps(result), file=sink, flush=True)
    print("\n".join(table(results)))
    print(f"{len(results)} classes in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
