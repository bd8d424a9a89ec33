"""Small deliberate faults, and whether the tests notice them: `make mutants`. Not part of `make test`.

    .venv/bin/python tests/mutants.py [MODULE ...] [--sample N | --all] [--jobs N] [--output PATH]

Cosmic Ray finds the faults, with its own operators and two of ours. Its runner edits files in place and
starts an interpreter for each fault; here a process that has torch loaded forks for each, and the fork
reads the faulty source instead of the file's, so the checkout is never touched. Each module has its own
tests (`TESTS`): the narrow ones are run first, the wider ones only for what these let pass.

Default: a fixed sample of each module's faults. A fault is survived where all of its tests pass.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent

# Which tests belong to which module ------------------------------------------------------------------

RULES = [
    "tests/test_slow_rules.py",
    "tests/test_settings.py",
    "tests/test_rules.py",
    "tests/test_published.py",
]
CATALOGUE = [
    "tests/test_catalogue.py",
    "--deselect=tests/test_catalogue.py::test_frequencies_are_counted_by_the_command_line",
]
ENGINE = ["tests/test_engine.py", "tests/test_composition.py", "tests/test_adversarial_plugins.py"]
Tests = tuple[list[str], list[str]]  # the narrow ones, the wider ones
TESTS: dict[str, Tests] = {
    **{
        f"dllm_sampling/engine/{name}.py": (
            ["tests/test_run_hooks.py", "tests/test_guard.py"],
            ["tests/test_slow_transforms.py", *ENGINE],
        )
        for name in ("run", "batch_run", "blocks", "leaving")
    },
    **{
        f"dllm_sampling/engine/{name}.py": (
            ["tests/test_progress_guard.py", "tests/test_guard.py", "tests/test_run_hooks.py"],
            ["tests/test_slow_transforms.py", *ENGINE],
        )
        for name in ("commit", "progress_guard")
    },
    **{
        f"dllm_sampling/state/{name}.py": (
            ["tests/test_positions.py", "tests/test_slow_parts.py"],
            ["tests/test_cache_plans.py", "tests/test_guard.py", *ENGINE],
        )
        for name in ("positions", "region", "plan")
    },
    **{
        f"dllm_sampling/state/{name}.py": (
            ["tests/test_run_hooks.py", "tests/test_guard.py"],
            ["tests/test_slow_transforms.py", *ENGINE],
        )
        for name in ("rows", "memory", "mailbox", "clock")
    },
    "dllm_sampling/backbones/forward.py": (
        ["tests/test_cache_plans.py", "tests/test_golden.py"],
        ["tests/test_slow_transforms.py", "tests/test_execution.py", *ENGINE],
    ),
    "dllm_sampling/engine/answers.py": (["tests/test_adversarial_plugins.py"], ENGINE),
    "dllm_sampling/state/decoding_state.py": (
        ["tests/test_guard.py"],
        ["tests/test_slow_parts.py", "tests/test_cache_plans.py", "tests/test_slow_transforms.py", *ENGINE],
    ),
    "dllm_sampling/state/observation.py": (
        ["tests/test_guard.py"],
        ["tests/test_slow_rules.py", "tests/test_rules.py", *ENGINE],
    ),
    "dllm_sampling/policies/selection.py": (
        ["tests/test_slow_parts.py", "-k", "ranking or best or largest or logarithm"],
        ["tests/test_slow_rules.py", *CATALOGUE],
    ),
    "dllm_sampling/engine/run_hooks.py": (
        ["tests/test_slow_transforms.py", "-k", "held or canvas or guidance"],
        ["tests/test_slow_transforms.py", *ENGINE],
    ),
    "dllm_sampling/state/confidence.py": (
        ["tests/test_slow_parts.py", "-k", "filters or banned or maximum"],
        ["tests/test_confidence.py", "tests/test_slow_rules.py"],
    ),
    "dllm_sampling/state/noise.py": (
        ["tests/test_slow_parts.py", "-k", "noise or finaliser"],
        ["tests/test_confidence.py"],
    ),
    "dllm_sampling/engine/outcome.py": (
        ["tests/test_slow_transforms.py", "-k", "returned or texts or fill or sums"],
        ["tests/test_cache_plans.py", "tests/test_engine.py"],
    ),
    "dllm_sampling/backbones/kv_buffer.py": (
        ["tests/test_slow_parts.py", "-k", "buffer or canvases"],
        ["tests/test_engine.py", "tests/test_execution.py", *CATALOGUE],
    ),
}


def _fill_tests() -> None:
    """Caches and strategies: the tests of a file of theirs whose names hold the module's, then all."""
    wider = ["tests/test_settings.py", "tests/test_published.py", *CATALOGUE]
    folders = {
        "caches": "tests/test_cache_plans.py",
        "strategies/schedules": "tests/test_regions.py",
        "strategies/transforms": "tests/test_slow_transforms.py",
        "strategies/wrappers": "tests/test_slow_transforms.py",
        "strategies/unmasking": "tests/test_slow_rules.py",
        "strategies/shared": "tests/test_slow_rules.py",
        "strategies/scores": "tests/test_slow_rules.py",
    }
    for folder, file in folders.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.stem != "__init__":
                name = NAMED.get(path.stem, path.stem)
                rest = RULES if file == "tests/test_slow_rules.py" else [file, *wider]
                narrow = [file, "tests/test_settings.py", "-k", f"{name} or bound"]
                TESTS[f"{folder}/{path.name}"] = ([*MORE.get(path.stem, []), *narrow], rest)


