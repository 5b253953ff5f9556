"""Turn rows into token ids: filter, deduplicate, split by content, render, tokenize.

Reads the rows that `prepare` names, hub data sets at the commit in `data/source.json`, and the
tokenizer in `artifacts/base`; writes `data/prepared`: train, eval and calibration rows, the token
contract, and a few rows as token texts.
"""

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.runtime import Paths, replacing, run_stage
from loradag.runtime.environment import threads
from loradag.runtime.report_keys import PrepareReport


def prepare(paths: Paths, prepare: Prepare) -> PrepareReport:
    from loradag.data.examples import write_examples
    from loradag.data.origins import pinned_sources
    from loradag.data.preparation import prepare_rows, row_template
    from loradag.data.rows import read_rows
    from loradag.data.statistics import summarize
    from loradag.data.token_contract import make_contract, write_contract
    from loradag.models.tokenizer import load_tokenizer

    sources = pinned_sources(prepare, paths.source)
    tokenizer = load_tokenizer(paths.base)
    with replacing(paths.prepared) as folder:
        folder.mkdir()
        done = prepare_rows(prepare, sources, tokenizer, folder, threads())
        for name in ("train", "eval"):
            if not done.split_rows[name]:
                raise LoradagError(
                    f"prepare: no {name} rows are left of {done.rows_in.total()} (dropped: "
                    f"{dict(done.dropped.counts)}). Loosen the filters, or raise "
                    "prepare.eval_fraction."
                )
        template = row_template(prepare, done)
        contract = make_contract(
            tokenizer, template, prepare.golden, read_rows(folder / "eval.parquet")
        )
        write_contract(folder / paths.contract.name, contract)
        train = read_rows(folder / "train.parquet")
        write_examples(folder / paths.examples.name, train, tokenizer)
    return {**summarize(done, sources), "template": prepare.template}


if __name__ == "__main__":
    run_stage(prepare)
