"""Write the 500 held-out problems that ship: `python training/write_held_out.py`."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from word_problems import problems

SEED = 2505_22618
TARGET = Path(__file__).parent.parent / "dllm_sampling" / "bundled" / "word_problems.jsonl"


def main() -> None:
    chosen = {p.question: p for p in islice(problems(SEED, held_out=True), 600)}
    rows = [
        {"question": p.question, "answer": p.answer, "result": p.result} for p in list(chosen.values())[:500]
    ]
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