# Files with tests of a rule's chances, beside the one of its kind.
MORE = {"dream_schedule": ["tests/test_rules.py"], "fixed_k": ["tests/test_rules.py"]}
# Modules that are not named in the names of their tests.
NAMED = {
    "suffix_window": "suffix or visible or scale or drawn",
    "dream_schedule": "dream or alg_temp or without_effect",
    "ragged": "sliding or multi_block",
    "classifier_free_guidance": "guidance",
    "suppress_tokens": "suppress or token",
    "budget": "fixed_k or steps",
    "first_of": "composites or order or combined",
    "parts": "composites or early_commit or combined",
    "union": "composites or combined",
    "with_budget": "composites or budget",
}
_fill_tests()

# Faults -----------------------------------------------------------------------------------------------

_PAIRS = {
    "BinaryOperator": [
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "FloorDiv_Add", "Mod_FloorDiv", "Pow_Mul",
        "BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd", "RShift_LShift", "LShift_RShift",
    ],
    "ComparisonOperator": [
        "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq",
        "Is_IsNot", "IsNot_Is",
    ],
    "UnaryOperator": ["Delete_Not", "Delete_Invert", "Delete_USub"],
}  # fmt: skip
_OTHERS = [
    "AddNot", "NumberReplacer", "RemoveDecorator", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue", "ZeroIterationForLoop", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
]  # fmt: skip


