"""Where a stranger's Jinja program is run: Jinja's sandbox, in which all that is made has a price and a render has a budget.

Jinja's own sandbox hides Python from a template, but lets it double a string thirty times or loop a billion times. Here every
character that an operator, a filter, a method or a block makes, and every turn of a loop, is paid for before it is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import GeneratorType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["Bounded", "budget"]

_STEP = 64  # what a turn of a loop, a call, an element or a new string costs beside its characters
_MACRO = 512  # what a call of a macro costs, which takes as long as some turns
_LARGEST_POWER, _LARGEST_PRODUCT, _LONGEST_RANGE = 64, 2**20, 1000
_WIDEST = 256  # bits of a number, which could be doubled without end
_WIDEST_PADDING = 999  # characters that a text is padded to, by a format or a method
_MOST_ESCAPED = 12  # characters that one may become: \ud83d\ude00
_COUNTED = "luban_counted"

_left: ContextVar[list[int] | None] = ContextVar("left", default=None)
"""Characters that may still be made, in a list of one; None outside of a render."""


@contextmanager
def budget(characters: int) -> Iterator[None]:
    """Let what is rendered inside make so many characters."""
    token = _left.set([characters])
    try:
        yield
    finally:
        _left.reset(token)


def _pay(price: int) -> None:
    left = _left.get()
    assert left is not None, "a template is rendered within a budget"
    left[0] -= price
    if left[0] < 0:
        raise SecurityError("it makes too much text of a conversation, or loops for too long")


def _weight(*values: Any) -> int:
    """Return a bound of the characters in which values are written, however they refer to each other."""
    left = _left.get()
    total, stack, most = 0, list(values), 0 if left is None else left[0]
    while stack and total <= most:
        one = stack.pop()
        total += _STEP
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            stack += one
        elif isinstance(one, Namespace):
            stack += object.__getattribute__(one, "_Namespace__attrs").values()
    return total


class Namespace(jinja2.utils.Namespace):
    """One whose names give no way to Python's inner attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")


# --- what is paid for -------------------------------------------------------------------------------------


def _counted(value: Any) -> list[Any]:
    """Return what a loop goes through, paid for."""
    if isinstance(value, str):
        _pay(_STEP * len(value))
    listed = list(value)
    _pay(_STEP * (1 + len(listed)))
    return listed


def _joined(parts: Iterable[Any]) -> str:
    """Concatenate with ``~``: anything becomes a text."""
    parts = list(parts)
    _pay(_STEP + sum(len(one) if isinstance(one, str) else _MOST_ESCAPED * _weight(one) for one in parts))
    return "".join(map(str, parts))


def _concat(parts: Iterable[str]) -> str:
    """Put together what a block has written."""
    left, kept = _left.get(), []
    assert left is not None, "a template is rendered within a budget"
    for one in parts:  # which may be made, and paid for, only now
        left[0] -= 1 + len(one)
        if left[0] < 0:
            _pay(0)
        kept.append(one)
    return "".join(kept)


def _shown(value: Any) -> Any:
    """Pay for what is written of a value that is no text."""
    if not isinstance(value, str):
        _pay(_MOST_ESCAPED * _weight(value))
    return value


def _replacing(text: str, old: str, new: str) -> int:
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _require_narrow(form: str) -> None:
    """Refuse a format that pads by more than three digits, or by as much as an argument says."""
    if re.search(r"[%:.][^a-zA-Z%{}]*(\d{4}|\*)|\{[^{}]*\{", form):
        raise SecurityError(f"a format may not be as wide as {form[:20]!r}")


def _padded(text: str, width: Any) -> int:
    """Return the characters of a text that is padded; refuse what a format may not do either."""
    if not isinstance(width, int):
        return len(text)
    if width > _WIDEST_PADDING:
        raise SecurityError(f"a text may be padded to {_WIDEST_PADDING} characters at most")
    return max(len(text), width)


def _formatting(form: str, arguments: Any) -> int:
    _require_narrow(form)
    places = form.count("%") + form.count("{")
    return 1000 * places + len(form) + places * _MOST_ESCAPED * _weight(arguments)


_PLAIN = frozenset(
    {
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last", "length",
        "list", "lower", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort",
        "title", "trim", "unique", "upper", "wordcount",
    }
)  # fmt: skip
"""Filters that make no more than what goes in, whatever their arguments."""


def _paid(name: str, function: Any) -> Any:
    """Return a filter that pays for what it makes."""
    taken = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def paying(*arguments: Any, **named: Any) -> Any:
        before, value, rest = arguments[:taken], arguments[taken], arguments[taken + 1 :]
        if isinstance(value, Iterator | GeneratorType):
            value = _counted(value)
        others = [*rest, *named.values()]
        weight = _STEP if name in ("d", "default", "length", "count", "first", "last") else _weight(value)
        if name in _PLAIN:
            price = weight * (_STEP if isinstance(value, str) and name == "list" else 1)
        elif name == "replace" and all(isinstance(one, str) for one in (value, *rest[:2])) and len(rest) > 1:
            price = _replacing(value, rest[0], rest[1])
        elif name == "join" and (not rest or isinstance(rest[0], str)):
            between = rest[0] if rest else named.get("d", "")
            value = _counted(value)
            price = weight + len(value) * len(str(between))
        elif name == "format":
            price = _formatting(str(value), others)
        else:
            sizes = [abs(one) if isinstance(one, int) else _weight(one) for one in others]
            price = weight * (_MOST_ESCAPED + sum(sizes))
        _pay(price)
        return function(*before, value, *rest, **named)

    return paying


