"""A study as data: which models, tasks and samplers, and one of the samplers as the baseline."""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dllm_sampling import run_hooks
from dllm_sampling.config import ModelSettings, RunConfig, read_mapping, set_setting
from dllm_sampling.errors import ConfigurationError, PluginError, unknown_name
from dllm_sampling.policies import Nested
from dllm_sampling.settings import SamplerSettings, refuse_unknown, validated
from dllm_sampling.tasks import Task

_PLACEHOLDER = re.compile(r"\{([\w.]+)\}")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelEntry(_Entry):
    """A checkpoint under the name it has in the report."""

    name: str = Field(description="What the report calls it.")
    settings: ModelSettings = Field(ModelSettings(), description="The checkpoint and how it is loaded.")


class TaskEntry(_Entry):
    """A task under the name it has in the report."""

    name: str = Field(description="What the report calls it; by default the task's own name.")
    task: Annotated[Task, Nested(Task)] = Field(description="The task and its parameters.")
    limit: int | None = Field(None, ge=1, description="Only the first so many examples.")
    best_accuracy: float | None = Field(
        None, gt=0, le=1, description="y_max of AUP; by default the best accuracy in the study."
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
    accuracy: float | None = Field(None, ge=0, le=1, description="Share of right answers.")
    tokens_per_forward: float | None = Field(None, gt=0)
    tokens_per_second: float | None = Field(None, gt=0)
    speedup: float | None = Field(None, gt=0, description="Over that publication's own baseline.")
    source: str = Field(description="Where it stands: paper, table, hardware.")


class StudyConfig(_Entry):
    """A study with every name resolved and every product written out."""

    name: str = Field(description="The report's title.")
    description: str = Field("", description="A paragraph under it.")
    models: tuple[ModelEntry, ...]
    tasks: tuple[TaskEntry, ...]
    samplers: tuple[SamplerEntry, ...]
    baseline: str = Field(description="The sampler that the others are compared with.")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    published: tuple[Published, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> StudyConfig:
        """A study from plain data, as a YAML file holds it.

        Raises ConfigurationError for anything that cannot work: nothing runs before all of it is valid.
        """
        refuse_unknown(StudyFile, data, "")
        file = validated(StudyFile, data)
        shared = {"batch_size": file.batch_size} if file.batch_size is not None else {}
        study = cls(
            name=file.name,
            description=file.description,
            models=tuple(_model(entry) for entry in file.models),
            tasks=tuple(_task(entry, file.gen_length) for entry in file.tasks),
            samplers=tuple(
                sampler for i, entry in enumerate(file.samplers) for sampler in _samplers(i, entry, shared)
            ),
            baseline=file.baseline,
            seeds=file.seeds,
            published=file.published,
        )
        study._check()
        return study

    @classmethod
    def read(cls, path: str | Path) -> StudyConfig:
        """A study from a .yaml, .toml or .json file; paths in its tasks and models are relative to it."""
        path = Path(path)
        try:
            return cls.of(_anchored(read_mapping(path), path.parent))
        except ConfigurationError as error:
            message = str(error)
            raise ConfigurationError(
                message if message.startswith(str(path)) else f"{path}: {message}"
            ) from None

    @classmethod
    def find(cls, name: str | Path) -> Path:
        """The file of a study: a path, or the name of one that ships."""
        path = Path(name)
        if path.suffix or path.exists():
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
        return RunConfig(
            model=model.settings,
            sampler=sampler.settings,
            gen_length=task.task.gen_length,
            seed=seed,
            chat_template=task.task.chat_template,
        )


class StudyFile(_Entry):
    """What a study file holds."""

    name: str = Field(description="The report's title.")
    description: str = Field("", description="A paragraph under it.")
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
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Each cell runs once a seed.")
    batch_size: int | None = Field(None, ge=1, description="Of the samplers that name none.")
    gen_length: int | None = Field(None, ge=1, description="Of the tasks that name none.")
    published: tuple[Published, ...] = Field((), description="Published figures, for the report.")


def shipped() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    folder = Path(__file__).parent.parent / "bundled" / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _model(entry: str | dict[str, Any]) -> ModelEntry:
    if isinstance(entry, str):
        entry = {"name": entry, "source": entry}
    settings = dict(entry)
    name = settings.pop("name", settings.get("source"))
    if not isinstance(name, str):
        raise ConfigurationError(f"a model needs a name or a source: got {entry!r}.")
    refuse_unknown(ModelSettings, settings, f"model {name!r}")
    return ModelEntry(name=name, settings=validated(ModelSettings, settings))


def _task(entry: str | dict[str, Any], gen_length: int | None) -> TaskEntry:
    settings: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    own: dict[str, Any] = {key: settings.pop(key) for key in ("limit", "best_accuracy") if key in settings}
    label = settings.pop("label", settings.get("name"))
    if gen_length is not None:
        settings.setdefault("gen_length", gen_length)
    return validated(TaskEntry, {"name": label, "task": settings, **own})


def _samplers(source: int, entry: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterable[SamplerEntry]:
    settings = {**shared, **copy.deepcopy(dict(entry))}
    name, product = settings.pop("name", None), settings.pop("product", {})
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"sampler {source} of the study needs a name: got {name!r}.")
    if not isinstance(product, Mapping) or not all(isinstance(v, list) and v for v in product.values()):
        raise ConfigurationError(
            f"sampler {name!r}: product is a mapping of settings to lists of values, such as "
            f"unmasking.threshold: [0.5, 0.9]; got {product!r}."
        )
    for values in itertools.product(*product.values()):
        point = dict(zip(product, values, strict=True))
        run = {"sampler": copy.deepcopy(settings)}
        try:
            for path, value in point.items():
                set_setting(run, path, copy.deepcopy(value))
            built = SamplerSettings.of(run["sampler"])
            run_hooks.manager(run_hooks.policies_of(built))  # refuses broken policies now
        except (ConfigurationError, PluginError) as error:
            where = f"sampler {name!r}" + (f" at {_shown(point)}" if point else "")
            raise ConfigurationError(f"{where}: {error}") from None
        yield SamplerEntry(name=_named(name, point), settings=built, source=source, point=point)


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


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The data with relative paths of models and files taken from the study file's folder."""
    data = copy.deepcopy(data)
    for entry in data.get("models") or ():
        if isinstance(entry, dict) and str(entry.get("source", "")).startswith("."):
            entry["source"] = str(folder / entry["source"])
    for entry in data.get("tasks") or ():
        if isinstance(entry, dict):
            for key in ("path", "include_path"):
                if isinstance(entry.get(key), str) and not Path(entry[key]).is_absolute():
                    entry[key] = str(folder / entry[key])
    return data
