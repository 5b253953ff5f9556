"""A pipeline of the real one's shape whose stages take milliseconds and log that they ran.

Run as `python toy.py STAGE` in the working directory, by DVC. What a stage writes depends on all of
its inputs, so that an outdated result differs from a fresh one.
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
    deps: [toy.py, rows.txt]
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
    deps: [toy.py, method.py, data/prepared/rows, artifacts/quantized]
    params: [adapter, train, seed]
    outs: [artifacts/adapter]
    metrics: [{reports/train.json: {cache: false}}]
    plots:
      - plots/loss.csv: {cache: false, x: step, y: loss}
      - plots/eval_loss.csv: {cache: false, x: step, y: eval_loss}
  evaluate:
    cmd: python toy.py evaluate
    deps: [toy.py, data/prepared, artifacts/adapter]
    params: [evaluate]
    metrics: [{reports/evaluate.json: {cache: false}}]
  merge:
    cmd: python toy.py merge
    deps: [toy.py, artifacts/adapter, artifacts/quantized]
    params: [merge]
    outs: [artifacts/merged]
    metrics: [{reports/merge.json: {cache: false}}]
  export:
    cmd: python toy.py export
    deps: [toy.py, artifacts/merged]
    params: [export]
    outs: [artifacts/export]
    metrics: [{reports/export.json: {cache: false}}]
  report:
    cmd: python toy.py report
    deps:
      - toy.py
      - artifacts/merged
      - plots/loss.csv
      - reports/evaluate.json
      - reports/export.json
      - reports/merge.json
      - reports/prepare.json
      - reports/quantize.json
      - reports/train.json
    params: [adapter]
    outs: [{report.html: {persist: true, cache: false}}]
"""
METHOD = "SHIFT = 0\n"
ROWS = "1 2 3\n"
STAGES = ("prepare", "quantize", "train", "evaluate", "merge", "export")


def write(path: str, content: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.partial").write_text(content)
    os.replace(f"{path}.partial", path)


def held_out_loss(alpha: int, step: int) -> float:
    """The lower `alpha`, the better, at every step; in numbers that floats represent."""
    return alpha / 8 + 4 / step


def main(stage: str) -> None:
    params = yaml.load(Path("params.yaml").read_text(), yaml.CSafeLoader)
    with open(os.environ["TOY_LOG"], "a") as log:
        log.write(f"{stage}\n")
    write(f".loradag/ran/{stage}.json", "null")  # as `run_stage` does
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")) * (stage == "train"))
    adapter = params["adapter"]
    report: dict[str, Any] = {"seconds": 10.0}
    if stage == "prepare":
        rows = [int(word) for word in Path("rows.txt").read_text().split()]
        if "TOY_EDIT" in os.environ:  # as a user might, after the rows were read
            Path("rows.txt").write_text(os.environ["TOY_EDIT"])
        write("data/prepared/rows", json.dumps([rows, params["prepare"]], sort_keys=True))
        report |= {"token_length": {"max": 100}, "rows": sum(rows)}
    elif stage == "quantize":
        scheme = params["quantize"]["scheme"]
        write("artifacts/quantized/weights", scheme)
        report["bytes"] = {"nf4": 400, "int8": 800}.get(scheme, 1600)
    elif stage == "train":
        from method import SHIFT

        with open(f"{os.environ['TOY_LOG']}.gpus", "a") as log:
            log.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        if adapter["r"] == int(os.environ.get("TOY_FAILS_AT", "-1")):
            sys.exit("train: out of memory. Lower train.batch_size.")
        rows, _ = json.loads(Path("data/prepared/rows").read_text())
        scheme = Path("artifacts/quantized/weights").read_text()
        trained = [adapter, scheme, params["seed"], sum(rows), SHIFT]
        write("artifacts/adapter/adapter.safetensors", json.dumps(trained, sort_keys=True))
        losses = [f"{step},{3 / step + 1 / adapter['r']}" for step in range(1, 6)]
        write("plots/loss.csv", "\n".join(["step,loss", *losses]) + "\n")
        lines = ["step,eval_loss"]
        for step in (1, 2, 4)[-1 if params["train"]["eval_steps"] is None else 0 :]:
            lines.append(f"{step},{held_out_loss(adapter['alpha'], step)}")
            write("plots/eval_loss.csv", "\n".join(lines) + "\n")
            time.sleep(float(os.environ.get("TOY_PAUSE", "0")) * (step == 2))  # to be pruned in
        report |= {
            "trainable_parameters": 1000 * adapter["r"], "tokens_per_second": 100.0,
            "checkpoint_key": f"r{adapter['r']}",
        }  # fmt: skip
        report["digest"] = sum(map(ord, json.dumps(trained, sort_keys=True)))
    elif stage == "evaluate":
        adapter, scheme, seed, total, shift = json.loads(
            Path("artifacts/adapter/adapter.safetensors").read_text()
        )
        loss = {"nf4": 1, "int8": 0.5}.get(scheme, 0) + 0.01 * seed + 0.001 * total + 0.1 * shift
        report["adapter"] = {"perplexity": 10 + loss + 8 / adapter["r"] + adapter["alpha"] / 100}
    elif stage in ("merge", "export"):
        source, target = {
            "merge": ("artifacts/adapter/adapter.safetensors", "artifacts/merged/model"),
            "export": ("artifacts/merged/model", "artifacts/export/model"),
        }[stage]
        content = Path(source).read_text() + json.dumps(params[stage], sort_keys=True)
        write(target, content)
        report["digest"] = sum(map(ord, content))
    else:
        found = {name: Path(f"reports/{name}.json") for name in STAGES}
        reports = {name: json.loads(p.read_text()) for name, p in found.items() if p.exists()}
        write("report.html", json.dumps(reports, sort_keys=True))
        return
    write(f"reports/{stage}.json", json.dumps(report, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1])
