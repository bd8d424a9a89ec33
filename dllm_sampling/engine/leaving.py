"""Rows that are done leave the batch."""

from __future__ import annotations

from dllm_sampling.backbones.execution import Execution
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.engine.outcome import Outcome
from dllm_sampling.engine.run_hooks import RunHooks
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.region import Region


def let_rows_leave(
    state: DecodingState,
    region: Region,
    hooks: RunHooks,
    buffer: KVBuffer,
    execution: Execution,
    outcome: Outcome,
) -> None:
    """Record the rows that are done and take them out of the batch, as far as its shape allows."""
    still_open = [i for i, column in enumerate(state.next_open) if column < state.length]
    if len(still_open) == state.batch:
        return
    block_over = region.span is None or min(state.next_open) >= region.span.stop
    size = execution.batch_size(len(still_open), state.batch, block_over=block_over)
    done = [i for i, column in enumerate(state.next_open) if column == state.length]
    keep = sorted(still_open + done[: size - len(still_open)])
    if len(keep) == state.batch:
        return
    outcome.record(state, [i for i in range(state.batch) if i not in set(keep)])
    index = state.select_rows(keep)
    buffer.select_rows(index)
    if keep:
        hooks.rows_selected(state, index)
