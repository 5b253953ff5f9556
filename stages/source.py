"""Pin where the rows come from: hub data sets to a commit, packages to a version.

Reads the keys of `prepare` that name the source; writes `data/source.json`. The commit is kept for
reruns: `dvc repro --force source` updates it.
"""

from loradag.config.prepare import Prepare
from loradag.runtime import Paths, run_stage, write_json
from loradag.runtime.report_keys import SourceReport


def source(paths: Paths, prepare: Prepare) -> SourceReport:
    from loradag.data.origins import resolve_origins

    origins = resolve_origins(
        source=prepare.source,
        id=prepare.id,
        config=prepare.config,
        revision=prepare.revision,
        mix=prepare.mix,
    )
    write_json(paths.source, origins)
    return {"origins": origins}


if __name__ == "__main__":
    run_stage(source)
