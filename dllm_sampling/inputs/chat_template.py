"""Chat templates: programs that come with a checkpoint, and are rendered with their work counted.

A template is written in Jinja. transformers renders it in a sandbox that keeps it from Python, but not from
running for ever or filling the memory: two nested ranges are enough. Here it sees what transformers shows
it, and every turn of a loop, every call and the size of every value is charged to a budget. What is counted
does not depend on the clock, so that a template which renders on one machine renders on all.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from string import Formatter
from typing import TYPE_CHECKING, Any, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from dllm_sampling.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A budget in units of one character handled: a second or less of work, and a hundred times what published
# templates need for a conversation that fills a context.
WORK = 150_000_000
# What a turn of a loop or a call counts for, and an element of a list.
_TURN, _ELEMENT = 300, 20
# The largest value that may arise, the text itself included, and the most bits of a whole number.
LARGEST = 4_000_000
_BITS = 100_000
# Filters whose work may grow faster than their input take no more than this.
_SMALL = 20_000


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    work: int = WORK,
) -> str:
    """The text that the tokenizer's chat template makes of a conversation, as transformers would render it.

    Raises PromptError, which begins with "chat template:", where there is none, where it refuses these
    messages or is no Jinja, and where it does not come to an end within its budget, `work`.
    """
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        raise PromptError(f"chat template: {_first_line(error)}") from None
    if not isinstance(source, str):
        raise PromptError(f"chat template: it is text in Jinja, not a {type(source).__name__}.")
    if len(source) > LARGEST // 4:
        raise PromptError(f"chat template: it is longer than {LARGEST // 4} characters.")
    try:
        return _rendered(tokenizer, source, messages, add_generation_prompt, work)
    except Exception as error:  # noqa: BLE001 - a template is a program, and may fail in any way
        raise PromptError(f"chat template: {_first_line(error)}") from None


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    work: int,
) -> str:
    with budget(work):
        shown = [_with_reasoning(_plain({k: v for k, v in m.items() if v is not None})) for m in messages]
        charged(shown)
        return _compiled(source).render(
            **(
                {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
                | {
                    "messages": shown,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:500]
    if isinstance(error, jinja2.TemplateError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# What a template is shown -------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Values as JSON knows them; of anything else, its type's name alone."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning stands under every name that templates read."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


# The budget ---------------------------------------------------------------------------------------


class _TooMuchError(jinja2.TemplateError):
    """The budget is spent, or a value is too large."""


class _Budget:
    def __init__(self, work: int) -> None:
        self.left = work

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise _TooMuchError("it does not come to an end: its budget of work is spent.")


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def budget(work: int = WORK) -> Iterator[None]:
    """What is rendered inside may take so much work; more is a `jinja2.TemplateError`."""
    token = _budget.set(_Budget(work))
    try:
        yield
    finally:
        _budget.reset(token)


def _fits(size: int) -> None:
    """Refuse what would become too large, before it does."""
    if size > LARGEST:
        raise _TooMuchError(f"it makes a value or a text of more than {LARGEST} characters.")


def _weight(value: Any) -> int:
    """The size of a value with all that it holds, each time that it holds it; refused where too large."""
    total, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        total += 1
        if isinstance(value, (str, bytes)):
            total += len(value)
        elif isinstance(value, int):
            total += value.bit_length()
        elif isinstance(value, range):
            total += _ELEMENT * len(value)
        elif isinstance(value, Mapping):
            total += _ELEMENT * len(value)
            _fits(total)
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
            total += _ELEMENT * len(value)
            _fits(total)
            waiting += value
        _fits(total)
    return total


def charged(value: Any) -> Any:
    """The value itself; its size is charged to the budget."""
    _budget.get().spend(_TURN + _weight(value))
    return value


def _turn(value: Any = None) -> Any:
    _budget.get().spend(_TURN)
    return value


def _passed(value: Any) -> Any:
    """Charge a value that is handed on or copied; what its elements hold was weighed before."""
    size = 0
    if isinstance(value, (str, bytes)):
        size = len(value)
    elif isinstance(value, (list, tuple, range, Mapping)):
        size = _ELEMENT * len(value)
    _budget.get().spend(_TURN + size)
    return value


# Operations whose result may be much larger than what they are given --------------------------------

_Size = Callable[..., int]


def _times(text: Any, each: Any) -> int:
    """The size of a text with something before each of its characters."""
    return (len(str(text)) + 1) * int(each if isinstance(each, int) else len(str(each)))


def _replaced(text: Any, old: Any, new: Any, *more: Any) -> int:
    before, found = str(text), str(old)
    return len(before) + (before.count(found) if found else len(before) + 1) * len(str(new))


def _formatted(pattern: Any, values: Any) -> int:
    """What `%` or `format` makes at most: numbers in the text may be widths, and a value may stand often."""
    text = str(pattern)
    if re.search(r"%[^a-zA-Z%]*\*", text):
        raise _TooMuchError("a width that is given as an argument is not supported.")
    widths = sum(int(number[:12]) for number in re.findall(r"\d+", text))
    return len(text) + widths + (text.count("%") + text.count("{") + 1) * _weight(values)


def _formatted_by_name(text: Any, values: Any) -> int:
    if any(spec and "{" in spec for _, _, spec, _ in Formatter().parse(str(text))):
        raise _TooMuchError("a width that is given as an argument is not supported.")
    return _formatted(text, values)


_METHODS: dict[str, _Size] = {
    "replace": _replaced,
    "center": lambda text, width, *fill: abs(width),
    "ljust": lambda text, width, *fill: abs(width),
    "rjust": lambda text, width, *fill: abs(width),
    "zfill": lambda text, width: abs(width),
    "expandtabs": lambda text, tabsize=8: _times(text, abs(tabsize)),
    "join": lambda text, items: _weight(items) + len(text) * len(items),
    "translate": lambda text, table: len(text) * _weight(table),
    "format": lambda text, *args, **kwargs: _formatted_by_name(text, [args, kwargs]),
    "format_map": _formatted_by_name,
    "to_bytes": lambda number, length=1, *more, **kwargs: length,
}
_FILTERS: dict[str, _Size] = {
    "replace": _replaced,
    "center": lambda text, width=80: abs(width),
    "indent": lambda text, width=4, *more, **kwargs: _times(text, width),
    "join": lambda items, d="", attribute=None: _weight(items) + len(str(d)) * len(items),
    "tojson": lambda x, ensure_ascii=False, indent=None, separators=("", ""), sort_keys=False: (
        _weight(x) * (1 + sum(map(len, separators or ())) + (indent if isinstance(indent, int) else 0))
        + _times(x if isinstance(indent, str) else "", indent or "")
    ),
    "format": lambda text, *args, **kwargs: _formatted(text, [args, kwargs]),
}  # fmt: skip
# Filters that hand on what they are given; that copy a list; and further ones whose work is in proportion to
# all that they are given.
_PASSING = {"attr", "count", "d", "default", "first", "last", "length", "safe"}
_COPYING = {"items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"}
_LINEAR = {
    "abs", "capitalize", "dictsort", "e", "escape", "float", "int", "lower", "max", "min", "random", "round",
    "sort", "string", "title", "trim", "unique", "upper",
}  # fmt: skip
_COMPARING = {
    "in", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">",
    "ge", ">=",
}  # fmt: skip


def counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose work is charged to the budget; `name` says how that work grows."""
    size = _FILTERS.get(name)
    # Jinja hands some filters its context, its environment or its settings first.
    skipped = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        given = list(args[skipped:])
        if name in _PASSING or name in _COPYING:
            (_passed if name in _COPYING else _turn)(given[0] if given else None)
            return function(*args, **kwargs)
        if name == "join" and given and not isinstance(given[0], str):
            given[0] = list(given[0])
        weight = _weight([given, kwargs])
        _budget.get().spend(_TURN + weight)
        if size is not None:
            _fits(size(*given, **kwargs))
        elif name not in _LINEAR:
            _fits(weight * (LARGEST // _SMALL))
            numbers = [n for n in [*given, *kwargs.values()] if isinstance(n, int)]
            _fits(max(map(abs, numbers), default=0) * (LARGEST // _SMALL))
        return charged(function(*args[:skipped], *given, **kwargs))

    return counted


def _counted_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    charge = charged if name in _COMPARING else _turn

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        charge(args)
        return function(*args, **kwargs)

    return counted


def _joined(items: list[Any]) -> str:
    """The operator `~`."""
    charged(items)
    return "".join(map(str, items))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: transformers marks by it what an assistant wrote, which nothing here asks for."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Counting(NodeTransformer):
    """Adds to a parsed template what charges loops, calls and values to the budget."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.Concat):
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return self._filtered(parts, "~")
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            none = nodes.Const(None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(self._filtered(none, "turn"), lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = self._filtered(node.test, "turn")
        if isinstance(node, nodes.Compare):
            node.expr = self._filtered(node.expr, "charged")
            for operand in node.ops:
                operand.expr = self._filtered(operand.expr, "charged")
        made = isinstance(node, (nodes.List, nodes.Dict)) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        )
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._filtered(node, "passed")
        return self._filtered(node, "charged") if made else node

    @staticmethod
    def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """transformers' settings of Jinja's sandbox. What `counted` makes is rendered within a `budget`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=charged,
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: counted_filter(name, each) for name, each in self.filters.items()}
        self.filters |= {"~": _joined, "turn": _turn, "passed": _passed, "charged": charged}
        tests = cast("dict[str, Callable[..., Any]]", self.tests)
        self.tests = {name: _counted_test(name, each) for name, each in tests.items()}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _dict,
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]  # text without end, by chance

    def counted(self, source: str) -> jinja2.Template:
        """The template of a text, with what charges its work to the budget."""
        code = self.compile(_Counting().visit(self.parse(source)))
        return self.template_class.from_code(self, code, self.globals)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            _fits(size)
            kept.append(piece)
        _budget.get().spend(size)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        weights = _weight(left), _weight(right)
        _budget.get().spend(_TURN + sum(weights))
        if operator in ("*", "**"):
            if isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
                _fits(bits * (LARGEST // _BITS))
            elif isinstance(right, int):
                _fits(weights[0] * abs(right))
            elif isinstance(left, int):
                _fits(weights[1] * abs(left))
        if operator == "%" and isinstance(left, str):
            _fits(_formatted(left, right))
        return charged(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Jinja adds what the loops and blocks around define, for functions that want its context.
        named = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        for each in (*args, *named.values()):
            _passed(each)
        # `format` of a text comes in a wrapper of the sandbox.
        method = getattr(__obj, "__wrapped__", __obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, bytes, int)):
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
            if name in _METHODS:
                _fits(_METHODS[name](owner, *args, **named))
            charged(owner)
        return charged(super().call(__context, __obj, *args, **kwargs))


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:500])


def _strftime_now(format: str) -> str:
    _fits(len(format) * (LARGEST // 1000))
    return datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    """Jinja's, without names that reach into Python, and printed without what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _allowed(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _allowed(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _allowed(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.TemplateError(f"a namespace cannot hold the name {name!r}.")


@functools.cache
def _environment() -> Sandbox:
    return Sandbox()


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    return _environment().counted(source)
