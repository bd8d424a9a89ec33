"""Draws the pictures of docs/concepts.md. `python docs/gen_figures.py` writes them to docs/figures/.

The pictures of caches are recorded from runs of the shipped policies: each cell is what a forward did.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm_sampling import Sampler
from dllm_sampling.testing import ChosenModel

FOLDER = Path(__file__).parent / "figures"

PROMPT, TARGETS, BLOCK = 6, 24, 8
INK, QUIET, LINE = "#1f2933", "#52606d", "#9aa5b1"
COMPUTED, KEPT, UNSEEN, TEXT, MASK = "#3d7ea6", "#d5e3ec", "#ffffff", "#f3e3c3", "#e4e7eb"

# What is drawn: title, settings of the cache policy.
CACHES: list[tuple[str, Any]] = [
    ("none", "none"),
    ("prefix", "prefix"),
    ("dual", "dual"),
    ("windowed, left 3, right 3", {"name": "windowed", "left": 3, "right": 3}),
    ("delayed, interval 8", {"name": "delayed", "interval": 8}),
    ("suffix_window around dual, window 4", {"name": "suffix_window", "policy": "dual", "window": 4}),
]


class Drawing:
    """An SVG picture on a white ground, readable in a light and in a dark page."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = (width, height)
        self._title = title
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, line: str = LINE) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self, x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", fill: str = INK
    ) -> None:
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">'
            f"{escape(words)}</text>"
        )

    def dot(self, x: float, y: float, radius: float = 2.6, fill: str = "#ffffff") -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{INK}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, *, arrow: bool = False) -> None:
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self._parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{QUIET}"{end}/>')

    def bracket(self, x1: float, x2: float, y: float, words: str, *, below: bool = True) -> None:
        """A span from x1 to x2 with its name."""
        tick = -4 if below else 4
        self.line(x1, y, x2, y)
        self.line(x1, y, x1, y + tick)
        self.line(x2, y, x2, y + tick)
        self.text((x1 + x2) / 2, y + 14 if below else y - 5, words, anchor="middle")

    def svg(self) -> str:
        """The whole file."""
        width, height = self._size
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" font-family="system-ui, sans-serif" role="img">',
                f"<title>{escape(self._title)}</title>",
                '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{QUIET}"/></marker></defs>',
                f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


