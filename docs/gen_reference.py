"""What the documentation takes from the code, while mkdocs builds it.

Two pages are made here, `hooks.md` and `cli.md`. In the others `{{ signature: NAME }}` becomes the
signature of a public name, and `{{ public names: MODULE }}` the reference of all that a module offers.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import griffe
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import dllm_sampling
import dllm_sampling.testing
from dllm_sampling.cli.app import app
from dllm_sampling.engine import answers, run_hooks
from dllm_sampling.plugins.offers import DiscoverySpec
from dllm_sampling.plugins.registry import BASES, KIND_TITLES
from dllm_sampling.policies import run_spec
from dllm_sampling.policies.kinds import KINDS, LIFECYCLE
from dllm_sampling.policies.run_spec import HOOK_VERSION, RunSpec

ROOT = Path(__file__).parent.parent

# Signatures --------------------------------------------------------------------------------------


def public(name: str) -> Any:
    """What a dotted name such as `Sampler.generate` means: a public name, or a hook of `RunSpec`."""
    first, *rest = name.split(".")
    homes: list[Any] = [dllm_sampling, dllm_sampling.testing]
    home = next((module for module in homes if first in module.__all__), run_spec)
    found: Any = home
    for part in (first, *rest):
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    return found.__func__ if isinstance(found, (classmethod, staticmethod)) else found


def signature(name: str, found: Any) -> str:
    """`def name(...) -> ...:`, a parameter a line where it is long."""
    function = found.__init__ if inspect.isclass(found) else found
    own = inspect.signature(function)
    parameters = list(own.parameters.values())
    if inspect.isclass(found):
        parameters = parameters[1:]
    shown = own.replace(parameters=parameters)
    # Annotations are strings; without their quotes they read as they stand in the code.
    head = "" if inspect.isclass(found) else "def "
    text = head + name + _unquoted(shown)
    if len(text) <= 96:
        return text
    lines = [head + name + "("]
    kind = None
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and kind is not parameter.kind:
            lines.append("    *,")
        kind = parameter.kind
        lines.append(f"    {_unquoted(inspect.Signature([parameter]))[1:-1].removeprefix('*, ')},")
    returns = _unquoted(shown.replace(parameters=[]))[2:]
    return "\n".join([*lines, ")" + returns])


def _unquoted(own: inspect.Signature) -> str:
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(own))


def _block(text: str) -> str:
    return f"```python\n{text}\n```\n"


# Pages -------------------------------------------------------------------------------------------


def hooks_page() -> str:
    """The hook reference: the docstrings of the specifications, and what the engine knows of each hook."""
    parts = [
        "# Hooks\n",
        f"Made from the docstrings of the code; this is version {HOOK_VERSION} of the hooks. A plugin module "
        "may say which one it was written for: `HOOK_VERSION = 1`; another one is refused.\n",
        "## Hooks of a run\n",
        f"{inspect.getdoc(RunSpec)}\n",
        "| hook | called | answered by |\n|---|---|---|",
    ]
    for name, function in _hooks(RunSpec).items():
        parts.append(f"| [`{name}`](#{name}) | {first_sentence(function, 'Called')} | {answered_by(name)} |")
    parts.append("")
    for name, function in _hooks(RunSpec).items():
        held = (
            "Policies that another one holds in a field are asked, too."
            if name in run_hooks.ANSWERED_WHEN_HELD
            else "Of a policy that another one holds in a field, only the holder can ask it."
        )
        parts += [
            f"### {name} {{#{name}}}\n",
            _block(signature(name, function)),
            _docstring_of(function),
            f"**Answered by** {answered_by(name)}. {held}\n",
        ]
    parts += [
        "## Methods that the engine calls itself\n",
        "These are no hooks of pluggy: each is called on one policy alone, and cannot be wrapped.\n",
    ]
    for method in called_by_the_engine():
        parts += [
            f"### {method.__qualname__}\n",
            _block(signature(method.__name__, method)),
            _docstring_of(method),
        ]
    kinds = "\n".join(
        f"| `{base.__name__}` | `{kind}` | {KIND_TITLES[kind]} |" for kind, base in BASES.items()
    )
    parts += [
        "## Hooks that a policy brings\n",
        "`own_hooks` of a policy names a class whose methods are further hooks. The policy asks them as "
        "`state.hooks.NAME(argument=...)`; policies of every kind, held ones too, answer with a method of "
        "that name. [Plugins](writing/plugins.md#hooks-of-your-own).\n",
        "## The hook of discovery\n",
        "A function of a plugin module. It is called once in a process and setting of the environment "
        "variables, when the registry is first asked for something. [Plugins](writing/plugins.md).\n",
    ]
    for name, function in _hooks(DiscoverySpec).items():
        parts += [
            f"### {name} {{#{name}}}\n",
            _block(signature(name, function)),
            f"{inspect.getdoc(function)}\n",
        ]
    parts.append(f"| base | its `kind` | what it is |\n|---|---|---|\n{kinds}\n")
    return "\n".join(parts)


def _hooks(spec: type) -> dict[str, Any]:
    return {name: function for name, function in vars(spec).items() if not name.startswith("_")}


def called_by_the_engine() -> list[Any]:
    """Methods of policies whose answers are checked without being hooks."""
    names = answers.CHECKS.keys() - run_spec.hook_names(RunSpec)
    return [vars(kind)[name] for kind in KINDS for name in vars(kind) if name in names]


def answered_by(hook: str) -> str:
    """The kinds of policies that may answer a hook; a wrapper may stand around any."""
    if hook in LIFECYCLE:
        return "policies of every kind"
    return ", ".join(kind.__name__ for kind in KINDS if hook in kind.hooks)


def sections(function: Any) -> dict[str, Any]:
    """What stands under each heading of a docstring, by heading, in order."""
    # As mkdocs.yml has it.
    options = {"returns_multiple_items": False, "returns_named_value": False, "warnings": False}
    parsed = griffe.Docstring(inspect.getdoc(function) or "").parse("google", **options)
    return {
        section.title or section.kind.value: section.value
        for section in parsed
        if section.kind is not griffe.DocstringSectionKind.text
    }


def first_sentence(function: Any, heading: str) -> str:
    """The first sentence under a heading of the contract."""
    text = " ".join(sections(function)[heading].contents.split())
    return text.partition(". ")[0].rstrip(".")


def _docstring_of(function: Any) -> str:
    """mkdocstrings' directive for a docstring alone."""
    options = {"show_root_heading": False, "show_root_toc_entry": False}
    lines = [f"      {option}: {str(value).lower()}" for option, value in options.items()]
    return "\n".join([f"::: {function.__module__}.{function.__qualname__}", "    options:", *lines, ""])


