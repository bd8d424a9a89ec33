"""The folder of a study's results: what is finished, and nothing that is half written.

manifest.json            the study, its cells, and every machine that worked on it
cells/ID/00003.parquet   a finished batch of a cell that is not finished
cells/ID.parquet         a finished cell
examples/ID.parquet      prompts and answers of a task
shards/1-of-4/           a shard's own folder, laid out like this one
damaged/                 record files that could not be read, set aside
log.txt                  what was done, a line each
report.html, ...         written by `report`
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dllm_sampling.errors import StudyError
from dllm_sampling.study import records
from dllm_sampling.study.cells import Cell, Unit
from dllm_sampling.tasks import Example

logger = logging.getLogger("dllm_sampling.study")


class ResultsFolder:
    """Reads and writes one folder. Writing needs `locked`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; StudyError where another process does.

        The lock belongs to the process: it is gone when the process is, however it ended.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{self.path}: {error.strerror or error}.") from None
        owner = self.path / ".owner"
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise StudyError(
                f"{self.path} is being written by {who}: wait for it, or give this one a folder of its "
                "own with --output, or divide the study with --shard."
            ) from None
        try:
            records.write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}".encode())
            for partial in self.path.rglob(".*.partial"):  # of a process that was killed
                partial.unlink(missing_ok=True)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    # Cells -------------------------------------------------------------------------------------

    def missing(self, cell: Cell) -> list[int]:
        """The batches of a cell that are still to be run; damaged files are set aside."""
        if self._sound(self._whole(cell.id), cell) is not None:
            return []
        done = set()
        for path in sorted(self._parts(cell.id).glob("*.parquet")):
            table = self._sound(path, cell)
            if table is not None:
                done.add(table["batch"][0].as_py())
        return [batch for batch in range(cell.batches) if batch not in done]

    def write(self, unit: Unit, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep a finished batch."""
        records.write_atomically(self._part(unit), records.table_of(rows))

    def has_parts(self, cell: Cell) -> bool:
        """Whether batches of the cell lie in files of their own."""
        return self._parts(cell.id).exists()

    def finish(self, cell: Cell) -> None:
        """Put the batches of a cell, none of them missing, into one file, by prompt."""
        if self._sound(self._whole(cell.id), cell) is not None:
            shutil.rmtree(self._parts(cell.id))  # a process was killed while it did so
            return
        parts = [records.read(self._part(Unit(cell, b)), cell.id, batch=b) for b in range(cell.batches)]
        whole = pa.concat_tables(parts).sort_by("prompt")
        records.write_atomically(self._whole(cell.id), whole)
        shutil.rmtree(self._parts(cell.id))

    def forget(self, cell: Cell) -> None:
        """Delete a cell's records."""
        self._whole(cell.id).unlink(missing_ok=True)
        shutil.rmtree(self._parts(cell.id), ignore_errors=True)

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

    def table(self, cell_id: str) -> pa.Table | None:
        """A finished cell's records, by prompt; None where it is not finished."""
        path = self._whole(cell_id)
        return records.read(path, cell_id) if path.exists() else None

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
        records.write_atomically(self.path / "manifest.json", text.encode())

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None where there is none."""
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise StudyError(f"{path} is damaged: delete it and run the study again; records are kept.")
        return found

    def write_examples(self, examples_id: str, examples: Sequence[Example]) -> None:
        """Keep prompts and answers, so that a report needs no task."""
        path = self._examples(examples_id)
        if not path.exists():
            prompts = [e.prompt if isinstance(e.prompt, str) else json.dumps(e.prompt) for e in examples]
            table = pa.table({"prompt": prompts, "answer": [e.answer for e in examples]})
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
