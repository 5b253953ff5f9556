"""The result in the terminal, at the end of `dvc repro`."""

from collections.abc import Mapping
from typing import Any

from stages.pages import results
from stages.pages.results import Reports
from stages.pages.text import number, size

NEXT = (
    ("dvc exp run -S adapter.r=16", "another rank: only train and what follows runs"),
    ("python -m stages.sweep -m adapter.r=4,8,16", "a sweep in which no stage runs twice"),
    ('python -m stages.generate prompt="…"', "text from the tuned model"),
    ("make ui", "all runs in MLflow: select, compare, chart"),
)


def print_summary(
    name: str,
    params: Mapping[str, Any],
    reports: Reports,
    ran: Mapping[str, bool],
    page: str,
    where: str,
) -> None:
    """Print the table of results, where the run can be seen, and what to try next."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()

    def row(label: str, value: str) -> None:
        if value:
            table.add_row(label, value)

    for i, model in enumerate(results.models(reports)):
        if model.perplexity is not None:
            label = "Perplexity" if i == 0 else ""
            row(label, f"{model.name:<10}{number(model.perplexity):>8}  {model.change}")
    row("Trained", results.trained(reports))
    row("Base", results.sizes(reports))
    row("Merge", _merge(reports, params))
    for i, file in enumerate(results.exports(reports)):
        row("Export" if i == 0 else "", _exported(file))
    row("Ran", " ".join(stage for stage, did in ran.items() if did) or "nothing")
    row("From cache", " ".join(stage for stage, did in ran.items() if not did) or "nothing")
    row("Page", page)
    row("MLflow", where)
    for i, (command, what) in enumerate(NEXT):
        table.add_row("Next" if i == 0 else "", f"[bold]{command}[/]  [dim]{what}[/]")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{name}[/]  [dim]{results.held_out_tokens(reports)}[/]")
    console.print(table)


def _merge(reports: Reports, params: Mapping[str, Any]) -> str:
    merge = reports.get("merge", {})
    if "passed" not in merge:
        return ""
    checks = [
        f"{check.name} {check.value}" + (f" ({check.bound})" if check.bound else "")
        for check in results.merge_checks(reports, params)
    ]
    return "; ".join([f"{'passed' if merge['passed'] else 'failed'} into {merge['base']}", *checks])


def _exported(file: results.Exported) -> str:
    parts = [f"{file.name}"]
    if file.bytes:
        parts.append(size(file.bytes))
    if file.perplexity is not None:
        parts.append(f"{file.runtime} perplexity {number(file.perplexity)}".strip())
    if file.tokens_per_second is not None:
        parts.append(f"{number(file.tokens_per_second, 3)} tokens/s")
    if file.token_ids_match is not None:
        parts.append(f"token ids {'the same' if file.token_ids_match else 'differ'}")
    return ", ".join(parts)
