"""A run as data: every way in, round trips, and the schema."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from dllm_sampling import ConfigurationError, RunConfig, Sampler, registry
from dllm_sampling.config.schema import json_schema
from tests.models import tiny

RUN = {
    "model": {"dtype": "bfloat16"},
    "sampler": {
        "unmasking": {"name": "confidence_threshold", "threshold": 0.8},
        "cache": {"name": "interval", "policy": {"name": "dual"}, "interval": 4},
        "schedule": {"name": "fixed_blocks", "block_length": 16},
        "wrappers": [{"name": "fast_dllm_dream"}],
        "sampling": {"temperature": 0.5, "top_p": 0.9},
    },
    "gen_length": 64,
}
TOML = """
gen_length = 64
[model]
dtype = "bfloat16"
[sampler]
wrappers = ["fast_dllm_dream"]
[sampler.unmasking]
name = "confidence_threshold"
threshold = 0.8
[sampler.cache]
name = "interval"
policy = "dual"
interval = 4
[sampler.schedule]
name = "fixed_blocks"
block_length = 16
[sampler.sampling]
temperature = 0.5
top_p = 0.9
"""


def test_yaml_toml_json_and_keywords_give_the_same_run(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "run.toml").write_text(TOML)
    runs = [RunConfig.read(tmp_path / f"run.{ending}") for ending in ("yaml", "json", "toml")]
    runs.append(RunConfig.of(RUN))
    overrides = [
        "model.dtype=bfloat16", "gen_length=64", "unmasking.threshold=0.8", "cache=interval",
        "cache.policy=dual", "cache.interval=4", "schedule.block_length=16",
        "wrappers=[fast_dllm_dream]", "sampling.temperature=0.5", "sampler.sampling.top_p=0.9",
    ]  # fmt: skip
    runs.append(RunConfig.of(overrides=overrides))
    assert all(run.to_dict() == runs[0].to_dict() for run in runs)
    assert RunConfig.of(runs[0].to_dict()).to_dict() == runs[0].to_dict()


def test_a_sampler_round_trips_through_its_config():
    sampler = Sampler(tiny(), **RUN["sampler"])
    again = Sampler.from_config(tiny(), json.loads(json.dumps(sampler.config)))
    assert again.config == sampler.config
    assert again.settings == sampler.settings


def test_an_override_of_a_nested_policy_given_by_name():
    run = RunConfig.of(
        {"sampler": {"cache": {"name": "interval", "policy": "dual"}}},
        overrides=["wrappers=[fast_dllm_dream]"],
    )
    assert run.to_dict()["sampler"]["cache"]["policy"] == {"name": "dual"}
    run = RunConfig.of({"sampler": {"unmasking": "factor"}}, overrides=["unmasking.factor=2"])
    assert run.to_dict()["sampler"]["unmasking"] == {
        "name": "factor",
        "factor": 2.0,
        "score": {"name": "confidence"},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("threshold", "written key=value"),
        ("unmaskin.threshold=1", "Did you mean 'unmasking'"),
        ("gen_length.x=1", "gen_length"),
        ("gen_length=[", "override"),
        ("wrappers.0.name=x", "the list has 0 entries|wrappers"),
        ("gen_length=0", "gen_length.*got 0"),
    ],
)
def test_overrides_that_cannot_work(override, message):
    with pytest.raises(ConfigurationError, match=message):
        RunConfig.of({"sampler": {"wrappers": []}, "gen_length": 8}, overrides=[override])


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "c.ini").write_text("")
    for name, message in (
        ("a.yaml", "not readable as YAML"),
        ("b.json", "not a mapping"),
        ("c.ini", "ending"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            RunConfig.read(tmp_path / name)
    with pytest.raises(ConfigurationError, match="No such file"):
        RunConfig.read(tmp_path / "nowhere.yaml")


def test_the_schema_accepts_runs_and_refuses_what_loading_refuses():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(RUN, schema)
    jsonschema.validate(RunConfig().to_dict(), schema)
    jsonschema.validate({"sampler": {"cache": "dual"}}, schema)
    for wrong in (
        {"sampler": {"cache": "dul"}},
        {"sampler": {"cache": {"name": "interval"}}},
        {"sampler": {"unmasking": {"name": "confidence_threshold", "threshold": 0}}},
        {"sampler": {"unmasking": {"name": "factor", "threshold": 0.5}}},
        {"gen_lenght": 3},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
        with pytest.raises(ConfigurationError):
            RunConfig.of(wrong)


def test_every_policy_has_documented_parameters_and_a_source():
    for kind in ("unmasking", "cache", "schedule", "transforms", "wrappers", "observers"):
        for name, cls in registry().classes(kind).items():
            assert vars(cls)["sources"], name
            for field, info in cls.model_fields.items():
                assert info.description, f"{name}.{field}"
