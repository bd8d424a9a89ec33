"""The work of `strategies`, `tasks` and `plugins`."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dllm_sampling.cli.terminal import say, say_columns
from dllm_sampling.errors import ConfigurationError, unknown_name
from dllm_sampling.plugins import references
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.plugins.nested import POLICY_MARK
from dllm_sampling.plugins.registry import KIND_TITLES, SELECT, PluginInfo, Registry
from dllm_sampling.policies.kinds import KINDS, CachePolicy, Policy
from dllm_sampling.policies.named import Named
from dllm_sampling.tasks import Task

_SHIPPED = "dllm-sampling"


def strategies(name: str | None, *, as_json: bool, bibtex: bool = False) -> None:
    """Print every policy, or one of that name in full, or the BibTeX entries of what they build on."""
    if bibtex:
        _print_bibtex(name, as_json=as_json)
    else:
        _list(KINDS, "strategy", name, as_json=as_json)


def tasks(name: str | None, *, as_json: bool) -> None:
    """Print every task, or one of that name in full."""
    _list((Task,), "task", name, as_json=as_json)


def _list(kinds: Sequence[type[Named]], what: str, name: str | None, *, as_json: bool) -> None:
    entries = _entries(registry(), kinds)
    found = [entry for entry in entries if name in (None, entry["name"])]
    if not found:
        raise ConfigurationError(unknown_name(what, name, {entry["name"] for entry in entries}))
    if as_json:
        say(json.dumps(found, indent=2, default=str))
    elif name is not None:
        for entry in found:
            _print_one(entry)
    else:
        _print_table(found)


def _print_bibtex(name: str | None, *, as_json: bool) -> None:
    if as_json:
        raise ConfigurationError("give --json or --bibtex, not both.")
    if name is None:
        say("\n\n".join(references.shipped().values()))
        return
    source = registry()
    found = [cls for kind in KINDS for n, cls in source.classes(kind.kind).items() if n == name]
    if not found:
        known = {n for kind in KINDS for n in source.names(kind.kind)}
        raise ConfigurationError(unknown_name("strategy", name, known))
    say("\n\n".join(references.bibtex_of(cls) for cls in found))


def _entries(source: Registry, kinds: Sequence[type[Named]]) -> list[dict[str, Any]]:
    entries = []
    for kind in kinds:
        loaded, switched_off = source.classes(kind.kind), source.switched_off(kind.kind)
        for name, cls in sorted({**switched_off, **loaded}.items()):
            owner = source.owner(kind.kind, name)
            properties = cls.model_json_schema().get("properties", {})
            entries.append(
                {
                    "name": name,
                    "kind": kind.kind,
                    "title": KIND_TITLES[kind.kind],
                    "owner": owner.name,
                    "source": owner.source,
                    "status": "loaded" if name in loaded else "switched off",
                    "doc": inspect.getdoc(cls) or "",
                    **_facts(cls),
                    "parameters": {
                        field: {
                            "type": type_name(properties.get(field, {})),
                            "required": info.is_required(),
                            "default": None if info.is_required() else info.default,
                            "description": info.description or "",
                        }
                        for field, info in cls.model_fields.items()
                    },
                }
            )
    return entries


def _facts(cls: type[Named]) -> dict[str, Any]:
    """What a policy's class says of itself; nothing for a task."""
    if not issubclass(cls, Policy):
        return {}
    sources = [{"text": str(source), **asdict(source)} for source in cls.sources]
    facts: dict[str, Any] = {"rule": cls.rule, "needs": list(cls.needs), "sources": sources}
    if issubclass(cls, CachePolicy):
        facts["exact_with"] = cls.exact_with if cls.exact_with is None else dict(cls.exact_with)
    return facts


def exactness(settings: Mapping[str, object] | None) -> str:
    """What `exact_with` says of a cache policy, in a few words."""
    if settings is None:
        return "not exact"
    if not settings:
        return "exact"
    return "exact with " + ", ".join(f"{field}={value}" for field, value in settings.items())


def type_name(schema: dict[str, Any]) -> str:
    """A field's JSON Schema in a few words."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(type_name(option) for option in schema["anyOf"])
    if POLICY_MARK in schema:
        return KIND_TITLES[schema[POLICY_MARK]]
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    kind = schema.get("type", "any")
    if kind == "array":
        parts = schema.get("prefixItems") or [schema.get("items", {})]
        kind = (
            f"list of {len(parts)} {type_name(parts[0])}"
            if len(parts) > 1
            else f"list of {type_name(parts[0])}"
        )
    return " ".join([schema.get("format", kind), *limits])


def _print_table(entries: list[dict[str, Any]]) -> None:
    # Each entry on lines of its own reads well at any width, and in a pipe.
    kind = None
    for entry in entries:
        if entry["kind"] != kind:
            say(f"{'' if kind is None else chr(10)}{entry['title']} ({entry['kind']})")
            kind = entry["kind"]
        parameters = ", ".join(
            field if p["required"] else f"{field}={p['default']}" for field, p in entry["parameters"].items()
        )
        exact = f"  {exactness(entry['exact_with'])}" if "exact_with" in entry else ""
        off = "" if entry["status"] == "loaded" else f", {entry['status']}"
        say(f"  {entry['name']}({parameters})  [{entry['owner']}{off}]{exact}")
        say(f"      {next(iter(entry['doc'].splitlines()), '')}")


def _print_one(entry: dict[str, Any]) -> None:
    say(f"{entry['name']}: {entry['title']}, from {entry['owner']} ({entry['source']})")
    if entry["status"] != "loaded":
        say(f"{entry['status']}: by {SELECT} or --disable")
    say("")
    say(entry["doc"])
    said = {
        "rule": entry.get("rule", "").splitlines(),
        "sources": [source["text"] for source in entry.get("sources", ())],
        "needs": entry.get("needs", ()),
        "exactness": [exactness(entry["exact_with"])] if "exact_with" in entry else (),
    }
    for title, texts in said.items():
        if texts:
            say(f"\n{title}")
        for text in texts:
            say(textwrap.fill(text, 108, initial_indent="  ", subsequent_indent="      "))
    if entry["parameters"]:
        say("\nparameters")
    for field, p in entry["parameters"].items():
        default = "required" if p["required"] else f"default {p['default']}"
        say(f"  {field} ({p['type']}; {default})\n      {p['description']}")


def plugins(*, show_all: bool, as_json: bool) -> None:
    """Print installed plugins.

    Without `show_all`, neither disabled ones nor those that ship, unless they are broken or something of
    theirs is switched off.
    """
    found = [plugin for plugin in registry().plugins if show_all or _is_news(plugin)]
    if as_json:
        say(json.dumps([asdict(plugin) for plugin in found], indent=2))
        return
    if not found:
        say("no plugins besides those that ship (--all lists them)")
        return
    lines = [("plugin", "source", "status", "provides")]
    for plugin in found:
        offered = [f"{kind}: {', '.join(names)}" for kind, names in plugin.provides.items()]
        off = [name for names in plugin.switched_off.values() for name in names]
        if off:
            offered.append(f"switched off: {', '.join(off)}")
        lines.append((plugin.name, plugin.source, plugin.status, plugin.error or "; ".join(offered)))
    say_columns(lines)


def _is_news(plugin: PluginInfo) -> bool:
    """Whether a plugin is listed though not all are asked for."""
    if plugin.status == "broken" or plugin.switched_off:
        return True
    return plugin.status == "loaded" and not _ships(plugin.source)


def _ships(source: str) -> bool:
    return source.split(" ", maxsplit=1)[0] == _SHIPPED
