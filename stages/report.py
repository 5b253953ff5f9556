"""Write the page and complete the MLflow run, from every report; never from the cache.

Reads `reports/*.json`, the loss curve and example rows of `data/prepared`; writes `report.html`,
publishes the run to MLflow, and prints the result. It also runs when every stage before it came
from the cache, so that the run in MLflow is complete in either case. Page, run and terminal name
the stages that ran, that came from the cache, and that did not run.
"""

import json
from dataclasses import asdict

from loradag.config.adapter import Adapter
from loradag.config.evaluate import Evaluate
from loradag.config.export import Export
from loradag.config.launch import Launch
from loradag.config.merge import Merge
from loradag.config.model import Model
from loradag.config.prepare import Prepare
from loradag.config.quantize import Quantize
from loradag.config.train import Train
from loradag.runtime import Paths, replacing, run_stage
from loradag.runtime.report_files import read_reports
from loradag.runtime.report_keys import Reports


def report(
    paths: Paths,
    adapter: Adapter,
    evaluate: Evaluate,
    export: Export,
    launch: Launch,
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
        "launch": asdict(launch),
        "evaluate": asdict(evaluate),
        "merge": asdict(merge),
        "export": asdict(export),
        "seed": seed,
    }
    reports = read_reports(paths.reports)
    if "export" in reports:
        reports["export"] = sized(reports["export"])
    # The jobs of a sweep have no report of the stages after `sweep.until`.
    ran = dict.fromkeys(Reports.__annotations__) | stages_ran(paths, reports)
    examples = json.loads(paths.examples.read_text()) if paths.examples.exists() else []
    name, flat = run_name(params), flat_params(params)
    curves = read_curves(paths.loss, paths.eval_loss)
    tags, changed = source_tags(paths.root), changed_params(paths.root, params)

    with replacing(paths.page) as page:
        html = report_page(name, params, flat, changed, reports, curves, ran, tags, examples)
        page.write_text(html, encoding="utf-8")
    tags |= stage_tags(ran) | {"mlflow.note.content": note(reports)}
    registered = export.register if "merge" in reports else None
    where = publish(paths, name, flat, reports, curves, tags, registered)
    mark_published(paths, reports)
    print_summary(name, params, reports, ran, paths.page.name, where)


if __name__ == "__main__":
    run_stage(report)
