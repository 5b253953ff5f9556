"""Write the files that runtimes load, and verify in those runtimes that they compute the same.

Reads `artifacts/merged`, `data/prepared`, and for the model card and the adapter format
`artifacts/base` and `artifacts/adapter`; writes `artifacts/export`, a folder for each format. Past
`export.tolerance` the stage fails, states by how much, and writes nothing. With `export.push` the
verified files are also uploaded to a model hub.
"""

from loradag.config.adapter import Adapter
from loradag.config.export import Export
from loradag.config.prepare import Prepare
from loradag.config.quantize import Quantize
from loradag.config.train import Train
from loradag.runtime import Paths, replacing, run_stage
from loradag.runtime.report_keys import ExportReport


def export(
    paths: Paths,
    export: Export,
    prepare: Prepare,
    quantize: Quantize,
    adapter: Adapter,
    train: Train,
) -> ExportReport:
    from loradag.export.card import Origin
    from loradag.export.export_verification import verify_exports
    from loradag.export.formats import describe, list_files, read_pin, write_formats
    from loradag.export.importance import importance_for
    from loradag.export.push import create_repository, push

    origin = Origin(read_pin(paths.base), prepare, quantize, adapter, train)
    if export.push:
        create_repository(export)
    importance = importance_for(export, paths)
    with replacing(paths.export) as folder:
        exported, fallbacks = write_formats(paths, folder, export, origin, importance)
        numbers = verify_exports(paths, exported, export, importance)
        describe(paths, folder, export, origin, numbers)
        files = list_files(folder)
    for name, fallen in fallbacks.items():
        numbers[name]["fallbacks"] = fallen
    pushed = push(paths.export, export) if export.push else None
    return {"files": files, "formats": numbers, "pushed": pushed}


if __name__ == "__main__":
    run_stage(export)
