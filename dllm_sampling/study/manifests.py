"""What a manifest must hold, and whether a study may take the place of the one in a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dllm_sampling.errors import StudyError
from dllm_sampling.study.cells import Cell, CellFacts

VERSION = 2

_logger = logging.getLogger("dllm_sampling.study")


@dataclass(frozen=True, kw_only=True)
class RecordedCell(CellFacts):
    """A cell as a manifest holds it."""

    run: dict[str, Any]


class _Study(BaseModel):
    name: str
    description: str
    baseline: str
    tasks: list[dict[str, Any]]
    published: list[dict[str, Any]]


class _Manifest(BaseModel):
    version: int
    study: _Study
    cells: list[RecordedCell]
    runs: list[dict[str, Any]]


def checked(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """A manifest as it was read; StudyError where it is none of ours, or of another version."""
    version = found.get("version")
    if isinstance(version, int) and version != VERSION and "study" in found:
        raise StudyError(
            f"{path} is of version {version}, this is version {VERSION}: run the study into a new folder."
        )
    try:
        _Manifest.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise StudyError(
            f"{path} is no manifest of a study, or damaged at {where!r}: give the study a folder of its own "
            "with --output, or delete the file and run the study again; records are kept."
        ) from None
    return found


def refuse_another(
    path: Path,
    before: Mapping[str, Any] | None,
    name: str,
    cells: Sequence[Cell],
    holds: Callable[[str], bool],
) -> None:
    """Raise StudyError where a run would take another study, or a larger report, out of the folder's sight.

    A study is the same while it has its name and shares a cell, by id or by title; under another name
    while all cells on record are still its own. It may grow, and its settings may be edited; a cell on
    record may get no fewer prompts. holds: whether there are records of a cell.
    """
    if before is None:
        return
    ids = {cell.id for cell in cells}
    kept = [cell for cell in before["cells"] if holds(cell["id"])]
    lost = [cell for cell in kept if cell["id"] not in ids]
    if not lost:
        return
    titles = {(cell.model, cell.task, cell.sampler, cell.seed) for cell in cells}
    gone = [cell for cell in lost if _title(cell) not in titles]
    if before["study"]["name"] != name or len(gone) == len(kept):
        raise StudyError(
            f"{path} holds another study, {before['study']['name']!r} with {len(kept)} cells on record: give "
            f"{name!r} a folder of its own with --output, or --fresh to put it in the other's place."
        )
    sizes = {(cell.model, cell.task): cell.examples for cell in cells}
    for cell in lost:
        size = sizes.get((cell["model"], cell["task"]), cell["examples"])
        if size < cell["examples"]:
            raise StudyError(
                f"{path} holds this study with {cell['examples']} prompts of {cell['task']!r}; a report of "
                f"{size} would take its place: give --output another folder, leave --limit {size} out, or "
                "give --fresh to put the smaller one in its place."
            )
    if gone:
        _logger.warning(
            "%d cells on record are not in the study any more and leave its report, such as %s; "
            "their files are kept",
            len(gone), " / ".join(map(str, _title(gone[0]))),
        )  # fmt: skip


def _title(cell: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return cell["model"], cell["task"], cell["sampler"], cell["seed"]
