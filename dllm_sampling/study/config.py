"""A study as data: which models, tasks and samplers, and one of the samplers as the baseline."""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dllm_sampling.config.overrides import set_setting
from dllm_sampling.config.run_config import ModelSettings, RunConfig
from dllm_sampling.config.sampler_settings import SamplerSettings, refuse_unknown, validated
from dllm_sampling.engine import run_hooks
from dllm_sampling.errors import ConfigurationError, PluginError, unknown_name
from dllm_sampling.inputs.config_files import read_mapping
from dllm_sampling.inputs.settings import Settings
from dllm_sampling.plugins.discovery import registry, use_folder
from dllm_sampling.plugins.nested import Nested
from dllm_sampling.study import paths
from dllm_sampling.tasks import Task

_PLACEHOLDER = re.compile(r"\{([\w.]+)\}")


# More samplers than that are a mistake: each is run on every task.
MOST_SAMPLERS = 10_000
# Seeds are kept and hashed as 64-bit integers.
Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class _Entry(Settings):
    """One part of a study file."""


class ModelEntry(_Entry):
    """A checkpoint under the name it has in the report."""

    name: str = Field(description="What the report calls it.")
    settings: ModelSettings = Field(ModelSettings(), description="The checkpoint and how it is loaded.")


class TaskEntry(_Entry):
    """A task under the name it has in the report."""

    name: str = Field(description="What the report calls it; by default the task's own name.")
    task: Annotated[Task, Nested(Task)] = Field(description="The task and its parameters.")
    limit: int | None = Field(None, ge=1, strict=True, description="Only the first so many examples.")
    best_accuracy: float | None = Field(
        None, gt=0, le=1, strict=True, description="y_max of AUP; by default the best accuracy in the study."
    )


class SamplerEntry(_Entry):
    """One sampler, and where it stands in the product it comes from."""

    name: str = Field(description="What the report calls it.")
    settings: SamplerSettings = Field(description="The policies.")
    source: int = Field(description="The place in the study's list that it comes from.")
    point: dict[str, Any] = Field(description="Its value of each parameter of the product.")


class Published(_Entry):
    """Figures somebody published for one sampler on one task, shown beside the measured ones."""

    task: str = Field(description="A task's name in this study.")
    sampler: str = Field(description="A sampler's name in this study.")
    model: str | None = Field(None, description="A model's name; by default all of them.")
    accuracy: float | None = Field(None, ge=0, le=1, strict=True, description="Share of right answers.")
    tokens_per_forward: float | None = Field(None, gt=0, strict=True)
    tokens_per_second: float | None = Field(None, gt=0, strict=True)
    speedup: float | None = Field(
        None, gt=0, strict=True, description="Over that publication's own baseline."
    )
    source: str = Field(description="Where it stands: paper, table, hardware.")


