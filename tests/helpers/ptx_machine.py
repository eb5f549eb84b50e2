"""A machine for PTX: runs the generated code of a kernel block by block, thread by thread.

In: PTX text, a kernel's name, launch and arguments (NumPy arrays). Out: arrays changed.
Invariant: what PTX leaves undefined is an error: accesses that are misaligned or outside an array, two
threads (or blocks) that meet in memory without a barrier between them, barriers and `mma.sync` that some
threads of the block (the warp) do not reach. It knows nothing of the compiler: semantics are those of the
"PTX ISA", fragments of `mma.sync` its formulas. Only instructions that our kernels have are there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ptx_memory import Memory, PtxError
from ptx_values import (
    BITS,
    COMPARE,
    LOGIC,
    PLAIN,
    SHIFTS,
    TYPES,
    converted,
    gathered,
    isa_c,
    truncated,
)

Lanes = npt.NDArray[Any]
#: Threads that take part in an instruction: a mask, or all of them.
On = Lanes | slice
_ALL = slice(None)
_TYPES = {name: np.dtype(t) for name, t in TYPES.items()}
_BITS = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}

#: Address spaces: where shared memory begins as a generic address; parameters lie 4 GB apart.
_SHARED, _APART = 1 << 60, 1 << 32


@dataclass(slots=True)
class _Instruction:
    guard: str
    negated: bool
    op: str
    args: list[str]
    text: str
    parts: list[str]


class Machine:
    """One kernel of a module."""

    def __init__(self, ptx: str, entry: str) -> None:
        self.code: list[_Instruction] = []
        self.labels: dict[str, int] = {}
        self.shared: dict[str, tuple[int, int]] = {}
        self.shared_bytes = 0
        head, body = self._find(ptx, entry)
        self.params = re.findall(r"\.param[^,\n]*?(\w+_param_\d+)", head)
        self._read(body)

    @staticmethod
    def _find(ptx: str, entry: str) -> tuple[str, str]:
        match = re.search(rf"\.entry {re.escape(entry)}\((.*?)\n\{{\n(.*?)\n\}}", ptx, re.S)
        if match is None:
            raise PtxError(f"there is no entry {entry}")
        return match.group(1), match.group(2)

    def _read(self, body: str) -> None:
        text = re.sub(r"//[^\n]*", "", body)
        for align, kind, name, count in re.findall(
            r"\.shared \.align (\d+) \.(\w+) ([\w$]+)(?:\[(\d+)\])?;", text
        ):
            at = -(-self.shared_bytes // int(align)) * int(align)
            size = np.dtype(TYPES[kind]).itemsize * int(count or 1)
            self.shared[name] = (at, size)
            self.shared_bytes = at + size
        for part in re.split(r";|(?<=:)\n", text):
            line = " ".join(part.split())
            while (label := re.match(r"(\$?[\w$]+):\s*", line)) is not None:
                self.labels[label.group(1)] = len(self.code)
                line = line[label.end() :]
            if line and not line.startswith("."):
                self.code.append(_instruction(line))

    def run(
        self,
        blocks: Sequence[int],
        threads: int,
        arrays: Sequence[tuple[npt.NDArray[Any], bool]],
        count: int,
    ) -> None:
        """Run some of `count` blocks; `arrays`: contiguous memory of each parameter, and if it is only read."""
        memories = [
            Memory(n, a.reshape(-1).view(np.uint8), readonly)
            for n, (a, readonly) in zip(self.params, arrays, strict=True)
        ]
        for block in blocks:
            _Block(self, block, threads, count, memories).run()


def _instruction(line: str) -> _Instruction:
    match = re.match(r"(?:@(!?)(%p\d+) )?([\w.:]+)\s*(.*)", line)
    if match is None:
        raise PtxError(f"cannot read `{line}`")
    args = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", match.group(4))
    return _Instruction(
        match.group(2) or "",
        match.group(1) == "!",
        match.group(3),
        args,
        line,
        match.group(3).split("."),
    )


class _Block:
    """The threads of one block: registers with a value each, a place in the code each."""

    def __init__(
        self, machine: Machine, block: int, threads: int, count: int, memories: list[Memory]
    ) -> None:
        self.m, self.block, self.n = machine, block, threads
        self.here: int | None = 0  # where all threads are; None while they are apart
        self.pc = np.zeros(threads, np.int64)
        self.waiting = np.zeros(threads, np.bool_)
        self.now = 1 + block * (1 << 32)  # barriers of blocks differ
        self.memories = memories
        data = np.full(machine.shared_bytes, 0xA5, np.uint8)
        self.shared = Memory("shared memory", data, False)
        self.registers: dict[str, Lanes] = {}
        self.constants: dict[tuple[str, str], Lanes] = {}
        self.everyone = np.arange(threads)
        self.special = {
            "%tid.x": np.arange(threads), "%ctaid.x": np.full(threads, block),
            "%ntid.x": np.full(threads, threads), "%nctaid.x": np.full(threads, count),
        }  # fmt: skip

    def run(self) -> None:
        end = len(self.m.code)
        while self.here is None or self.here < end:
            if self.here is not None:
                self._together(self.m.code[self.here], self.here)
                continue
            ready = (self.pc < end) & ~self.waiting
            if not ready.any():
                if not self.waiting.any():
                    return
                self._meet()
                continue
            pc = int(self.pc[ready].min())
            on = ready & (self.pc == pc)
            self._guarded(self.m.code[pc], on, pc)
            if not self.waiting.any() and (self.pc == self.pc[0]).all():
                self.here = int(self.pc[0])

    def _together(self, s: _Instruction, pc: int) -> None:
        """An instruction that all threads have come to."""
        on: On = _ALL
        if s.guard:
            taken = self.registers[s.guard].astype(np.bool_)
            on = ~taken if s.negated else taken
        few = isinstance(on, np.ndarray) and not on.all()
        if s.parts[0] in ("bra", "ret"):
            to = self.m.labels[s.args[0]] if s.parts[0] == "bra" else len(self.m.code)
            if not few or not np.any(on):
                self.here = pc + 1 if few else to
            else:
                self.here, self.pc[:] = None, pc + 1
                self.pc[on] = to
            return
        if s.parts[0] in ("bar", "barrier") and not s.guard:
            self.now += 1
        else:
            self._guarded_step(s, on if few else _ALL)
        self.here = pc + 1

    def _guarded_step(self, s: _Instruction, on: On) -> None:
        try:
            if s.parts[0] in ("bar", "barrier"):
                raise PtxError("a barrier under a condition")
            if isinstance(on, slice) or on.any():
                self._execute(s, s.parts[0], on)
        except PtxError as err:
            raise PtxError(f"block {self.block}: `{s.text}`: {err}") from None

    def _meet(self) -> None:
        """All threads have come to a barrier: the same one, and all of them."""
        if not self.waiting.all() or len(np.unique(self.pc)) != 1:
            raise PtxError(f"block {self.block}: not all threads reach the same barrier")
        self.waiting[:] = False
        self.here = int(self.pc[0]) + 1
        self.now += 1

    def _guarded(self, s: _Instruction, on: Lanes, pc: int) -> None:
        """An instruction that some threads have come to."""
        on_now = on
        if s.guard:
            taken = self.registers[s.guard].astype(np.bool_)
            on_now = on & (~taken if s.negated else taken)
        kind = s.parts[0]
        if kind in ("bar", "barrier") and not s.guard:
            self.waiting |= on
            return
        self.pc[on] = pc + 1
        if kind in ("bra", "ret"):
            self.pc[on_now] = self.m.labels[s.args[0]] if kind == "bra" else len(self.m.code)
        else:
            self._guarded_step(s, on_now)

    def count(self, on: On) -> int:
        return self.n if isinstance(on, slice) else int(on.sum())

    # ---- values

    def value(self, arg: str, kind: str, on: On) -> Lanes:
        """An operand of the threads `on` as values of a type."""
        if arg in self.special:
            return self.special[arg][on].astype(_TYPES[kind])
        dtype = _TYPES[kind]
        if arg.startswith("%"):
            if arg not in self.registers:
                return np.zeros(self.count(on), dtype)
            return self.registers[arg][on].astype(_BITS[dtype.itemsize]).view(dtype)
        if not isinstance(on, slice):
            return self.constant(arg, dtype, int(on.sum()))
        if (arg, kind) not in self.constants:
            self.constants[arg, kind] = self.constant(arg, dtype, self.n)
        return self.constants[arg, kind]

    def constant(self, arg: str, dtype: Any, count: int) -> Lanes:
        if arg in self.m.shared:
            return np.full(count, self.m.shared[arg][0], dtype)
        if arg.startswith("0f"):
            return np.full(count, int(arg[2:], 16), np.uint32).view(dtype)
        if arg.startswith("0d"):
            return np.full(count, int(arg[2:], 16), np.uint64).view(dtype)
        if arg.startswith("0x") and dtype.kind == "f":
            return np.full(count, int(arg, 16), f"u{dtype.itemsize}").view(dtype)
        number = int(arg.rstrip("U"), 0)
        mask = (1 << 8 * dtype.itemsize) - 1
        return np.full(count, number & mask, f"u{dtype.itemsize}").view(dtype)

    def set(self, arg: str, value: Lanes, on: On) -> None:
        if arg == "_":
            return
        bits = np.ascontiguousarray(value)
        if bits.dtype != np.bool_:
            bits = bits.view(_BITS[bits.dtype.itemsize])
        kept = self.registers.setdefault(arg, np.zeros(self.n, np.uint64))
        kept[on] = bits.astype(np.uint64)

    def flag(self, arg: str, on: On) -> Lanes:
        if not arg.startswith("%"):
            return np.full(self.count(on), int(arg) != 0)
        return self.registers[arg][on].astype(np.bool_)

    # ---- instructions

    def _execute(self, s: _Instruction, kind: str, on: On) -> None:
        parts = s.parts
        last = parts[-1]
        if kind in ("ld", "st"):
            self._memory(s, parts, on)
        elif kind == "mma":
            self._mma(s, parts, on)
        elif kind == "setp":
            self._setp(s, parts, on)
        elif kind == "selp":
            x, y = (self.value(a, last, on) for a in s.args[1:3])
            self.set(s.args[0], np.where(self.flag(s.args[3], on), x, y), on)
        elif kind in ("mov", "cvta"):
            self._move(s, last, on)
        elif kind == "cvt" and "f16x2" in parts:
            high, low = (self.value(a, "f32", on).astype(np.float16) for a in s.args[1:3])
            self.set(s.args[0], np.stack([low, high], axis=1).view(np.uint32).reshape(-1), on)
        elif kind == "cvt":
            made = converted(self.value(s.args[1], last, on), parts)
            if made.dtype == np.int8:  # fills the register with its sign
                made = made.astype(np.int64)
            self.set(s.args[0], made, on)
        elif last == "pred":
            flags = [self.flag(a, on) for a in s.args[1:]]
            self.set(s.args[0], LOGIC[kind](*flags), on)
        elif kind in SHIFTS:
            x, by = self.value(s.args[1], last, on), self.value(s.args[2], "u32", on)
            self.set(s.args[0], SHIFTS[kind](x, by), on)
        elif kind == "dp4a":
            self.set(s.args[0], self._dp4a(s, parts, on), on)
        elif kind in ("bfe", "bfi", "prmt"):
            values = [self.value(a, "u32", on) for a in s.args[1:]]
            self.set(s.args[0], BITS[kind](*values), on)
        else:
            self.set(s.args[0], self._arithmetic(s, kind, parts, on), on)

    def _arithmetic(self, s: _Instruction, kind: str, parts: list[str], on: On) -> Lanes:
        last = parts[-1]
        a = [self.value(x, last, on) for x in s.args[1:]]
        with np.errstate(all="ignore"):
            if kind in ("mul", "mad"):
                wide = np.dtype(TYPES[last]).itemsize * 8
                if a[0].dtype.kind == "f":
                    return a[0] * a[1]
                if "wide" in parts:
                    to = np.dtype(f"{a[0].dtype.kind}{a[0].dtype.itemsize * 2}")
                    out = a[0].astype(to) * a[1].astype(to)
                    if kind == "mad":
                        out = out + self.value(s.args[3], {"u2": "u16", "i2": "s16"}.get(last, f"{'s' if to.kind == 'i' else 'u'}{to.itemsize * 8}"), on)  # fmt: skip
                    return out
                if "hi" in parts:
                    exact = [int(x) * int(y) >> wide for x, y in zip(a[0], a[1], strict=True)]
                    mask = (1 << wide) - 1
                    out = np.array([x & mask for x in exact], f"u{wide // 8}").view(a[0].dtype)
                else:
                    out = a[0] * a[1]
                return out + a[2] if kind == "mad" else out
            if kind == "fma":
                if a[0].dtype == np.float64:
                    return a[0] * a[1] + a[2]
                wider = np.float64 if a[0].dtype == np.float32 else np.float32
                exact_sum = a[0].astype(wider) * a[1].astype(wider) + a[2].astype(wider)
                return exact_sum.astype(a[0].dtype)
            if kind in ("min", "max") and a[0].dtype.kind == "f":
                if "NaN" in parts:
                    return (np.minimum if kind == "min" else np.maximum)(a[0], a[1])
                return (np.fmin if kind == "min" else np.fmax)(a[0], a[1])
            if kind == "rcp":
                return (1 / a[0]).astype(a[0].dtype)
            if kind == "div" and a[0].dtype.kind != "f":
                return truncated(a[0], a[1])
            if kind == "rem":
                return a[0] - truncated(a[0], a[1]) * a[1]
            if kind in PLAIN:
                out = PLAIN[kind](*a)
                return out.astype(a[0].dtype)
        raise PtxError("this machine does not know the instruction")

    def _setp(self, s: _Instruction, parts: list[str], on: On) -> None:
        test, last = parts[1], parts[-1]
        x, y = (self.value(a, last, on) for a in s.args[1:3])
        if x.dtype.kind == "f":
            odd = np.isnan(x) | np.isnan(y)
            if test in ("nan", "num"):
                found = odd if test == "nan" else ~odd
            elif test.endswith("u") and test[:-1] in COMPARE:
                found = COMPARE[test[:-1]](x, y) | odd
            else:
                found = COMPARE[test](x, y) & ~odd
        else:
            found = COMPARE[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(test, test)](x, y)
        if parts[2] in ("and", "or", "xor"):
            found = LOGIC[parts[2]](found, self.flag(s.args[3], on))
        self.set(s.args[0], found, on)

    def _move(self, s: _Instruction, last: str, on: On) -> None:
        to, source = s.args
        if last == "pred":
            self.set(to, self.flag(source, on), on)
        elif to.startswith("{"):
            names = _names(to)
            size = np.dtype(TYPES[last]).itemsize // len(names)
            raw = np.ascontiguousarray(self.value(source, last, on)).view(f"u{size}")
            for i, name in enumerate(names):
                self.set(name, raw.reshape(-1, len(names))[:, i], on)
        elif source.startswith("{"):
            names = _names(source)
            size = np.dtype(TYPES[last]).itemsize // len(names)
            raw = np.stack([self.value(n, f"b{8 * size}", on) for n in names], axis=1)
            self.set(to, np.ascontiguousarray(raw).view(f"u{size * len(names)}").reshape(-1), on)
        elif s.op.startswith("cvta.shared"):
            self.set(to, self.value(source, last, on) + np.uint64(_SHARED), on)
        else:
            self.set(to, self.value(source, last, on), on)

    def _memory(self, s: _Instruction, parts: list[str], on: On) -> None:
        place = s.args[1] if parts[0] == "ld" else s.args[0]
        other = s.args[0] if parts[0] == "ld" else s.args[1]
        base, offset = _place(place)
        if "param" in parts:
            address = (self.m.params.index(base) + 1) * _APART
            self.set(other, np.full(self.count(on), address, np.uint64), on)
            return
        if base in self.m.shared:
            at = np.full(self.count(on), self.m.shared[base][0], np.int64)
        else:
            at = self.value(base, "s64" if base.startswith("%rd") else "u32", on).astype(np.int64)
        at = at + offset
        width = next((int(p[1:]) for p in parts if p in ("v2", "v4")), 1)
        size = np.dtype(TYPES[parts[-1]]).itemsize
        who = self.everyone[on]
        if "shared" in parts or (at >= _SHARED).all():
            memory, at = self.shared, np.where(at >= _SHARED, at - _SHARED, at)
        else:
            number = at // _APART
            if (number != number[0]).any() or not 1 <= number[0] <= len(self.memories):
                raise PtxError("an address that belongs to no parameter")
            memory, at = self.memories[int(number[0]) - 1], at % _APART
        names = _names(other) if other.startswith("{") else [other]
        if parts[0] == "ld":
            raw = np.ascontiguousarray(memory.load(at, size * width, who, self.now, self.block))
            values = raw.view(TYPES[parts[-1]]).reshape(-1, width)
            for i, name in enumerate(names):
                wide = values[:, i].astype(np.int64) if parts[-1] == "s8" else values[:, i]
                self.set(name, np.ascontiguousarray(wide), on)
        else:
            values = np.stack([self.value(n, parts[-1], on) for n in names], axis=1)
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(at), -1)
            memory.store(at, raw, who, self.now, self.block)

    def _dp4a(self, s: _Instruction, parts: list[str], on: On) -> Lanes:
        def words(arg: str, kind: str) -> Lanes:
            raw = np.ascontiguousarray(self.value(arg, "b32", on))
            return raw.view(np.int8 if kind == "s32" else np.uint8).reshape(-1, 4).astype(np.int32)

        total = (words(s.args[1], parts[1]) * words(s.args[2], parts[2])).sum(1, dtype=np.int32)
        return total + self.value(s.args[3], "s32", on)

    # ---- tensor cores

    def _mma(self, s: _Instruction, parts: list[str], on: On) -> None:
        """All threads of a warp: gather fragments by the formulas of the ISA, multiply, scatter."""
        match = re.match(r"m16n8k(\d+)", parts[3])
        if match is None or parts[4:6] != ["row", "col"]:
            raise PtxError("this machine does not know the instruction")
        length = int(match.group(1))
        sums, left, right = parts[6], parts[7], parts[8]
        who = self.everyone[on]
        if len(who) % 32 or (who.reshape(-1, 32) // 32 != who.reshape(-1, 32)[:, :1] // 32).any():
            raise PtxError("not all threads of a warp reach it")
        d, a, b, c = (_names(x) for x in s.args)
        everyone = {n: self._words(n, on) for n in {*a, *b, *c}}
        out = np.zeros((self.count(on), 4), np.uint32)
        for first in range(0, self.count(on), 32):
            part = slice(first, first + 32)
            x = gathered([everyone[n][part] for n in a], left, length, rows=True)
            y = gathered([everyone[n][part] for n in b], right, length, rows=False)
            z = np.zeros((16, 8), np.float64 if sums == "f32" else np.int64)
            kind = np.float32 if sums == "f32" else np.int32
            for lane in range(32):
                for i, n in enumerate(c):
                    z[isa_c(lane, i)] = everyone[n][part].view(kind)[lane]
            total = (z + x.astype(z.dtype) @ y.astype(z.dtype)).astype(kind)
            for lane in range(32):
                for i in range(4):
                    out[first + lane, i] = total[isa_c(lane, i)].view(np.uint32)
        for i, n in enumerate(d):
            self.set(n, np.ascontiguousarray(out[:, i]), on)

    def _words(self, name: str, on: On) -> Lanes:
        return np.ascontiguousarray(self.value(name, "b32", on))


def _names(group: str) -> list[str]:
    return [x.strip() for x in group.strip("{}").split(",")]


def _place(text: str) -> tuple[str, int]:
    base, _, offset = text.strip("[]").partition("+")
    return base.strip(), int(offset) if offset else 0