class LeaveOutStatement(Operator):
    """A call or an assignment to an attribute or an item is left out."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt":
            first = node.children[0]
            target = first.children[0] if first.type in ("expr_stmt", "atom_expr", "power") else None
            if first.type in ("atom_expr", "power") or getattr(target, "type", "") in ("atom_expr", "power"):
                yield (node.start_pos, node.end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(node.get_first_leaf().prefix + "pass\n")

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class LeaveOutCall(Operator):
    """Of `x.f(...)` only `x` is left."""

    @staticmethod
    def _places(node: Any) -> list[int]:
        if node.type not in ("atom_expr", "power"):
            return []
        kinds = [child.children[0].value if child.type == "trailer" else "" for child in node.children]
        # A call that is all there is before it (a module's function) leaves nothing of the same kind.
        modules = (
            "torch",
            "math",
            "noise",
            "confidence",
            "generation",
            "prompting",
            "run_hooks",
            "time",
            "json",
        )
        start = 2 if getattr(node.children[0], "value", "") in (*modules, "super") else 1
        return [i for i in range(start, len(kinds) - 1) if kinds[i] == "." and kinds[i + 1] == "("]

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        for _ in self._places(node):
            yield (node.start_pos, node.end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        place = self._places(node)[index]
        del node.children[place : place + 2]
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


def operators() -> dict[str, Operator]:
    """Those of Cosmic Ray that make likely mistakes, and our two."""
    names = [f"core/Replace{kind}_{pair}" for kind, pairs in _PAIRS.items() for pair in pairs]
    names += [f"core/{name}" for name in _OTHERS]
    missing = set(names) - set(operator_names())
    assert not missing, missing
    found: dict[str, Operator] = {name.removeprefix("core/"): get_operator(name)() for name in names}
    return found | {"LeaveOutStatement": LeaveOutStatement(), "LeaveOutCall": LeaveOutCall()}


@dataclass(frozen=True)
class Mutant:
    """One fault in one module."""

    module: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str
    source: str

    @property
    def told(self) -> str:
        return f"{self.module}:{self.line} {self.before.strip()!r} -> {self.after.strip()!r}"


def _skipped(tree: Any) -> set[int]:
    """Nodes that hold no behaviour: annotations, imports for types, assertions, `strict=True`, the sign of a dimension.

    Tensors are [batch, region] almost everywhere, where the dimensions 1 and -1 are the same.
    """
    skipped: set[int] = set()
    for node in ast_nodes(tree):
        parts: list[Any] = []
        if node.type == "annassign":
            parts = [node.children[1]]
        elif (node.type == "param" and node.annotation is not None) or (
            node.type == "funcdef" and node.annotation is not None
        ):
            parts = [node.annotation]
        elif (
            (node.type == "expr_stmt" and "TypeAlias" in node.get_code())
            or (node.type == "if_stmt" and "TYPE_CHECKING" in node.children[1].get_code())
            or (node.type == "simple_stmt" and node.children[0].type == "assert_stmt")
        ) or (node.type == "argument" and node.get_code().strip() == "strict=True"):
            parts = [node]
        elif node.type == "factor" and node.get_code().strip() == "-1":
            skipped.add(id(node))  # its number is still changed
        for part in parts:
            skipped.update(id(inner) for inner in ast_nodes(part))
    return skipped


def mutants_of(module: str) -> list[Mutant]:
    """Every fault of a module that still compiles, in the order of its lines."""
    source = (ROOT / module).read_text(encoding="utf-8")
    tree = get_ast(source)
    skipped = _skipped(tree)
    nodes = list(ast_nodes(tree))
    found = {}
    for name, operator in operators().items():
        places = [(node, position) for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, (node, _) in enumerate(places):
            if id(node) in skipped:
                continue
            mutated = mutate_code(source, operator, occurrence)
            if mutated is None or mutated == source:
                continue
            with contextlib.suppress(SyntaxError):
                compile(mutated, module, "exec")
                line, before, after = _difference(source, mutated)
                found.setdefault(mutated, Mutant(module, name, occurrence, line, before, after, mutated))
    return sorted(found.values(), key=lambda m: (m.line, m.operator, m.occurrence))


def _difference(source: str, mutated: str) -> tuple[int, str, str]:
    old, new = source.splitlines(), mutated.splitlines()
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return same + 1, old[same] if same < len(old) else "", new[same] if same < len(new) else ""


# Running ------------------------------------------------------------------------------------------------


def preload() -> None:
    """Load what takes long, once; then forget the package, so that a fork loads the faulty one."""
    import dllm_sampling.strategies
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401

    import dllm_sampling.testing
    from dllm_sampling import load_model

    dllm_sampling.testing.tiny_model()
    load_model()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dllm_sampling", "tests")]:
        del sys.modules[name]


def _read_instead(path: Path, source: str) -> None:
    """Let the import system find `source` where it looks for `path`."""
    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, name: str) -> Any:
        if Path(self.path).resolve() == path:
            return compile(source, str(path), "exec", dont_inherit=True)
        return usual(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def attempt(module: str, source: str | None, tests: list[str], timeout: float) -> tuple[str, str]:
    """Run tests in a fork with a faulty module. passed, failed, or timeout; and the end of what was said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _in_the_fork(module, source, tests, said.fileno())
        status, end = None, time.monotonic() + timeout
        while status is None and time.monotonic() < end:
            done, code = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if done else None
            time.sleep(0 if done else 0.02)
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return ("timeout" if status is None else "passed" if status == 0 else "failed"), text[-2000:]