class StudyConfig(_Entry):
    """A study with every name resolved and every product written out."""

    name: str = Field(description="The report's title.")
    description: str = Field("", description="A paragraph under it.")
    plugins: str | None = Field(None, description="The folder of plugins that its file names.")
    models: tuple[ModelEntry, ...]
    tasks: tuple[TaskEntry, ...]
    samplers: tuple[SamplerEntry, ...]
    baseline: str = Field(description="The sampler that the others are compared with.")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    published: tuple[Published, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any], *, folder: Path | None = None) -> StudyConfig:
        """A study from plain data, as a YAML file holds it.

        folder: what relative paths in it are relative to; by default the working directory.
        Raises ConfigurationError for anything that cannot work: nothing runs before all of it is valid.
        """
        if not isinstance(data, Mapping):
            raise ConfigurationError(f"a study is a mapping of settings, not {type(data).__name__}.")
        _refuse_run(data)
        try:
            return cls._of(data, folder)
        except RecursionError:
            raise ConfigurationError("the study is nested too deeply.") from None

    @classmethod
    def _of(cls, data: Mapping[str, Any], folder: Path | None) -> StudyConfig:
        file = validated(StudyFile, data)
        plugins = _plugins(file.plugins, folder)  # before anything is looked up by its name
        shared = {"batch_size": file.batch_size} if file.batch_size is not None else {}
        count = sum(_points(entry) for entry in file.samplers)
        if count > MOST_SAMPLERS:
            raise ConfigurationError(
                f"the products of the study make {count:,} samplers; at most {MOST_SAMPLERS:,} are taken."
            )
        study = cls(
            name=file.name,
            description=file.description,
            plugins=plugins,
            models=tuple(_model(entry, folder) for entry in file.models),
            tasks=tuple(_task(i, entry, file.gen_length, folder) for i, entry in enumerate(file.tasks)),
            samplers=tuple(
                sampler
                for i, entry in enumerate(file.samplers)
                for sampler in _samplers(i, entry, shared, folder)
            ),
            baseline=file.baseline,
            seeds=file.seeds,
            published=file.published,
        )
        study._check()
        return study

    @classmethod
    def read(cls, path: str | Path) -> StudyConfig:
        """A study from a .yaml, .toml or .json file; relative paths in it are relative to its folder."""
        path = Path(path)
        try:
            return cls.of(read_mapping(path), folder=path.absolute().parent)
        except ConfigurationError as error:
            message = str(error)
            raise ConfigurationError(
                message if message.startswith(str(path)) else f"{path}: {message}"
            ) from None

    @classmethod
    def find(cls, name: str | Path) -> Path:
        """The file of a study: a path, or the name of one that ships."""
        path = Path(name)
        if os.path.isdir(path):
            hint = f": `dllm-sampling report {path}` reports it" if (path / "manifest.json").exists() else ""
            raise ConfigurationError(f"{path} is a folder, not a study{hint}.")
        if path.suffix or os.path.exists(path):
            return path
        known = shipped()
        if str(name) not in known:
            raise ConfigurationError(unknown_name("study", str(name), known))
        return known[str(name)]

    def _check(self) -> None:
        for what, names in (
            ("model", [m.name for m in self.models]),
            ("task", [t.name for t in self.tasks]),
            ("sampler", [s.name for s in self.samplers]),
            ("seed", [str(s) for s in self.seeds]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ConfigurationError(
                    f"two {what}s are called {twice[0]!r}: give each a name of its own"
                    + (" (a product's name may hold {its.parameters})." if what == "sampler" else ".")
                )
        samplers = [s.name for s in self.samplers]
        if self.baseline not in samplers:
            raise ConfigurationError("baseline: " + unknown_name("sampler", self.baseline, samplers))
        for figure in self.published:
            for what, name, known in (
                ("sampler", figure.sampler, samplers),
                ("task", figure.task, [t.name for t in self.tasks]),
                ("model", figure.model, [m.name for m in self.models]),
            ):
                if name is not None and name not in known:
                    raise ConfigurationError("published: " + unknown_name(what, name, known))

    def run(self, model: ModelEntry, task: TaskEntry, sampler: SamplerEntry, seed: int) -> RunConfig:
        """The run that one cell of the study is, ready for `dllm-sampling generate --config`."""
        run = {
            "plugins": self.plugins,
            "model": model.settings,
            "sampler": sampler.settings,
            "gen_length": task.task.gen_length,
            "seed": seed,
            "chat_template": task.task.chat_template,
        }
        return validated(RunConfig, run)


class StudyFile(_Entry):
    """What a study file holds."""

    name: str = Field(description="The report's title.")
    description: str = Field("", description="A paragraph under it.")
    plugins: str | None = Field(None, description="A folder of one-file plugins, relative to the study file.")
    models: tuple[str | dict[str, Any], ...] = Field(
        ({"name": "bundled"},),
        min_length=1,
        description="Checkpoints: a folder or hub id, or a mapping of name, source, dtype, device, ...",
    )
    tasks: tuple[str | dict[str, Any], ...] = Field(
        min_length=1,
        description="Tasks: a name, or a mapping of name, parameters, label, limit and best_accuracy.",
    )
    samplers: tuple[dict[str, Any], ...] = Field(
        min_length=1,
        description="Samplers: a mapping of name, product, and the settings of a sampler.",
    )
    baseline: str = Field(description="The name of the sampler that the others are compared with.")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="Each cell runs once a seed.")
    batch_size: int | None = Field(None, ge=1, strict=True, description="Of the samplers that name none.")
    gen_length: int | None = Field(None, ge=1, strict=True, description="Of the tasks that name none.")
    published: tuple[Published, ...] = Field((), description="Published figures, for the report.")


def shipped() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    folder = Path(__file__).parent.parent / "bundled" / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _refuse_run(data: Mapping[str, Any]) -> None:
    """Say so where the data are a run's: they share no key with a study that says what is compared."""
    own = {"tasks", "samplers", "baseline"}
    run = {*RunConfig.model_fields, *SamplerSettings.model_fields} - set(StudyFile.model_fields)
    if not own & set(data) and run & set(data):
        raise ConfigurationError(
            "this is a run, not a study: `dllm-sampling generate --config` takes it. A study names `tasks`, "
            "`samplers`, each with the policies of a run, and a `baseline` among them."
        )


def _plugins(given: str | None, folder: Path | None) -> str | None:
    """The full path of the folder of plugins, once it is loaded."""
    if given is None:
        return None
    try:
        return use_folder(paths.path_from(given, folder) if given.strip() else given)
    except ConfigurationError as error:
        raise ConfigurationError(f"plugins: {error}") from None


def _model(entry: str | dict[str, Any], folder: Path | None) -> ModelEntry:
    if isinstance(entry, str):
        entry = {"name": entry, "source": entry}
    settings = dict(entry)
    name = settings.pop("name", settings.get("source"))
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"a model needs a name or a source: got {entry!r}.")
    refuse_unknown(ModelSettings, settings, f"model {name!r}")
    for key in ("source", "adapter"):
        if isinstance(settings.get(key), str):
            settings[key] = paths.checkpoint(settings[key], folder)
    try:
        return ModelEntry(name=name, settings=validated(ModelSettings, settings))
    except ConfigurationError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from None


