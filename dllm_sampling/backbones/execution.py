"""How forwards are run: `compile` is "off", "on" or "auto".

off: plain torch. The reference.
on: weights packed for oneDNN on a CPU; steps compiled by torch with static shapes, on a GPU as CUDA graphs.
auto: what pays. On a CPU the packed weights alone (compiling gains nothing there that was measurable), on a
    GPU compiled steps, elsewhere nothing.

Whatever it is, the same rule, cache and tokens: in float32 logits agree to rounding.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dllm_sampling.backbones import packing
from dllm_sampling.backbones.kv_buffer import KVBuffer

Compile: TypeAlias = Literal["auto", "on", "off"]
COMPILE_CHOICES: tuple[Compile, ...] = ("auto", "on", "off")

# Positions of a row that a compiled forward takes at most: wider ones are bound by arithmetic, where
# launches cost nothing.
WIDEST = 256
# Shapes that are compiled at most, before the rest is run eagerly.
MOST_SHAPES = 32
_SLOTS = 128


class Execution:
    """What a `compile` setting comes to for one model.

    forward: what is compiled. packed: linear layers whose weights were packed. compile_seconds: spent on
    compiling so far.
    """

    def __init__(
        self,
        model: PreTrainedModel | None,
        compile: Compile,
        *,
        forward: Callable[..., Tensor] | None = None,
        device: torch.device | None = None,
        flash: bool = False,
    ) -> None:
        device = device or torch.device("cpu")
        self._notes: list[str] = []
        self.packed = 0
        self.compile_seconds = 0.0
        self._device = device
        self._model = model
        self._compiled: Any = None
        self._shapes: set[tuple[int, ...]] = set()
        self._full = False
        self._free: KVBuffer | None = None
        if compile == "off" or model is None:
            return
        refusal = packing.refusal(device, model.dtype)
        if refusal is None:
            self.packed = packing.pack(model)
        elif device.type == "cpu":
            self._notes.append(refusal)
        if compile == "on" or device.type == "cuda":
            if flash:
                self._notes.append("steps are not compiled: flash attention cannot mask a padded canvas")
            else:
                self._compiled = torch.compile(
                    forward,
                    fullgraph=True,
                    dynamic=False,
                    mode="reduce-overhead" if device.type == "cuda" else "default",
                )

    @property
    def compiles(self) -> bool:
        """Whether narrow forwards are compiled."""
        return self._compiled is not None

    def __str__(self) -> str:
        kept = packing.count(self._model) if self.packed and self._model is not None else 0
        parts = ["packed weights"] if kept else []
        if self.compiles:
            parts.append("compiled steps" + (" in CUDA graphs" if self._device.type == "cuda" else ""))
        notes = list(self._notes)
        if kept < self.packed:
            notes.append(
                f"{self.packed - kept} of {self.packed} layers unpacked, as their weights were asked for"
            )
        return "; ".join([" and ".join(parts) or "eager", *notes])

    # Shapes ------------------------------------------------------------------------------------

    def new_buffer(self, layers: int, length: int) -> KVBuffer:
        """A KV buffer; where steps are compiled its slots come in few sizes, and memory is used again."""
        if not self.compiles:
            return KVBuffer(layers, length)
        slots = -(-length // _SLOTS) * _SLOTS
        free, self._free = self._free, None
        if free is not None and free.slots == slots:
            return free.reuse(length)
        return KVBuffer(layers, length, slots=slots, fixed=self._device.type == "cuda")

    def release(self, buffer: KVBuffer) -> None:
        """Take back a buffer that a run is done with."""
        if self.compiles:
            self._free = buffer

    def batch_size(self, open_rows: int, batch: int, *, block_over: bool) -> int:
        """How many rows to go on with when `open_rows` of `batch` are left.

        Compiled batches shrink at the end of a block and to powers of two, so that few shapes arise.
        """
        if not self.compiles or open_rows == 0:
            return open_rows
        return min(batch, _power_of_two(open_rows)) if block_over else batch

    def width(self, planned: int) -> int | None:
        """The width that a forward of `planned` positions is compiled for; None where it is not."""
        if not self.compiles or planned > WIDEST:
            return None
        step = 8 if planned <= 64 else 32
        return -(-planned // step) * step

    # Forwards ----------------------------------------------------------------------------------

    def step(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        buffer: KVBuffer,
        rows: Tensor,
    ) -> Tensor | None:
        """Logits by a compiled forward; None, with one warning, where it cannot be compiled."""
        inputs = (ids, position_ids, attention_mask, buffer, rows)
        shape = (*ids.shape, rows.shape[1], buffer.slots)
        if shape in self._shapes:
            return self._replay(*inputs)
        if len(self._shapes) >= MOST_SHAPES:
            if not self._full:
                self._full = True
                self._say(f"more than {MOST_SHAPES} shapes arose: further ones are run eagerly")
            return None
        begun = time.perf_counter()
        try:
            # The limit guards against what is counted here; and what is measured begins after the
            # three calls that a CUDA graph takes to be recorded.
            with torch._dynamo.config.patch(recompile_limit=4 * MOST_SHAPES), packing.kept_packed():
                for _ in range(3 if self._device.type == "cuda" else 1):
                    self._replay(*inputs)
            self._wait()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers fail in many ways, all of which mean eager
            reason = str(error).strip().splitlines() or [""]
            self._compiled = None
            self._say(f"steps cannot be compiled and are run eagerly: {type(error).__name__}: {reason[0]}")
            return None
        finally:
            self.compile_seconds += time.perf_counter() - begun
        self._shapes.add(shape)
        return self._replay(*inputs)

    def _replay(self, *inputs: Any) -> Tensor:
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        logits: Tensor = self._compiled(*inputs)
        # A graph's output is overwritten by its next replay.
        return logits.clone() if self._device.type == "cuda" else logits

    def _say(self, note: str) -> None:
        self._notes.append(note)
        warnings.warn(note, stacklevel=2)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
