"""The page and the MLflow run, from every report; never from the cache.

Reads `reports/*.json` and the loss curve; writes `report.html`, publishes the run to MLflow, and
prints the result. It runs also when every stage before it came from the cache, so that the run in
MLflow is complete either way, and lists which stages ran, came from the cache or were left out.
"""

import json
from dataclasses import asdict

from loradag.config.adapter import Adapter
from loradag.config.evaluate import Evaluate
from loradag.config.export import Export
from loradag.config.merge import Merge
from loradag.config.model import Model
from loradag.config.prepare import Prepare
from loradag.config.quantize import Quantize
from loradag.config.train import Train
from loradag.runtime import Paths, replacing, run_stage

STAGES = ("fetch", "prepare", "quantize", "train", "baseline", "evaluate", "merge", "export")


def report(
    paths: Paths,
    adapter: Adapter,
    evaluate: Evaluate,
    export: Export,
    merge: Merge,
    model: Model,
    prepare: Prepare,
    quantize: Quantize,
    seed: int,
    train: Train,
) -> None:
    from loradag.reporting.results import note
    from loradag.reporting.run_page import report_page
    from loradag.reporting.terminal import print_summary
    from loradag.tracking.flattening import flat_params, read_curves, run_name, sized
    from loradag.tracking.provenance import (
        changed_params,
        mark_published,
        source_tags,
        stage_tags,
        stages_ran,
    )
    from loradag.tracking.publish import publish

    params = {
        "model": asdict(model),
        "prepare": asdict(prepare),
        "quantize": asdict(quantize),
        "adapter": asdict(adapter),
        "train": asdict(train),
        "evaluate": asdict(evaluate),
        "merge": asdict(merge),
        "export": asdict(export),
        "seed": seed,
    }
    # The jobs of a sweep have no report of the stages after `sweep.until`.
    present = [stage for stage in STAGES if paths.report(stage).exists()]
    reports = {stage: json.loads(paths.report(stage).read_text()) for stage in present}
    if "export" in reports:
        reports["export"] = sized(reports["export"])
    ran = stages_ran(paths, present) | dict.fromkeys(s for s in STAGES if s not in present)
    name, flat = run_name(params), flat_params(params)
    curves = read_curves(paths.loss, paths.eval_loss)
    tags, changed = source_tags(paths.root), changed_params(paths.root, params)

    with replacing(paths.page) as page:
        html = report_page(name, params, flat, changed, reports, curves, ran, tags)
        page.write_text(html, encoding="utf-8")
    tags |= stage_tags(ran) | {"mlflow.note.content": note(reports)}
    registered = export.register if "merge" in reports else None
    where = publish(paths, name, flat, reports, curves, tags, registered)
    mark_published(paths, present)
    print_summary(name, params, reports, ran, paths.page.name, where)


if __name__ == "__main__":
    run_stage(report)
