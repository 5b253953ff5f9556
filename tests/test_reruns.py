"""Which stages rerun for an edit of which module."""

from collections import defaultdict
from typing import Any

from loradag.config.composition import compose, plain
from loradag.planning.pipeline import Pipeline
from tests.conftest import ROOT

# Which stages an edit of a module reruns, even if it only adds a comment; the longest path counts.
# What is not listed reruns none: how stages are configured, run, planned, swept and watched.
RERUNS: dict[str, str] = {
    "loradag/checkpoints": "fetch quantize train baseline evaluate merge export report",
    "loradag/checkpoints/safetensors_writer.py": "quantize merge export",
    "loradag/checkpoints/skeleton.py": "merge export",
    "loradag/compat": "quantize train baseline evaluate merge export report",
    "loradag/compat/accelerate.py": "train",
    "loradag/compat/bit_linear.py": "train",
    "loradag/compat/chat_templates.py": "prepare",
    "loradag/compat/dvc.py": "",
    "loradag/compat/gguf.py": "export",
    "loradag/compat/gguf_loading.py": "fetch",
    "loradag/compat/hydra.py": "",
    "loradag/compat/llamacpp.py": "export",
    "loradag/compat/mlflow.py": "report",
    "loradag/compat/torch.py": "train",
    "loradag/compat/transformers.py": "quantize train baseline evaluate merge export report",
    "loradag/compat/trl.py": "train",
    "loradag/data": "prepare",
    "loradag/data/byte_tokens.py": "prepare train baseline evaluate merge export",
    "loradag/data/calibration_rows.py": "quantize export",
    "loradag/data/content.py": "prepare baseline evaluate",
    "loradag/data/files.py": "prepare baseline evaluate",
    "loradag/data/hub.py": "prepare baseline evaluate",
    "loradag/data/origins.py": "source prepare baseline evaluate",
    "loradag/data/rows.py": "prepare train baseline evaluate merge export",
    "loradag/data/sources.py": "prepare baseline evaluate",
    "loradag/data/templates.py": "prepare train baseline evaluate merge export",
    "loradag/data/token_contract.py": "prepare train baseline evaluate merge export",
    "loradag/data/tokenization.py": "prepare train baseline evaluate merge export",
    "loradag/evaluation": "baseline evaluate",
    "loradag/evaluation/parity.py": "merge export",
    "loradag/evaluation/perplexity.py": "train baseline evaluate",
    "loradag/evaluation/samples.py": "baseline evaluate merge export",
    "loradag/export": "export",
    "loradag/export/feasibility.py": "",
    "loradag/merging": "merge",
    "loradag/merging/low_rank.py": "merge export",
    "loradag/models": "quantize train baseline evaluate merge export report",
    "loradag/models/base.py": "fetch",
    "loradag/models/generator.py": "",
    "loradag/models/pinning.py": "fetch quantize train baseline evaluate merge export report",
    "loradag/models/random_tokenizer.py": "fetch",
    "loradag/models/tokenizer.py": "prepare train baseline evaluate merge export report",
    "loradag/quantization": "quantize",
    "loradag/quantization/absmax.py": "quantize train merge export",
    "loradag/quantization/affine.py": "quantize merge",
    "loradag/quantization/bnb.py": "quantize merge",
    "loradag/quantization/calibration.py": "quantize",
    "loradag/quantization/conversion.py": "quantize",
    "loradag/quantization/dequantize.py": "merge",
    "loradag/quantization/errors.py": "quantize",
    "loradag/quantization/fake_quantize.py": "train",
    "loradag/quantization/gptq.py": "quantize merge",
    "loradag/quantization/histogram.py": "quantize",
    "loradag/quantization/lattice.py": "export",
    "loradag/quantization/schemes.py": "quantize merge",
    "loradag/reporting": "report",
    "loradag/reporting/search_figures.py": "",
    "loradag/reporting/sweep_figures.py": "",
    "loradag/reporting/sweep_page.py": "",
    "loradag/reporting/sweep_tables.py": "",
    "loradag/tracking": "report",
    "loradag/training": "train",
    "loradag/training/guards.py": "",
    "loradag/training/naming.py": "train export",
    "stages/baseline.py": "baseline",
    "stages/evaluate.py": "evaluate",
    "stages/export.py": "export",
    "stages/fetch.py": "fetch",
    "stages/merge.py": "merge",
    "stages/prepare.py": "prepare",
    "stages/quantize.py": "quantize",
    "stages/report.py": "report",
    "stages/source.py": "source",
    "stages/train.py": "train",
}


def listed(path: str) -> set[str]:
    entries = [entry for entry in RERUNS if path == entry or path.startswith(f"{entry}/")]
    return set(RERUNS[max(entries, key=len)].split()) if entries else set()


def test_an_edit_reruns_the_stages_that_the_module_computes_in_and_no_others() -> None:
    pipeline, params = Pipeline(ROOT, ROOT / "no-such-cache"), plain(compose([]))
    deps: dict[str, set[str]] = defaultdict(set)
    for stage in pipeline.stages(params):
        for dep in stage.deps:
            path = ROOT / dep
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                deps[file.relative_to(ROOT).as_posix()].add(stage.name)
    modules = [
        path.relative_to(ROOT).as_posix()
        for folder in ("conf", "loradag", "stages")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    wrong: dict[str, Any] = {
        module: sorted(deps[module]) for module in modules if deps[module] != listed(module)
    }
    assert not wrong
    stale = [entry for entry in RERUNS if not any(m.startswith(entry) for m in modules)]
    assert not stale, "entries of no module"
