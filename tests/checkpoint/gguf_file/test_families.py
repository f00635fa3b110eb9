"""Every family read as transformers reads it, and merged into what transformers loads."""

from __future__ import annotations

import pytest
import torch

import mergeloom
from mergeloom.checkpoint.gguf_file.families import FAMILIES

from ..support import opened, read
from . import files
from .files import Q

KINDS = {
    "q_proj.weight": Q.Q8_0,
    "down_proj.weight": Q.Q4_0,
    "qkv_proj.weight": Q.Q5_1,
    "c_proj.weight": Q.Q4_1,
    "embed_tokens.weight": Q.BF16,
    "o_proj.weight": Q.F16,
}


@pytest.mark.filterwarnings("ignore")  # transformers' own, while it reads the file
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family, tmp_path):
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(files.config(family)).float().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.2)
    tied = model.config.tie_word_embeddings
    state = {n: w for n, w in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    path = files.write(tmp_path / "plain.gguf", family, state)

    # As plain floats: the numbers, and through config.json what the model says.
    checkpoint, errors, warnings = opened(path)
    assert errors == []
    assert warnings == [f"{path} is GGUF (F32); dequantizing it while reading"]
    assert checkpoint is not None
    assert checkpoint.tensors.keys() == state.keys()
    for name, weights in state.items():
        view = checkpoint.tensors[name]
        assert (view.shape, view.saved_dtype) == (tuple(weights.shape), "F32")
        exact = not (family.startswith("gemma") and name.endswith("norm.weight"))
        torch.testing.assert_close(
            read(view).view(weights.shape), weights, rtol=0, atol=0 if exact else 1e-6
        )
        start, stop = view.shape[0] // 3, read(view).numel() * 3 // 4
        assert torch.equal(read(view, start, stop), read(view)[start:stop])
    recipe = {"merge_method": "passthrough", "models": [str(path)]}
    mergeloom.merge(recipe, tmp_path / "out", card=False)
    merged, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(told.values())
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged.eval()(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4
        )

    # Quantized: what transformers makes of the same file.
    (tmp_path / "small").mkdir()
    path = files.write(tmp_path / "small" / "m.gguf", family, state, KINDS)
    checkpoint = opened(path)[0]
    assert checkpoint is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    for name, view in checkpoint.tensors.items():
        assert view.saved_dtype == "BF16"
        assert torch.equal(read(view).view(view.shape), theirs[name]), name