def _task(place: int, entry: str | dict[str, Any], gen_length: int | None, folder: Path | None) -> TaskEntry:
    settings: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    own: dict[str, Any] = {key: settings.pop(key) for key in ("limit", "best_accuracy") if key in settings}
    label = settings.pop("label", settings.get("name"))
    if not isinstance(label, str) or not label.strip():
        raise ConfigurationError(f"task {place} of the study needs a name or a label: got {label!r}.")
    if gen_length is not None:
        settings.setdefault("gen_length", gen_length)
    cls = registry().classes(Task.kind).get(str(settings.get("name")))
    known = (
        {"name", "label", "limit", "best_accuracy", *cls.model_fields} if cls is not None else set(settings)
    )
    for key in settings:
        if key not in known:
            raise ConfigurationError(f"task {label!r}: " + unknown_name("setting", key, known))
    try:
        return validated(TaskEntry, {"name": label, "task": paths.anchored(Task, settings, folder), **own})
    except ConfigurationError as error:
        raise ConfigurationError(f"task {label!r}: {error}") from None


def _points(entry: Mapping[str, Any]) -> int:
    """How many samplers an entry makes; 1 where its product is told to be wrong later."""
    product = entry.get("product")
    if not isinstance(product, Mapping):
        return 1
    return math.prod(len(values) for values in product.values() if isinstance(values, list))


def _samplers(
    source: int, entry: Mapping[str, Any], shared: Mapping[str, Any], folder: Path | None
) -> Iterable[SamplerEntry]:
    settings = {**shared, **copy.deepcopy(dict(entry))}
    name, product = settings.pop("name", None), settings.pop("product", {})
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"sampler {source} of the study needs a name: got {name!r}.")
    if not isinstance(product, Mapping) or not all(
        isinstance(path, str) and isinstance(values, list) and values for path, values in product.items()
    ):
        raise ConfigurationError(
            f"sampler {name!r}: product is a mapping of settings to lists of values, such as "
            f"unmasking.threshold: [0.5, 0.9]; got {product!r}."
        )
    for values in itertools.product(*product.values()):
        point = dict(zip(product, values, strict=True))
        run = {"sampler": copy.deepcopy(settings)}
        try:
            for path, value in point.items():
                _refuse_outside(path)
                set_setting(RunConfig, run, path, copy.deepcopy(value))
            refuse_unknown(SamplerSettings, run["sampler"], "")
            built = SamplerSettings.of(paths.of_sampler(run["sampler"], folder))
            run_hooks.manager(run_hooks.policies_of(built))  # refuses broken policies now
        except (ConfigurationError, PluginError) as error:
            where = f"sampler {name!r}" + (f" at {_shown(point)}" if point else "")
            raise ConfigurationError(f"{where}: {error}") from None
        full = _named(name, point) if product else name
        yield SamplerEntry(name=full, settings=built, source=source, point=point)


def _refuse_outside(path: str) -> None:
    """A product moves a sampler's settings; what else a run has is the study's affair."""
    first = path.partition(".")[0]
    if first not in SamplerSettings.model_fields and first != "sampler":
        raise ConfigurationError(unknown_name("setting of a sampler", first, SamplerSettings.model_fields))


def _named(template: str, point: Mapping[str, Any]) -> str:
    """The name with `{path}` or the path's last part filled in."""
    short = {path.rpartition(".")[2]: path for path in point}

    def fill(match: re.Match[str]) -> str:
        path = match[1] if match[1] in point else short.get(match[1])
        if path is None:
            raise ConfigurationError(
                f"sampler {template!r}: " + unknown_name("placeholder", match[1], [*point, *short])
            )
        return _value(point[path])

    return _PLACEHOLDER.sub(fill, template)


def _value(value: Any) -> str:
    """A value as it stands in a name: a policy with parameters as `name(parameter=value)`."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key}={_value(v)}" for key, v in value.items() if key != "name")
        return f"{value.get('name', '')}({rest})"
    return str(value)


def _shown(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={_value(value)}" for path, value in point.items())
