"""The folder of a study's results: what is finished, and nothing that is half written.

manifest.json            the study, its cells, and every machine that worked on it
cells/ID/00003.parquet   a finished batch of a cell that is not finished
cells/ID.parquet         a finished cell
examples/ID.parquet      prompts and answers of a task
shards/1-of-4/           a shard's own folder, laid out like this one
damaged/                 record files that could not be read, set aside
log.txt                  what was done, a line each
report.html, ...         written by `report`

Other files in it are left alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dllm_sampling.errors import StudyError
from dllm_sampling.study import manifests, records
from dllm_sampling.study.cells import Cell, Unit
from dllm_sampling.study.text import storable
from dllm_sampling.tasks import Example

logger = logging.getLogger("dllm_sampling.study")


MANIFEST = "manifest.json"
# What a study writes at the top of its folder, but for the manifest and shards.
_OWN = (
    "cells", "examples", "damaged", "plots", "log.txt", "report.html", "report.md", "report.tex",
    "results.csv", "curves.csv",
)  # fmt: skip
_ID = "[0-9a-f]{16}"
_PARTIALS = {
    ".": r"manifest\.json|\.owner|report\.(html|md|tex)|(results|curves)\.csv",
    "cells": rf"{_ID}\.parquet",
    "cells/*": r"\d{5,}\.parquet",
    "examples": rf"{_ID}\.parquet",
    "plots": r"\d+-[a-z]+(-\d+)?\.(svg|png)",
}


class ResultsFolder:
    """Reads and writes one folder. Writing needs `locked`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; StudyError where another process does.

        The lock belongs to the process: it is gone when the process is, however it ended. Files that no
        study of ours wrote stay as they are: a folder that has one where ours would go is refused.
        """
        self._refuse_foreign()
        owner = self.path / ".owner"
        lock = filelock.FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise StudyError(
                f"{self.path} is being written by {who}: wait for it, or give this one a folder of its "
                "own with --output, or divide the study with --shard."
            ) from None
        except OSError as error:
            raise StudyError(f"{self.path}: {error.strerror or error}.") from None
        try:
            records.write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}".encode())
            for partial in self._left_partials():
                partial.unlink(missing_ok=True)
            yield
        finally:
            with suppress(OSError):
                owner.unlink(missing_ok=True)
            lock.release()

    def _refuse_foreign(self) -> None:
        here = Path(os.path.realpath(self.path))
        if here in (Path(here.anchor), Path(os.path.realpath(os.path.expanduser("~")))):
            raise StudyError(
                f"--output {self.path}: name a folder of its own, such as {here / 'results'}: a study "
                "writes a dozen files and folders into it."
            )
        if self.path.exists() and not self.path.is_dir():
            raise StudyError(f"--output {self.path} is a file: name a folder.")
        if any((self.path / name).exists() for name in (".lock", MANIFEST)):
            return  # ours, or told when the manifest is read
        for name in _OWN:
            if (self.path / name).exists():
                raise StudyError(
                    f"{self.path} holds {name}, which no study wrote, for there is no {MANIFEST}: it is "
                    "left as it is. Name another folder with --output."
                )

    def _left_partials(self) -> Iterator[Path]:
        """What a process that was killed left half written: files of our own places and names alone."""
        for folder, names in _PARTIALS.items():
            for path in self.path.glob(f"{folder}/.*.partial"):
                if re.fullmatch(rf"\.({names})\.\d+\.partial", path.name):
                    yield path

    # Cells -------------------------------------------------------------------------------------

    def missing(self, cell: Cell) -> list[int]:
        """The batches of a cell that are still to be run; damaged files are set aside."""
        if self._sound(self._whole(cell.id), cell) is not None:
            return []
        done = set()
        for path in self._part_files(cell.id):
            table = self._sound(path, cell)
            if table is not None:
                done.add(table["batch"][0].as_py())
        return [batch for batch in range(cell.batches) if batch not in done]

    def write(self, unit: Unit, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep a finished batch."""
        records.write_atomically(self._part(unit), records.table_of(rows, unit.cell.checker_id))

    def has_parts(self, cell: Cell) -> bool:
        """Whether batches of the cell lie in files of their own."""
        return bool(self._part_files(cell.id))

    def holds(self, cell_id: str) -> bool:
        """Whether there are records of the cell, finished or not."""
        return self._whole(cell_id).exists() or bool(self._part_files(cell_id))

    def finish(self, cell: Cell) -> None:
        """Put the batches of a cell, none of them missing, into one file, by prompt."""
        if self._sound(self._whole(cell.id), cell) is not None:
            self._remove_parts(cell.id)  # a process was killed while it did so
            return
        parts = [records.read(self._part(Unit(cell, b)), cell.id, batch=b) for b in range(cell.batches)]
        whole = pa.concat_tables(parts).sort_by("prompt")
        records.write_atomically(self._whole(cell.id), whole)
        self._remove_parts(cell.id)

    def rescore(self, cell: Cell, score: Callable[[list[int], list[str]], list[bool]]) -> int:
        """Score the texts of a cell again that another checker scored; return how many there are.

        score: from prompts' places and texts to whether each is right.
        """
        count = 0
        for path in (self._whole(cell.id), *self._part_files(cell.id)):
            table = self._sound(path, cell)
            if table is None or records.checker_of(table) == cell.checker_id:
                continue
            correct = score(table["prompt"].to_pylist(), table["text"].to_pylist())
            records.write_atomically(path, records.rescored(table, correct, cell.checker_id))
            count += table.num_rows
        return count

    def forget(self, cell: Cell) -> None:
        """Delete a cell's records."""
        self._whole(cell.id).unlink(missing_ok=True)
        self._remove_parts(cell.id)

    def _part_files(self, cell_id: str) -> list[Path]:
        found = self._parts(cell_id).glob("*.parquet")
        return sorted(path for path in found if re.fullmatch(r"\d{5,}\.parquet", path.name))

    def _remove_parts(self, cell_id: str) -> None:
        for path in self._part_files(cell_id):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # what is not ours stays, and its folder with it
            self._parts(cell_id).rmdir()

    def take_over(self, cell: Cell, other: ResultsFolder) -> None:
        """Copy the batches that another folder has and this one lacks."""
        missing = set(self.missing(cell))
        whole = other._sound(other._whole(cell.id), cell)
        for batch in sorted(missing):
            unit = Unit(cell, batch)
            if whole is not None:
                table = whole.filter(pc.equal(whole["batch"], batch))
            else:
                found = other._sound(other._part(unit), cell)
                if found is None:
                    continue
                table = found
            records.write_atomically(self._part(unit), table)

    def table(self, cell_id: str, checker_id: str | None = None) -> pa.Table | None:
        """A finished cell's records, by prompt; None where there are none, or another checker scored them."""
        path = self._whole(cell_id)
        table = records.read(path, cell_id) if path.exists() else None
        if table is not None and checker_id not in (None, records.checker_of(table)):
            return None
        return table

    def shards(self) -> list[ResultsFolder]:
        """The folders of this study's shards."""
        return [ResultsFolder(path) for path in sorted((self.path / "shards").glob("*-of-*"))]

    def shard(self, index: int, count: int) -> ResultsFolder:
        """The folder of one shard, counted from 1."""
        return ResultsFolder(self.path / "shards" / f"{index}-of-{count}")

    def _sound(self, path: Path, cell: Cell) -> pa.Table | None:
        """The records of a file, or None where there is none. A damaged one is named and set aside."""
        if not path.exists():
            return None
        try:
            table = records.read(path, cell.id)
            counted = sorted(table["prompt"].to_pylist())
            if path == self._whole(cell.id) and counted != list(range(cell.examples)):
                raise StudyError(f"{path} does not hold the {cell.examples} prompts of its cell.")
        except StudyError as error:
            aside = self.path / "damaged" / f"{cell.id}-{path.name}"
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
            logger.error("%s Set aside as %s; its prompts run again.", error, aside)
            return None
        return table

    def _whole(self, cell_id: str) -> Path:
        return self.path / "cells" / f"{cell_id}.parquet"

    def _parts(self, cell_id: str) -> Path:
        return self.path / "cells" / cell_id

    def _part(self, unit: Unit) -> Path:
        return self._parts(unit.cell.id) / f"{unit.batch:05d}.parquet"

    # The rest ----------------------------------------------------------------------------------

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        text = json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n"
        # Half a surrogate pair in a name becomes the escape by which JSON writes it.
        records.write_atomically(self.path / MANIFEST, text.encode("utf-8", "backslashreplace"))

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None where there is none, StudyError where it is damaged or no manifest of ours."""
        path = self.path / MANIFEST
        if not os.path.exists(path):  # a name that is too long raises in Path.exists
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise StudyError(f"{path} is damaged: delete it and run the study again; records are kept.")
        return manifests.checked(path, found)

    def write_examples(self, examples_id: str, examples: Sequence[Example]) -> None:
        """Keep prompts and answers, so that a report needs no task."""
        path = self._examples(examples_id)
        if not path.exists():
            prompts = [
                e.prompt if isinstance(e.prompt, str) else json.dumps(e.prompt, default=str) for e in examples
            ]
            columns = {"prompt": prompts, "answer": [e.answer for e in examples]}
            table = pa.table({name: [storable(v) for v in values] for name, values in columns.items()})
            records.write_atomically(path, table)

    def examples(self, examples_id: str) -> list[dict[str, str]]:
        """Prompt and answer of every example."""
        path = self._examples(examples_id)
        try:
            found: list[dict[str, str]] = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise StudyError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
        return found

    def _examples(self, examples_id: str) -> Path:
        return self.path / "examples" / f"{examples_id}.parquet"
