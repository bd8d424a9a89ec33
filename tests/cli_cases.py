"""Command lines as a hurried or hostile user types them, drawn from a seed, and what comes of them.

`python -m tests.cli_cases COUNT [SEED]` runs so many and prints the counts; it fails where one ended in a
traceback, did not end, or was refused in silence or twice. Each runs in a fork of a process that has torch
loaded already, in a folder of its own.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60
QUESTION = "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"
TEXTS = [
    "", " ", "x", "é", "日本", "\x1b[2J", "\x1b]0;PWN\x07", "a" * 5000, "..", "/", "-", "--", "\udcff\udc80", "a\nb",
    "a\u202eb", "[red]x[/red]", ":smile:", "%s{0}$HOME", "null", "[", "{a: b", "nan", "dual", "Dual", "fixed-k",
    "cofidence_threshold", "none", "file", "'", '"', "~", "~nobody/x", "C:\\x", "\u2028", "\U0001f600", "a b", "import",
]  # fmt: skip
NUMBERS = ["0", "-1", "1", "3", "1.5", "nan", "inf", "1e3", "", "x", "0x10", "1_0", "\uff11\uff12", "-0", "1000000000000",
           str(2**63), str(-(2**63) - 1), "9" * 400, "9" * 5000]  # fmt: skip
FILES = {
    "empty": b"",
    "text.txt": f"{QUESTION}\n".encode(),
    "latin.txt": "Zwölf Bäume\n".encode("latin-1"),
    "binary.bin": bytes(range(256)) * 8,
    "nul.txt": b"a\0b\n",
    "utf16.txt": "Zwei\n".encode("utf-16"),
    "good.jsonl": json.dumps({"prompt": QUESTION}).encode() + b"\n",
    "bad.jsonl": b'{"prompt": "x"}\n{"promt": 3}\n',
    "list.jsonl": b'[1, 2]\n"x"\nnull\n',
    "deep.jsonl": b"[" * 100_000 + b"\n",
    "digits.jsonl": b'{"prompt": ' + b"9" * 5000 + b"}\n",
    "messages.jsonl": b'{"messages": [{"role": "user"}]}\n',
    "surrogate.jsonl": b'{"prompt": "\\ud800"}\n',
    "run.yaml": b"gen_length: 4\nsampler: {unmasking: fixed_k}\n",
    "run.toml": b"gen_length = 4\n",
    "run.json": b'{"gen_length": 4}',
    "list.yaml": b"- 1\n",
    "bad.yaml": b"a: [1\n",
    "deep.yaml": b"a: " + b"[" * 5000,
    "bad.toml": b"a = [\n",
    "deep.json": b"[" * 100_000,
    "latin.yaml": "name: zwölf\n".encode("latin-1"),
    "odd_keys.yaml": b"1: 2\nnull: 3\ngen_length: {a: 1}\n",
    "tag.yaml": b"!!python/object/apply:os.system ['true']\n",
    "wrong.yaml": b"sampler: {unmasking: {name: [1], threshold: {}}}\nmodel: 7\n",
    "study.yaml": b"name: s\nbaseline: a\nmodels: [{name: m}]\nsamplers: [{name: a}]\n"
    b"tasks: [{name: word_problems, limit: 1, gen_length: 2}]\n",
    "half_study.yaml": b"name: s\nsamplers: 3\n",
    "plugins/good.py": b'"""A plugin."""\n',
    "plugins/broken.py": b"raise ValueError('\x1b[2J')\n",
    "plugins/worse.py": b"def (:\n",
    "model/config.json": b'{"model_type": "llada"}',
    "model2/config.json": b"[]",
    "results/study.json": b"{}",
    "results/manifest.json": b"[",
    "taken/keep.txt": b"x",
}
PATHS = [*FILES, "plugins", "model", "model2", "results", "taken", "none/such", "loop", "/dev/null", ".",
         "x" * 300, "shut/file"]  # fmt: skip
KEYS = ["gen_length", "unmasking", "unmasking.threshold", "cache", "cache.interval", "schedule.block_length", "model",
        "model.source", "sampling", "temperature", "sampling.temperature", "transforms", "transforms.0.x", "a.b.c", "",
        ".", "seed", "batch_size", "chat_template", "stop_at_eos", "observers", "idle_steps", "model.compile"]  # fmt: skip
VALUES = ["[", "{", "null", "[1, 2]", "{name: dual}", "{name: 3}", "true", "&a [*a]", "!!python/name:os.system", "1e999",
          "2020-01-01", "{a: {b: {c: d}}}", "'"]  # fmt: skip
STDIN = [
    b"",
    b"\n\n",
    QUESTION.encode(),
    "é\n".encode("latin-1"),
    b"a\0b\n",
    b'{"prompt": "x"}\n',
    b"\xff\xfe",
]
ENVIRONMENT = [
    {}, {}, {}, {}, {"DLLM_SAMPLING_PLUGINS": "nonsense,,-x"}, {"DLLM_SAMPLING_PLUGINS_DIR": "none/such"},
    {"DLLM_SAMPLING_PLUGINS_DIR": "plugins"}, {"DLLM_SAMPLING_PLUGINS": "none"}, {"DLLM_SAMPLING_PLUGINS_DIR": ""},
    {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"TERM": "", "FORCE_COLOR": "1"},
]  # fmt: skip


@dataclass
class Typed:
    """A command line, its standard input and its environment."""

    arguments: list[str]
    stdin: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)


class Case(Typed):
    """A drawn one."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.stdin = self.draw.choice(STDIN)
        self.environment = self.draw.choice(ENVIRONMENT)
        self.arguments = self._command()
        if self.draw.random() < 0.1:
            self.arguments.insert(self.draw.randrange(len(self.arguments) + 1), self._any())

    def _any(self) -> str:
        return self.draw.choice(self.draw.choice([TEXTS, NUMBERS, PATHS, VALUES]))

    def _setting(self) -> str:
        joint = self.draw.choice(["=", "=", "=", "=", "", "==", ": "])
        return f"{self.draw.choice([*KEYS, self._any()])}{joint}{self.draw.choice([*VALUES, self._any()])}"

    def _options(self, **pools: list[str] | None) -> list[str]:
        """Some of the options, each with a value that it may or may not take."""
        found: list[str] = []
        for name in self.draw.sample(list(pools), self.draw.randrange(min(len(pools), 3) + 1)):
            pool = pools[name]
            found.append("--" + name.replace("_", "-"))
            if name == "set":
                found.append(self._setting())
            elif pool is not None:
                found.append(self.draw.choice(pool) if self.draw.random() < 0.9 else self._any())
        return found

    def _command(self) -> list[str]:
        command = self.draw.choice(
            ["generate"] * 5 + ["config show", "config validate", "config schema", "strategies", "tasks", "plugins",
             "frequencies", "compare", "compare", "report", "studies", "new", "new", "harness", "junk"]
        )  # fmt: skip
        return getattr(self, "_" + command.replace(" ", "_"))()

    def _generate(self) -> list[str]:
        prompts = self.draw.choice([[], ["x"], [QUESTION], [self._any()], [self._any(), "x"]])
        options = self._options(
            gen_length=NUMBERS, block_length=NUMBERS, batch_size=NUMBERS, seed=NUMBERS, device=[*TEXTS, "cuda", "meta"],
            dtype=[*TEXTS, "float16"], model=[*PATHS, *TEXTS[:9]], file=PATHS, config=PATHS, plugins_dir=PATHS, set=[],
            unmasking=TEXTS, cache=TEXTS, schedule=TEXTS, raw=None, json=None, quiet=None,
        )  # fmt: skip
        # The default of 256 targets would take its time where everything is right.
        return [
            "generate",
            "--gen-length",
            "4",
            *options,
            *(["--"] if self.draw.random() < 0.5 else []),
            *prompts,
        ]

    def _config_show(self) -> list[str]:
        file = [self.draw.choice(PATHS)] if self.draw.random() < 0.5 else []
        return ["config", "show", *file, *self._options(set=[], json=None, plugins_dir=PATHS)]

    def _config_validate(self) -> list[str]:
        return ["config", "validate", *self.draw.sample(PATHS, self.draw.randrange(3))]

    def _config_schema(self) -> list[str]:
        return ["config", "schema", *self._options(plugins_dir=PATHS)]

    def _strategies(self) -> list[str]:
        name = [self.draw.choice(TEXTS)] if self.draw.random() < 0.6 else []
        return ["strategies", *self._options(json=None, bibtex=None, plugins_dir=PATHS), *name]

    def _tasks(self) -> list[str]:
        name = [self.draw.choice(TEXTS)] if self.draw.random() < 0.6 else []
        return ["tasks", *self._options(json=None, plugins_dir=PATHS), *name]

    def _plugins(self) -> list[str]:
        return ["plugins", *self._options(all=None, json=None, plugins_dir=PATHS)]

    def _frequencies(self) -> list[str]:
        sources = [self.draw.choice([*PATHS, *TEXTS, "file"]) for _ in range(self.draw.randrange(3))]
        output = self.draw.choice(["table.json", "/dev/full", self._any(), *PATHS])
        return ["frequencies", *sources, "-o", output, *self._options(model=PATHS, plugins_dir=PATHS)]

    def _compare(self) -> list[str]:
        study = self.draw.choice(["study.yaml", "study.yaml", *PATHS, self._any()])
        mode = self.draw.choice([["--dry-run"], ["--merge"], ["--dry-run"], []])
        options = self._options(
            limit=NUMBERS, only=[*TEXTS, "*", "[", "a"], executor=TEXTS, workers=NUMBERS, output=[*PATHS, *TEXTS],
            shard=["1/1", "0/1", "2/1", "x", "1/0", "1/2"], fresh=None, quiet=None, plugins_dir=PATHS,
        )  # fmt: skip
        return ["compare", study, *mode, *options]

    def _report(self) -> list[str]:
        return ["report", self.draw.choice(PATHS), *self._options(output=PATHS)]

    def _studies(self) -> list[str]:
        return ["studies", *self.draw.choice([[], [self._any()]])]

    def _new(self) -> list[str]:
        kinds = ["unmasking-policy", "cache-policy", "block-schedule", "transform", self._any()]
        names = ["my-rule", "taken", "os", "class", "Taken", "my--rule", "1x", "x-", "torch", self._any()]
        options = self._options(output=PATHS, plugins_dir=PATHS)
        return ["new", self.draw.choice(kinds), self.draw.choice(names), *options]

    def _harness(self) -> list[str]:
        return ["harness", *self.draw.choice([[], ["run"], ["--tasks"], ["nonsense"], ["run", "--tasks", "nonsense"],
                ["run", "--model_args", "x"], ["--help"]])]  # fmt: skip

    def _junk(self) -> list[str]:
        return [self._any() for _ in range(self.draw.randrange(4))]


