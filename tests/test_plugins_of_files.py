"""Folders of plugins that a run or a study file names, and what `--disable` leaves out."""

from __future__ import annotations

import io
import json
import pickle
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import jsonschema
import pytest
import yaml

import dllm_sampling
from dllm_sampling import ConfigurationError, PluginError, PluginWarning, RunConfig, registry
from dllm_sampling.cli.app import app
from dllm_sampling.config.schema import json_schema
from dllm_sampling.plugins import discovery
from dllm_sampling.study import Results, Study
from tests.models import DATA, printed_by
from tests.study_files import SMALL, contents
from tests.test_cli import forked
from tests.test_plugins import GOOD

FAMILY = """
from dllm_sampling.backbones.llada import LLaDA
class Mine(LLaDA):
    '''LLaDA's format under another model_type.'''
    name = "mine"
    @classmethod
    def matches(cls, config):
        return config.get("model_type") == "mine"
def register():
    return [Mine]
"""


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    """No folder is in use before a test, and none after it."""
    monkeypatch.setattr(discovery, "_named", None)
    for name in (discovery.FOLDER, discovery.SELECT, discovery.STRICT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path):
    """A folder with a run file, a study file, and the plugins that both name."""
    return files_in(tmp_path / "place")


def files_in(folder, plugin=GOOD, plugins="./rules"):
    (folder / "rules").mkdir(parents=True)
    (folder / "rules" / "mine.py").write_text(plugin)
    run = {"unmasking": {"name": "left_to_right", "count": 2}, "cache": "dual"}
    (folder / "run.yaml").write_text(
        yaml.safe_dump({"plugins": plugins, "sampler": run, "gen_length": 8, "chat_template": False})
    )
    samplers = [*SMALL["samplers"], {"name": "mine", **run}]
    study = SMALL | {"plugins": plugins, "samplers": samplers, "gen_length": 16}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def ran(*arguments):
    """A command in a fork of this process, in a folder where the files are not."""
    return forked(*map(str, arguments))


def typed(*arguments):
    """A command in this process: its exit code, or its error."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        app([str(argument) for argument in arguments], standalone_mode=False)
    return out.getvalue()


# A run file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugins", ["./rules", "rules", "../place/rules/"])
def test_a_run_finds_the_plugins_beside_it_from_anywhere(tmp_path, monkeypatch, plugins):
    place = files_in(tmp_path / "place", plugins=plugins)
    monkeypatch.chdir("/")
    config = RunConfig.read(place / "run.yaml")
    assert config.sampler.unmasking.count == 2
    assert Path(config.plugins) == place / "rules"
    # As data it holds the whole path, and is taken back where nothing is loaded yet.
    monkeypatch.setattr(discovery, "_named", None)
    with pytest.raises(ConfigurationError, match="unknown unmasking policy 'left_to_right'"):
        RunConfig.of({"sampler": config.to_dict()["sampler"]})
    assert RunConfig.of(config.to_dict()) == config
    # They stay, so that everything else of the process finds them, too.
    assert "left_to_right" in registry().names("unmasking")


def test_every_way_to_make_a_run_loads_them_first(place, monkeypatch):
    monkeypatch.chdir(place)
    sampler = {"unmasking": "left_to_right"}
    for make in (
        lambda: RunConfig.of({"sampler": sampler, "plugins": "rules"}),
        lambda: RunConfig(sampler=sampler, plugins="rules"),
        lambda: RunConfig.of({"sampler": sampler}, overrides=["plugins=rules"]),
        lambda: RunConfig.of(overrides=["unmasking=left_to_right", "plugins=rules"]),
    ):
        monkeypatch.setattr(discovery, "_named", None)
        assert make().sampler.unmasking.name == "left_to_right"
    # An override is typed where the user is, a file's own setting stands beside the file.
    files_in(place / "other", GOOD.replace("count: int = 1", "count: int = 7"))
    config = RunConfig.read(place / "run.yaml", overrides=["plugins=other/rules", "unmasking=left_to_right"])
    assert config.sampler.unmasking.count == 7


def test_a_familys_plugin_is_there_when_the_model_is_loaded(tmp_path, monkeypatch):
    place = files_in(tmp_path / "place", FAMILY)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in (DATA / "llada").iterdir():
        if file.suffix != ".json" or file.name != "config.json":
            (checkpoint / file.name).symlink_to(file)
    config = json.loads((DATA / "llada" / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    (place / "run.yaml").write_text(f"plugins: rules\nmodel: {{source: {checkpoint}}}\n")
    assert RunConfig.read(place / "run.yaml").model.load().facts.family == "mine"


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ("none/such", "plugins: the plugins folder '.*/none/such' does not exist"),
        ("run.yaml", "plugins: the plugins folder '.*run.yaml' cannot be read"),
        ("", "plugins: '' names no folder"),
        ("  ", "plugins: '  ' names no folder"),
        ("a\0b", r"plugins: .* names no folder"),
        (["rules"], "plugins: Input should be a valid string"),
        (3, "plugins: Input should be a valid string"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_and_changes_nothing(place, plugins, message):
    discovery.use_folder(str(place / "rules"))
    for name, read in (("run", RunConfig.read), ("study", Study.read)):
        data = yaml.safe_load((place / f"{name}.yaml").read_text()) | {"plugins": plugins}
        (place / f"{name}.json").write_text(json.dumps(data))
        with pytest.raises(ConfigurationError, match=rf"{name}\.json: {message}"):
            read(place / f"{name}.json")
    assert discovery.named_folder() == str(place / "rules")
    assert "left_to_right" in registry().names("unmasking")


def test_plugins_that_stand_in_the_way_of_others_are_told_and_leave_no_trace(tmp_path):
    place = files_in(tmp_path / "place", GOOD.replace("left_to_right", "factor"))
    with pytest.raises(PluginError, match="two plugins offer the unmasking policy 'factor'"):
        RunConfig.read(place / "run.yaml")
    assert discovery.named_folder() is None
    assert registry().owner("unmasking", "factor").name == "strategies"
    broken = files_in(tmp_path / "broken", "raise ValueError('out of luck')")
    with (
        pytest.warns(PluginWarning, match="out of luck"),
        pytest.raises(ConfigurationError, match=r"unknown unmasking policy .* because broken: mine"),
    ):
        RunConfig.read(broken / "run.yaml")


def test_the_folder_of_another_file_takes_the_place_of_the_last(tmp_path):
    """Two experiments have a `mine.py` each: every run gets its own, and not the other's in silence."""
    a = files_in(tmp_path / "a")
    b = files_in(tmp_path / "b", GOOD.replace("count: int = 1", "count: int = 5"))
    classes = [type(RunConfig.read(f / "run.yaml").sampler.unmasking) for f in (a, b, a)]
    assert [cls().count for cls in classes] == [1, 5, 1]


