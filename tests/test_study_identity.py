"""What makes a cell another one, what only scores it again, and where a study's paths lead."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow.parquet as pq
import pytest
from dllm_sampling.caches import DualCache

import dllm_sampling
from dllm_sampling import ConfigurationError, Sampler, UnmaskingPolicy
from dllm_sampling.plugins.discovery import FOLDER
from dllm_sampling.plugins.nested import Nested
from dllm_sampling.study import Results, Study, StudyConfig, code
from tests.study_files import SMALL, contents, small, written

BUNDLED = Path(dllm_sampling.__file__).parent / "bundled" / "word-problems"
PLUGIN = """
from dllm_sampling.strategies import FixedK
{imports}
class Mine(FixedK):
    '''A rule of a test.'''
    name = 'mine'
def register():
    return [Mine]
"""


# Code -------------------------------------------------------------------------------------------------


def id_with(monkeypatch, folder, files):
    """The id of a cell whose policy is a plugin of these files."""
    folder.mkdir()
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.syspath_prepend(str(folder))
    samplers = [{"name": "a", "unmasking": "mine"}]
    return small(limit=1, samplers=samplers, baseline="a").cells[0].id


def test_a_cell_is_another_when_its_policys_code_is_another(tmp_path, monkeypatch):
    text = PLUGIN.format(imports="")
    first, moved, edited = (
        id_with(monkeypatch, tmp_path / name, {"mine": source})
        for name, source in (("a", text), ("b", text), ("c", text + "# edited\n"))
    )
    assert first == moved != edited


@pytest.mark.parametrize(
    ("imports", "helper"),
    [
        ("import _study_helper", "_study_helper"),
        ("from _study_helper import rule", "_study_helper"),
        ("from _study_helper import NUMBER", "_study_helper"),
        ("import _study_pack.deep", "_study_pack/deep"),
        ("from _study_pack import deep", "_study_pack/deep"),
    ],
)
def test_a_cell_is_another_when_a_helper_of_its_policy_is(tmp_path, monkeypatch, imports, helper):
    """At any depth, and whether the import stands at the top or in a function."""

    def again(name, helper_text, where):
        source = PLUGIN.format(imports=imports if where == "top" else f"def late():\n    {imports}\n")
        files = {"mine": source, helper: helper_text}
        files |= {"_study_pack/__init__": "", "_study_inner": "X = 2\n" if "inner" in name else "X = 1\n"}
        for module in [m for m in sys.modules if m.startswith("_study_")]:
            del sys.modules[module]
        return id_with(monkeypatch, tmp_path / name, files)

    text = "from _study_inner import X\nNUMBER = 3\ndef rule():\n    return X\n"
    for where in ("top", "inside"):
        same, also, edited, inner = (
            again(f"{where} {name}", helper_text, where)
            for name, helper_text in (
                ("one", text), ("two", text), ("three", text.replace("3", "4")), ("edited inner", text),
            )
        )  # fmt: skip
        assert same == also
        assert len({same, edited, inner}) == 3


def test_shipped_policies_are_told_apart_and_libraries_are_not_followed():
    class Own(UnmaskingPolicy):
        """Imports the whole of torch in its module."""

        name: ClassVar[str] = "own"

        def select(self, state, observation):
            return observation.eligible

    found = code.code_of([DualCache(), Own()])
    assert len(set(found.values())) == 2
    files: dict[Path, str] = {}
    code._follow(Path(__file__), None, files)
    assert Path(__file__).resolve() in files
    assert any(path.name == "study_files.py" for path in files)
    assert not any("site-packages" in path.parts for path in files)
    assert not any(
        path.is_relative_to(BUNDLED.parent.parent) for path in files if "strategies" not in path.parts
    )


def test_an_environment_below_a_plugins_folder_is_not_the_plugins(tmp_path, monkeypatch):
    """A project often holds its virtual environment; following it would read all of torch."""
    site = tmp_path / ".venv" / "lib" / "site-packages"
    site.mkdir(parents=True)
    (site / "_study_installed.py").write_text("X = 1\n")
    (tmp_path / "mine.py").write_text("import _study_installed\nfrom _study_installed import X\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setitem(sys.modules, "_study_installed", importlib.import_module("_study_installed"))
    files: dict[Path, str] = {}
    code._follow(tmp_path / "mine.py", None, files)
    assert [path.name for path in files] == ["mine.py"]


def test_every_engine_file_counts_and_what_shows_or_scores_does_not(tmp_path):
    package = tmp_path / "dllm_sampling"
    for name in (
        "engine.py",
        "state/facts.py",
        "backbones/deep/family.py",
        "study/x.py",
        "cli/x.py",
        "tasks/x.py",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    names = [name for name, _ in code.engine_files(package)]
    assert names == ["backbones/deep/family.py", "engine.py", "state/facts.py"]
    own = [name for name, _ in code.engine_files(BUNDLED.parent.parent)]
    assert {"engine.py", "state.py", "backbones/loading.py"} <= set(own) or len(own) > 20
    assert not any(name.startswith(("study/", "cli/", "testing/", "harness")) for name in own)


# Files ------------------------------------------------------------------------------------------------


def frequencies(path, count=3):
    path.write_text(json.dumps({"num_token": 10, "p_baseline_dict": {"5": count}}))
    return path


def pc_sampler(path):
    score = {"name": "pc_sampler", "frequencies": str(path)}
    return [{"name": "a", "unmasking": {"name": "fixed_k", "score": score}}]


def test_the_content_of_a_file_that_a_policy_reads_is_part_of_a_cells_identity(tmp_path):
    def id_of(path):
        return small(limit=1, baseline="a", samplers=pc_sampler(path)).cells[0].id

    first = id_of(frequencies(tmp_path / "a.json"))
    assert id_of(frequencies(tmp_path / "moved.json")) == first
    assert id_of(frequencies(tmp_path / "a.json", 4)) != first


class Reads(UnmaskingPolicy):
    """Has files in lists, in mappings and in a policy of its own."""

    name: ClassVar[str] = "reads"
    folder: Path | None = None
    several: tuple[Path, ...] = ()
    named: Mapping[str, Path] = {}
    inner: Annotated[UnmaskingPolicy, Nested(UnmaskingPolicy)] | None = None

    def select(self, state, observation):
        return observation.eligible


def test_files_count_wherever_they_stand_in_a_policy(tmp_path):
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "folder" / "x", tmp_path / "list", tmp_path / "mapping", tmp_path / "held"]
    for path in paths:
        path.write_text("1")

    def id_of():
        policy = Reads(
            folder=tmp_path / "folder",
            several=(paths[1],),
            named={"k": paths[2]},
            inner=Reads(several=(paths[3],)),
        )
        return small(limit=1, baseline="a", samplers=[{"name": "a", "unmasking": policy}]).cells[0].id

    seen = {id_of()}
    for path in paths:
        path.write_text("2")
        seen.add(id_of())
    assert len(seen) == 1 + len(paths)


def test_where_a_checkpoint_lies_is_no_part_of_a_cells_identity(tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "moved")
    moved = small(limit=1, models=[{"name": "m", "source": str(tmp_path / "moved")}])
    assert [c.id for c in moved.cells] == [c.id for c in small(limit=1).cells]


@pytest.mark.parametrize("key", ["quantization", "device_map"])
def test_a_models_settings_may_be_mappings(key):
    # They cannot be hashed as Python does.
    models = [{"name": "m", key: {"": 0, "more": [1, 2]}}, {"name": "plain"}]
    cells = small(limit=1, models=models).cells
    assert len({cell.id for cell in cells}) == 6


# Scores -----------------------------------------------------------------------------------------------


def lines(path, answers):
    path.write_text(
        "".join(json.dumps({"q": f"Mia has {i} pens.", "a": a}) + "\n" for i, a in enumerate(answers))
    )


def scored(folder, check="last_number", **more):
    task = {
        "name": "file",
        "path": "t.jsonl",
        "prompt": "{{ q }}",
        "answer": "{{ a }}",
        "check": check,
        **more,
    }
    samplers = [{"name": "a", "unmasking": {"name": "fixed_k", "k": 4}}]
    path = written(folder, tasks=[{**task, "gen_length": 8}], samplers=samplers, baseline="a")
    return Study.read(path)


def test_another_checker_or_answer_scores_the_texts_on_record_again(tmp_path, monkeypatch):
    lines(tmp_path / "t.jsonl", ["7777777", "7777777", "7777777"])
    first = scored(tmp_path).run(tmp_path / "out")
    (table,) = first.tables.values()
    texts = table["text"].to_pylist()
    assert table["correct"].to_pylist() == [False] * 3
    monkeypatch.setattr(Sampler, "generate", lambda *_, **__: pytest.fail("decoded again"))
    # Other answers.
    lines(tmp_path / "t.jsonl", [texts[0], "7777777", texts[2]])
    second = scored(tmp_path, "exact").run(tmp_path / "out")
    assert second.rows[0].estimates["accuracy"].value == pytest.approx(2 / 3)
    # Another checker.
    third = scored(tmp_path, "regex", pattern="no such text").run(tmp_path / "out")
    assert third.rows[0].estimates["accuracy"].value == 0
    assert [*third.tables] == [*first.tables]
    assert "scored again" in (tmp_path / "out" / "log.txt").read_text()
    (example,) = {cell["examples_id"] for cell in third.manifest["cells"]}
    assert third.examples(example)[0]["answer"] == texts[0]
    assert pq.read_table(next((tmp_path / "out" / "cells").glob("*.parquet")))["text"].to_pylist() == texts


def test_a_checkers_code_scores_again_too(tmp_path, monkeypatch):
    lines(tmp_path / "t.jsonl", ["7777777"])
    ids = [(cell.id, cell.checker_id) for cell in scored(tmp_path).cells]
    monkeypatch.setattr(code, "_text", lambda path: path.read_text() + path.name)
    code._code.cache_clear()
    try:
        later = [(cell.id, cell.checker_id) for cell in scored(tmp_path).cells]
    finally:
        code._code.cache_clear()
    assert ids[0][1] != later[0][1]


def test_a_checker_that_breaks_on_the_texts_on_record_leaves_no_stale_score(tmp_path, monkeypatch):
    lines(tmp_path / "t.jsonl", ["7777777", "7777777"])
    scored(tmp_path).run(tmp_path / "out")
    study = scored(tmp_path, "exact")
    monkeypatch.setattr(type(study.config.tasks[0].task), "is_correct", lambda *_: 1 / 0)
    results = study.run(tmp_path / "out")
    assert results.rows == []
    (message,) = results.failed.values()
    assert re.search("row 1 of 2, the checker: .*ZeroDivisionError", message)
    monkeypatch.undo()
    assert len(scored(tmp_path, "exact").run(tmp_path / "out").rows) == 1


def test_two_checkers_of_the_same_prompts_keep_their_own_scores(tmp_path):
    lines(tmp_path / "t.jsonl", ["0", "1"])
    task = {
        "name": "file",
        "path": str(tmp_path / "t.jsonl"),
        "prompt": "{{ q }}",
        "answer": "{{ a }}",
        "gen_length": 8,
    }
    tasks = [
        {**task, "label": "none", "check": "regex", "pattern": "no such text"},
        {**task, "label": "all", "check": "regex", "pattern": r"(?s).*()", "answer": ""},
        {**task, "label": "all again", "check": "regex", "pattern": r"(?s).*()", "answer": ""},
    ]
    study = small(tasks=tasks, samplers=SMALL["samplers"][:1])
    results = study.run(tmp_path / "out")
    assert [row.estimates["accuracy"].value for row in results.rows] == [0, 1, 1]
    ids = [cell.id for cell in study.cells]
    assert ids[1] == ids[2] != ids[0]
    assert small(tasks=tasks[:1], samplers=SMALL["samplers"][:1]).cells[0].id == ids[0]


def test_shards_that_another_checker_scored_are_scored_again_when_merged(tmp_path):
    lines(tmp_path / "t.jsonl", ["7777777"] * 3)
    study = scored(tmp_path)
    for i in (1, 2):
        study.run(tmp_path / "out", shard=(i, 2))
    merged = scored(tmp_path, "regex", pattern="(?s).*()").merge(tmp_path / "out")
    assert merged.rows[0].estimates["accuracy"].value == 0
    again = scored(tmp_path, "regex", pattern="(?s).*()", answer="").run(tmp_path / "out")
    assert again.rows[0].estimates["accuracy"].value == 1
    assert contents(Results(tmp_path / "out")) == contents(again)


# Paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_as", ["./ckpt", "ckpt", "../here/ckpt", "~/here/ckpt", "{folder}/ckpt"])
@pytest.mark.parametrize("how", ["text", "mapping", "adapter"])
def test_checkpoints_are_found_from_the_study_file(tmp_path, monkeypatch, written_as, how):
    here = tmp_path / "here"
    (here / "ckpt").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = written_as.format(folder=here)
    model = {"text": place, "mapping": {"source": place}, "adapter": {"name": "m", "adapter": place}}[how]
    (entry,) = StudyConfig.read(written(here, models=[model])).models
    found = Path(entry.settings.adapter if how == "adapter" else entry.settings.source)
    assert found.is_absolute()
    assert found.resolve() == (here / "ckpt").resolve()
    assert entry.name == ("m" if how == "adapter" else place)
    monkeypatch.chdir(here)
    assert StudyConfig.read("study.yaml").models[0].settings == entry.settings


def test_a_hub_id_stays_one_unless_a_folder_of_its_name_lies_beside_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "GSAI-ML" / "LLaDA").mkdir(parents=True)
    (tmp_path / "studies").mkdir()
    path = written(tmp_path / "studies", models=["GSAI-ML/LLaDA"])
    assert StudyConfig.read(path).models[0].settings.source == "GSAI-ML/LLaDA"
    (tmp_path / "studies" / "GSAI-ML" / "LLaDA").mkdir(parents=True)
    found = StudyConfig.read(path).models[0]
    assert found.settings.source == str(tmp_path / "studies" / "GSAI-ML" / "LLaDA")
    assert found.name == "GSAI-ML/LLaDA"


@pytest.mark.parametrize("way", ["plain", "dotted", "product", "whole", "held"])
def test_files_of_policies_are_found_from_the_study_file(tmp_path, monkeypatch, way):
    (tmp_path / "s").mkdir()
    frequencies(tmp_path / "s" / "table.json")
    monkeypatch.chdir(tmp_path)
    score = {"name": "pc_sampler", "frequencies": "table.json"}
    policy = {"name": "fixed_k", "score": score}
    sampler = {
        "plain": {"name": "a", "unmasking": policy},
        "dotted": {"name": "a", "unmasking": {**policy, "score": {**score, "frequencies": "./table.json"}}},
        "product": {
            "name": "a",
            "unmasking": {"name": "fixed_k", "score": "pc_sampler"},
            "product": {"unmasking.score.frequencies": ["table.json"]},
        },
        "whole": {"name": "a", "product": {"unmasking": [policy]}},
        "held": {"name": "a", "unmasking": {"name": "union", "policies": ["factor", policy]}},
    }[way]
    (entry,) = StudyConfig.read(written(tmp_path / "s", samplers=[sampler], baseline="a")).samplers
    assert str(tmp_path / "s" / "table.json") in entry.settings.model_dump_json()


def test_files_of_tasks_are_found_from_the_study_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "t.jsonl", ["x"])
    (tmp_path / "s").mkdir()
    for place in ("../t.jsonl", "~/t.jsonl", str(tmp_path / "t.jsonl")):
        task = {"name": "file", "path": place, "prompt": "{{ q }}", "answer": "{{ a }}"}
        study = Study.read(written(tmp_path / "s", tasks=[task]))
        assert [e.answer for e in study.examples["file"]] == ["x"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"task 'file': .*no such file"):
        _ = Study.read(written(tmp_path / "s", tasks=[{**task, "path": "t.jsonl"}])).examples
