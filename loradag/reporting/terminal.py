"""The result in the terminal, at the end of `dvc repro`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.markup import escape

from loradag.reporting import results
from loradag.reporting.formatting import change, fixed, number, size
from loradag.runtime.report_keys import Reports

NEXT = (
    ("dvc exp run --no-hydra -S adapter.r=16", "another rank, all else as it is"),
    ("python -m stages.sweep -m adapter.r=4,8,16", "a sweep, from the defaults of conf/"),
    ('python -m stages.generate prompt="…"', "generate text"),
    ("make ui", "compare runs in MLflow"),
)


def print_summary(
    name: str,
    params: Mapping[str, Any],
    reports: Reports,
    ran: Mapping[str, bool | None],
    page: str,
    where: str,
) -> None:
    """Print the table of results, where the run can be seen, and what to try next."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()

    labels: list[str] = []

    def rows(label: str, values: Iterable[str]) -> None:
        for i, value in enumerate(value for value in values if value):
            labels.append(label)
            table.add_row("" if i else label, value)

    models = [model for model in results.models(reports) if model.perplexity is not None]
    rows(
        "Perplexity", (f"{m.name:<10}{fixed(m.perplexity or 0, 2):>9}  {m.change}" for m in models)
    )
    rows("General text", _general(reports))
    rows("Tasks", (f"{task.name} {' → '.join(task.values)}" for task in results.tasks(reports)))
    rows("Trained", [results.trained(reports)])
    rows("Base", [results.sizes(reports)])
    rows("Merge", _merge(reports, params))
    rows("Export", map(_exported, results.exports(reports)))
    stages = results.stages(reports, ran)
    rows("Ran", [" ".join(stage for stage, did in ran.items() if did)])
    rows("From cache", [" ".join(stage for stage, did in ran.items() if did is False)])
    rows("Not run", [" ".join(stage.name for stage in stages if stage.status == "not run")])
    rows("Next", (f"[bold]{command:<43}[/] [dim]{what}[/]" for command, what in NEXT))
    rows("Page", [page])
    console = Console(highlight=False)
    console.print(f"\n[bold]{escape(name)}[/]  [dim]{results.held_out_tokens(reports)}[/]")
    console.print(table)
    # Beside the table, where a narrow terminal would break it.
    console.print(f"[dim]{'MLflow':<{max(map(len, labels))}}[/]  {where}", soft_wrap=True)


def _general(reports: Reports) -> Iterator[str]:
    """What the tuning cost outside its data."""
    score = results.general(reports)
    if score is not None:
        yield f"perplexity {' → '.join(score.values)}  {score.change}"


def _merge(reports: Reports, params: Mapping[str, Any]) -> Iterator[str]:
    merge = reports.get("merge")
    if merge is None:
        return
    outcome = "[green]passed[/]" if merge["passed"] else "[red]failed[/]"
    yield f"{outcome}, into the {merge['base']} base"
    for check in results.merge_checks(reports, params):
        yield f"{check.name} {check.value}" + (f"  [dim]{check.bound}[/]" if check.bound else "")


def _exported(file: results.Exported) -> str:
    parts = [file.name]
    if file.bytes:
        parts.append(size(file.bytes))
    moved = change(file.merged_perplexity, file.perplexity)
    parts.append(f"perplexity {fixed(file.perplexity, 2)}" + (f" ({moved})" if moved else ""))
    parts.append("ids match" if file.token_ids_match else "ids match but for a leading space")
    parts.append(f"{number(file.tokens_per_second, 3)} tokens/s")
    return ", ".join(parts)
