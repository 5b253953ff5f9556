"""A pipeline of the real one's shape whose stages take milliseconds and tell that they ran.

Run as `python toy.py STAGE` in the working directory, by DVC.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

PIPELINE = """
stages:
  prepare:
    cmd: python toy.py prepare
    deps: [toy.py]
    params: [prepare]
    outs: [data/prepared]
    metrics: [{reports/prepare.json: {cache: false}}]
  quantize:
    cmd: python toy.py quantize
    deps: [toy.py]
    params: [quantize]
    outs: [artifacts/quantized]
    metrics: [{reports/quantize.json: {cache: false}}]
  train:
    cmd: python toy.py train
    deps: [toy.py, data/prepared, artifacts/quantized]
    params: [adapter, train, seed]
    outs: [artifacts/adapter]
    metrics: [{reports/train.json: {cache: false}}]
    plots: [{plots/loss.csv: {cache: false, x: step, y: loss}}]
  evaluate:
    cmd: python toy.py evaluate
    deps: [toy.py, data/prepared, artifacts/adapter]
    params: [evaluate]
    metrics: [{reports/evaluate.json: {cache: false}}]
  report:
    cmd: python toy.py report
    deps: [toy.py, reports/evaluate.json, reports/train.json]
    params: [adapter]
    outs: [{report.html: {persist: true, cache: false}}]
"""
STAGES = ("prepare", "quantize", "train", "evaluate")


def write(path: str, content: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


def main(stage: str) -> None:
    params = yaml.load(Path("params.yaml").read_text(), yaml.CSafeLoader)
    with open(os.environ["TOY_LOG"], "a") as log:
        log.write(f"{stage}\n")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")) * (stage == "train"))
    adapter, scheme = params["adapter"], params["quantize"]["scheme"]
    report: dict[str, Any] = {"seconds": 10.0}
    if stage == "prepare":
        write("data/prepared/rows", json.dumps(params["prepare"], sort_keys=True))
        report["token_length"] = {"max": 100}
    elif stage == "quantize":
        write("artifacts/quantized/weights", scheme)
        report["bytes"] = {"nf4": 400, "int8": 800}.get(scheme, 1600)
    elif stage == "train":
        if adapter["r"] == int(os.environ.get("TOY_FAILS_AT", "-1")):
            sys.exit("train: out of memory. Lower train.batch_size.")
        write(
            "artifacts/adapter/adapter.safetensors", json.dumps([adapter, scheme, params["seed"]])
        )
        rows = [f"{step},{3 / step + 1 / adapter['r']}" for step in range(1, 6)]
        write("plots/loss.csv", "\n".join(["step,loss", *rows]) + "\n")
        report |= {"trainable_parameters": 1000 * adapter["r"], "tokens_per_second": 100.0}
    elif stage == "evaluate":
        adapter, scheme, seed = json.loads(
            Path("artifacts/adapter/adapter.safetensors").read_text()
        )
        loss = {"nf4": 1, "int8": 0.5}.get(scheme, 0) + 0.01 * seed
        report["adapter"] = {"perplexity": 10 + loss + 8 / adapter["r"] + adapter["alpha"] / 100}
    else:
        write("report.html", "done")
        return
    write(f"reports/{stage}.json", json.dumps(report, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1])