def lay_out(folder: Path) -> None:
    """The files that the cases name."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "loop").symlink_to("loop")
    (folder / "shut").mkdir(mode=0o500)


def _become(case: Typed, folder: Path, output: Path) -> None:
    """In the child: the process that the shell would have started."""
    os.chdir(folder)
    (output / "stdin").write_bytes(case.stdin)
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        os.dup2(os.open(output / name, flags | os.O_CREAT), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.update(case.environment)
    sys.argv = ["dllm-sampling", *case.arguments]


def run(case: Typed) -> tuple[int | str, str, str]:
    """(exit status or `hang`, standard output, standard error) of a case."""
    from dllm_sampling.cli import main

    work = Path(tempfile.mkdtemp(prefix="dllm-cli-"))
    folder, output = work / "cwd", work / "output"
    folder.mkdir()
    output.mkdir()
    lay_out(folder)
    child = os.fork()
    if child == 0:
        status = 70
        try:
            _become(case, folder, output)
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 - as the interpreter does
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = _wait(child)
    texts = [(output / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
    shutil.rmtree(work)
    return status, texts[0], texts[1]


def _wait(child: int) -> int | str:
    def stop(number: int, frame: object) -> None:
        os.kill(child, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return "hang" if code == -signal.SIGKILL else code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(case: Typed, status: int | str, out: str, err: str) -> str | None:
    """What is wrong about how a case ended, or None."""
    if "Traceback" in out + err:
        return "traceback"
    if status == "hang":
        return "hang"
    if case.arguments[:1] == ["harness"]:
        return None  # it has words of its own
    told = len(re.findall(r"^error: ", err, re.MULTILINE | re.IGNORECASE))
    if status == 2 and case.arguments[-1:] and told != 1 and "Usage:" not in err:
        return f"refused with {told} errors"
    if status not in (0, 2) and not (status == 1 and case.arguments[:1] == ["compare"]):
        return f"status {status}"
    return None


def load() -> None:
    """What every command imports, once."""
    import dllm_sampling.cli.compare
    import dllm_sampling.cli.frequencies
    import dllm_sampling.cli.listing
    import dllm_sampling.cli.new
    import dllm_sampling.cli.run
    import dllm_sampling.integrations.lm_eval_model  # noqa: F401

    gc.freeze()  # a collection in a child would copy every page


def check(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """So many cases: how they ended, and every fault."""
    load()
    ends: Counter[str] = Counter()
    faults = []
    for number in range(seed, seed + count):
        case = Case(number)
        status, out, err = run(case)
        wrong = fault(case, status, out, err)
        ends[wrong or f"status {status}"] += 1
        if wrong:
            tail = "\n".join(err.splitlines()[-12:])
            faults.append(
                f"seed {number}: {wrong}: {case.arguments!r} {case.environment} {case.stdin!r}\n{tail}\n"
            )
            if __name__ == "__main__":
                print(faults[-1], flush=True)
    return ends, faults


if __name__ == "__main__":
    counts, wrongs = check(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(dict(counts), f"{len(wrongs)} faults")
    sys.exit(bool(wrongs))
