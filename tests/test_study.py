"""Studies: what they run, what they keep, and that nothing stops them from going on."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from dllm_sampling.strategies import ConfidenceThreshold

from dllm_sampling import ConfigurationError, Sampler, StudyError, UnmaskingPolicy, load_model
from dllm_sampling.study import Results, Study, StudyConfig
from dllm_sampling.study.cells import units_of
from dllm_sampling.study.config import ModelEntry, SamplerEntry
from dllm_sampling.study.folder import ResultsFolder
from dllm_sampling.study.records import SCHEMA
from tests.study_files import SMALL, command, contents, finished, small, written


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return small().run(folder)


def counting(monkeypatch):
    """The prompts of every call of a sampler, as they are made."""
    calls = []
    generate = Sampler.generate

    def counted(self, prompts, *args, **kwargs):
        calls.append(list(prompts))
        return generate(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Sampler, "generate", counted)
    return calls


# What a study file says -----------------------------------------------------------------------------


def test_a_product_is_written_out_in_order_with_names():
    study = StudyConfig.of(
        {
            **SMALL,
            "baseline": "fixed-k 1, none",
            "samplers": [
                {
                    "name": "fixed-k {k}, {cache}",
                    "unmasking": "fixed_k",
                    "product": {
                        "unmasking.k": [1, 2],
                        "cache": ["none", {"name": "interval", "policy": "dual", "interval": 4}],
                    },
                },
                {"name": "alone", "unmasking": {"name": "factor", "factor": 0.5}, "batch_size": 2},
            ],
        }
    )
    assert [s.name for s in study.samplers] == [
        "fixed-k 1, none",
        "fixed-k 1, interval(policy=dual, interval=4)",
        "fixed-k 2, none",
        "fixed-k 2, interval(policy=dual, interval=4)",
        "alone",
    ]
    assert [s.settings.batch_size for s in study.samplers] == [4, 4, 4, 4, 2]
    assert [s.settings.unmasking.model_dump().get("k") for s in study.samplers] == [1, 1, 2, 2, None]
    assert study.samplers[3].point == {
        "unmasking.k": 2,
        "cache": {"name": "interval", "policy": "dual", "interval": 4},
    }
    assert [s.source for s in study.samplers] == [0, 0, 0, 0, 1]


def test_gen_length_of_the_study_is_for_tasks_that_name_none():
    study = StudyConfig.of(
        {
            **SMALL,
            "gen_length": 32,
            "tasks": ["word_problems", {"name": "word_problems", "label": "long", "gen_length": 48}],
        }
    )
    assert [(t.name, t.task.gen_length) for t in study.tasks] == [("word_problems", 32), ("long", 48)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselin": "x"}, "unknown setting 'baselin'. Did you mean 'baseline'"),
        ({"baseline": "one at a tim"}, "baseline: unknown sampler .* Did you mean 'one at a time'"),
        ({"tasks": ["word_problem"]}, "unknown task 'word_problem'. Did you mean 'word_problems'"),
        ({"tasks": [{"name": "word_problems", "gen_lenght": 3}]}, "Did you mean 'gen_length'"),
        ({"tasks": [{"name": "word_problems", "gen_length": 0}]}, "gen_length: .* greater than or equal to 1"),
        ({"tasks": ["word_problems", "word_problems"]}, "two tasks are called 'word_problems'"),
        ({"models": [{"name": "a", "dtyp": "float32"}]}, "model 'a'.* Did you mean 'dtype'"),
        ({"models": [{}]}, "a model needs a name or a source"),
        ({"seeds": [1, 1]}, "two seeds are called '1'"),
        ({"seeds": []}, "seeds"),
        (
            {"samplers": [{"name": "a", "unmasking": "confidence_treshold"}]},
            "sampler 'a': .* Did you mean 'confidence_threshold'",
        ),
        (
            {"samplers": [{"name": "a", "product": {"unmasking.treshold": [0.5]}}]},
            "sampler 'a' at unmasking.treshold=0.5: .* Did you mean 'threshold'",
        ),
        (
            {"samplers": [{"name": "a", "product": {"unmasking.threshold": [0.5, 1.5]}}]},
            "at unmasking.threshold=1.5: .* less than or equal to 1",
        ),
        ({"samplers": [{"name": "a", "product": {"cache": "dual"}}]}, "product is a mapping of settings to lists"),
        ({"samplers": [{"name": "a {q}", "product": {"cache": ["dual"]}}]}, "unknown placeholder 'q'"),
        ({"samplers": [{"name": "a", "product": {"cache": ["dual", "none"]}}]}, "two samplers are called 'a'"),
        ({"samplers": [{"cache": "dual"}]}, "sampler 0 of the study needs a name"),
        ({"samplers": [{"name": "a", "cach": "dual"}]}, "sampler 'a': unknown setting 'cach'"),
        (
            {"published": [{"task": "word_problems", "sampler": "one", "source": "here"}]},
            "published: unknown sampler 'one'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_nearest_match(change, message):
    with pytest.raises(ConfigurationError, match=message):
        Study.of({**SMALL, **change})


def test_a_broken_policy_is_refused_before_anything_runs():
    class Broken(UnmaskingPolicy):
        """Asks for an argument that no hook has."""

        name: ClassVar[str] = "broken"

        def select(self, state, observations):
            return observations.masked

    with pytest.raises(ConfigurationError, match=r"(?s)sampler 'broken': Broken.*observations"):
        Study.of({**SMALL, "samplers": [{"name": "broken", "unmasking": Broken()}]})


def test_paths_in_a_study_file_are_relative_to_it(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"q": "Mia has 2 pens.", "answer": "2"}\n')
    path = written(tmp_path, tasks=[{"name": "file", "path": "data.jsonl", "prompt": "{{ q }}"}])
    assert [e.prompt for e in Study.read(path).examples["file"]] == ["Mia has 2 pens."]


# What it runs -----------------------------------------------------------------------------------------


def test_records_are_what_the_sampler_says_of_the_same_prompts(whole):
    study = small()
    examples = study.examples["word_problems"]
    model = load_model()
    for cell in study.cells:
        sampler = Sampler.from_config(model, cell.run.sampler)
        result = sampler.generate([e.prompt for e in examples], gen_length=64)
        rows = whole.tables[cell.id].to_pylist()
        assert [row["prompt"] for row in rows] == list(range(10))
        assert [row["text"] for row in rows] == result.texts
        assert [row["tokens"] for row in rows] == result.tokens.tolist()
        assert [row["row_forwards"] for row in rows] == result.row_forwards.tolist()
        assert [row["refreshes"] for row in rows] == result.row_refreshes.tolist()
        assert sum(row["positions_computed"] for row in rows) == result.positions_computed
        assert [row["forced"] for row in rows] == result.row_forced.tolist()
        task = study.config.tasks[0].task
        assert [row["correct"] for row in rows] == [
            task.is_correct(text, example) for text, example in zip(result.texts, examples, strict=True)
        ]
        for i, row in enumerate(rows):
            assert row["token_ids"] == result.sequences[i, -64:][: row["tokens"]].tolist()
            assert len(row["forward_of_position"]) == row["tokens"]
            assert 0 < row["refresh_seconds"] < row["seconds"]
            assert row["peak_memory"] > 1 << 20


def test_records_have_their_schema_with_a_version(whole):
    table = next(iter(whole.tables.values()))
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata[b"dllm_sampling.records"] == b"4"
    assert all(field.metadata[b"description"] for field in table.schema)


def test_the_manifest_says_what_it_was_made_with(whole):
    manifest = whole.manifest
    (run,) = manifest["runs"]
    assert run["environment"]["versions"]["torch"] == torch.__version__
    assert {p["name"] for p in run["environment"]["plugins"]} >= {"strategies", "caches", "bundled"}
    assert run["environment"]["devices"]["cpu"]
    assert run["executor"] == "local"
    assert run["batches"] == 9
    assert len(manifest["checkpoints"]["bundled"]) == 64
    assert manifest["study"]["baseline"] == "one at a time"
    assert manifest["cells"][1]["run"]["sampler"]["unmasking"] == {
        "name": "confidence_threshold",
        "threshold": 0.5,
        "score": {"name": "confidence"},
    }
    assert set(run["git"]) == {"commit", "changed"}


def test_cells_take_turns_a_batch_at_a_time():
    cells = small(seeds=[0, 1]).cells
    order = [(u.cell.seed, u.batch, u.cell.sampler) for u in units_of(cells)]
    assert order[:4] == [
        (0, 0, "one at a time"), (0, 0, "threshold 0.5"), (0, 0, "threshold 0.9"), (0, 1, "one at a time"),
    ]  # fmt: skip
    assert [seed for seed, _, _ in order] == [0] * 9 + [1] * 9


def test_a_seed_changes_what_is_drawn_and_nothing_else_does(tmp_path):
    sampling = {"temperature": 1.0}
    samplers = [{"name": "one at a time", "unmasking": "fixed_k", "sampling": sampling, "cache": "dual"}]
    results = small(limit=4, samplers=samplers, seeds=[0, 1], gen_length=8).run(tmp_path)
    first, second = (results.tables[cell["id"]] for cell in results.manifest["cells"])
    assert first["text"] != second["text"]
    other_batches = small(limit=4, samplers=samplers, seeds=[0], gen_length=8, batch_size=3)
    again = other_batches.run(tmp_path / "again")
    assert next(iter(again.tables.values()))["text"] == first["text"]


def test_a_prompt_that_is_too_long_is_told_before_any_is_decoded(tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    results = small(gen_length=490).run(tmp_path)
    assert len(results.failed) == 3
    for message in results.failed.values():
        assert "task 'word_problems', row 1 of 10: PromptError" in message
        assert "exceed the model's context of 512" in message
    assert calls == []


class FailsLate(UnmaskingPolicy):
    """Breaks on the third forward."""

    name: ClassVar[str] = "fails_late"

    def select(self, state, observation):
        if state.forward_index == 7:
            raise IndexError("seven")
        return observation.eligible & (observation.eligible.cumsum(1) <= 1)


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path):
    samplers = [*SMALL["samplers"], {"name": "broken", "unmasking": FailsLate(), "cache": "dual"}]
    results = small(samplers=samplers).run(tmp_path)
    assert [row.sampler for row in results.rows] == ["one at a time", "threshold 0.5", "threshold 0.9"]
    (message,) = results.failed.values()
    assert message.startswith("bundled / word_problems / broken / seed 0: ")
    assert "IndexError: seven" in message
    log = (tmp_path / "log.txt").read_text()
    assert "raise IndexError" in log  # the traceback, for its author
    assert log.count("failed and is left out") == 1


# What identifies a cell -------------------------------------------------------------------------------


def test_names_are_no_part_of_a_cells_identity():
    renamed = [{**SMALL["samplers"][0], "name": "two at a time"}, SMALL["samplers"][1]]
    study = small(samplers=renamed, baseline="two at a time", name="Another", models=[{"name": "tiny"}])
    assert [c.id for c in study.cells] == [c.id for c in small().cells]


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"batch_size": 5},
        {"gen_length": 32},
        {"models": [{"name": "bundled", "dtype": "float64"}]},
        {"tasks": [{"name": "word_problems", "limit": 9}]},
        {"tasks": [{"name": "word_problems", "chat_template": False}]},
        {"samplers": [{**SMALL["samplers"][0], "cache": "prefix"}, SMALL["samplers"][1]]},
    ],
    ids=str,
)
def test_what_determines_a_cell_is_part_of_its_identity(change):
    assert small(**change).cells[0].id != small().cells[0].id


def test_the_checkpoints_files_are_part_of_a_cells_identity(tmp_path):
    bundled = Path(sys.modules["dllm_sampling"].__file__).parent / "bundled" / "word-problems"
    shutil.copytree(bundled, tmp_path / "a")
    shutil.copytree(bundled, tmp_path / "b")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text() + "\n")
    study = small(models=[{"name": n, "source": str(tmp_path / n)} for n in "ab"])
    hashes = study.config.models
    from dllm_sampling.study.provenance import checkpoint_hash

    assert checkpoint_hash(hashes[0].settings) != checkpoint_hash(hashes[1].settings)
    assert checkpoint_hash(hashes[0].settings) == checkpoint_hash(ModelEntry(name="x").settings)


# Going on ---------------------------------------------------------------------------------------------


def test_finished_cells_never_run_again(whole, monkeypatch):
    calls = counting(monkeypatch)
    again = small().run(whole.folder.path)
    assert calls == []
    assert contents(again) == contents(whole)
    assert len(again.manifest["runs"]) == 2


def test_only_what_is_missing_runs(tmp_path, whole, monkeypatch):
    first = small().run(tmp_path, only="threshold 0.5")
    assert [row.sampler for row in first.rows] == ["threshold 0.5"]
    assert "speedup" not in first.rows[0].estimates  # its baseline is not there yet
    calls = counting(monkeypatch)
    every = small().run(tmp_path)
    assert len(calls) == 6
    assert contents(every) == contents(whole)


def test_only_takes_patterns_and_names_the_nearest_match(tmp_path):
    cells = small().cells
    from dllm_sampling.study.cells import matching

    assert [c.sampler for c in matching(cells, "threshold*9")] == ["threshold 0.9"]
    assert [c.sampler for c in matching(cells, "threshold")] == ["threshold 0.5", "threshold 0.9"]
    assert matching(cells, "* / seed 0") == cells
    with pytest.raises(ConfigurationError, match=r"Did you mean 'threshold 0.5'"):
        matching(cells, "treshold 0.5")


def test_fresh_runs_what_was_finished(tmp_path, monkeypatch):
    small(limit=4).run(tmp_path)
    calls = counting(monkeypatch)
    small(limit=4).run(tmp_path, fresh=True, only="one")
    assert len(calls) == 1


def test_a_limit_makes_other_cells(tmp_path):
    results = small(limit=4).run(tmp_path)
    assert all(table.num_rows == 4 for table in results.tables.values())
    results = small(limit=5).run(tmp_path)
    assert all(table.num_rows == 5 for table in results.tables.values())
    assert results.rows[0].columns.prompts == 5


class Stopping:
    """Raises what it is given after some batches, as Ctrl-C does."""

    def __init__(self, after, error):
        self.left = after
        self.error = error

    def __call__(self, progress):
        self.left -= 1
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_an_interrupted_study_goes_on_where_it_was(tmp_path, whole, after, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        small().run(tmp_path, watch=Stopping(after, KeyboardInterrupt()))
    assert Results(tmp_path).manifest["runs"][0]["stopped_by"] == "KeyboardInterrupt"
    calls = counting(monkeypatch)
    results = small().run(tmp_path)
    assert len(calls) == 9 - after
    assert contents(results) == contents(whole)


def test_kill_9_at_any_moment_loses_the_batch_in_hand(tmp_path, whole):
    path, output = written(tmp_path), tmp_path / "out"
    done = []
    for _ in range(2):
        process = command("compare", path, "--limit", 10, "--output", output, "--quiet")
        before = len(list(output.glob("cells/*/*.parquet")))
        deadline = time.time() + 60
        while len(list(output.glob("cells/*/*.parquet"))) <= before and time.time() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.001)
        process.kill()
        process.communicate()
        done.append(len(list(output.glob("cells/*/*.parquet"))))
        for part in output.rglob("*.parquet"):
            if not part.name.startswith("."):
                pq.read_table(part, page_checksum_verification=True)
    assert done[0] >= 1
    code, _, err = finished("compare", path, "--limit", 10, "--output", output, "--quiet")
    assert code == 0, err
    assert contents(Results(output)) == contents(whole)
    assert not list(output.rglob("*.partial"))


def test_a_termination_signal_ends_it_with_a_word_and_the_rest_follows(tmp_path):
    path, output = written(tmp_path), tmp_path / "out"
    process = command("compare", path, "--limit", 60, "--output", output)
    for line in process.stderr:
        if " 1/" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command goes on from here" in err
    assert Results(output).manifest["runs"][0]["stopped_by"] == "KeyboardInterrupt"


def test_a_killed_move_of_finished_batches_is_finished_later(tmp_path, whole):
    shutil.copytree(whole.folder.path, tmp_path / "copy")
    cell = small().cells[0]
    folder = ResultsFolder(tmp_path / "copy")
    table = folder.table(cell.id)
    part = tmp_path / "copy" / "cells" / cell.id / "00001.parquet"
    part.parent.mkdir()
    pq.write_table(table.filter(table["batch"].to_numpy() == 1), part)
    results = small().run(tmp_path / "copy")
    assert not part.parent.exists()
    assert contents(results) == contents(whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
@pytest.mark.parametrize("finished_cell", [True, False], ids=["cell", "batch"])
def test_a_damaged_file_is_named_and_what_it_held_runs_again(
    tmp_path, whole, caplog, damage, finished_cell, monkeypatch
):
    if finished_cell:
        shutil.copytree(whole.folder.path, tmp_path, dirs_exist_ok=True)
        path = sorted(tmp_path.glob("cells/*.parquet"))[1]
    else:
        with pytest.raises(KeyboardInterrupt):
            small().run(tmp_path, watch=Stopping(5, KeyboardInterrupt()))
        path = sorted(tmp_path.glob("cells/*/*.parquet"))[1]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[60] ^= 0xFF
    elif damage == "empty":
        data = b""
    else:
        other = next(
            p
            for p in sorted(tmp_path.rglob("cells/**/*.parquet"))
            if p.parent.name != path.parent.name or (finished_cell and p != path)
        )
        data = other.read_bytes()
    path.write_bytes(bytes(data))
    calls = counting(monkeypatch)
    results = small().run(tmp_path)
    assert str(path) in caplog.text
    assert "run again" in caplog.text
    assert len(calls) == (3 if finished_cell else 5)
    assert contents(results) == contents(whole)
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with ResultsFolder(tmp_path).locked():
        code, _, err = finished("compare", written(tmp_path), "--limit", 4, "--output", tmp_path)
    assert code == 2
    assert f"is being written by process {os.getpid()}" in err
    assert "Traceback" not in err
    small(limit=4).run(tmp_path)


def _hold(path, locked):
    with ResultsFolder(path).locked():
        locked.set()
        time.sleep(600)


def test_a_lock_dies_with_its_process(tmp_path):
    # Forked, for starting a process anew takes seconds; the child does nothing but hold the lock.
    fork = multiprocessing.get_context("fork")
    locked = fork.Event()
    holder = fork.Process(target=_hold, args=(tmp_path, locked))
    holder.start()
    assert locked.wait(30)
    with pytest.raises(StudyError, match=f"is being written by process {holder.pid}"):
        small(limit=4).run(tmp_path)
    holder.kill()
    holder.join()
    small(limit=4).run(tmp_path)


FULL = """
import os, subprocess, sys
folder, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", folder], check=True)
done = subprocess.run(command, capture_output=True, text=True)
kept = sum(len(files) for _, _, files in os.walk(folder + "/cells"))
size = [name for _, _, files in os.walk(folder) for name in files if name.endswith(".partial")]
print(done.returncode, kept, len(size))
print(done.stderr)
subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
done = subprocess.run(command, capture_output=True, text=True)
print("again", done.returncode, done.stderr[-300:])
"""


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    unshare = shutil.which("unshare")
    if (
        unshare is None
        or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no user namespaces here: a small disk cannot be made")
    path, output = written(tmp_path), tmp_path / "small disk"
    output.mkdir()
    compare = [
        sys.executable,
        "-m",
        "dllm_sampling.cli",
        "compare",
        str(path),
        "--limit",
        "30",
        "--output",
        str(output),
    ]
    done = subprocess.run(
        [unshare, "-rm", sys.executable, "-c", FULL, str(output), *compare],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first, *rest = done.stdout.splitlines()
    code, kept, partial = map(int, first.split())
    text = "\n".join(rest)
    assert code == 2
    assert "No space left on device" in text
    assert "Every batch written so far is kept" in text
    assert "Traceback" not in text
    assert kept >= 2
    assert partial == 0
    assert "again 0" in text


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="file"):
        small().run(tmp_path / "file" / "results")


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StudyError, match=r"manifest.json is damaged"):
        Results(tmp_path)
    with pytest.raises(StudyError, match="holds no manifest"):
        Results(tmp_path / "elsewhere")


# Shards -----------------------------------------------------------------------------------------------


def test_shards_merge_into_the_same_records(tmp_path, whole):
    parts = [small().run(tmp_path, shard=(i, 3)) for i in (1, 2, 3)]
    assert all(not part.tables for part in parts)
    merged = small().merge(tmp_path)
    assert contents(merged) == contents(whole)
    assert len(merged.manifest["runs"][-1]["merged"]) == 3


def test_merging_says_what_is_missing_and_takes_it_later(tmp_path, whole, caplog):
    small().run(tmp_path, shard=(2, 2))
    merged = small().merge(tmp_path)
    assert len(merged.unfinished) == 3
    assert "2 of 3 batches missing" in caplog.text
    small().run(tmp_path, shard=(1, 2))
    assert contents(small().merge(tmp_path)) == contents(whole)


def test_shards_hold_the_same_prompts_of_every_sampler(tmp_path):
    small().run(tmp_path, shard=(1, 2))
    prompts = {}
    for path in tmp_path.glob("shards/1-of-2/cells/*/*.parquet"):
        prompts.setdefault(path.parent.name, set()).update(pq.read_table(path)["prompt"].to_pylist())
    assert len(prompts) == 3
    assert len({frozenset(found) for found in prompts.values()}) == 1


def test_there_must_be_shards_to_merge(tmp_path):
    with pytest.raises(StudyError, match="holds no shards"):
        small().merge(tmp_path)
    with pytest.raises(ConfigurationError, match="shard 3/2"):
        small().run(tmp_path, shard=(3, 2))


# The command line -------------------------------------------------------------------------------------


def test_compare_prints_the_table_and_the_reports_path(tmp_path):
    path, output = written(tmp_path), tmp_path / "out"
    code, out, err = finished("compare", path, "--limit", 6, "--output", output)
    assert code == 0, err
    assert "bundled, word_problems: 6 prompts" in out
    assert "one at a time" in out
    assert out.strip().endswith(f"report: {output / 'report.html'}")
    assert (output / "report.html").exists()
    assert "6/6" in err  # the log, off a terminal
    assert "done: 6 batches" in (output / "log.txt").read_text()


def test_a_misspelt_policy_is_refused_before_anything_runs(tmp_path):
    path = written(tmp_path, samplers=[{"name": "one at a time", "unmasking": "fixed-k"}])
    code, out, err = finished("compare", path, "--output", tmp_path / "out")
    assert code == 2
    assert "Did you mean 'fixed_k'" in err
    assert str(path) in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_study"], "unknown study 'no_such_study'"),
        (["word_problem"], "Did you mean 'word_problems'"),
        (["missing.yaml"], "missing.yaml: No such file"),
        (["word_problems", "--executor", "rai"], "Did you mean 'ray'"),
        (["word_problems", "--workers", "2"], "--workers has no effect without --executor ray"),
        (["word_problems", "--shard", "3/2"], "--shard is written I/N"),
        (["word_problems", "--only", "nothing like it"], "--only: unknown sampler"),
        (["word_problems", "--limit", "0"], "limit must be at least 1"),
    ],
)
def test_bad_options_are_told_without_a_traceback(tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = finished("compare", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()


def test_a_dry_run_lists_cells_and_runs_none(tmp_path):
    path, output = written(tmp_path), tmp_path / "out"
    code, out, err = finished("compare", path, "--limit", 6, "--output", output, "--dry-run")
    assert code == 0, err
    assert out.count("bundled / word_problems / ") == 3
    assert "3 cells, at most about" in out
    assert not output.exists()


def test_a_dry_runs_estimate_bounds_the_cost(tmp_path):
    # The same order of magnitude, not a time: what is checked is that it extrapolates to all prompts.
    study = small()
    cell, probe = next(iter(study.probe()))
    assert probe.committed > 0
    assert probe.seconds_for(cell) == pytest.approx(probe.seconds / probe.committed * 10 * 64)


def test_a_failed_cell_makes_the_exit_code_1(tmp_path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "late.py").write_text(
        "from dllm_sampling import UnmaskingPolicy\n"
        "class Late(UnmaskingPolicy):\n"
        "    name = 'late'\n"
        "    def select(self, state, observation):\n"
        "        raise IndexError('late')\n"
        "def register():\n"
        "    return [Late]\n"
    )
    path = written(tmp_path, samplers=[*SMALL["samplers"], {"name": "late", "unmasking": "late"}])
    code, out, err = finished(
        "compare", path, "--limit", 4, "--output", tmp_path / "out", "--plugins-dir", tmp_path / "plugins"
    )
    assert code == 1
    assert re.search("failed: bundled / word_problems / late / seed 0: .*IndexError: late", err)
    assert "threshold 0.9" in out


def test_shards_by_command_line(tmp_path, whole):
    path, output = written(tmp_path), tmp_path / "out"
    for shard in ("1/2", "2/2"):
        code, out, err = finished(
            "compare", path, "--limit", 10, "--output", output, "--shard", shard, "--quiet"
        )
        assert code == 0, err
        assert "--merge" in err
        assert out == ""
    code, out, err = finished("compare", path, "--limit", 10, "--output", output, "--merge")
    assert code == 0, err
    assert "threshold 0.9" in out
    assert contents(Results(output)) == contents(whole)


def test_shipped_studies_are_listed_and_valid():
    code, out, _ = finished("studies")
    assert code == 0
    from dllm_sampling.study.config import shipped

    for name, path in shipped().items():
        assert name in out
        assert StudyConfig.read(path).samplers


def test_the_published_studies_samplers_decode_to_the_end():
    from dllm_sampling.study.config import shipped
    from tests.models import prompts_of, tiny

    for name, path in shipped().items():
        if name == "word_problems":
            continue
        study = StudyConfig.read(path)
        assert study.published
        model = tiny("dream" if "Dream" in study.models[0].name else "llada")
        for sampler in study.samplers:
            result = Sampler.from_config(model, sampler.settings).generate(prompts_of([7]), gen_length=64)
            assert (result.forward_of_position >= 0).all(), (name, sampler.name)
            if sampler.name == study.baseline:
                assert result.row_forwards.tolist() == [64]


def test_a_study_in_python_takes_instances(tmp_path):
    samplers = [{"name": "a", "unmasking": ConfidenceThreshold(threshold=0.8), "cache": "dual"}]
    results = Study.of({**SMALL, "baseline": "a", "samplers": samplers}, limit=2).run(tmp_path)
    assert results.rows[0].run["sampler"]["unmasking"]["threshold"] == 0.8
    assert json.loads((tmp_path / "manifest.json").read_text())["cells"][0]["sampler"] == "a"


def test_the_python_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "studies.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/studies.md", "exec"), {})
    assert len(Results(tmp_path / "results" / "two-thresholds").rows) == 2


def test_an_entry_is_frozen():
    entry = small().config.samplers[0]
    assert isinstance(entry, SamplerEntry)
    with pytest.raises(ValueError, match="frozen"):
        entry.name = "x"
