"""A results folder: nothing in it is replaced, deleted or moved that the study at hand did not write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_sampling import StudyError
from dllm_sampling.study import Results
from tests.study_files import SMALL, contents, finished, small, written

FIRST, SECOND = SMALL["samplers"]


def tiny(limit=2, **changes):
    return small(limit, gen_length=4, **{"samplers": [FIRST], **changes})


# Another study ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Another", "samplers": [SECOND], "baseline": "threshold 0.5"},
        {"name": "Another", "samplers": [FIRST, SECOND], "seeds": [1]},
        # It shares the baseline, so its manifest would still hide the rest.
        {"name": "Another"},
        {"samplers": [{"name": "x"}], "baseline": "x"},
    ],
)
def test_another_study_is_refused_and_what_is_there_stays(tmp_path, changes):
    before = tiny(samplers=[FIRST, SECOND]).run(tmp_path)
    manifest = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(
        StudyError, match=r"holds another study, 'A small study' with 3 cells .* --output.* --fresh"
    ):
        tiny(**changes).run(tmp_path)
    with pytest.raises(StudyError, match="holds another study"):
        tiny(**changes).run(tmp_path, shard=(1, 2))
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    assert contents(Results(tmp_path)) == contents(before)
    fresh = tiny(**changes).run(tmp_path, fresh=True)
    assert fresh.study["name"] == changes.get("name", "A small study")


def test_the_command_says_so(tmp_path):
    small(1, gen_length=2).run(tmp_path / "out")
    code, _, err = finished(
        "compare", written(tmp_path, name="Another", seeds=[7]), "--output", tmp_path / "out"
    )
    assert code == 2
    assert "holds another study, 'A small study'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"samplers": [FIRST, SECOND]},
        {"samplers": [SECOND, FIRST]},
        {"seeds": [0, 1]},
        {"tasks": ["word_problems", {"name": "word_problems", "label": "more", "chat_template": False}]},
        {"models": [{"name": "bundled"}, {"name": "double", "dtype": "float64"}]},
        {"name": "Renamed"},
        {"limit": 3},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_a_study_may_grow_be_edited_and_be_renamed(tmp_path, changes):
    tiny().run(tmp_path)
    results = tiny(**changes).run(tmp_path)
    assert not results.unfinished


def test_a_sampler_that_leaves_the_study_is_told_and_its_records_are_kept(tmp_path, caplog):
    tiny(samplers=[FIRST, SECOND]).run(tmp_path)
    tiny().run(tmp_path)
    assert "2 cells on record are not in the study any more" in caplog.text
    assert len([*(tmp_path / "cells").glob("*.parquet")]) == 3


def test_a_study_that_left_no_record_may_be_replaced(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny().run(tmp_path, watch=stop)
    assert not tiny(name="Another", seeds=[3]).run(tmp_path).unfinished


def test_a_smaller_report_takes_no_larger_ones_place(tmp_path):
    whole = tiny(3).run(tmp_path)
    with pytest.raises(StudyError, match=r"with 3 prompts of 'word_problems'; a report of 2 .*--output"):
        tiny(2).run(tmp_path)
    with pytest.raises(StudyError, match="a report of 1"):
        tiny(3, tasks=[{"name": "word_problems", "limit": 1}]).run(tmp_path)
    assert contents(Results(tmp_path)) == contents(whole)
    assert tiny(2).run(tmp_path, fresh=True).rows[0].columns.prompts == 2


def test_shards_of_another_study_are_not_merged(tmp_path):
    for name in ("A", "B"):
        tiny(name=name, seeds=[len(name) + ord(name)]).run(tmp_path / name, shard=(1, 2))
    (tmp_path / "B" / "shards" / "1-of-2").rename(tmp_path / "A" / "shards" / "2-of-2")
    with pytest.raises(StudyError, match="2-of-2 holds another study, 'B'"):
        tiny(name="A", seeds=[66]).merge(tmp_path / "A")


# Files of others --------------------------------------------------------------------------------------


def test_files_of_others_stay(tmp_path):
    foreign = [
        ".download.partial", ".x.1.partial", "notes.txt", "cells/.model.safetensors.partial", "cells/.a.77.partial",
        "cells/0123456789abcdef/notes.txt", "plots/.mine.svg.4.partial", "deep/er/.manifest.json.5.partial",
        ".manifest.json.partial", "examples/.keep.partial",
    ]  # fmt: skip
    study = tiny()
    study.run(tmp_path)
    foreign += [f"cells/{study.cells[0].id}/{name}" for name in ("notes.txt", "other.parquet", ".a.partial")]
    for name in foreign:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    own = [".manifest.json.99999.partial", f"cells/.{study.cells[0].id}.parquet.99999.partial"]
    for name in own:
        (tmp_path / name).write_text("half")
    study.run(tmp_path)
    study.run(tmp_path, fresh=True)
    assert [name for name in foreign if not (tmp_path / name).exists()] == []
    assert all((tmp_path / name).read_text() == name for name in foreign)
    assert [name for name in own if (tmp_path / name).exists()] == []


@pytest.mark.parametrize("name", ["report.html", "log.txt", "results.csv", "cells", "plots"])
def test_a_folder_of_others_is_refused_where_one_of_its_files_would_be_touched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(StudyError, match=rf"holds {name}, which no study wrote"):
        tiny().run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"name": "an app", "icons": []}',
        "[1]",
        "{",
        '{"version": 1, "study": {}}',
        "\xff",
        '{"cells": 5}',
    ],
)
def test_a_manifest_of_others_is_neither_read_nor_replaced(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    for act in (lambda: Results(tmp_path), lambda: tiny().run(tmp_path)):
        with pytest.raises(StudyError, match=r"manifest\.json"):
            act()
    assert path.read_bytes() == text.encode("latin-1")


def test_a_manifest_with_a_part_missing_is_told(tmp_path):
    manifest = tiny().run(tmp_path).manifest
    for key in manifest:
        cut = {name: value for name, value in manifest.items() if name != key}
        (tmp_path / "manifest.json").write_text(json.dumps(cut))
        if key in ("version", "study", "cells", "runs"):
            with pytest.raises(StudyError, match=r"manifest\.json"):
                Results(tmp_path)
    code, _, err = finished("report", tmp_path / "nowhere")
    assert code == 2
    assert "holds no manifest.json: it is no results folder." in err


@pytest.mark.parametrize("where", ["/", "~", "a file"])
def test_a_place_that_is_no_folder_of_its_own_is_refused(tmp_path, where, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "file").write_text("mine")
    place = {"/": Path("/"), "~": home, "a file": tmp_path / "file"}[where]
    with pytest.raises(StudyError, match=r"--output .*: name a folder"):
        tiny().run(place)
    assert [*home.iterdir()] == []
    assert not Path("/manifest.json").exists()


def test_a_log_that_cannot_be_opened_is_an_error_of_its_own(tmp_path):
    tiny().run(tmp_path)
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(StudyError, match=r"log\.txt: Is a directory"):
        tiny().run(tmp_path)