def test_it_stands_beside_the_folder_of_the_environment(place, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "theirs.py").write_text(GOOD.replace("left_to_right", "theirs"))
    monkeypatch.setenv(discovery.FOLDER, str(other))
    RunConfig.read(place / "run.yaml")
    assert {"theirs", "left_to_right"} <= set(registry().names("unmasking"))
    (other / "mine.py").write_text(GOOD)
    monkeypatch.setattr(discovery, "_named", None)
    discovery._loaded.cache_clear()
    with pytest.raises(
        ConfigurationError, match=r"plugins: both '.*other/mine.py' and '.*rules/mine.py' are"
    ):
        RunConfig.read(place / "run.yaml")
    # The same folder, written in another way, is one.
    monkeypatch.setenv(discovery.FOLDER, str(place / ".." / "place" / "rules"))
    RunConfig.read(place / "run.yaml")
    assert [p.name for p in registry().plugins].count("mine") == 1


def test_the_schema_holds_the_plugins_of_a_run(place, monkeypatch):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load((place / "run.yaml").read_text()), json_schema())
    schema = json.loads(typed("config", "schema", place / "run.yaml"))
    jsonschema.validate(yaml.safe_load((place / "run.yaml").read_text()), schema)
    # It is there to finish a file: what else is wrong with it does not matter.
    monkeypatch.setattr(discovery, "_named", None)
    (place / "run.yaml").write_text("plugins: rules\nunmasking: nonsense\n")
    assert json.loads(typed("config", "schema", place / "run.yaml")) == schema


def test_commands_that_read_a_run_load_its_plugins(place):
    for arguments, expected in (
        (("config", "validate", place / "run.yaml"), "valid"),
        (("config", "show", place / "run.yaml"), f"plugins: {place / 'rules'}"),
        (("generate", "Mia has 2 pens.", "--config", place / "run.yaml"), ""),
    ):
        done = ran(*arguments)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_a_model_of_the_harness_loads_them(place):
    pytest.importorskip("lm_eval")
    from dllm_sampling.integrations.lm_eval_model import SamplerLM

    model = SamplerLM(config=str(place / "run.yaml"), **{"unmasking.count": 3})
    assert model.config.sampler.unmasking.model_dump() == {"name": "left_to_right", "count": 3}


# A study file ----------------------------------------------------------------------------------------


def test_a_study_runs_and_reports_with_the_plugins_beside_it(place, tmp_path):
    output = tmp_path / "results"
    done = ran("compare", place / "study.yaml", "--limit", 4, "--output", output, "--only", "mine")
    assert done.returncode == 0, done.stderr
    again = ran("compare", place / "study.yaml", "--limit", 4, "--output", output)
    assert again.returncode == 0, again.stderr
    results = Results(output)
    assert {row.sampler for row in next(iter(results.groups.values()))} >= {"mine", "one at a time"}
    run = next(cell["run"] for cell in results.manifest["cells"] if cell["sampler"] == "mine")
    assert run["plugins"] == str(place / "rules")
    assert "mine" in [plugin["name"] for plugin in results.manifest["runs"][0]["environment"]["plugins"]]
    # Its report is made of the records alone: the plugins may be gone.
    (place / "rules" / "mine.py").unlink()
    (place / "rules").rmdir()
    report = ran("report", output)
    assert report.returncode == 0, report.stderr
    assert "mine" in report.stdout


