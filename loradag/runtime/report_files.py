"""Write and read reports, checked against their definition in `report_keys`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, cast, get_args, get_origin, get_type_hints

from loradag.config.problems import LoradagError
from loradag.runtime.report_keys import Reports

if TYPE_CHECKING:
    from pydantic import TypeAdapter

KEYS = "loradag/runtime/report_keys.py"


def report_type(stage: str) -> Any:
    """The class of the report that `stage` writes.

    Raises:
        LoradagError: no stage of that name has a report.
    """
    types = get_type_hints(Reports)
    if stage not in types:
        raise LoradagError(f"{stage}: has no report. Define its keys in {KEYS}.")
    return types[stage]


def check_report(stage: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Check every key and type of `report`; return it without the keys that are None.

    Raises:
        LoradagError: a key that is unknown, missing or of another type.
    """
    from pydantic import ValidationError

    present: dict[str, Any] = _without_none(report)
    try:
        _adapter(stage).validate_python(present, strict=True, extra="forbid")
    except ValidationError as error:
        problems = [
            f"  - {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise LoradagError(
            "\n".join([f"the report of {stage} does not fit its definition in {KEYS}:", *problems])
        ) from error
    return present


def read_report(path: Path) -> Any:
    """The report at `path`, whose name is the stage's; optional keys that are absent are None.

    Raises:
        LoradagError: it is not JSON, or does not fit its definition.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return completed(check_report(path.stem, content), report_type(path.stem))
    except (LoradagError, ValueError) as error:
        raise LoradagError(
            f"{path}: {error}\n  Another version of the stage wrote it. `dvc repro -f {path.stem}` "
            "writes it anew."
        ) from error


def read_reports(folder: Path) -> Reports:
    """The reports in `folder`, in the order of the DAG, without stages that did not run."""
    paths = {stage: folder / f"{stage}.json" for stage in get_type_hints(Reports)}
    found = {stage: read_report(path) for stage, path in paths.items() if path.exists()}
    return cast(Reports, found)


def completed(value: Any, type_: Any) -> Any:
    """`value` with None for each optional key that is absent.

    Args:
        value: a report, or a part of one.
        type_: its class in `report_keys`.
    """
    if value is None:
        return None
    if hasattr(type_, "__required_keys__"):
        return {key: completed(value.get(key), hint) for key, hint in _hints(type_).items()}
    inner = [argument for argument in get_args(type_) if argument is not type(None)]
    if get_origin(type_) is list:
        return [completed(item, inner[0]) for item in value]
    if get_origin(type_) is dict:
        return {key: completed(item, inner[1]) for key, item in value.items()}
    return completed(value, inner[0]) if len(inner) == 1 else value


@cache
def _hints(type_: Any) -> dict[str, Any]:
    """The keys of a TypedDict and their types, without `NotRequired`."""
    hints = get_type_hints(type_, include_extras=True)
    return {k: get_args(h)[0] if get_origin(h) is NotRequired else h for k, h in hints.items()}


@cache
def _adapter(stage: str) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(report_type(stage))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