def _in_the_fork(module: str, source: str | None, tests: list[str], said: int) -> None:
    status = 1
    try:
        os.setsid()
        os.dup2(said, 1)
        os.dup2(said, 2)
        if source is not None:
            _read_instead((ROOT / module).resolve(), source)
        import pytest

        usual = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
        status = int(pytest.main([*usual, "--hypothesis-profile=mutants", *tests]))
    finally:
        os._exit(status)


@functools.cache
def _usual_seconds(tests: tuple[str, ...]) -> float:
    """How long tests take without a fault, with which they must pass."""
    begun = time.monotonic()
    what, said = attempt("", None, list(tests), 600)
    if what != "passed":
        raise SystemExit(f"these tests fail without a fault: {' '.join(tests)}\n{said}")
    return time.monotonic() - begun


def tried(mutant: Mutant) -> str:
    """What became of a mutant: killed (by which test), timeout, or survived."""
    for tests in filter(None, TESTS[mutant.module]):
        limit = max(30.0, 8 * _usual_seconds(tuple(tests)))
        what, said = attempt(mutant.module, mutant.source, tests, limit)
        if what == "timeout":
            return "timeout"
        if what == "failed":
            failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return f"killed by {failed[0][:100] if failed else 'an error'}"
    return "survived"


def run_module(module: str, options: argparse.Namespace) -> dict[str, Any]:
    """Try a sample of a module's faults; print and return what became of them."""
    everything = mutants_of(module)
    count = len(everything) if options.all else min(options.sample, len(everything))
    chosen = random.Random(f"{options.seed}:{module}").sample(everything, count)
    begun = time.monotonic()
    _usual_seconds(tuple(TESTS[module][0]))  # once, before there are several at a time
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(tried, chosen))
    survived = [m for m, result in zip(chosen, results, strict=True) if result == "survived"]
    for mutant, result in zip(chosen, results, strict=True):
        if options.verbose:
            print(f"  {mutant.told}: {result}")
    for mutant in sorted(survived, key=lambda m: m.line):
        print(f"  survived: {mutant.told}")
    return {
        "module": module, "mutants": len(everything), "tried": count, "killed": count - len(survived),
        "seconds": round(time.monotonic() - begun), "timeouts": results.count("timeout"),
        "survived": [m.told for m in sorted(survived, key=lambda m: m.line)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("modules", nargs="*", help="parts of names of modules; all by default")
    parser.add_argument("--sample", type=int, default=12, help="faults a module (12)")
    parser.add_argument("--all", action="store_true", help="every fault: takes hours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--narrow", action="store_true", help="only the narrow tests: quick, and too strict")
    parser.add_argument("--count", action="store_true", help="only count the faults")
    parser.add_argument("--verbose", action="store_true", help="say which test noticed")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    modules = [m for m in TESTS if not options.modules or any(part in m for part in options.modules)]
    if options.count:
        counts = {module: len(mutants_of(module)) for module in modules}
        for module, count in counts.items():
            print(f"{module:55} {count:5}")
        print(f"{'in all':55} {sum(counts.values()):5}")
        return
    preload()
    if options.narrow:
        TESTS.update({module: (narrow, []) for module, (narrow, _) in TESTS.items()})
    rows = []
    print(f"{'module':55} {'faults':>6} {'tried':>6} {'killed':>6} {'time':>6}")
    for module in modules:
        row = run_module(module, options)
        rows.append(row)
        print(
            f"{module:55} {row['mutants']:6} {row['tried']:6} {row['killed']:6} {row['seconds']:5}s",
            flush=True,
        )
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    count, killed = sum(row["tried"] for row in rows), sum(row["killed"] for row in rows)
    print(
        f"killed {killed} of {count}: {killed / max(count, 1):.1%}; {sum(row['seconds'] for row in rows)} seconds"
    )


if __name__ == "__main__":
    main()