def test_a_cell_is_the_same_however_its_plugins_are_named(tmp_path, monkeypatch):
    a, b = files_in(tmp_path / "a"), files_in(tmp_path / "b")
    study = yaml.safe_load((a / "study.yaml").read_text())
    named = [[cell.id for cell in Study.read(f / "study.yaml", limit=2).cells] for f in (a, b)]
    monkeypatch.setattr(discovery, "_named", None)
    monkeypatch.setenv(discovery.FOLDER, str(a / "rules"))
    del study["plugins"]
    given = Study.of(study, limit=2).cells
    assert named == [[cell.id for cell in given]] * 2
    monkeypatch.delenv(discovery.FOLDER)
    (b / "rules" / "mine.py").write_text(GOOD + "# edited\n")
    discovery._loaded.cache_clear()
    edited = Study.read(b / "study.yaml", limit=2)
    changed = [x.sampler for x, y in zip(edited.cells, given, strict=True) if x.id != y.id]
    assert changed == ["mine"]


def test_a_worker_in_another_process_loads_them(place, tmp_path):
    """What Ray's workers get: the batch pickled, and the folder."""
    study = Study.read(place / "study.yaml", limit=2)
    cell = next(cell for cell in study.cells if cell.sampler == "mine")
    from dllm_sampling.study.cells import Unit

    unit = pickle.dumps(Unit(cell, 0))
    (tmp_path / "unit").write_bytes(pickle.dumps((unit, study._by_id())))
    code = (
        "import pickle\nfrom pathlib import Path\nfrom dllm_sampling.study import executors\n"
        f"unit, examples = pickle.loads(Path({str(tmp_path / 'unit')!r}).read_bytes())\n"
        "for folder in (None, {!r}):\n"
        "    where, rows, failure, fatal = executors._decode(unit, examples, folder)\n"
        "    print(len(rows), type(fatal).__name__)"
    ).replace("{!r}", repr(discovery.named_folder()))
    assert printed_by(code, Path(dllm_sampling.__file__).parent.parent, "/").splitlines() == [
        "0 ModuleNotFoundError", "2 NoneType",
    ]  # fmt: skip


def test_a_study_in_python_takes_a_folder_from_where_it_is(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    study = Study.of(yaml.safe_load((place / "study.yaml").read_text()), limit=2)
    results = study.run(tmp_path / "a", only="mine")
    assert [len(rows) for rows in contents(results).values()] == [2]


# What is left out ------------------------------------------------------------------------------------


def test_disable_leaves_out_a_name_or_a_plugin_for_every_command(place):
    listed = json.loads(ran("strategies", "--json", "--disable", "factor", "--disable", "caches:dual").stdout)
    off = {entry["name"] for entry in listed if entry["status"] == "switched off"}
    assert off == {"factor", "dual"}
    assert {entry["status"] for entry in listed} == {"loaded", "switched off"}
    for arguments, message in (
        (("config", "validate", place / "run.yaml", "--disable", "left_to_right"), "of plugin mine is switched off"),
        (("config", "validate", place / "run.yaml", "--disable", "mine"), "unknown unmasking policy 'left_to_right'"),
        (("generate", "a", "--cache", "dual", "--disable", "dual"), "of plugin caches is switched off"),
        (("compare", place / "study.yaml", "--disable", "fixed_k"), "of plugin strategies is switched off"),
        (("tasks", "--disable", "facto"), "Did you mean 'factor'"),
        (("studies", "--disable", ""), "--disable '': give the name of one plugin"),
        (("report", "x", "--disable", "a,b"), "--disable 'a,b': give the name of one plugin"),
        (("harness", "run", "--tasks", "x", "--disable=-a"), "--disable '-a': give the name of one plugin"),
    ):  # fmt: skip
        done = ran(*arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_disable_adds_to_the_environment(monkeypatch):
    for before in (None, "", "all", "-dual", "strategies,caches"):
        monkeypatch.setenv(discovery.SELECT, before or "")
        typed("strategies", "--disable", "factor")
        names = registry().names("unmasking")
        assert "factor" not in names
        assert "fixed_k" in names
        assert ("dual" in registry().names("cache")) == (before != "-dual")
        assert ("llada" in registry().names("backbone")) == (before != "strategies,caches")


def test_listings_say_what_is_switched_off(monkeypatch):
    monkeypatch.setenv(discovery.SELECT, "-factor")
    assert re.search(r"^  factor\(.*\)  \[strategies, switched off\]$", typed("strategies"), re.M)
    assert "switched off: by DLLM_SAMPLING_PLUGINS or --disable" in typed("strategies", "factor")
    assert "switched off: factor" in typed("plugins")
    plugin = json.loads(typed("plugins", "--json"))[0]
    assert (plugin["name"], plugin["switched_off"]) == ("strategies", {"unmasking": ["factor"]})
    monkeypatch.setenv(discovery.SELECT, "-word_problems")
    assert "[bundled, switched off]" in typed("tasks")
