"""Read the loop IR's text form back.

In: text printed by `loop.text`. Out: a structurally equal `Kernel`.
A recursive-descent parser over indented lines; an `IRError` names the line it cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, get_args

from tilewright.core.dtypes import ALL, DType
from tilewright.core.index import Ix, imax, imin, ix
from tilewright.errors import IRError
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Buffer,
    Cast,
    Const,
    Dot,
    Expr,
    Fma,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    LoopKind,
    Mma,
    Pack,
    PackDim,
    Param,
    Ref,
    Select,
    Stmt,
    Store,
    Unary,
    UnaryOp,
    dense_strides,
)
from tilewright.loop.text import INFIX

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|inf|nan)(?![\w]))|(?P<word>[A-Za-z_][\w@]*)"
    r"|(?P<op>//|<<|>>|<=|>=|==|!=|->|\.\.|[-+*/%&|^<>()\[\],:{}=]))"
)
_BY_SYMBOL = {symbol: op for op, symbol in INFIX.items()}
_UNARY = frozenset(get_args(UnaryOp))


def parse(text: str) -> Kernel:
    """The kernel of `text`, which may come from anywhere; raises `IRError`."""
    try:
        return _parse(text)
    except (ValueError, ArithmeticError, LookupError, RecursionError) as err:
        raise IRError(f"the kernel cannot be read: {err}") from None


def _parse(text: str) -> Kernel:
    lines = [s for s in text.splitlines() if s.strip() and not s.lstrip().startswith("#")]
    if not lines:
        raise IRError("there is no kernel in the text")
    name, params = _header(lines[0])
    packs: list[Pack] = []
    at = 1
    while at < len(lines) and lines[at].startswith("  pack "):
        packs.append(_pack(lines[at]))
        at += 1
    reader = _Block(lines, at)
    body = reader.block(2)
    if reader.at != len(lines):
        raise IRError(f"cannot read `{lines[reader.at].strip()}`: unexpected indentation")
    return Kernel(name, params, body, tuple(packs))


def _header(line: str) -> tuple[str, tuple[Param, ...]]:
    t = _Tokens(line)
    t.expect("kernel")
    name = t.word()
    t.expect("(")
    params: list[Param] = []
    while not t.take(")"):
        first = t.word()
        role = first if first in ("out", "const") and t.peek() != ":" else "in"
        buffer = first if role == "in" else t.word()
        t.expect(":")
        space = "const" if role == "const" else "global"
        params.append(Param(t.buffer(buffer, space), role))  # type: ignore[arg-type]
        t.take(",")
    t.end()
    return name, tuple(params)


def _pack(line: str) -> Pack:
    m = re.fullmatch(r"\s*pack (\w+) -> \[([\d, ]*)\] = \[(.*)\]", line)
    if m is None:
        raise IRError(f"cannot read `{line.strip()}`: expected a pack")
    dims: list[PackDim] = []
    for part in m.group(3).split(", "):
        d = re.fullmatch(r"d(\d+)(?:([/%])(\d+))?", part)
        if d is None:
            raise IRError(f"cannot read the packed dim `{part}`")
        kind = {"/": "outer", "%": "inner", None: "whole"}[d.group(2)]
        dims.append(PackDim(int(d.group(1)), int(d.group(3) or 0), kind))  # type: ignore[arg-type]
    shape = tuple(int(n) for n in m.group(2).split(",") if n.strip())
    return Pack(m.group(1), shape, tuple(dims))


class _Block:
    """Statements at one indentation, read line by line."""

    def __init__(self, lines: list[str], at: int) -> None:
        self.lines = lines
        self.at = at
        self.shared: dict[int, Expr] = {}
        """Sub-expressions named for the next statement."""

    def block(self, indent: int) -> Block:
        out: list[Stmt] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if len(line) - len(line.lstrip()) != indent or line.strip() == "else:":
                break
            if line.lstrip().startswith("%"):
                self.define(line)
            else:
                out.append(self.statement(line, indent))
        if self.shared:
            raise IRError(f"cannot read `{self.lines[self.at - 1].strip()}`: no statement follows")
        return tuple(out)

    def define(self, line: str) -> None:
        """`%0 = ...`: one object for every `%0` in the statement that follows."""
        self.at += 1
        t = _Tokens(line, self.shared)
        t.expect("%")
        number = t.shared_number()
        t.expect("=")
        self.shared[number] = t.expr()
        t.end()

    def statement(self, line: str, indent: int) -> Stmt:
        self.at += 1
        shared, self.shared = self.shared, {}
        t = _Tokens(line, shared)
        word = t.peek()
        if word in ("for", *get_args(LoopKind)) and t.peek(2) == "in":
            kind = t.word()
            var = t.word()
            t.expect("in")
            extent = t.index()
            t.expect(":")
            t.end()
            loop: Any = "serial" if kind == "for" else kind
            return For(var, extent, self.block(indent + 2), loop)
        if word == "let":
            return self.let(t)
        if word == "if":
            t.word()
            cond = t.expr()
            t.expect(":")
            then = self.block(indent + 2)
            orelse: Block = ()
            if self.at < len(self.lines) and self.lines[self.at] == " " * indent + "else:":
                self.at += 1
                orelse = self.block(indent + 2)
            return If(cond, then, orelse)
        if word == "alloc" and t.peek(2) == ":":
            t.word()
            name = t.word()
            t.expect(":")
            buffer = t.buffer(name, "global")
            t.end()
            return Alloc(buffer)
        if word == "mma" and t.peek(1) != "[":
            return self.mma(t)
        name = t.word()
        index = t.indices()
        t.expect("=")
        value = t.expr()
        t.end()
        return Store(name, index, value)

    def mma(self, t: _Tokens) -> Mma:
        t.word()
        lane = t.index()
        t.expect("(")
        row = t.word()
        t.expect(",")
        col = t.word()
        t.expect(",")
        k = t.word()
        t.expect("in")
        extent = int(t.number())
        t.expect(")")
        t.expect(":")
        buffer = t.word()
        index = t.indices()
        t.expect("+")
        t.expect("=")
        a = t.load()
        t.expect("*")
        b = t.load()
        t.end()
        return Mma(lane, row, col, k, extent, buffer, index, a, b)

    def let(self, t: _Tokens) -> Let:
        t.word()
        name = t.word()
        bound = None
        if t.take("in"):
            low = int(t.number())
            t.expect("..")
            bound = (low, int(t.number()))
        t.expect("=")
        value = t.expr()
        t.end()
        return Let(name, value, bound)


class _Tokens:
    """One line as tokens, with the grammars of index forms and expressions."""

    def __init__(self, line: str, shared: Mapping[int, Expr] = MappingProxyType({})) -> None:
        self.line = line.strip()
        self.shared = shared
        self.items: list[str] = []
        at = 0
        while at < len(line.rstrip()):
            m = _TOKEN.match(line, at)
            if m is None:
                self.fail(f"unexpected `{line[at : at + 8].strip()}`")
            self.items.append(m.group().strip())
            at = m.end()
        self.at = 0

    def fail(self, why: str) -> NoReturn:
        raise IRError(f"cannot read `{self.line}`: {why}")

    # ---- tokens

    def peek(self, ahead: int = 0) -> str:
        return self.items[self.at + ahead] if self.at + ahead < len(self.items) else ""

    def next(self) -> str:
        if self.at >= len(self.items):
            self.fail("the line ends too early")
        self.at += 1
        return self.items[self.at - 1]

    def take(self, token: str) -> bool:
        if self.peek() == token:
            self.at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.take(token):
            self.fail(f"expected `{token}`, found `{self.peek()}`")

    def end(self) -> None:
        if self.at != len(self.items):
            self.fail(f"unexpected `{self.peek()}`")

    def word(self) -> str:
        token = self.next()
        if not re.fullmatch(r"[A-Za-z_][\w@]*", token):
            self.fail(f"expected a name, found `{token}`")
        return token

    def number(self) -> str:
        token = self.next()
        if token == "-":
            token += self.next()
        return token

    # ---- types

    def dtype(self) -> DType:
        name = self.word()
        if name not in ALL:
            self.fail(f"unknown element type `{name}`")
        return ALL[name]

    def numbers(self, close: str) -> tuple[int, ...]:
        out: list[int] = []
        while not self.take(close):
            out.append(int(self.number()))
            self.take(",")
        return tuple(out)

    def buffer(self, name: str, space: Any) -> Buffer:
        dtype = self.dtype()
        self.expect("[")
        shape = self.numbers("]")
        strides = self.numbers("}") if self.take("{") else dense_strides(shape)
        if self.take("in"):
            space = self.word()
        return Buffer(name, dtype, shape, strides, space)

    # ---- index forms

    def indices(self) -> tuple[Ix, ...]:
        self.expect("[")
        out: list[Ix] = []
        while not self.take("]"):
            out.append(self.index())
            self.take(",")
        return tuple(out)

    def index(self) -> Ix:
        total = self.index_term()
        while self.peek() in ("+", "-") or (
            self.peek().startswith("-") and self.peek()[1:].isdigit()
        ):
            if self.peek() in ("+", "-"):
                sign = self.next()
                term = self.index_term()
                total = total + term if sign == "+" else total - term
            else:
                total = total + self.index_term()
        return total

    def index_term(self) -> Ix:
        value = self.index_factor()
        while self.peek() in ("*", "//", "%"):
            op = self.next()
            k = int(self.number())
            value = value * k if op == "*" else value // k if op == "//" else value % k
        return value

    def index_factor(self) -> Ix:
        if self.take("-"):
            return -self.index_term()
        if self.take("("):
            value = self.index()
            self.expect(")")
            return value
        token = self.next()
        if token in ("min", "max") and self.take("("):
            a = self.index()
            self.expect(",")
            b = self.index()
            self.expect(")")
            return imin(a, b) if token == "min" else imax(a, b)
        return ix(int(token)) if re.fullmatch(r"-?\d+", token) else ix(token)

    # ---- expressions

    def typed(self) -> DType:
        self.expect(":")
        return self.dtype()

    def shared_number(self) -> int:
        token = self.next()
        if not token.isdecimal():
            self.fail(f"expected a number after `%`, found `{token}`")
        return int(token)

    def expr(self) -> Expr:
        if self.take("%"):
            number = self.shared_number()
            if number not in self.shared:
                self.fail(f"nothing defines `%{number}`")
            return self.shared[number]
        if self.take("("):
            a = self.expr()
            symbol = self.next()
            if symbol not in _BY_SYMBOL:
                self.fail(f"unknown operator `{symbol}`")
            b = self.expr()
            self.expect(")")
            return Binary(_BY_SYMBOL[symbol], a, b)  # type: ignore[arg-type]
        token = self.number()
        if re.fullmatch(r"-?(\d.*|inf|nan)", token):
            dtype = self.typed()
            return Const(_literal(token, dtype), dtype)
        if self.peek() == "[":
            index = self.indices()
            return Load(token, index, self.typed())
        if self.take("("):
            return self.call(token)
        return Ref(token, self.typed())

    def load(self) -> Load:
        e = self.expr()
        if not isinstance(e, Load):
            self.fail("an element of a buffer is wanted")
        return e

    def call(self, name: str) -> Expr:
        if name == "index":
            form = self.index()
            self.expect(")")
            return FromIndex(form, self.typed())
        bound = None
        if name == "dot":
            var = self.word()
            self.expect("in")
            bound = (var, int(self.number()))
            self.expect(":")
        args = [self.expr()]
        while self.take(","):
            args.append(self.expr())
        self.expect(")")
        match name, args:
            case "cast", [a]:
                return Cast(a, self.typed())
            case "bitcast", [a]:
                return Bitcast(a, self.typed())
            case "fma", [a, b, c]:
                return Fma(a, b, c)
            case "dot", [a, b, c] if bound is not None:
                return Dot(*bound, a, b, c)
            case "select", [a, b, c]:
                return Select(a, b, c)
            case _, [a] if name in _UNARY:
                return Unary(name, a)  # type: ignore[arg-type]
            case _, [a, b] if name in ("min", "max", "pow"):
                return Binary(name, a, b)  # type: ignore[arg-type]
        self.fail(f"unknown function `{name}` of {len(args)} arguments")


def _literal(token: str, dtype: DType) -> float | int | bool:
    if dtype.is_float:
        return float(token)
    return bool(int(token)) if dtype.kind == "bool" else int(token)
