"""Rendering a stranger's chat template, with a bound on its work and its memory.

The environment is the one transformers renders with: jinja2's immutable sandbox, which keeps a
template away from Python's internals. It does not keep one from looping for hours
(``range(99999)`` in itself three times) or from filling the memory (``'a' * 10**10``), so every
step of a template is paid from a budget of ``WORK`` units.

One unit is one pass through a node of a loop's or macro's body, one element of a list, one
character of a text or one bit of a whole number. Operators, filters, tests, calls, comparisons,
slices, displays and output all pay for what they take and for what they make; those whose result
can be much larger than what they take (``*``, ``**``, format widths, ``center``, ``replace``, ...)
pay in advance. So no value of a template has more than ``WORK`` characters and elements, and its
steps are bounded too. Counting instead of a clock makes the answer the same on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from string import Formatter
from types import GeneratorType
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

WORK = 250_000
"""The budget. Templates of published models use five percent of it or less."""
LONGEST = 65_536
"""Characters of a template. Those of published models have at most some twenty thousand."""
_LARGEST = 10_000  # nodes of a template's tree, for each of which code is compiled
_DEEPEST = 50
_SCOPES = frozenset({"_loop_vars", "_block_vars"})  # that jinja2's compiler adds to each call
_WIDTH = re.compile(r"\d+")
_STARRED = re.compile(r"%[^a-zA-Z%]*\*")


class TooMuchWorkError(Exception):
    """A template spent its budget."""


class RefusedError(TemplateError):
    """The template called ``raise_exception``: it does not take this conversation."""


def undeclared(text: str) -> tuple[str, ...]:
    """The names a template uses and does not set, sorted."""
    from jinja2.meta import find_undeclared_variables

    environment = _Environment()
    known = environment.globals.keys()
    return tuple(sorted(find_undeclared_variables(environment.parse(text)) - known))


def literals(text: str) -> tuple[str, ...]:
    """Every piece of text a template can print and every text constant, in order."""
    tree = _Environment().parse(text)
    values: list[object] = []
    for node in tree.find_all((nodes.TemplateData, nodes.Const)):
        values.append(node.value if isinstance(node, nodes.Const) else getattr(node, "data", None))
    return tuple(value for value in values if isinstance(value, str))


class Sandbox:
    """A template, compiled once and rendered with a budget each time.

    Raises:
        TooMuchWorkError: compiling it would take too long.
        Exception: what jinja2 and Python raise for a text that is no template.
    """

    def __init__(self, text: str) -> None:
        self._environment = _Environment()
        tree = self._environment.parse(text)
        if sum(1 for _ in _everything(tree)) > _LARGEST:
            raise TooMuchWorkError
        tree = _Metered(self._environment).visit(tree)
        tree.set_environment(self._environment)
        code = self._environment.compile(tree)
        self._template = self._environment.template_class.from_code(
            self._environment, code, self._environment.globals
        )

    def render(self, variables: Mapping[str, Any]) -> str:
        """What the template prints.

        Raises:
            RefusedError: by the template itself.
            TooMuchWorkError: the budget is spent.
            Exception: anything else that a template can cause.
        """
        self._environment.left = WORK
        return self._template.render(variables)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers, in which everything is paid for."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        self.left = WORK
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=self.paid,
        )
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters["tojson"] = _tojson
        tables: list[dict[str, Any]] = [self.filters, self.tests]
        for table in tables:
            for name, function in table.items():
                table[name] = self._metered(name, function)
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]  # makes text of any length and is in no chat template

    # --- paying ---

    def pay(self, units: int) -> None:
        """Take units from the budget."""
        self.left -= units
        if self.left < 0:
            raise TooMuchWorkError

    def step(self, units: int) -> bool:
        """Pay for one pass through a body; true, so that it can stand in a condition."""
        self.pay(units)
        return True

    def paid(self, value: Any) -> Any:
        """The value, after paying for its size."""
        self._size(value)
        return value

    def _size(self, value: Any, depth: int = 0) -> int:
        """Pay for a value and everything in it as often as it is in it; how much that was."""
        before = self.left
        if depth > _DEEPEST:
            raise TooMuchWorkError
        if isinstance(value, str | bytes | range):
            self.pay(1 + len(value))
        elif isinstance(value, int):
            self.pay(1 + value.bit_length())
        elif isinstance(value, Collection):
            self.pay(1)
            for item in value:
                self._size(item, depth + 1)
                if isinstance(value, Mapping):
                    self._size(value[item], depth + 1)
        else:
            self.pay(1)
        return before - self.left

    def _arguments(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> int:
        """Pay for arguments; their size, in which a number counts as much as it says."""
        total = 0
        for value in (*args, *kwargs.values()):
            if isinstance(value, Environment | EvalContext | Context):
                continue
            total += self._size(value)
            if isinstance(value, int) and not isinstance(value, bool):
                total += min(abs(value), WORK + 1)
        return total

    def _result(self, value: Any) -> Any:
        if isinstance(value, GeneratorType):
            return (self.paid(item) for item in value)
        return self.paid(value)

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that pays: the worst case is that it puts every argument after the
        first at each place of the first, as ``replace`` and ``join`` do.
        """

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            own = [a for a in args if not isinstance(a, Environment | EvalContext | Context)]
            self._multiply(own[0] if own else None, own[1:], kwargs)
            if name == "format":
                self._widths(str(own[0]), printf=True)
            return self._result(function(*args, **kwargs))

        return run

    def _multiply(self, first: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        size = self._size(first)
        self.pay(size * self._arguments(args, kwargs))

    def _widths(self, form: str, *, printf: bool) -> None:
        """Pay for the widths in a format before Python fills them."""
        if printf:
            hidden = _STARRED.search(form) is not None
        else:
            hidden = any("{" in (spec or "") for _, _, spec, _ in Formatter().parse(form))
        numbers = _WIDTH.findall(form)
        if hidden or any(len(number) > len(str(WORK)) for number in numbers):
            raise TooMuchWorkError
        self.pay(sum(map(int, numbers)))

    # --- what jinja2 asks the environment for ---

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator between two values."""
        sizes = self._size(left), self._size(right)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.pay(left.bit_length() * abs(right))
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, Collection) and isinstance(count, int):
                    self.pay(self._size(sequence) * max(count, 0))
        elif operator == "%" and isinstance(left, str | bytes):
            self._widths(left if isinstance(left, str) else left.decode("latin-1"), printf=True)
            self.pay(sizes[0] * sizes[1])
        return self.paid(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call of anything."""
        owner = getattr(called, "__self__", None)
        if owner is self:
            return called(*args)  # put in by _Metered
        own = {key: value for key, value in kwargs.items() if key not in _SCOPES}
        if isinstance(owner, str | bytes | int | float | list | tuple | dict):
            self._multiply(owner, args, own)
        else:
            self._arguments(args, own)
        return self._result(super().call(context, called, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` as the sandbox allows it, paid for."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def run(*args: Any, **kwargs: Any) -> str:
            self._widths(value.__self__, printf=False)
            self._multiply(value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return run

    def joined(self, *parts: Any) -> str:
        """``a ~ b ~ c``."""
        for part in parts:
            self._size(part)
        return markup_join(parts)

    def _concat(self, pieces: Iterable[str]) -> str:
        kept = []
        for piece in pieces:
            self.pay(1 + len(piece))
            kept.append(piece)
        return "".join(kept)


class _Metered(NodeTransformer):
    """Puts the payments into a template's tree that the environment is not asked for."""

    def __init__(self, environment: _Environment) -> None:
        self.environment = environment

    def _call(self, name: str, args: list[Any], line: int) -> nodes.Call:
        method = nodes.EnvironmentAttribute(name, lineno=line)
        return nodes.Call(method, args, [], None, None, lineno=line)

    def _paid(self, node: nodes.Expr) -> nodes.Call:
        return self._call("paid", [node], node.lineno)

    def _step(self, body: Iterable[nodes.Node], line: int) -> nodes.Call:
        size = 1 + sum(1 for node in body for _ in _everything(node))
        return self._call("step", [nodes.Const(size, lineno=line)], line)

    def _value(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        if isinstance(node, nodes.Tuple) and node.ctx != "load":
            return node
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            return node
        return self._paid(node)

    visit_List = visit_Tuple = visit_Dict = visit_Getitem = _value  # noqa: N815 (jinja2's names)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return self._call("joined", node.nodes, node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        node.expr = self._paid(node.expr)
        for operand in node.ops:
            operand.expr = self._paid(operand.expr)
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        choice = None if node.test is None else self._step([node.test], node.lineno)
        self._stepped(node)
        node.iter = self._call("paid", [node.iter], node.lineno)
        if node.test is not None and choice is not None:
            node.test = nodes.And(choice, node.test, lineno=node.lineno)
        return node

    def _stepped(self, node: Any) -> Any:
        """A node whose body may run often."""
        step = nodes.ExprStmt(self._step(node.body, node.lineno), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, step)
        return node

    visit_Macro = visit_CallBlock = visit_Block = _stepped  # noqa: N815


class _Generation(Extension):
    """``{% generation %}``, by which templates mark what the assistant said, as a plain scope."""

    tags = {"generation"}  # noqa: RUF012 (the attribute jinja2 reads)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """``namespace()``, which prints no contents: it could hold itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _everything(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    yield from node.find_all(nodes.Node)


def _raise_exception(message: object) -> None:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
