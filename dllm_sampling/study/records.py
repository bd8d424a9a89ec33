"""Records, one a prompt: their schema, and how they are written and read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dllm_sampling.errors import StudyError

SCHEMA_VERSION = 4

_FIELDS: list[tuple[str, pa.DataType, str]] = [
    ("cell", pa.string(), "Id of the cell."),
    ("prompt", pa.int32(), "Place of the prompt in the task."),
    ("batch", pa.int32(), "Batch it was decoded in."),
    ("text", pa.string(), "What was written, up to the first end of sequence."),
    ("token_ids", pa.list_(pa.int32()), "Its tokens, the first end of sequence included."),
    ("forward_of_position", pa.list_(pa.int32()), "For each of them, the forward that committed it, from 0."),
    ("tokens", pa.int32(), "How many there are."),
    ("correct", pa.bool_(), "Whether the task takes the text for right."),
    ("row_forwards", pa.int32(), "Forwards in which the row had an open target in its region."),
    ("refreshes", pa.int32(), "Those of them that were refreshes."),
    ("positions_computed", pa.int64(), "Positions computed for the row, idle forwards included."),
    ("forced", pa.int32(), "Commits made by the engine because the policy made none."),
    (
        "commits",
        pa.int32(),
        "Commits in all, those behind the text and those masked again included.",
    ),
    ("remasks", pa.int32(), "Committed positions that were masked again."),
    ("seconds", pa.float64(), "Its share of its batch's time, by row_forwards; warm-up is not in it."),
    ("refresh_seconds", pa.float64(), "The part of that in refreshes."),
    ("compile_seconds", pa.float64(), "Its share of what compiling took, warm-up included."),
    ("execution", pa.string(), "How forwards were run: eager, packed weights, compiled steps."),
    ("peak_memory", pa.int64(), "Bytes: allocated on a GPU, else resident in the process, during its batch."),
]
SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=False, metadata={"description": text}) for name, kind, text in _FIELDS],
    metadata={"dllm_sampling.records": str(SCHEMA_VERSION)},
)
# What differs between two runs of the same cell.
TIMES = ("seconds", "refresh_seconds", "compile_seconds", "peak_memory")


_CHECKER = b"dllm_sampling.checker"


def table_of(rows: Sequence[Mapping[str, Any]], checker: str) -> pa.Table:
    """Records as a table of the schema. checker: the id of what scored them."""
    return _scored_by(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA), checker)


def checker_of(table: pa.Table) -> str:
    """The id of what scored the records."""
    return str((table.schema.metadata or {}).get(_CHECKER, b"").decode())


def rescored(table: pa.Table, correct: Sequence[bool], checker: str) -> pa.Table:
    """The records with other scores, row by row."""
    place = table.schema.get_field_index("correct")
    changed = table.set_column(place, table.schema.field(place), pa.array(correct, pa.bool_()))
    return _scored_by(changed, checker)


def _scored_by(table: pa.Table, checker: str) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _CHECKER: checker.encode()})


def write_atomically(path: Path, content: pa.Table | bytes) -> None:
    """Write a file whole or not at all; an error names what can be done about it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                pq.write_table(content, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StudyError(
            f"{path} could not be written: {error.strerror or error}. Every batch written so far is kept: "
            "make room, or mend the folder, and run the same command again."
        ) from error


def read(path: Path, cell: str, *, batch: int | None = None) -> pa.Table:
    """The records of a file, all its checksums verified.

    Raises StudyError, naming the file, where it is damaged, of another version or of another cell.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{path} is damaged: {reason}") from None
    version = (table.schema.metadata or {}).get(b"dllm_sampling.records", b"none").decode()
    if version != str(SCHEMA_VERSION) or not table.schema.equals(SCHEMA):
        raise StudyError(f"{path} holds records of version {version}; this is version {SCHEMA_VERSION}.")
    cells, batches = set(table["cell"].to_pylist()), set(table["batch"].to_pylist())
    if cells != {cell} or (batch is not None and batches != {batch}):
        raise StudyError(f"{path} holds records of another cell or batch.")
    return table
