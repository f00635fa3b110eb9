"""NaN and infinity, tensors that are copied, odd tensors in memory, several merges at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from models import save

import mergeloom
from mergeloom import MergeError

NAN, INF = float("nan"), float("inf")


def recipe(method: str, *names: str, base: str | None = None, **top: object) -> dict:
    """A merge of models with weight 1, or of the base with another one."""
    models = [{"model": n, "parameters": {} if n == base else {"weight": 1.0}} for n in names]
    if method in ("slerp", "passthrough"):
        models = [{"model": n} for n in names]
    made: dict = {"merge_method": method, "models": models, **top}
    if base:
        made["base_model"] = base
    if method == "slerp":
        made["parameters"] = {"t": 0.3}
    return made


METHODS = [("linear", None), ("slerp", "a"), ("nuslerp", None), ("task_arithmetic", "a"),
           ("passthrough", None)]  # fmt: skip


@pytest.mark.parametrize(("method", "base"), METHODS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_nan_and_infinity_are_an_error_that_names_the_tensor(method, base, value, dtype):
    names = ("a",) if method == "passthrough" else ("a", "b")
    given = {n: {"ok": torch.ones(2).to(dtype), "bad": torch.ones(3, 4).to(dtype)} for n in names}
    given[names[-1]]["bad"][1, 2] = value
    with pytest.raises(MergeError, match="NaN or infinite") as failure:
        mergeloom.merge_state_dicts(recipe(method, *names, base=base), given)
    (problem,) = failure.value.problems
    assert problem.where == "bad"
    assert f"{names[-1]}:bad" in problem.message
    merged = mergeloom.merge_state_dicts(
        recipe(method, *names, base=base), given, allow_nonfinite=True
    )
    assert not torch.isfinite(merged["bad"]).all()
    assert torch.isfinite(merged["ok"]).all()


def test_angles_of_rows_spoil_only_their_own_row():
    a, b = torch.ones(4, 5), torch.full((4, 5), 2.0)
    b[2, 3] = NAN
    text = recipe("nuslerp", "a", "b", parameters={"nuslerp_flatten": False})
    merged = mergeloom.merge_state_dicts(text, {"a": {"w": a}, "b": {"w": b}}, allow_nonfinite=True)
    assert torch.isfinite(merged["w"]).all(1).tolist() == [True, True, False, True]


def test_overflow_of_float16_is_an_error():
    given = {n: {"w": torch.full((300, 500), 40000.0).half()} for n in ("a", "b")}
    text = recipe("linear", "a", "b", parameters={"normalize": False})
    with pytest.raises(MergeError, match=r"150000 of 150000 elements .* float16"):
        mergeloom.merge_state_dicts(text, given)
    wide = mergeloom.merge_state_dicts({**text, "dtype": "float32"}, given)
    assert torch.equal(wide["w"], torch.full((300, 500), 80000.0))


def test_a_nan_in_a_copied_tensor_is_an_error_too():
    given = {n: {"w": torch.ones(2), "rotary_emb.inv_freq": torch.tensor([NAN])} for n in "ab"}
    with pytest.raises(MergeError, match="after copying"):
        mergeloom.merge_state_dicts(recipe("linear", "a", "b"), given)


def test_the_command_reports_counts_and_leaves_nothing(tmp_path: Path):
    bad = torch.ones(3, 4)
    bad[0] = NAN
    save(tmp_path / "a", {"ok": torch.ones(2), "bad": bad}, {})
    path, out = tmp_path / "recipe.yml", tmp_path / "out"
    path.write_text(f"merge_method: passthrough\nmodels: [{{model: {tmp_path / 'a'}}}]\n")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        code = "from mergeloom.cli.main import main; main()"
        command = [sys.executable, "-c", code, "merge", str(path), str(out), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode == 2
    assert "bad: 4 of 12 elements are NaN or infinite" in refused.stderr
    assert not out.exists()
    allowed = run("--allow-nonfinite")
    assert allowed.returncode == 0, allowed.stderr
    assert "bad: 4 elements are NaN or infinite" in allowed.stderr
    assert out.is_dir()


def test_counts_survive_a_resume(tmp_path: Path):
    bad = torch.full((5,), INF)
    save(tmp_path / "a", {"a": bad, "b": torch.ones(2), "c": torch.ones(2)}, {})
    text = f"merge_method: passthrough\nmodels: [{{model: {tmp_path / 'a'}}}]\n"
    calls = iter(range(2))

    def stop(read: int, written: int) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mergeloom.merge(text, tmp_path / "out", allow_nonfinite=True, threads=1, progress=stop)
    done = mergeloom.merge(text, tmp_path / "out", allow_nonfinite=True)
    assert done.resumed == 2
    assert done.nonfinite == {"a": 5}


COPIED = {
    "int64": torch.tensor([[0, 1, 2**60 + 1]]),
    "int32": torch.tensor([-7], dtype=torch.int32),
    "int8": torch.tensor([-7, 7], dtype=torch.int8),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "num_batches_tracked": torch.tensor(12345),
    "rotary_emb.inv_freq": torch.tensor([1.0, 0.1234567]),
    "h.0.attn.bias": torch.ones(1, 1, 3, 3).tril(),
}


@pytest.mark.parametrize(("method", "base"), METHODS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_buffers_are_copied_from_the_base_bit_by_bit(method, base, dtype):
    names = ("a",) if method == "passthrough" else ("a", "b")
    given = {n: {"w": torch.full((2, 2), float(i + 1))} | {k: v.clone() for k, v in COPIED.items()}
             for i, n in enumerate(names)}  # fmt: skip
    if len(names) > 1:  # buffers of the other model differ, and are not looked at
        for name in ("int64", "int32", "num_batches_tracked"):
            given["b"][name] = given["b"][name] + 5
    top = {"dtype": dtype} if dtype else {}
    if method == "passthrough":
        top["parameters"] = {"scale": 3.0}
    merged = mergeloom.merge_state_dicts(recipe(method, *names, base=base, **top), given)
    for name, wanted in COPIED.items():
        assert merged[name].dtype == wanted.dtype, name
        assert torch.equal(merged[name], wanted), name
    assert merged["w"].dtype == (torch.bfloat16 if dtype else torch.float32)


def strange(shape: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """The same values in memory that is not dense, and in a tensor that wants a gradient."""
    torch.manual_seed(seed)
    x = torch.randn(*shape)
    spread = torch.zeros(*shape, 2)
    spread[..., 0] = x
    shifted = torch.cat([torch.zeros(3), x.reshape(-1)])[3:].view(shape)
    return [x, x.mT.contiguous().mT, spread[..., 0], shifted, torch.nn.Parameter(x.clone())]


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (900, 301)], ids=str)
def test_tensors_of_any_layout_in_memory(shape):
    results = [
        mergeloom.merge_state_dicts(recipe("slerp", "a", "b", base="a"),
                                    {"a": {"w": a}, "b": {"w": b}})["w"]
        for a, b in zip(strange(shape, 0), strange(shape, 1), strict=True)
    ]  # fmt: skip
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert all(r.is_contiguous() and not r.requires_grad for r in results)


def test_expanded_and_shared_tensors_in_memory():
    row = torch.randn(1, 6)
    given = {"a": {"w": row.expand(4, 6), "v": row}, "b": {"w": torch.ones(4, 6), "v": row}}
    merged = mergeloom.merge_state_dicts(recipe("linear", "a", "b"), given)
    assert torch.equal(merged["w"], (row.expand(4, 6) + 1) / 2)
    merged["v"].zero_()
    assert not torch.equal(row, merged["v"])


def test_the_result_of_a_single_model_is_its_own_memory():
    x = torch.ones(4)
    merged = mergeloom.merge_state_dicts(recipe("passthrough", "a"), {"a": {"w": x}})
    merged["w"].zero_()
    assert torch.equal(x, torch.ones(4))


def test_merges_in_several_threads_are_right_and_give_torch_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        tensors = {n: {f"t{i}": torch.randn(400, 1000) for i in range(6)} for n in ("a", "b")}
        text = recipe("slerp", "a", "b", base="a")
        wanted = mergeloom.merge_state_dicts(text, tensors)
        results, counts, ready = [], [], threading.Barrier(5)

        def work() -> None:
            torch.get_num_threads()  # a thread takes torch's number when it first asks
            ready.wait()
            for _ in range(3):
                results.append(mergeloom.merge_state_dicts(text, tensors, threads=2))
            counts.append(torch.get_num_threads())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait()
        for _ in range(3):
            results.append(mergeloom.merge_state_dicts(text, tensors))
        for thread in threads:
            thread.join()
        assert len(results) == 15
        assert all(torch.equal(r[n], wanted[n]) for r in results for n in wanted)
        assert torch.get_num_threads() == 3
        assert counts == [3] * 4
        fresh: list[int] = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [3]
    finally:
        torch.set_num_threads(before)


def test_a_failed_merge_gives_torch_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(MergeError):
            mergeloom.merge_state_dicts(recipe("passthrough", "a"), {"a": {"w": torch.tensor(NAN)}})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
