"""File types that mix GGML's types: the choice, the importance of columns, and the files."""

import shutil
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from loradag.compat.gguf import list_matrices
from loradag.config.export import MIXED_TYPES
from loradag.config.problems import LoradagError
from loradag.export.export_verification import Verification
from loradag.export.gguf_format import matrices, write_gguf
from loradag.export.importance import Importance, measure_importance
from loradag.export.mixtures import Mixture
from loradag.models.loading import load_model
from loradag.runtime import Paths
from tests.architectures import FAMILIES, save_family
from tests.conftest import smoke_config
from tests.export.test_breakages import swapped_tensors

PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
WITHOUT_EXPERTS = [family for family in FAMILIES if family not in ("Mixtral", "Qwen3-MoE")]


def types_of(mixture: Mixture, columns: int = 4096) -> dict[str, int]:
    names = [f"blk.{block}.{part}.weight" for block in range(mixture.blocks) for part in PARTS]
    names += ["token_embd.weight"] + ([] if mixture.tied else ["output.weight"])
    return dict(Counter(mixture.choose(name, columns) for name in names))


@pytest.mark.parametrize(
    ("type", "shared", "counts"),
    [
        # What llama.cpp lists when it loads the published files of Llama 2 7B.
        ("q3_k_m", 1, {"q3_k": 129, "q4_k": 92, "q5_k": 4, "q6_k": 1}),
        ("q4_k_m", 1, {"q4_k": 193, "q6_k": 33}),
        ("q5_k_m", 1, {"q5_k": 193, "q6_k": 33}),
        ("q6_k", 1, {"q6_k": 226}),
        # And of Mistral 7B, whose key and value heads each serve four query heads.
        ("iq4_xs", 4, {"iq4_xs": 193, "q5_k": 32, "q6_k": 1}),
    ],
)
def test_a_7b_model_has_the_types_of_the_published_files(
    type: str, shared: int, counts: dict[str, int]
) -> None:
    assert types_of(Mixture(type, 32, shared, tied=False)) == counts


def test_the_shared_value_heads_of_a_70b_model_have_more_bits() -> None:
    assert Mixture("q4_k_m", 80, 8, tied=False).choose("blk.12.attn_v.weight", 8192) == "q6_k"
    assert Mixture("q4_k_m", 80, 8, tied=False).choose("blk.10.attn_v.weight", 8192) == "q5_k"
    assert Mixture("q4_k_m", 80, 1, tied=False).choose("blk.10.attn_v.weight", 8192) == "q4_k"


