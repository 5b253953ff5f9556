"""Bases from every source; the hub is a server on loopback that answers as the hub does."""

import http.server
import json
import shutil
from dataclasses import replace

import pytest
from transformers import GenerationConfig

from loradag.checkpoints.model_files import PIN, read_architecture
from loradag.checkpoints.safetensors_reader import count_parameters
from loradag.config.problems import LoradagError
from loradag.models.base import fetch_base
from loradag.models.pinning import sha256, weights_folder
from loradag.models.tokenizer import load_tokenizer
from loradag.quantization.conversion import quantize_checkpoint
from tests.conftest import HUB_TOKEN, smoke_config
from tests.quantization.options import options

TINY = smoke_config().model
LOCAL = replace(TINY, source="local", config={})


def test_the_same_seed_gives_the_same_bytes(tiny_base, tmp_path) -> None:
    fetch_base(TINY, tmp_path / "again")
    assert {file.name: sha256(file) for file in tiny_base.iterdir()} == {
        file.name: sha256(file) for file in (tmp_path / "again").iterdir()
    }


def test_shape_and_pin(tiny_base) -> None:
    assert count_parameters(tiny_base) == 139_584
    assert read_architecture(tiny_base) == "LlamaForCausalLM"
    pin = json.loads((tiny_base / PIN).read_text())
    assert pin["weights"]["model.safetensors"]["sha256"] == sha256(tiny_base / "model.safetensors")


def test_a_local_folder_is_pinned_and_not_copied(tiny_base, tmp_path) -> None:
    source = shutil.copytree(tiny_base, tmp_path / "mine")
    fetch_base(replace(LOCAL, path=str(source)), tmp_path / "base")
    assert not list((tmp_path / "base").glob("*.safetensors"))
    assert weights_folder(tmp_path / "base") == source
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(LoradagError, match="not what was pinned"):
        weights_folder(tmp_path / "base")


def test_of_a_local_folder_only_the_model_and_its_licences_are_taken(tiny_base, tmp_path) -> None:
    source = shutil.copytree(tiny_base, tmp_path / "mine")
    for name in ("LICENSE", "USE_POLICY.md", "notes.txt", "rows.json"):
        (source / name).write_text("{}")
    fetch_base(replace(LOCAL, path=str(source)), tmp_path / "base")
    taken = {file.name for file in (tmp_path / "base").iterdir()}
    weights = {"model.safetensors"}
    described = {file.name for file in tiny_base.iterdir()} - weights
    assert taken == described | {"LICENSE", "USE_POLICY.md"}


@pytest.mark.parametrize(("stops", "kept"), [(None, []), (5, [5]), ([5, 6], [5, 6])])
def test_generation_stops_at_the_eos_of_the_tokenizer(tiny_base, tmp_path, stops, kept) -> None:
    """The generation config of a base checkpoint often names another token, or none."""
    source = shutil.copytree(tiny_base, tmp_path / "mine")
    fields = {"eos_token_id": stops, "temperature": 0.5}
    (source / "generation_config.json").write_text(json.dumps(fields))
    fetch_base(replace(LOCAL, path=str(source)), tmp_path / "base")
    fetched = GenerationConfig.from_pretrained(tmp_path / "base")
    assert fetched.eos_token_id == [load_tokenizer(tiny_base).eos_token_id, *kept]
    assert fetched.temperature == 0.5


def test_generation_stops_at_eos_where_only_the_model_config_names_a_token(
    tiny_base, tmp_path
) -> None:
    source = shutil.copytree(tiny_base, tmp_path / "mine")
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    fetch_base(replace(LOCAL, path=str(source)), tmp_path / "base")
    fetched = GenerationConfig.from_pretrained(tmp_path / "base")
    assert fetched.eos_token_id == [load_tokenizer(tiny_base).eos_token_id, 7]


def test_pickled_weights_are_never_loaded(tiny_base, tmp_path) -> None:
    source = shutil.copytree(tiny_base, tmp_path / "mine")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(LoradagError, match="pickled ones are never loaded"):
        fetch_base(replace(LOCAL, path=str(source)), tmp_path / "base")


def test_a_quantized_model_is_no_base(tiny_base, tmp_path) -> None:
    """Its codes would be counted and quantised as weights."""
    source = tmp_path / "mine"
    source.mkdir()
    quantize_checkpoint(tiny_base, source, options("nf4"))
    with pytest.raises(LoradagError, match=r"model\.path = .* quantized already, by bitsandbytes"):
        fetch_base(replace(LOCAL, path=str(source)), tmp_path / "base")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (replace(LOCAL, path="/nowhere"), "no config.json"),
        (replace(TINY, source="package", id="no_such_package"), "no such Python package"),
        (replace(TINY, pad_token="<|im_end|>"), "pad is its EOS"),
        (replace(TINY, context=512), "model.context = 512, but the model has 256"),
        (replace(TINY, config={"model_type": "llama", "hidden_size": 63}), "transformers refuses"),
        (replace(TINY, config={"model_type": "no_such"}), "transformers refuses"),
    ],
)
def test_what_cannot_be_brought_is_one_clear_error(tmp_path, model, says) -> None:
    with pytest.raises(LoradagError, match=says):
        fetch_base(model, tmp_path / "base")


def test_a_wrong_shape_is_named(tiny_base, tmp_path) -> None:
    model = replace(LOCAL, path=str(tiny_base), config={"hidden_size": 65})
    with pytest.raises(LoradagError, match="hidden_size = 65, but the model has 64"):
        fetch_base(model, tmp_path / "base")


@pytest.fixture
def hub(serve_hub):
    """Call it with a status and the hub's error code; it then answers every request with them."""

    def start(status: int, code: str) -> None:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

        serve_hub(Answer)

    return start


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "GatedRepo", "gated. Accept its conditions"),
        (401, "RepoNotFound", "not on the hub, or private"),
        (404, "RevisionNotFound", "not a branch, tag or commit"),
        (401, "", "HF_TOKEN is not accepted"),
        (500, "", "the hub answered 500"),
    ],
)
def test_each_answer_of_the_hub_has_its_line(hub, tmp_path, status, code, says) -> None:
    hub(status, code)
    model = replace(TINY, source="hub", id="someone/something", revision="main")
    with pytest.raises(LoradagError, match=says) as caught:
        fetch_base(model, tmp_path / "base")
    assert HUB_TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_says_what_needs_none(tmp_path, monkeypatch, offline) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    model = replace(TINY, source="hub", id="someone/something", revision="main")
    with pytest.raises(LoradagError, match="model=smollm2_135m, which needs none"):
        fetch_base(model, tmp_path / "base")
