"""The page of a run: everything in its reports, on one page that loads nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from loradag.reporting import formatting as text
from loradag.reporting import results
from loradag.reporting import run_figures as figures
from loradag.runtime.report_keys import PrepareReport, Reports


def render(template: str, **content: Any) -> str:
    """Fill a template of this folder; values are escaped, and an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("loradag.reporting", ""), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template).render(**content)


def report_page(
    name: str,
    params: Mapping[str, Any],
    flat: Mapping[str, str],
    changed: set[str],
    reports: Reports,
    curves: Mapping[int, Mapping[str, float]],
    ran: Mapping[str, bool | None],
    tags: Mapping[str, str],
    examples: Sequence[Mapping[str, Any]] = (),
) -> str:
    """`report.html`.

    Args:
        name: of the run.
        params: by section.
        flat: the same, `section.key` to text.
        changed: the keys of `flat` that differ from the committed params.
        reports: by stage.
        curves: `plots/loss.csv`, {step: {metric: value}}.
        ran: by stage; False is shown as cached, None as not run.
        tags: MLflow's, of the commit and the state of the DAG.
        examples: prepared rows: `tokens` (texts), and a mask for each `train.loss` but full.
    """
    prepare, quantize = reports.get("prepare"), reports.get("quantize")
    train, evaluate = reports.get("train"), reports.get("evaluate")
    return render(
        "report.html.jinja",
        name=name,
        lead=_lead(params, reports),
        params=params,
        models=results.models(reports),
        tokens=results.held_out_tokens(reports),
        trained=results.trained(reports),
        smaller=results.smaller(reports),
        sizes=results.sizes(reports),
        merge_checks=results.merge_checks(reports, params),
        exports=results.exports(reports),
        stages=results.stages(reports, ran),
        general=results.general(reports),
        tasks=results.tasks(reports),
        model_names=results.model_names(reports),
        loss=figures.loss_figure(curves, evaluate, _part(params["train"]["eval_rows"], prepare)),
        lengths=figures.length_figure(prepare),
        layers=figures.layer_figure(quantize),
        weights=figures.weight_figure(quantize),
        configuration=_sections(flat),
        changed=changed,
        commit=tags.get("mlflow.source.git.commit"),
        lock=tags.get("dvc.lock"),
        fixed=text.fixed,
        number=text.number,
        count=text.count,
        size=text.size,
        percent=text.percent,
        prepare=prepare,
        quantize=quantize,
        train=train,
        evaluate=evaluate,
        merge=reports.get("merge"),
        examples=[_trained_tokens(row, params["train"]["loss"]) for row in examples],
    )


def _trained_tokens(row: Mapping[str, Any], loss: str) -> list[tuple[str, int]]:
    """Each token's text, with 1 if the loss is taken over it."""
    mask = row[loss] if loss != "full" else [1] * len(row["tokens"])
    return list(zip(row["tokens"], mask, strict=True))


def _part(rows: int, prepare: PrepareReport | None) -> str:
    """`8 of 206 rows`, where the held-out loss during the training is not over all of them."""
    if prepare is None or rows >= prepare["eval_rows"]:
        return ""
    return f"{rows} of {prepare['eval_rows']:,} rows"


def _lead(params: Mapping[str, Any], reports: Reports) -> str:
    """The base, the data and the method in one line."""
    fetch, prepare, train = reports.get("fetch"), reports.get("prepare"), reports.get("train")
    parts = []
    if fetch is not None:
        parts.append(
            f"{fetch['architecture']}, {text.count(fetch['parameters'])} parameters "
            f"({fetch['revision']})"
        )
    if prepare is not None:
        source = params["prepare"]["id"] or params["prepare"]["path"] or params["prepare"]["source"]
        parts.append(f"{prepare['train_rows']:,} rows of {source}")
    if train is not None:
        parts.append(f"{train['steps']:,} steps, seed {params['seed']}")
    return " · ".join(parts)


def _sections(flat: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """`{"adapter.r": "8"}` to `{"adapter": {"r": "8"}}`; what is unset (null) is left out."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if value != "null":
            sections.setdefault(section, {})[name] = value
    return sections