def _weighing(test: Any) -> Any:
    """Return a test that pays for what it looks at."""

    @wraps(test)
    def paying(*arguments: Any, **named: Any) -> Any:
        for one in (*arguments, *named.values()):
            Bounded.weighed(one)
        return test(*arguments, **named)

    return paying


_SHORTENING = frozenset(
    {
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
        "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower", "lstrip", "partition",
        "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
        "swapcase", "title", "upper", "join", "replace", "format", "format_map", "center", "ljust", "rjust", "zfill",
    }
)  # fmt: skip
"""Methods of texts that a template may call: those that make no more than the text, and some with a price of their own."""
_PADDING = frozenset({"center", "ljust", "rjust", "zfill"})


class _Generator(CodeGenerator):
    """Writes the Python of a template; what would be Python's own operators there asks the environment."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible  # nothing is computed while a template is compiled, when there is no budget yet
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for edge in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if edge is None:
                self.write("None")
            else:
                self.visit(edge, frame)
        self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(")
        self._weighed(node.expr, frame)
        for one in node.ops:
            self.write(f" {operators[one.op]} ")
            self._weighed(one.expr, frame)
        self.write(")")

    def _weighed(self, node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.weighed(")
        self.visit(node, frame)
        self.write(")")


class _Marked(Extension):
    """``{% generation %}`` marks what a model writes; here that is found without marks, and their inside is kept."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """Return what stands between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Bounded(ImmutableSandboxedEnvironment):
    """The environment that `transformers` renders in (`utils/chat_template_utils.py`), with a price for all that is made."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "-", "*", "**", "%"])
    concat = staticmethod(_concat)
    joined = staticmethod(_joined)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Marked, loopcontrols],
            optimized=False,
            finalize=_shown,
        )
        self.filters = {name: _paid(name, one) for name, one in {**self.filters, "tojson": _tojson}.items()}
        self.filters[_COUNTED] = _counted
        self.tests = {name: _weighing(one) for name, one in self.tests.items()}
        del self.globals["lipsum"]  # which writes as much as it is told to
        self.globals |= {"range": _range, "dict": _dict, "namespace": Namespace, "raise_exception": _raise}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno, environment=self
            )
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if any(isinstance(one, int) and one.bit_length() > _WIDEST for one in (left, right)):
            raise SecurityError(f"a template may not compute with numbers of more than {_WIDEST} bits")
        if operator == "+":
            if type(left) is str and type(right) is str:  # most of what templates do
                _pay(_STEP + len(left) + len(right))
                return left + right
            if isinstance(left, str | list | tuple):
                _pay(_STEP + len(left) + (len(right) if isinstance(right, str | list | tuple) else 0))
        elif operator == "%":
            if isinstance(left, str):
                _pay(_formatting(left, right))
        elif operator != "-":
            sizes = [len(one) if isinstance(one, str | list | tuple) else abs(one) for one in (left, right)]
            if (operator == "**" and max(sizes) > _LARGEST_POWER) or sizes[0] * sizes[1] > _LARGEST_PRODUCT:
                raise SecurityError(f"a template may not compute so large a {operator}")
            _pay(int(sizes[0] * sizes[1]))
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def weighed(value: Any) -> Any:
        """Return a value that is compared, paid for: a search reads all of a text."""
        if isinstance(value, str):
            _pay(1 + len(value))
        elif isinstance(value, list | tuple | dict):
            _pay(_weight(value))
        return value

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return a part of a value, paid for."""
        _pay(_STEP + (len(value) if isinstance(value, str | list | tuple) else 0))
        return value[start:stop:step]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _SHORTENING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @wraps(formatted)
        def paying(*arguments: Any, **named: Any) -> str:
            _pay(_formatting(value.__self__, [*arguments, *named.values()]))
            text: str = formatted(*arguments, **named)
            return text

        return paying

    def call(self, context: Any, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        price = _STEP * (1 + len(arguments) + len(named))
        if isinstance(owner, str):
            if name == "replace" and len(arguments) > 1:
                price += _replacing(owner, *map(str, arguments[:2]))
            elif name == "join" and arguments:
                listed = _counted(arguments[0])
                arguments = (listed,)
                price += _weight(listed) + len(owner) * len(listed)
            elif name in ("split", "rsplit", "splitlines"):
                one = arguments[0] if arguments and isinstance(arguments[0], str) else ""
                price += len(owner) + _STEP * (owner.count(one) if one else len(owner) // 2 + 1)
            elif name in _PADDING and arguments:
                price += _padded(owner, arguments[0])
            else:
                price += len(owner)
        elif isinstance(owner, list | tuple | dict):
            price += _STEP * len(owner)
        elif isinstance(obj, LoopContext) and arguments:
            arguments = (_counted(arguments[0]), *arguments[1:])
        elif isinstance(obj, Macro):
            price += _MACRO
        elif name == "strftime" and arguments:
            price += _formatting(str(arguments[0]), ())
        _pay(price)
        return super().call(context, obj, *arguments, **named)


def _range(*bounds: int) -> range:
    """A range of a thousand numbers at the most; templates count turns and tools with it."""
    numbers = range(*bounds)
    if len(numbers) > _LONGEST_RANGE:
        raise ValueError(
            f"a template may count to {_LONGEST_RANGE}, and this one counts {len(numbers)} numbers"
        )
    return numbers


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    made = dict(*args, **kwargs)
    _pay(_STEP * (1 + len(made)))
    return made


def _raise(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Without Jinja's own escapes for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
