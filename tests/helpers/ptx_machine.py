"""A machine for PTX: runs the generated code of a kernel block by block, thread by thread.

In: PTX text, a kernel's name, launch and arguments (NumPy arrays). Out: arrays changed.
Invariant: what PTX leaves undefined is an error: accesses that are misaligned or outside an array, two
threads (or blocks) that meet in memory without a barrier between them, barriers and `mma.sync` that some
threads of the block (the warp) do not reach. It knows nothing of the compiler: semantics are those of the
"PTX ISA", fragments of `mma.sync` its formulas. Only instructions that our kernels have are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Lanes = npt.NDArray[Any]

_TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
#: Address spaces: where shared memory begins as a generic address; parameters lie 4 GB apart.
_SHARED, _APART = 1 << 60, 1 << 32


class PtxError(Exception):
    """The code does what PTX leaves undefined, or what this machine does not know."""


@dataclass(slots=True)
class _Instruction:
    guard: str
    negated: bool
    op: str
    args: list[str]
    text: str


class _Memory:
    """Bytes, and who touched each last: thread and number of barriers, block for memory of all blocks."""

    def __init__(self, name: str, data: npt.NDArray[np.uint8], readonly: bool) -> None:
        self.name, self.data, self.readonly = name, data, readonly
        n = 0 if readonly else data.size
        self.writer, self.reader = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        self.wrote, self.read = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        self.owner = np.full(n, -1, np.int64)

    def at(self, offsets: Lanes, size: int) -> Lanes:
        if (offsets % size).any():
            raise PtxError(f"{self.name}: an access of {size} bytes is not aligned")
        if offsets.min() < 0 or offsets.max() + size > self.data.size:
            raise PtxError(
                f"{self.name}: byte {int(offsets.max())} is outside its {self.data.size}"
            )
        return offsets[:, None] + np.arange(size)

    def load(self, offsets: Lanes, size: int, who: Lanes, now: int, block: int) -> Lanes:
        at = self.at(offsets, size)
        if not self.readonly:
            mine = who[:, None]
            self._apart(at, mine, now, block, "read")
            again = (self.read[at] == now) & (self.reader[at] != mine)
            self.reader[at] = np.where(again, -2, mine)
            self.reader[at] = np.where(self.reader[at] != mine, -2, self.reader[at])
            self.read[at] = now
        return self.data[at]

    def store(self, offsets: Lanes, values: Lanes, who: Lanes, now: int, block: int) -> None:
        if self.readonly:
            raise PtxError(f"{self.name} is an input and is stored to")
        at = self.at(offsets, values.shape[1])
        mine = who[:, None]
        self._apart(at, mine, now, block, "written")
        if ((self.read[at] == now) & (self.reader[at] != mine)).any():
            raise PtxError(f"{self.name} is written while another thread reads it")
        self.data[at] = values
        self.writer[at], self.wrote[at], self.owner[at] = mine, now, block
        if (self.writer[at] != mine).any():
            raise PtxError(f"several threads write the same byte of {self.name}")

    def _apart(self, at: Lanes, mine: Lanes, now: int, block: int, how: str) -> None:
        if ((self.wrote[at] == now) & (self.writer[at] != mine)).any():
            raise PtxError(f"{self.name} is {how} while another thread writes it")
        if ((self.owner[at] >= 0) & (self.owner[at] != block)).any():
            raise PtxError(f"{self.name} is {how} where another block writes")


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
            size = np.dtype(_TYPES[kind]).itemsize * int(count or 1)
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
            _Memory(n, a.reshape(-1).view(np.uint8), readonly)
            for n, (a, readonly) in zip(self.params, arrays, strict=True)
        ]
        for block in blocks:
            _Block(self, block, threads, count, memories).run()


def _instruction(line: str) -> _Instruction:
    match = re.match(r"(?:@(!?)(%p\d+) )?([\w.:]+)\s*(.*)", line)
    if match is None:
        raise PtxError(f"cannot read `{line}`")
    args = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", match.group(4))
    return _Instruction(match.group(2) or "", match.group(1) == "!", match.group(3), args, line)


class _Block:
    """The threads of one block: registers with a value each, a place in the code each."""

    def __init__(
        self, machine: Machine, block: int, threads: int, count: int, memories: list[_Memory]
    ) -> None:
        self.m, self.block, self.n = machine, block, threads
        self.pc = np.zeros(threads, np.int64)
        self.waiting = np.zeros(threads, np.bool_)
        self.now = 1 + block * (1 << 32)  # barriers of blocks differ
        self.memories = memories
        data = np.full(machine.shared_bytes, 0xA5, np.uint8)
        self.shared = _Memory("shared memory", data, False)
        self.registers: dict[str, Lanes] = {}
        self.special = {
            "%tid.x": np.arange(threads), "%ctaid.x": np.full(threads, block),
            "%ntid.x": np.full(threads, threads), "%nctaid.x": np.full(threads, count),
        }  # fmt: skip

    def run(self) -> None:
        end = len(self.m.code)
        while True:
            ready = (self.pc < end) & ~self.waiting
            if not ready.any():
                if not self.waiting.any():
                    return
                self._meet()
                continue
            pc = int(self.pc[ready].min())
            on = ready & (self.pc == pc)
            s = self.m.code[pc]
            try:
                self._step(s, on, pc)
            except PtxError as err:
                raise PtxError(f"block {self.block}: `{s.text}`: {err}") from None

    def _meet(self) -> None:
        """All threads have come to a barrier: the same one, and all of them."""
        if not self.waiting.all() or len(np.unique(self.pc)) != 1:
            raise PtxError(f"block {self.block}: not all threads reach the same barrier")
        self.waiting[:] = False
        self.pc += 1
        self.now += 1

    def _step(self, s: _Instruction, on: Lanes, pc: int) -> None:
        if s.guard:
            taken = self.registers[s.guard].astype(np.bool_)
            on_now = on & (~taken if s.negated else taken)
        else:
            on_now = on
        kind = s.op.split(".")[0]
        if kind == "bra":
            self.pc[on] = pc + 1
            self.pc[on_now] = self.m.labels[s.args[0]]
            return
        if kind == "ret":
            self.pc[on] = pc + 1
            self.pc[on_now] = len(self.m.code)
            return
        if kind in ("bar", "barrier"):
            if s.guard:
                raise PtxError("a barrier under a condition")
            self.waiting |= on
            return
        if on_now.any():
            self._execute(s, kind, on_now)
        self.pc[on] = pc + 1

    # ---- values

    def value(self, arg: str, kind: str, on: Lanes) -> Lanes:
        """An operand of the threads `on` as values of a type."""
        dtype = np.dtype(_TYPES[kind])
        count = int(on.sum())
        if arg in self.special:
            return self.special[arg][on].astype(dtype)
        if arg.startswith("%"):
            raw = self.registers[arg][on] if arg in self.registers else np.zeros(count, np.uint64)
            small = raw.astype(f"u{dtype.itemsize}")
            return np.ascontiguousarray(small).view(dtype)
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

    def set(self, arg: str, value: Lanes, on: Lanes) -> None:
        if arg == "_":
            return
        bits = np.ascontiguousarray(value)
        if bits.dtype != np.bool_:
            bits = bits.view(f"u{bits.dtype.itemsize}")
        kept = self.registers.setdefault(arg, np.zeros(self.n, np.uint64))
        kept[on] = bits.astype(np.uint64)

    def flag(self, arg: str, on: Lanes) -> Lanes:
        if not arg.startswith("%"):
            return np.full(int(on.sum()), int(arg) != 0)
        return self.registers[arg][on].astype(np.bool_)

    # ---- instructions

    def _execute(self, s: _Instruction, kind: str, on: Lanes) -> None:
        parts = s.op.split(".")
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
            made = _converted(self.value(s.args[1], last, on), parts)
            if made.dtype == np.int8:  # fills the register with its sign
                made = made.astype(np.int64)
            self.set(s.args[0], made, on)
        elif last == "pred":
            flags = [self.flag(a, on) for a in s.args[1:]]
            self.set(s.args[0], _LOGIC[kind](*flags), on)
        elif kind in _SHIFTS:
            x, by = self.value(s.args[1], last, on), self.value(s.args[2], "u32", on)
            self.set(s.args[0], _SHIFTS[kind](x, by), on)
        elif kind == "dp4a":
            self.set(s.args[0], self._dp4a(s, parts, on), on)
        elif kind in ("bfe", "bfi", "prmt"):
            values = [self.value(a, "u32", on) for a in s.args[1:]]
            self.set(s.args[0], _BITS[kind](*values), on)
        else:
            self.set(s.args[0], self._arithmetic(s, kind, parts, on), on)

    def _arithmetic(self, s: _Instruction, kind: str, parts: list[str], on: Lanes) -> Lanes:
        last = parts[-1]
        a = [self.value(x, last, on) for x in s.args[1:]]
        with np.errstate(all="ignore"):
            if kind in ("mul", "mad"):
                wide = np.dtype(_TYPES[last]).itemsize * 8
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
                return _truncated(a[0], a[1])
            if kind == "rem":
                return a[0] - _truncated(a[0], a[1]) * a[1]
            if kind in _PLAIN:
                out = _PLAIN[kind](*a)
                return out.astype(a[0].dtype)
        raise PtxError("this machine does not know the instruction")

    def _setp(self, s: _Instruction, parts: list[str], on: Lanes) -> None:
        test, last = parts[1], parts[-1]
        x, y = (self.value(a, last, on) for a in s.args[1:3])
        if x.dtype.kind == "f":
            odd = np.isnan(x) | np.isnan(y)
            if test in ("nan", "num"):
                found = odd if test == "nan" else ~odd
            elif test.endswith("u") and test[:-1] in _COMPARE:
                found = _COMPARE[test[:-1]](x, y) | odd
            else:
                found = _COMPARE[test](x, y) & ~odd
        else:
            found = _COMPARE[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(test, test)](x, y)
        if parts[2] in ("and", "or", "xor"):
            found = _LOGIC[parts[2]](found, self.flag(s.args[3], on))
        self.set(s.args[0], found, on)

    def _move(self, s: _Instruction, last: str, on: Lanes) -> None:
        to, source = s.args
        if last == "pred":
            self.set(to, self.flag(source, on), on)
        elif to.startswith("{"):
            names = _names(to)
            size = np.dtype(_TYPES[last]).itemsize // len(names)
            raw = np.ascontiguousarray(self.value(source, last, on)).view(f"u{size}")
            for i, name in enumerate(names):
                self.set(name, raw.reshape(-1, len(names))[:, i], on)
        elif source.startswith("{"):
            names = _names(source)
            size = np.dtype(_TYPES[last]).itemsize // len(names)
            raw = np.stack([self.value(n, f"b{8 * size}", on) for n in names], axis=1)
            self.set(to, np.ascontiguousarray(raw).view(f"u{size * len(names)}").reshape(-1), on)
        elif s.op.startswith("cvta.shared"):
            self.set(to, self.value(source, last, on) + np.uint64(_SHARED), on)
        else:
            self.set(to, self.value(source, last, on), on)

    def _memory(self, s: _Instruction, parts: list[str], on: Lanes) -> None:
        place = s.args[1] if parts[0] == "ld" else s.args[0]
        other = s.args[0] if parts[0] == "ld" else s.args[1]
        base, offset = _place(place)
        if "param" in parts:
            address = (self.m.params.index(base) + 1) * _APART
            self.set(other, np.full(int(on.sum()), address, np.uint64), on)
            return
        if base in self.m.shared:
            at = np.full(int(on.sum()), self.m.shared[base][0], np.int64)
        else:
            at = self.value(base, "s64" if base.startswith("%rd") else "u32", on).astype(np.int64)
        at = at + offset
        width = next((int(p[1:]) for p in parts if p in ("v2", "v4")), 1)
        size = np.dtype(_TYPES[parts[-1]]).itemsize
        who = np.nonzero(on)[0]
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
            values = raw.view(_TYPES[parts[-1]]).reshape(-1, width)
            for i, name in enumerate(names):
                wide = values[:, i].astype(np.int64) if parts[-1] == "s8" else values[:, i]
                self.set(name, np.ascontiguousarray(wide), on)
        else:
            values = np.stack([self.value(n, parts[-1], on) for n in names], axis=1)
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(at), -1)
            memory.store(at, raw, who, self.now, self.block)

    def _dp4a(self, s: _Instruction, parts: list[str], on: Lanes) -> Lanes:
        def words(arg: str, kind: str) -> Lanes:
            raw = np.ascontiguousarray(self.value(arg, "b32", on))
            return raw.view(np.int8 if kind == "s32" else np.uint8).reshape(-1, 4).astype(np.int32)

        total = (words(s.args[1], parts[1]) * words(s.args[2], parts[2])).sum(1, dtype=np.int32)
        return total + self.value(s.args[3], "s32", on)

    # ---- tensor cores

    def _mma(self, s: _Instruction, parts: list[str], on: Lanes) -> None:
        """All threads of a warp: gather fragments by the formulas of the ISA, multiply, scatter."""
        match = re.match(r"m16n8k(\d+)", parts[3])
        if match is None or parts[4:6] != ["row", "col"]:
            raise PtxError("this machine does not know the instruction")
        length = int(match.group(1))
        sums, left, right = parts[6], parts[7], parts[8]
        warps = on.reshape(-1, 32)
        if not (warps.all(1) == warps.any(1)).all():
            raise PtxError("not all threads of a warp reach it")
        d, a, b, c = (_names(x) for x in s.args)
        everyone = {n: self._words(n, on) for n in {*a, *b, *c}}
        out = np.zeros((int(on.sum()), 4), np.uint32)
        for first in range(0, int(on.sum()), 32):
            part = slice(first, first + 32)
            x = _gathered([everyone[n][part] for n in a], left, length, rows=True)
            y = _gathered([everyone[n][part] for n in b], right, length, rows=False)
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

    def _words(self, name: str, on: Lanes) -> Lanes:
        return np.ascontiguousarray(self.value(name, "b32", on))


def isa_a(lane: int, i: int, size: int) -> tuple[int, int]:
    """(row, column) of element i of a thread's fragment of A, whose elements have `size` bytes: the formulas
    of the PTX ISA, "Matrix Fragments for mma.m16n8k4 / k8 / k16 / k32"."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if size == 4:
        return group if i in (0, 2) else group + 8, thread if i < 2 else thread + 4
    row = group if i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def isa_b(lane: int, i: int, size: int) -> tuple[int, int]:
    """The same for B: (row, column), its rows along the sum."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if size == 4:
        return (thread, group) if i == 0 else (thread + 4, group)
    return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group


def isa_c(lane: int, i: int) -> tuple[int, int]:
    """The same for the sums, which all types have in the same places."""
    return (lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


def _gathered(words: Sequence[Lanes], kind: str, length: int, rows: bool) -> Lanes:
    """A warp's operand from its registers; tf32 ignores the low 13 bits."""
    types = {"f16": np.float16, "tf32": np.float32, "s8": np.int8, "u8": np.uint8}
    dtype = np.dtype(types[kind])
    out = np.zeros((16, length) if rows else (length, 8), dtype)
    bits = np.stack(words, axis=1)
    if kind == "tf32":
        bits = bits & np.uint32(0xFFFFE000)
    elements = np.ascontiguousarray(bits).view(dtype).reshape(32, -1)
    place = isa_a if rows else isa_b
    for lane in range(32):
        for i in range(elements.shape[1]):
            out[place(lane, i, dtype.itemsize)] = elements[lane, i]
    return out.astype(np.float64) if dtype.kind == "f" else out.astype(np.int64)