def commands() -> dict[str, str]:
    """Every command by its full name, with what `--help` prints of it."""
    found: dict[str, str] = {}

    def walk(command: Any, name: str, parent: Any) -> None:
        context = command.context_class(
            command, info_name=name, parent=parent, **{"terminal_width": 90} | command.context_settings
        )
        text: str = command.get_help(context)
        found[context.command_path] = "\n".join(line.rstrip() for line in text.splitlines())
        for key, inner in getattr(command, "commands", {}).items():
            walk(inner, key, context)

    walk(typer.main.get_command(app), "dllm-sampling", None)
    return found


def cli_page() -> str:
    """The reference of the command line."""
    parts = [
        "# Command line\n",
        "What each command prints for `--help`. Answers and tables go to stdout, everything else to stderr. "
        "Exit codes: 0 done, 1 a study with a cell that failed, 2 an error of the user, with one line that "
        "says what to change.\n",
    ]
    for name, text in commands().items():
        parts += [f"## {name}\n", f"```text\n{text}\n```\n"]
    return "\n".join(parts)


def public_names(module: str) -> str:
    """mkdocstrings' directives for every public name of a module, grouped by where it is defined."""
    found = importlib.import_module(module)
    groups: dict[str, list[str]] = {}
    for name in found.__all__:
        home = getattr(getattr(found, name), "__module__", "").removeprefix("dllm_sampling.").split(".")
        groups.setdefault(home[0] if module == "dllm_sampling" else home[-1], []).append(name)
    parts = []
    for home, names in groups.items():
        parts.append(f"### {home.lstrip('_')}\n" if len(groups) > 1 else "")
        for name in names:
            parts.append(f"::: {module}.{name}\n    options:\n      heading_level: 4\n")
    return "\n".join(parts)


# What mkdocs calls -------------------------------------------------------------------------------

# Pages that lie outside docs/, where other pages may link to them.
OUTSIDE = ("benchmarks/README.md", "benchmarks/LOG.md")
# Written by others when they have run: until then a page that says so stands in their place.
PENDING = {"examples/catalogue.md": "# Every shipped strategy\n\nThis study has not been run yet.\n"}
CATALOGUE = "catalogue/index.md"
_SIGNATURE = re.compile(r"^\{\{ signature: ([\w.]+) \}\}$", re.MULTILINE)
_PUBLIC = re.compile(r"^\{\{ public names: ([\w.]+) \}\}$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every page of the catalogue in the navigation, behind its index."""
    pages = sorted(path.stem for path in Path(config.docs_dir, "catalogue").glob("*.md"))
    listed = [CATALOGUE, *({name: f"catalogue/{name}.md"} for name in pages if name != "index")]
    for section in config.nav or []:
        for entry in next(iter(section.values())):
            if isinstance(entry, dict) and CATALOGUE in entry.values():
                entry[next(iter(entry))] = listed
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made here, and what lies outside docs/."""
    files.append(File.generated(config, "hooks.md", content=hooks_page()))
    files.append(File.generated(config, "cli.md", content=cli_page()))
    for path, text in PENDING.items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=text))
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in signatures and public names; make links out of docs/ lead to the page of this site."""
    try:
        markdown = _SIGNATURE.sub(
            lambda m: _block(signature(m[1].rpartition(".")[2], public(m[1]))), markdown
        )
        markdown = _PUBLIC.sub(lambda m: public_names(m[1]), markdown)
    except (AttributeError, ImportError) as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
    return markdown.replace("](../benchmarks/", "](benchmarks/")
