"""Settings from YAML, TOML and JSON: plain data of bounded size and depth, in which no key stands twice."""

from __future__ import annotations

import json
import math
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from dllm_sampling.errors import ConfigurationError, in_one_line, shown
from dllm_sampling.inputs.text_files import decoded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 500_000
MOST_VALUES = 20_000
DEEPEST = 40
_TOO_DEEP = f"is nested too deeply: at most {DEEPEST} levels are read."


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML, TOML or JSON file, by its ending.

    Raises ConfigurationError in one sentence for whatever cannot be read as that, for keys given twice, with
    their line, and for more than 500,000 bytes, 20,000 values or 40 levels, what aliases stand for included.
    """
    path = Path(path)
    where = in_one_line(str(path), 300)
    readers = {".yaml": parse_yaml, ".yml": parse_yaml, ".toml": _parse_toml, ".json": _parse_json}
    ending = path.suffix.lower()
    if ending not in readers:
        raise ConfigurationError(
            f"{where}: unknown ending {shown(path.suffix)}; known: {', '.join(readers)}."
        )
    try:
        data = _read(readers[ending], _text(path))
    except _Refused as refused:
        kind = {".yml": "YAML"}.get(ending, ending[1:].upper())
        raise ConfigurationError(f"{where}: {refused}".replace("$KIND", kind)) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigurationError(f"{where}: holds {type(data).__name__}, not a mapping of settings.")
    return data


def read_value(text: str) -> Any:
    """One value, written as YAML. Raises ConfigurationError in one sentence."""
    try:
        return _read(parse_yaml, text)
    except _Refused as refused:
        raise ConfigurationError(str(refused).replace("$KIND", "YAML")) from None


class _Refused(Exception):
    """Why a text holds no settings; `$KIND` stands for its format."""


def _text(path: Path) -> str:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _Refused("is a folder, not a file." if path.is_dir() else "is no regular file.")
        if found.st_size > MOST_BYTES:
            raise _Refused(f"has {found.st_size} bytes; settings have at most {MOST_BYTES}.")
        return decoded(path.read_bytes(), in_one_line(str(path), 300), ConfigurationError)
    except ConfigurationError:
        raise
    except OSError as error:
        raise _Refused(f"{error.strerror or error}.") from None
    except ValueError as error:  # a path that no file can have
        raise _Refused(f"{in_one_line(str(error))}.") from None


def _read(parse: Callable[[str], Any], text: str) -> Any:
    try:
        data = parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = in_one_line(error.problem or error.context or "not understood")
        raise _Refused(f"not readable as $KIND: {at}{problem}.") from None
    except RecursionError:
        raise _Refused(_TOO_DEEP) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _Refused(f"not readable as $KIND: {in_one_line(str(error)).rstrip('.')}.") from None
    _check_plain(data)
    return data


def _check_plain(data: Any) -> None:
    """Refuse what is too large, too deep, or no plain data: aliases count as often as they are used."""
    count, level = 1, [("", data)]
    for _ in range(DEEPEST):
        deeper = []
        for path, value in level:
            if isinstance(value, (dict, list)):
                count += len(value)
                _refuse_size(count)
            if isinstance(value, dict):
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise _Refused(f"a key must be text, not {shown(key)}{_in(path)}.")
                    deeper.append((f"{path}.{key}"[-200:], item))
            elif isinstance(value, list):
                deeper += [(path, item) for item in value]
            elif value is not None and type(value) not in {bool, int, float, str}:
                raise _Refused(
                    f"a value must be text, a number, true or false, not {shown(value)}{_in(path)}."
                )
            elif isinstance(value, float) and not math.isfinite(value):
                raise _Refused(f"a number must be finite, not {value}{_in(path)}.")
        level = deeper
        if not level:
            return
    raise _Refused(_TOO_DEEP)


def _refuse_size(count: int) -> None:
    if count > MOST_VALUES:
        raise _Refused(f"holds more than {MOST_VALUES} values, aliases written out.")


def _in(path: str) -> str:
    return f" in {in_one_line(path.lstrip('.'), 100)}" if path else ""


# YAML -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML's text, numbers, truth values, lists and mappings; dates stay text, and keys stand once."""

    nodes = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Counted while the text is read, which takes a while where it is long.
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        _refuse_size(self.nodes)
        if self.depth > DEEPEST:
            raise _Refused(_TOO_DEEP)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
        return super().construct_mapping(node, deep=deep)

    def refuse(self, node: Any) -> NoReturn:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _Refused(f"line {node.start_mark.line + 1} holds a {shown(tag)}, which is no plain data.")


_DATE = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN
}
_Loader.add_constructor(None, _Loader.refuse)
# As JSON, TOML and YAML 1.2 have it: 1e-3 is a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The data of a YAML text."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_size(_size(node, {}, set()))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: Any, known: dict[int, int], above: set[int]) -> int:
    """How many nodes there are where every alias is written out."""
    place = id(node)
    if place in above:
        raise _Refused(f"an alias in line {node.start_mark.line + 1} holds itself.")
    if place not in known:
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[place] = 1 + sum(_size(child, known, above | {place}) for child in children)
    return known[place]


def _refuse_twice(node: Any) -> None:
    first: dict[tuple[str, str], Any] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
            continue
        before = first.setdefault((key.tag, key.value), key)
        if before is not key:
            raise _Refused(
                f"the key {shown(key.value)} stands twice, in line {before.start_mark.line + 1} and in line "
                f"{key.start_mark.line + 1}."
            )


# TOML and JSON ---------------------------------------------------------------------------------------


def _parse_toml(text: str) -> Any:
    # A key of many parts takes tomllib the square of their number.
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > 2000 and '"' not in line and "'" not in line:
            raise _Refused(f"line {number} {_TOO_DEEP}")
    return tomllib.loads(text)


def _parse_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise _Twice(next(key for key in keys if keys.count(key) > 1))
        return found

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
    except _Twice as twice:
        _tell_line(text)
        raise _Refused(f"the key {shown(twice.args[0])} stands twice.") from None


class _Twice(Exception):
    """A key that one object holds twice."""


def _tell_line(text: str) -> None:
    """Refuse a key that stands twice with its line, where JSON is YAML too, as it mostly is."""
    try:
        parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