def _names(group: str) -> list[str]:
    return [x.strip() for x in group.strip("{}").split(",")]


def _place(text: str) -> tuple[str, int]:
    base, _, offset = text.strip("[]").partition("+")
    return base.strip(), int(offset) if offset else 0


def _converted(v: Lanes, parts: list[str]) -> Lanes:
    """`cvt`: rounding modes between floats and integers, widening, narrowing."""
    to = np.dtype(_TYPES[parts[-2]]) if parts[-2] != "tf32" else np.dtype(np.uint32)
    with np.errstate(all="ignore"):
        if parts[-2] == "tf32":
            return (v.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        if v.dtype.kind == "f":
            modes: dict[str, Callable[[Lanes], Lanes]] = {
                "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
            }  # fmt: skip
            for name, mode in modes.items():
                v = mode(v) if name in parts else v
            if to.kind != "f":
                info = np.iinfo(to)
                wide = np.nan_to_num(v.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
                low, high = wide <= info.min, wide >= info.max
                inside = np.where(low | high, 0, wide).astype(to)
                return np.where(low, info.min, np.where(high, info.max, inside)).astype(to)
        if "sat" in parts:
            return np.clip(v, np.iinfo(to).min, np.iinfo(to).max).astype(to)
        return v.astype(to)


def _truncated(a: Lanes, b: Lanes) -> Lanes:
    out = [int(abs(int(x)) // abs(int(y))) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)]  # fmt: skip
    return np.array(out, a.dtype)


def _left(x: Lanes, by: Lanes) -> Lanes:
    bits = 8 * x.dtype.itemsize
    return np.where(by >= bits, 0, x << np.minimum(by, bits - 1).astype(x.dtype)).astype(x.dtype)


def _right(x: Lanes, by: Lanes) -> Lanes:
    bits = 8 * x.dtype.itemsize
    moved = x >> np.minimum(by, bits - 1).astype(x.dtype)
    return moved if x.dtype.kind == "i" else np.where(by >= bits, 0, moved).astype(x.dtype)


def _prmt(a: Lanes, b: Lanes, which: Lanes) -> Lanes:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros(a.shape, np.uint64)
    for i in range(4):
        pick = which.astype(np.uint64) >> np.uint64(4 * i) & np.uint64(0xF)
        byte = both >> (pick & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        out |= np.where(pick & np.uint64(8), sign, byte) << np.uint64(8 * i)
    return out.astype(np.uint32)


def _bfe(a: Lanes, start: Lanes, length: Lanes) -> Lanes:
    mask = (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
    return (a.astype(np.uint64) >> start.astype(np.uint64) & mask).astype(np.uint32)


def _bfi(a: Lanes, b: Lanes, start: Lanes, length: Lanes) -> Lanes:
    mask = ((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << start.astype(np.uint64)
    moved = a.astype(np.uint64) << start.astype(np.uint64) & mask
    return (moved | b.astype(np.uint64) & ~mask).astype(np.uint32)


_COMPARE: Mapping[str, Callable[[Lanes, Lanes], Lanes]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
_LOGIC: Mapping[str, Callable[..., Lanes]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not,
}  # fmt: skip
_SHIFTS: Mapping[str, Callable[[Lanes, Lanes], Lanes]] = {"shl": _left, "shr": _right}
_BITS: Mapping[str, Callable[..., Lanes]] = {"prmt": _prmt, "bfe": _bfe, "bfi": _bfi}
_PLAIN: Mapping[str, Callable[..., Lanes]] = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs,
    "div": np.divide, "sqrt": np.sqrt,
}  # fmt: skip
