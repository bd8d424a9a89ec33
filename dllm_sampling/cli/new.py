"""The work of `new`: a plugin package that installs and passes its tests as written."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template

import dllm_sampling
from dllm_sampling import testing
from dllm_sampling.cli.terminal import say
from dllm_sampling.errors import ConfigurationError, unknown_name
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.plugins.registry import KIND_TITLES, SELECT

_TEMPLATES = Path(__file__).parent / "templates"


_RULE = (
    "Is it better?",
    "Seconds of a short run say as much about the machine as\n"
    "about the rule: look at the tokens per forward first.",
)
_WATCHED = (
    "What does it cost?",
    "Accuracy and tokens per forward must be the same with it and\n"
    "without it. Seconds of a short run say as much about the machine as about the observer.",
)


@dataclass(frozen=True)
class _Kind:
    """What the files of one kind say that the templates share. `$name` is filled in.

    kind: what the registry calls it. show: the command that lists it. readme: the question that its study
    answers and how to read the answer; None where the kind has a README of its own.
    """

    kind: str
    title: str
    example: str
    options: str = ""
    show: str = "strategies $name"
    readme: tuple[str, str] | None = _RULE
    more: tuple[str, ...] = ()


_KINDS = {
    "unmasking-policy": _Kind(
        "unmasking",
        "an unmasking policy",
        "it commits every position at which the most likely token leads the next one by `margin`",
        "--unmasking $name --set unmasking.margin=0.5",
    ),
    "cache-policy": _Kind(
        "cache",
        "a cache policy",
        "it recomputes the block alone, and everything every `interval` forwards",
        "--cache $name --set cache.interval=4",
    ),
    "block-schedule": _Kind(
        "schedule",
        "a block schedule",
        "it works on blocks, each `growth` positions longer than the one before",
        "--schedule $name --set schedule.growth=4",
    ),
    "transform": _Kind(
        "transforms",
        "a logits transform",
        "it sharpens the predictions of a row the more, the more of it is committed",
        "--set 'transforms=[{name: $name, sharpness: 3}]'",
    ),
    "wrapper": _Kind(
        "wrappers",
        "a wrapper",
        "it allows only positions less than `distance` behind the leftmost open target",
        "--set 'wrappers=[{name: $name, distance: 8}]'",
    ),
    "observer": _Kind(
        "observers",
        "an observer",
        "it writes to a file how many positions each forward committed",
        "--set 'observers=[{name: $name, path: commits.jsonl}]'",
        readme=_WATCHED,
    ),
    "model-family": _Kind(
        "backbone",
        "a model family",
        "it takes checkpoints with Llama's layers under Llama's names",
        show="plugins",
        readme=None,
        more=("make_checkpoint.py",),
    ),
    "task": _Kind(
        "task",
        "a task",
        "word problems of two steps, checked by the number behind the last ####",
        show="tasks $name",
        readme=None,
    ),
}


def new(kind: str, name: str, output: Path) -> None:
    """Write a package for one class of a kind into a new folder of `output`, whole or not at all.

    Raises ConfigurationError for an unknown kind, a name that cannot be used or is taken, and a folder
    that is there already.
    """
    if kind not in _KINDS:
        raise ConfigurationError(unknown_name("kind", kind, _KINDS))
    _check_spelling(name)
    package, module = name.replace("_", "-"), name.replace("-", "_")
    _check_free(package, module)
    if not output.is_dir():
        raise ConfigurationError(f"--output {str(output)!r}: there is no such folder.")
    target = output / package
    if os.path.lexists(target):
        raise ConfigurationError(f"{str(target)!r} exists already: choose another NAME or --output.")
    files = _files(kind, package, module)
    try:
        _write(files, target)
    except OSError as error:
        raise ConfigurationError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from None
    say(f"wrote {_KINDS[kind].title}, {module}, to {target}{os.sep}")
    for path in files:
        say(f"  {path}")
    say("\nnext")
    for command in (
        f"cd {shlex.quote(str(target))}",
        "pip install -e '.[test,study]'",
        "pytest",
        "dllm-sampling " + Template(_KINDS[kind].show).substitute(name=module),
        *([f"python {_KINDS[kind].more[0]} checkpoint"] if _KINDS[kind].more else []),
        "dllm-sampling compare study.yaml --limit 100",
    ):
        say(f"  {command}")


def _check_spelling(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", name).lower()
        nearest = "-".join(re.findall(r"[a-z0-9]+", words)).lstrip("0123456789-")
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise ConfigurationError(
            f"NAME {name!r}: allowed are lower-case letters and digits, in words joined by single - or _, "
            f"starting with a letter.{hint}"
        )


def _check_free(package: str, module: str) -> None:
    """Refuse a name under which something else is already found, by whatever finds it."""
    found = registry()
    for kind, title in KIND_TITLES.items():
        if module in found.names(kind):
            owner = found.owner(kind, module)
            raise ConfigurationError(
                f"NAME {module!r} is taken by the {title} of the plugin {owner.name} ({owner.source})."
            )
    for plugin in found.plugins:
        if plugin.name == module:
            raise ConfigurationError(f"NAME {module!r} is taken by an installed plugin ({plugin.source}).")
    if keyword.iskeyword(module):
        raise ConfigurationError(f"NAME {module!r} is a keyword of Python, so it cannot name a module.")
    if module in {"all", "none"}:
        raise ConfigurationError(f"NAME {module!r} selects plugins in {SELECT}, so it cannot name one.")
    spec = importlib.util.find_spec(module)
    # A namespace without an origin may be any folder beside us; it stands in nobody's way.
    if (spec is not None and spec.origin is not None) or _installed(package):
        raise ConfigurationError(f"NAME {module!r} is taken: a Python package of that name is installed.")
    name = _class_name(module)
    if name in {
        *dllm_sampling.__all__,
        *testing.__all__,
        "Any",
        "ClassVar",
        "Field",
        "Mapping",
        "Path",
        "Sequence",
        "Tensor",
    }:
        raise ConfigurationError(
            f"NAME {module!r} is taken: its class would be called {name}, as something that it imports."
        )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _class_name(module: str) -> str:
    return "".join(word.capitalize() for word in module.split("_"))


def _files(kind: str, package: str, module: str) -> dict[str, str]:
    """Every file of the package, with its text."""
    about = _KINDS[kind]
    question, reading = about.readme or ("", "")
    values = {
        "package": package,
        "name": module,
        "class_name": _class_name(module),
        "version": dllm_sampling.__version__,
        "title": about.title,
        "summary": f"{module}: {about.title} for dllm-sampling.",
        "example": about.example,
        "options": Template(about.options).substitute(name=module),
        "question": question,
        "reading": reading,
    }
    sources = {
        "README.md": f"{'package' if about.readme else kind}/README.md",
        "pyproject.toml": "package/pyproject.toml",
        ".gitignore": "package/gitignore",
        "study.yaml": f"{kind}/study.yaml",
        f"src/{module}/__init__.py": f"{kind}/module.py",
        f"tests/test_{module}.py": f"{kind}/test.py",
        **{name: f"{kind}/{name}" for name in about.more},
    }
    files = {
        path: Template((_TEMPLATES / f"{source}.tmpl").read_text(encoding="utf-8")).substitute(values)
        for path, source in sources.items()
    }
    return {**files, f"src/{module}/py.typed": ""}


def _write(files: dict[str, str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        folder = Path(beside) / target.name
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        folder.rename(target)
