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
from dllm_sampling.policies.kinds import KINDS

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class _Kind:
    """What the files of one kind say that the templates share. `$name` is filled in."""

    title: str
    example: str
    options: str


_KINDS = {
    "unmasking-policy": _Kind(
        "an unmasking policy",
        "it commits every position at which the most likely token leads the next one by `margin`",
        "--unmasking $name --set unmasking.margin=0.5",
    ),
    "cache-policy": _Kind(
        "a cache policy",
        "it recomputes the block alone, and everything every `interval` forwards",
        "--cache $name --set cache.interval=4",
    ),
    "block-schedule": _Kind(
        "a block schedule",
        "it works on blocks, each `growth` positions longer than the one before",
        "--schedule $name --set schedule.growth=4",
    ),
    "transform": _Kind(
        "a logits transform",
        "it sharpens the predictions of a row the more, the more of it is committed",
        "--set 'transforms=[{name: $name, sharpness: 3}]'",
    ),
}


def new(kind: str, name: str, output: Path) -> None:
    """Write a package for one strategy into a new folder of `output`, whole or not at all.

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
        f"dllm-sampling strategies {module}",
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
    for kind in KINDS:
        if module in found.names(kind.kind):
            owner = found.owner(kind.kind, module)
            raise ConfigurationError(
                f"NAME {module!r} is taken by the {KIND_TITLES[kind.kind]} of the plugin {owner.name} "
                f"({owner.source})."
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
    if name in {*dllm_sampling.__all__, *testing.__all__, "ClassVar", "Field", "Tensor"}:
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
    values = {
        "package": package,
        "name": module,
        "class_name": _class_name(module),
        "version": dllm_sampling.__version__,
        "title": about.title,
        "summary": f"{module}: {about.title} for dllm-sampling.",
        "example": about.example,
        "options": Template(about.options).substitute(name=module),
    }
    sources = {
        "README.md": "package/README.md",
        "pyproject.toml": "package/pyproject.toml",
        ".gitignore": "package/gitignore",
        "study.yaml": f"{kind}/study.yaml",
        f"src/{module}/__init__.py": f"{kind}/module.py",
        f"tests/test_{module}.py": f"{kind}/test.py",
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
