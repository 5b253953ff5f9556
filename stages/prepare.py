"""Turn rows into token ids: filter, dedupe, split by content, render, encode.

Reads the data source that `prepare` names and the tokenizer in `artifacts/base`; writes
`data/prepared`: train, eval and calibration rows, and the token contract.
"""

from collections import Counter

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.runtime import Paths, replacing, run_stage
from loradag.runtime.report_keys import PrepareReport


def prepare(paths: Paths, prepare: Prepare) -> PrepareReport:
    from loradag.data.rows import write_rows
    from loradag.data.selection import SPLITS, encode_rows, select, split_of, truncated
    from loradag.data.sources import read_source
    from loradag.data.statistics import count_tokens, token_lengths
    from loradag.data.templates import Template
    from loradag.data.token_contract import make_contract, write_contract
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(paths.base)
    template = Template(prepare.template, prepare.prompt, prepare.completion)
    if template.kind == "chat" and tokenizer.chat_template is None:
        raise LoradagError("prepare.template = 'chat': the tokenizer has no chat template.")

    dropped: Counter[str] = Counter()
    source = list(read_source(prepare))
    rows = list(encode_rows(select(source, prepare, template, dropped), template, tokenizer))
    overlong = [row for row in rows if len(row.input_ids) > prepare.max_tokens]
    if prepare.overlong == "drop":
        dropped["over_max_tokens"] = len(overlong)
        rows = [row for row in rows if len(row.input_ids) <= prepare.max_tokens]
    rows = [truncated(row, prepare.max_tokens) for row in rows]

    splits = {name: [row for row in rows if split_of(row.id, prepare) == name] for name in SPLITS}
    for name in ("train", "eval"):
        if not splits[name]:
            reasons = {reason: count for reason, count in dropped.items() if count}
            raise LoradagError(
                f"prepare: no {name} rows are left of {len(source)} (dropped: {reasons}). Loosen "
                "the filters, or raise prepare.eval_fraction."
            )
    with replacing(paths.prepared) as folder:
        folder.mkdir()
        for name in SPLITS:
            write_rows(folder / f"{name}.parquet", splits[name])
        contract = make_contract(tokenizer, template, prepare.golden, splits["eval"])
        write_contract(folder / paths.contract.name, contract)
    return {
        "rows_in": len(source),
        "rows_kept": len(rows),
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "train_rows": len(splits["train"]),
        "eval_rows": len(splits["eval"]),
        "calibration_rows": len(splits["calibration"]),
        **count_tokens(splits),
        "truncated_rows": len(overlong) if prepare.overlong == "truncate" else 0,
        "overlong": {row.id: row.text[:60] for row in overlong},
        "token_length": token_lengths(rows),
        "template": template.kind,
    }


if __name__ == "__main__":
    run_stage(prepare)
