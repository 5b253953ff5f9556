"""Load an exported format where users will, in a fresh process, and measure it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError
from loradag.export import plain_transformers
from loradag.export.measurement import Inputs, Measurement
from loradag.runtime.paths import Paths

OFFLINE = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def measure_in_transformers(
    folder: Path,
    inputs: Inputs,
    scratch: Path,
    *,
    dtype: str,
    base: Path | None = None,
    quantization: dict[str, Any] | None = None,
) -> Measurement:
    """Measure a model folder, or an adapter's folder on `base`, in a fresh interpreter.

    A model is placed as `placement` has it. The base of an adapter has to fit: peft cannot put one
    on a base that is offloaded to disk.

    It imports transformers (and peft), but nothing of this project.

    Args:
        scratch: an empty folder, for the logits.
        quantization: options of `BitsAndBytesConfig` for the base.

    Raises:
        LoradagError: transformers or peft refuses the folder.
    """
    import torch

    from loradag.models.device import device
    from loradag.models.placement import placement

    request, answers = scratch / "request.json", scratch / "answers.json"
    where: dict[str, Any] = {"device_map": {"": device()}}
    if base is None:
        where = placement(folder, getattr(torch, dtype))
    content = {
        "folder": str(folder.resolve()),
        "base": str(base.resolve()) if base else None,
        "quantization": quantization,
        "dtype": dtype,
        "device_map": where["device_map"],
        "max_memory": list(where.get("max_memory", {}).items()),
        "inputs": asdict(inputs),
        "logits": str((scratch / "logits").resolve()),
        "answers": str(answers.resolve()),
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", plain_transformers.__file__, str(request.resolve())],
        cwd=scratch, env=os.environ | OFFLINE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    runtime = "peft" if base else "transformers"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"it died with exit code {done.returncode}"
        raise LoradagError(f"{runtime} refuses {folder.name}: {reason}")
    computed = json.loads(answers.read_text(encoding="utf-8"))
    return Measurement(runtime=_version(runtime), logits=scratch / "logits", **computed)


def measure_in_llamacpp(
    file: Path, inputs: Inputs, scratch: Path, threads: int, adapter: Path | None = None
) -> Measurement:
    """Measure a GGUF file in a fresh process, in llama.cpp alone.

    Args:
        adapter: a LoRA file that is applied to `file`.

    Raises:
        LoradagError: llama.cpp refuses the file, with its own reason, or dies on it.
    """
    return in_fresh_process(
        _in_llamacpp, adapter or file, file, inputs, scratch / "logits", threads, adapter
    )


def in_fresh_process(run: Callable[..., Measurement], file: Path, *given: Any) -> Measurement:
    """`run(*given)` in a new interpreter.

    Args:
        file: that it loads, for messages.

    Raises:
        LoradagError: the runtime refuses the file or dies on it.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run, *given).result()
        except BrokenProcessPool as error:
            raise LoradagError(f"llama.cpp died on {file.name}.") from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LoradagError(f"llama.cpp refuses {file.name}: {message}") from error


def _in_llamacpp(
    file: Path, inputs: Inputs, logits: Path, threads: int, adapter: Path | None
) -> Measurement:
    """Logits through llama.cpp's library; ids, chat template and greedy text from its server."""
    from safetensors.numpy import save_file

    from loradag.compat.llamacpp import Decoder

    logits.mkdir(parents=True)
    with Decoder(file, max(map(len, inputs.rows)), threads, adapter) as decoder:
        for at, ids in enumerate(inputs.rows):
            save_file({"logits": decoder.logits(ids)}, logits / f"{at}.safetensors")
        eos, stops = decoder.eos, decoder.stops()
    ask = _serve(file, inputs, threads, adapter)

    def tokenize(text: str) -> list[int]:
        answer = ask("/tokenize", content=text, add_special=True, parse_special=True)
        return answer["tokens"]  # type: ignore[no-any-return]

    answers = [
        ask(
            "/completion", prompt=ids, n_predict=inputs.max_new_tokens, temperature=0, top_k=1,
            return_tokens=True,
        )
        for ids in inputs.prompts
    ]  # fmt: skip
    timings = [answer["timings"] for answer in answers]
    # A text's first token comes of its prompt.
    decoded = sum(timing["predicted_n"] - 1 for timing in timings)
    milliseconds = sum(timing["predicted_ms"] for timing in timings)
    openings = [ask("/apply-template", messages=each)["prompt"] for each in inputs.dialogues]
    return Measurement(
        runtime=_version("xllamacpp"),
        logits=logits,
        token_ids=[tokenize(text) for text in inputs.texts],
        openings=openings,
        opening_ids=[tokenize(opening) for opening in openings],
        eos=eos,
        stops=stops,
        greedy=[answer["tokens"] for answer in answers],
        tokens_per_second=decoded / milliseconds * 1000 if decoded else 0.0,
    )


def _serve(file: Path, inputs: Inputs, threads: int, adapter: Path | None) -> Callable[..., Any]:
    """Start llama.cpp's server on the loopback interface; return how to ask it."""
    context = 8 + inputs.max_new_tokens + max(map(len, inputs.prompts))
    server = start_server(file, context, threads, adapter=adapter)

    def ask(path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    return ask


def start_server(
    file: Path, context: int, threads: int, *, port: int = 0, adapter: Path | None = None
) -> Any:
    """llama.cpp's server of a GGUF file on the loopback interface, for one request at a time.

    Args:
        context: tokens of a request with its answer.
        port: 0: any that is free.
        adapter: a LoRA file that is applied to `file`.

    Raises:
        LoradagError: there is no such file, or the port is taken.
    """
    import xllamacpp

    if not file.is_file():
        raise LoradagError(f"{file}: no such file. Name a GGUF file.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise LoradagError(f"port = {port}: {error}. Choose another.") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    params.port = port
    params.n_parallel = 1
    params.n_ctx = context
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.warmup = False
    params.verbosity = -1
    return xllamacpp.Server(params)


def first_exported(paths: Paths) -> Path:
    """The GGUF file of the first type that was exported.

    Raises:
        LoradagError: none was.
    """
    folder = paths.export / "gguf"
    modelfile = folder / "Modelfile"
    if not modelfile.is_file():
        raise LoradagError(f"{folder}: no GGUF was exported. Run `dvc repro`, or name a file.")
    first = modelfile.read_text(encoding="utf-8").splitlines()[0]
    return folder / first.removeprefix("FROM ./")


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"