def canvas() -> str:
    """Prompt, targets, blocks and the region."""
    drawing = Drawing(760, 250, "A canvas of prompt and targets, cut into blocks")
    cell, left, top = 22, 50, 74
    words = "<s> Mia has 27 pens ? 27 + 5 = 32 _ _ #".replace("_", "").split(" ")
    for i in range(PROMPT + TARGETS):
        known = words[i] if i < len(words) else ""
        fill = TEXT if i < PROMPT else "#cfe3cf" if known else MASK
        drawing.box(left + i * cell, top, cell, 26, fill)
        size = 8 if len(known) > 3 else 10
        drawing.text(left + (i + 0.5) * cell, top + 17, known or "m", size=size, anchor="middle")

    def at(column: int) -> int:
        return left + column * cell

    end = PROMPT + TARGETS
    drawing.bracket(at(0), at(end), 30, "canvas: one row of the batch", below=False)
    drawing.bracket(at(0) + 2, at(PROMPT) - 2, 62, "prompt, given", below=False)
    drawing.bracket(at(PROMPT) + 2, at(end) - 2, 62, "targets, to be written", below=False)
    for block in range(TARGETS // BLOCK):
        start = PROMPT + block * BLOCK
        drawing.bracket(at(start) + 2, at(start + BLOCK) - 2, 116, f"block {block}")
    drawing.bracket(at(PROMPT) + 2, at(PROMPT + BLOCK) - 2, 150, "region of this step: block 0")
    for i, (fill, words_) in enumerate(
        [(TEXT, "text that was given"), ("#cfe3cf", "committed target"), (MASK, "open target (m: mask)")]
    ):
        drawing.box(left + i * 210, 205, 16, 16, fill)
        drawing.text(left + 22 + i * 210, 218, words_)
    return drawing.svg()


def refresh_and_step() -> str:
    """What a refresh and a narrower forward compute, write and attend to."""
    drawing = Drawing(760, 330, "A refresh computes the whole canvas, a step of the dual cache one block")
    cell, left = 17, 180
    for top, title, note, computed in (
        (30, "refresh", "every visible position", range(PROMPT + TARGETS)),
        (180, "dual, later forward", "the block alone", range(PROMPT, PROMPT + BLOCK)),
    ):
        drawing.text(16, top + 17, title, size=14)
        drawing.text(16, top + 34, note, fill=QUIET)
        drawing.text(16, top + 92, "KV buffer", size=14)
        drawing.text(16, top + 109, "one entry a position", fill=QUIET)
        for i in range(PROMPT + TARGETS):
            x, fresh = left + i * cell, i in computed
            drawing.box(x, top, cell, 24, COMPUTED if fresh else UNSEEN)
            drawing.box(x, top + 76, cell, 24, COMPUTED if fresh else KEPT)
            if fresh:
                drawing.line(x + cell / 2, top + 26, x + cell / 2, top + 73, arrow=True)
        x1, x2 = left + computed.start * cell, left + computed.stop * cell
        drawing.text(
            (x1 + x2) / 2, top - 6, f"{len(computed)} positions computed", anchor="middle", fill=QUIET
        )
        old = PROMPT + TARGETS - len(computed)
        words = "all entries are fresh" if not old else f"{old} entries are kept from before, and attended to"
        drawing.text(left + (PROMPT + TARGETS) * cell / 2, top + 120, words, anchor="middle", fill=QUIET)
    return drawing.svg()


def _predict(tokens: Tensor, position_ids: Tensor) -> Tensor:
    """Token 1 everywhere, more or less surely: positions are committed in a mixed order."""
    logits = torch.zeros(*tokens.shape, 6)
    logits[..., 1] = 2 + (position_ids * 5 % BLOCK).float() / BLOCK
    return logits


def recorded(cache: Any) -> Iterator[tuple[list[bool], list[bool], list[bool]]]:
    """For each forward of a run: what is computed, what is visible, and what is committed then."""
    model = ChosenModel(_predict, 6)
    sampler = Sampler(
        model,
        unmasking={"name": "fixed_k", "k": 2},
        cache=cache,
        schedule={"name": "fixed_blocks", "block_length": BLOCK},
        stop_at_eos=False,
    )
    for step in sampler.steps([[0] * PROMPT], TARGETS):
        state = step.state
        visible = state.valid if step.plan.visible is None else step.plan.visible
        chosen = torch.zeros_like(state.masked)
        chosen.scatter_(1, step.region.positions.columns, step.decision.commit & step.observation.eligible)
        yield (
            (step.plan.mask(state) & state.valid)[0].tolist(),
            visible[0].tolist(),
            chosen[0].tolist(),
        )


def caches() -> str:
    """A panel for each cache policy: forwards downwards, positions across."""
    cell, across, down = 11, 380, 204
    drawing = Drawing(780, 40 + 3 * down + 40, "What each cache policy recomputes, forward by forward")
    for panel, (title, cache) in enumerate(CACHES):
        left, top = 30 + panel % 2 * across, 50 + panel // 2 * down
        drawing.text(left, top - 22, title, size=14)
        positions = 0
        for n, (computed, visible, chosen) in enumerate(recorded(cache)):
            y = top + n * cell
            fills = [
                COMPUTED if fresh else KEPT if seen else UNSEEN
                for fresh, seen in zip(computed, visible, strict=True)
            ]
            x = float(left)
            for fill, run in groupby(fills):
                width = len(list(run)) * cell
                drawing.box(x, y, width, cell - 1, fill)
                x += width
            for i in (i for i, now in enumerate(chosen) if now):
                drawing.dot(left + (i + 0.5) * cell, y + cell / 2 - 0.5)
            positions += sum(computed)
        drawing.text(
            left + (PROMPT + TARGETS) * cell, top - 22, f"{positions} positions", anchor="end", fill=QUIET
        )
        for start in range(PROMPT, PROMPT + TARGETS, BLOCK):
            drawing.line(left + start * cell, top - 8, left + start * cell, top + 12 * cell + 5)
        drawing.text(left + PROMPT * cell / 2, top - 5, "prompt", size=10, anchor="middle", fill=QUIET)
        for block in range(TARGETS // BLOCK):
            x = left + (PROMPT + (block + 0.5) * BLOCK) * cell
            drawing.text(x, top - 5, f"block {block}", size=10, anchor="middle", fill=QUIET)
    y = 50 + 3 * down - 14
    legend = [(COMPUTED, "computed"), (KEPT, "kept from before, attended to"), (UNSEEN, "not visible")]
    x = 30
    for fill, words in legend:
        drawing.box(x, y, 14, 14, fill)
        drawing.text(x + 20, y + 12, words)
        x += 40 + 7 * len(words)
    drawing.dot(x + 7, y + 7, 4)
    drawing.text(x + 18, y + 12, "committed in this forward")
    return drawing.svg()


FIGURES = {"canvas": canvas, "refresh": refresh_and_step, "caches": caches}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