def test_rows_that_are_no_multiple_of_256_have_blocks_of_32_or_none() -> None:
    smollm2 = Mixture("q4_k_m", 30, 3, tied=True)
    assert smollm2.choose("token_embd.weight", 576) == "q8_0"
    assert smollm2.choose("blk.3.attn_q.weight", 576) == "q5_0"
    assert smollm2.choose("blk.3.ffn_down.weight", 1536) == "q4_k"
    assert smollm2.choose("blk.3.attn_q.weight", 100) == "f16"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project up to `merge`, as far as exports read it, whose rows are multiples of 256."""
    from loradag.models.base import fetch_base
    from tests.conftest import run_stages

    config = smoke_config("quantize=none", "model.config.hidden_size=256",
                          "model.config.intermediate_size=512")  # fmt: skip
    paths = Paths(tmp_path_factory.mktemp("wide"))
    fetch_base(config.model, paths.base)
    run_stages(paths, config, "prepare")
    model = load_model(paths.base, torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 3
    shutil.copytree(paths.base, paths.merged)
    model.save_pretrained(paths.merged)
    return paths


@pytest.fixture(scope="module")
def importance(wide: Paths) -> Importance:
    rows = [[5, 6, 7, 8] * 8, list(range(100, 164))]
    return measure_importance(load_model(wide.merged, torch.float32), rows)


def test_importance_is_the_mean_square_of_each_input(wide: Paths, importance: Importance) -> None:
    """Against the hidden states that transformers itself returns: the inputs of a block's norm."""
    model = load_model(wide.merged, torch.float32)
    seen = []
    for ids in ([5, 6, 7, 8] * 8, list(range(100, 164))):
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            seen.append(model.model.layers[1].input_layernorm(states[1])[0])
    expected = torch.cat(seen).square().mean(0).numpy()
    for part in ("q_proj", "k_proj", "v_proj"):
        found = importance.columns[f"model.layers.1.self_attn.{part}"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert importance.tokens == 96
    assert not {"lm_head", "model.embed_tokens"} & set(importance.columns)


@pytest.mark.parametrize("family", WITHOUT_EXPERTS)
def test_every_layer_of_every_architecture_has_a_name_and_an_importance(
    tmp_path: Path, family: str
) -> None:
    save_family(family, tmp_path / "model")
    model = load_model(tmp_path / "model", torch.float32)
    layers = {id(module) for module, _ in matrices(model)}
    named = {name for name, module in model.named_modules() if id(module) in layers}
    names = list_matrices(tmp_path / "model")
    assert named - set(names) <= {"lm_head"}
    assert ("output.weight" in names.values()) != model.config.tie_word_embeddings
    measured = measure_importance(model, [[5, 6, 7]]).columns
    assert set(measured) == {layer for layer in named if names.get(layer, "").startswith("blk.")}


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX", "Phi 3"])
def test_types_and_importance_reach_the_matrix_that_they_are_of(
    tmp_path: Path, family: str
) -> None:
    """Where the converter transposes or reorders: the file is what the reference expects, row set
    by row set."""
    from loradag.export.gguf_format import read_storage, round_weights

    save_family(family, tmp_path / "model")
    model = load_model(tmp_path / "model", torch.float32)
    importance = measure_importance(model, [[5, 6, 7, 8], [9, 10]])
    write_gguf(tmp_path / "model", tmp_path / "m.gguf", "q4_k_m", "m", importance)
    round_weights(model, "q4_k_m", None, read_storage(tmp_path / "model", "q4_k_m", importance))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    names = list_matrices(tmp_path / "model")
    modules = dict(model.named_modules())
    transposed = {id(module): flipped for module, flipped in matrices(model)}
    for layer, name in names.items():
        if id(modules.get(layer)) not in transposed:
            continue  # a table of positions
        weight = modules[layer].weight.data
        rows = (weight.T if transposed[id(modules[layer])] else weight).numpy()
        decoded = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        assert sorted(map(tuple, rows)) == sorted(map(tuple, decoded)), name


@pytest.mark.parametrize("type", sorted(MIXED_TYPES))
def test_the_file_computes_what_it_should_in_llama_cpp(
    wide: Paths, importance: Importance, tmp_path: Path, type: str
) -> None:
    export = smoke_config("quantize=none", "export.max_new_tokens=2").export
    scratch = tmp_path / "scratch"
    name = f"gguf_{type}"
    verification = Verification(wide, export, [name], scratch, importance)
    file = tmp_path / "model.gguf"
    assert write_gguf(wide.merged, file, type, "wide", importance) == {}
    numbers, problems = verification.verify(name, file)
    assert problems == []
    assert numbers["mean_kl"] < numbers["mean_kl_limit"] < numbers["mean_kl_to_merged"]
    assert numbers["types"]["q6_k"] >= 1
    assert numbers["importance_tokens"] == 96

    broken = tmp_path / "broken"
    shutil.copytree(wide.merged, broken)
    swapped_tensors(broken)
    write_gguf(broken, file, type, "wide", importance)
    _, problems = verification.verify(name, file)
    assert any("mean KL" in problem for problem in problems)


def test_the_error_that_importance_weighs_is_smaller(wide: Paths, tmp_path: Path) -> None:
    """Columns that matter 1000 times as much are rounded better than without importance."""
    layer, name = "model.layers.0.mlp.up_proj", "blk.0.ffn_up.weight"
    model = load_model(wide.merged, torch.float32)
    weight = model.get_submodule(layer).weight.data.numpy()
    alike = measure_importance(model, [[5, 6, 7]])
    alike = Importance({key: np.ones_like(value) for key, value in alike.columns.items()}, 3)
    heavy = np.ones(256, np.float32)
    heavy[::8] = 1000
    weighed = Importance(alike.columns | {layer: heavy}, 3)
    errors = []
    for importance in (alike, weighed):
        write_gguf(wide.merged, tmp_path / "m.gguf", "q4_k_m", "m", importance)
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        decoded = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        errors.append((heavy * (decoded - weight) ** 2).sum())
    assert errors[1] < 0.8 * errors[0]


def test_a_layer_without_importance_is_refused(
    wide: Paths, importance: Importance, tmp_path: Path
) -> None:
    columns = {k: v for k, v in importance.columns.items() if "layers.1.mlp.down_proj" not in k}
    with pytest.raises(LoradagError, match=r"no layer model\.layers\.1\.mlp\.down_proj"):
        write_gguf(wide.merged, tmp_path / "m.gguf", "q4_k_m", "m", Importance(columns, 96))
