"""The server of the exported GGUF, asked as an OpenAI client does."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from loradag.config.problems import LoradagError
from loradag.config.serve import Serve, read_serve_options
from loradag.export.gguf_format import write_gguf
from loradag.runtime import Paths
from stages.serve import serve
from tests.conftest import ROOT


def ask(address: str, path: str, **body: Any) -> Any:
    """As the README's `curl -d`, which names no JSON."""
    request = urllib.request.Request(address + path, json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_it_answers_as_openai_does(exportable: Paths, tmp_path: Path) -> None:
    write_gguf(exportable.merged, tmp_path / "tiny.gguf", "f32", "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.serve", f"file={tmp_path}/tiny.gguf", f"port={port}",
         "context=256"],
        cwd=ROOT, env=os.environ | {"LORADAG_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = f"http://127.0.0.1:{port}"
        assert line.startswith(f"tiny.gguf: {address}/v1 ")
        completed = ask(address, "/v1/completions", prompt="Quote: ", max_tokens=4, temperature=0)
        assert completed["choices"][0]["text"]
        assert completed["usage"]["completion_tokens"] <= 4
        dialogue = [{"role": "user", "content": "Who?"}]
        chatted = ask(address, "/v1/chat/completions", messages=dialogue, max_tokens=4)
        assert chatted["choices"][0]["message"]["role"] == "assistant"

        with pytest.raises(LoradagError, match=f"port = {port}: .*Choose another"):
            serve(exportable, Serve(f"{tmp_path}/tiny.gguf", port))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("prot=1", "Known: file, port, context"),
        ("port=many", "Known: file, port, context"),
        ("port=99999", "port = 99999: must be from 0 to 65535"),
        ("context=-5", "context = -5: must be at least 1"),
        ("some.gguf", "'some.gguf' is not of the form key=value"),
    ],
)
def test_options_that_it_cannot_use_are_refused(argument: str, message: str) -> None:
    with pytest.raises(LoradagError, match=message):
        read_serve_options([argument])


def test_nothing_to_serve_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(LoradagError, match="no GGUF was exported"):
        serve(Paths(tmp_path), Serve())
    with pytest.raises(LoradagError, match="no such file"):
        serve(Paths(tmp_path), Serve(f"{tmp_path}/none.gguf"))
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(LoradagError, match=r"text\.gguf: llama\.cpp does not load it"):
        serve(Paths(tmp_path), Serve(f"{tmp_path}/text.gguf", port=0))
