"""Recurrent layers: all steps of one direction in one kernel, after one matmul for all inputs.

rnn   h = f(x + h R)
gru   z, r = f(x + h R);  c = g(x + (r h) R), or g(x + r (h R + b)) if `linear`;  h = z h + (1 - z) c
lstm  i, o, f = f(x + h R [+ p c]);  c = f c + i g(x + h R);  h = o k(c)
x[T, N, G*H] holds the input's part of all gates, r[G, H, H] the weights of the state. The result has the
states after T steps, then the last of each state. ONNX's RNN, GRU and LSTM become these, one per direction.
lstm_dynamic is lstm with integers as weights and a scale per gate and unit: at every step h is quantised by its
own range to u8 (as DynamicQuantizeLinear does), and its products are summed in i32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tilewright.core.dtypes import I8, I16, I32, I64, U8
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop import recurrence
from tilewright.loop.builder import KernelBuilder
from tilewright.loop.recurrence import Activation, Cell
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.templates import recurrence as schedule

#: operator -> gates, activation functions, states
_CELLS = {"rnn": (1, 1, 1), "gru": (3, 2, 1), "lstm": (4, 3, 2), "lstm_dynamic": (4, 3, 2)}
#: Weights of lstm_dynamic, less their zero point.
_WEIGHTS = (I8, U8, I16)
#: ONNX's defaults of alpha and beta.
_DEFAULTS = {
    "Sigmoid": (0.0, 0.0), "Tanh": (0.0, 0.0), "Relu": (0.0, 0.0), "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5), "Elu": (1.0, 0.0), "Softsign": (0.0, 0.0), "Softplus": (0.0, 0.0),
}  # fmt: skip
_TAKES_ALPHA = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
_TAKES_BETA = {"Affine", "ScaledTanh", "HardSigmoid"}


def _functions(attrs: Attrs) -> list[Activation]:
    alphas, betas = attrs["alphas"], attrs["betas"]
    assert isinstance(alphas, tuple) and isinstance(betas, tuple)
    names = str(attrs["activations"]).split(",")
    return [Activation(*f) for f in zip(names, alphas, betas, strict=True)]


# ---------------------------------------------------------------- types and meaning


def _infer(name: str, types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, r, h0, lengths, *more = types
    gates, functions, states = _CELLS[name]
    assert x is not None and r is not None
    hidden = r.shape[-1] if r.rank else 0
    fits = x.rank == 3 and r.shape == (gates, hidden, hidden) and x.shape[2] == gates * hidden
    typed = r.dtype in _WEIGHTS if name == "lstm_dynamic" else r.dtype is x.dtype
    if not fits or not typed or not x.dtype.is_float:
        raise ModelError(f"`{name}` of {x} with weights {r}: the shapes do not fit")
    if len(_functions(attrs)) != functions:
        raise ModelError(f"`{name}` needs {functions} activation functions")
    for given, shape in _others(name, (h0, *more), x.shape[1], hidden):
        if given is not None and (given.shape != shape or given.dtype is not x.dtype):
            raise ModelError(f"`{name}` of {x}: an operand is {given}, not {x.dtype}{list(shape)}")
    if lengths is not None and (lengths.shape != x.shape[1:2] or lengths.dtype not in (I32, I64)):
        raise ModelError(f"`{name}` of {x}: the lengths are {lengths}")
    return [TensorType(x.dtype, (x.shape[0] + states, x.shape[1], hidden))]


def _others(
    name: str, given: Sequence[TensorType | None], count: int, hidden: int
) -> list[tuple[TensorType | None, tuple[int, ...]]]:
    """Operands besides x, r and lengths, with the shapes they must have."""
    state = (count, hidden)
    lstm = [state, state, (3 * hidden,)]
    shapes = {
        "rnn": [state], "gru": [state, (hidden,)], "lstm": lstm, "lstm_dynamic": [*lstm, (4 * hidden,)]
    }  # fmt: skip
    return list(zip(given, shapes[name], strict=True))


_NUMPY: dict[str, Callable[[Any, float, float], Any]] = {
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Tanh": lambda x, a, b: np.tanh(x),
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "ThresholdedRelu": lambda x, a, b: np.where(x > a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Softplus": lambda x, a, b: np.logaddexp(0, x),
}


def _reference(name: str, inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    wide = [None if a is None else np.asarray(a, np.float64) for a in inputs]
    x, r, h0, lengths, *more = wide
    assert x is not None and r is not None
    (steps, count, _), (gates, hidden, _) = x.shape, r.shape
    clip = float(attrs["clip"]) or np.inf  # type: ignore[arg-type]
    f = [
        lambda v, a=a: _NUMPY[a.name](np.clip(v, -clip, clip), a.alpha, a.beta)
        for a in _functions(attrs)
    ]
    h = np.zeros((count, hidden)) if h0 is None else h0
    states = [h]
    if name.startswith("lstm"):
        states.append(np.zeros((count, hidden)) if more[0] is None else more[0])
    y = np.zeros((steps + len(states), count, hidden))
    for t in range(steps)[:: -1 if attrs["reverse"] else 1]:
        new = _STEPS[name](x[t].reshape(count, gates, hidden), r, states, more, f, attrs)
        alive = np.ones((count, 1), bool) if lengths is None else (t < lengths)[:, None]
        y[t] = np.where(alive, new[0], 0)
        states = [np.where(alive, n, s) for n, s in zip(new, states, strict=True)]
    y[steps:] = states
    return [y.astype(np.asarray(inputs[0]).dtype)]


def _rnn(x: Any, r: Any, states: Any, more: Any, f: Any, attrs: Attrs) -> list[Any]:
    return [f[0](x[:, 0] + states[0] @ r[0])]


def _gru(x: Any, r: Any, states: Any, more: Any, f: Any, attrs: Attrs) -> list[Any]:
    h = states[0]
    z, reset = f[0](x[:, 0] + h @ r[0]), f[0](x[:, 1] + h @ r[1])
    if attrs["linear"]:
        c = f[1](x[:, 2] + reset * (h @ r[2] + (0 if more[0] is None else more[0])))
    else:
        c = f[1](x[:, 2] + (reset * h) @ r[2])
    return [z * h + (1 - z) * c]


def _lstm(x: Any, r: Any, states: Any, more: Any, f: Any, attrs: Attrs) -> list[Any]:
    h, c = states
    p = np.zeros((3, h.shape[1])) if more[1] is None else more[1].reshape(3, -1)
    steps, scale = (h, np.ones(4)) if len(more) < 3 else _quantised(h, more[2].reshape(4, -1))
    ai, ao, af, ac = (x[:, g] + (steps @ r[g]) * scale[g] for g in range(4))
    i = f[0](ai + p[0] * c)
    forget = 1 - i if attrs["coupled"] else f[0](af + p[2] * c)
    after = forget * c + i * f[1](ac)
    last = _functions(attrs)[2]
    return [f[0](ao + p[1] * after) * _NUMPY[last.name](after, last.alpha, last.beta), after]


def _quantised(h: Any, scale: Any) -> tuple[Any, Any]:
    """h in whole steps of its own range, and what a step times each weight's is worth."""
    h = h.astype(np.float32)
    low, high = min(h.min(), np.float32(0)), max(h.max(), np.float32(0))
    step = (high - low) / np.float32(255) or np.float32(1)
    zero = np.clip(np.rint(-low / step), 0, 255)
    q = np.clip(np.rint(h / step) + zero, 0, 255) - zero
    return q.astype(np.float64), step * scale


_STEPS = {"rnn": _rnn, "gru": _gru, "lstm": _lstm, "lstm_dynamic": _lstm}


def _lower(name: str, k: KernelBuilder, attrs: Attrs) -> None:
    more = k.inputs[4:]

    def step(cell: Cell, states: Sequence[Any]) -> None:
        if name == "rnn":
            recurrence.rnn_step(cell, states)
        elif name == "gru":
            recurrence.gru_step(cell, states, more[0], bool(attrs["linear"]))
        else:
            recurrence.lstm_step(cell, states, more[1], bool(attrs["coupled"]))

    initial = more[:1] if name.startswith("lstm") else []
    if name == "lstm_dynamic":
        recurrence.unroll_time(
            k,
            _functions(attrs),
            float(attrs["clip"]),
            bool(attrs["reverse"]),
            initial,
            0,
            step,
            more[2],
        )
        return
    scratch = 2 if name == "gru" and not attrs["linear"] else 0
    clip, reverse = float(attrs["clip"]), bool(attrs["reverse"])  # type: ignore[arg-type]
    recurrence.unroll_time(k, _functions(attrs), clip, reverse, initial, scratch, step)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    x, r = types[:2]
    assert x is not None and r is not None
    return 2 * x.shape[0] * x.shape[1] * r.size


def _depth(name: str, types: Sequence[TensorType | None], attrs: Attrs) -> int:
    """Every step adds its own sum to the error of the steps before it; a state on the edge between two steps of
    its quantisation may fall to either side."""
    x, r = types[:2]
    assert x is not None and r is not None
    return x.shape[0] * (r.shape[2] + 8 + (4096 if name == "lstm_dynamic" else 0))


# ---------------------------------------------------------------- importers


def _import(name: str, node: ImportNode) -> Sequence[str]:
    """X, W, R, B?, sequence_lens?, initial_h?, then initial_c? and P? of LSTM, and where R is integers its scales.

    Without W (no model has that, `frontend.qoperator` does) X holds the input's part of all gates."""
    gates, _, states = _CELLS[name]
    t, w = node.type(0), node.type(1 if node.has(1) else 2)
    if (
        t.rank != 3
        or w.rank != 3
        or w.shape[1] % gates
        or (node.has(1) and w.shape[2] != t.shape[2])
    ):
        raise ModelError(f"its input is {t} and its weights are {w}: the shapes do not fit")
    hidden = w.shape[1] // gates
    if int(node.attr("hidden_size", hidden)) != hidden:
        raise node.fail(f"hidden_size is {node.attr('hidden_size')}, but the weights are {w}")
    direction, layout = str(node.attr("direction", "forward")), int(node.attr("layout", 0))
    count = 2 if direction == "bidirectional" else 1
    if direction not in ("forward", "reverse", "bidirectional") or w.shape[0] != count:
        raise node.fail(f"direction {direction} does not fit its weights {w}")
    x = node.inputs[0]
    if layout:
        (x,) = node.add("transpose", [x], {"perm": (1, 0, 2)})
    parts = [_direction(node, name, x, d, direction, count, layout) for d in range(count)]
    steps = node.type_of(x).shape[0]
    return _results(node, parts, steps, states, layout)


def _direction(
    node: ImportNode, name: str, x: str, d: int, direction: str, count: int, layout: int
) -> str:
    """One direction as a node of its own."""
    gates, _, _ = _CELLS[name]
    steps, batch, size = node.type_of(x).shape
    hidden = node.type(2).shape[1] // gates
    r = _flat(node, 2, d, (gates, hidden, hidden))
    (r,) = node.add("transpose", [r], {"perm": (0, 2, 1)})
    linear = name == "gru" and bool(node.attr("linear_before_reset", 0))
    bias, own = _biases(node, d, gates, hidden, linear)
    if node.has(1):
        w = _flat(node, 1, d, (gates * hidden, size))
        (w,) = node.add("transpose", [w], {"perm": (1, 0)})
        (rows,) = node.add("reshape", [x], {"shape": (steps * batch, size)})
        (rows,) = node.add("matmul", [rows, w, bias] if bias else [rows, w])
        (gated,) = node.add("reshape", [rows], {"shape": (steps, batch, gates * hidden)})
    else:
        width = gates * hidden
        cut = {
            "starts": (0, 0, d * width),
            "ends": (steps, batch, (d + 1) * width),
            "steps": (1, 1, 1),
        }
        (gated,) = node.add("slice", [x], cut) if count > 1 else [x]
        (gated,) = node.add("add", [gated, bias]) if bias else [gated]
    state = (batch, hidden)
    h0 = _initial(node, 5, d, state, layout)
    inputs = [gated, r, h0, node.inputs[4] if node.has(4) else ""]
    attrs = _attrs(node, name, d, direction)
    if name == "gru":
        inputs.append(own)
        attrs["linear"] = linear
    if name.startswith("lstm"):
        peephole = _flat(node, 7, d, (3 * hidden,)) if node.has(7) else ""
        inputs += [_initial(node, 6, d, state, layout), peephole]
        attrs["coupled"] = bool(node.attr("input_forget", 0))
    if name == "lstm_dynamic":
        inputs.append(_flat(node, 8, d, (gates * hidden,)))
    return node.add(name, inputs, attrs)[0]


def _attrs(node: ImportNode, name: str, d: int, direction: str) -> dict[str, Any]:
    _, functions, _ = _CELLS[name]
    defaults = {"rnn": ["Tanh"], "gru": ["Sigmoid", "Tanh"]}
    given = [str(f) for f in node.attr("activations", ())]
    count = 2 if direction == "bidirectional" else 1
    names = given or defaults.get(name, ["Sigmoid", "Tanh", "Tanh"]) * count
    known = {f.lower(): f for f in _DEFAULTS}
    odd = next((f for f in names if f.lower() not in known), None)
    if odd is not None or len(names) != functions * count:
        raise node.fail(
            f"the activations {', '.join(names)} are not {functions * count} of {', '.join(_DEFAULTS)}"
        )
    names = [known[f.lower()] for f in names]
    alphas = _parameters(node, "activation_alpha", names, _TAKES_ALPHA, 0)
    betas = _parameters(node, "activation_beta", names, _TAKES_BETA, 1)
    mine = slice(d * functions, (d + 1) * functions)
    return {
        "activations": ",".join(names[mine]),
        "alphas": tuple(alphas[mine]),
        "betas": tuple(betas[mine]),
        "clip": float(node.attr("clip", 0.0)),
        "reverse": direction == "reverse" or d == 1,
    }


def _parameters(
    node: ImportNode, name: str, functions: Sequence[str], takes: set[str], which: int
) -> list[float]:
    """One number per function: the given ones go, in order, to those that take one."""
    given = iter(float(v) for v in node.attr(name, ()))
    out: list[float] = []
    for f in functions:
        default = _DEFAULTS[f][which]
        out.append(next(given, default) if f in takes else default)
    return out


def _flat(node: ImportNode, i: int, d: int, shape: tuple[int, ...]) -> str:
    """Direction `d` of operand `i`, which has one more dim in front, as `shape`."""
    t = node.type(i)
    if t.size % max(t.shape[0] if t.rank else 1, 1) or t.size // max(t.shape[0], 1) != int(
        np.prod(shape)
    ):
        raise node.fail(
            f"input {i} is {t}, {list(shape)} per direction is wanted: repair the model"
        )
    attrs = {
        "starts": (d, *(0,) * (t.rank - 1)), "ends": (d + 1, *t.shape[1:]), "steps": (1,) * t.rank
    }  # fmt: skip
    (part,) = node.add("slice", [node.inputs[i]], attrs) if t.shape[0] > 1 else [node.inputs[i]]
    return node.add("reshape", [part], {"shape": shape})[0]


def _initial(node: ImportNode, i: int, d: int, shape: tuple[int, int], layout: int) -> str:
    """Direction `d` of an initial state [D, N, H], or [N, D, H] in layout 1; empty if there is none."""
    if not node.has(i):
        return ""
    t = node.type(i)
    axis = 1 if layout else 0
    if t.rank != 3 or d >= t.shape[axis] or t.size // t.shape[axis] != shape[0] * shape[1]:
        raise node.fail(f"the initial state is {t}, which does not fit: repair the model")
    starts, ends = [0, 0, 0], list(t.shape)
    starts[axis], ends[axis] = d, d + 1
    attrs = {"starts": tuple(starts), "ends": tuple(ends), "steps": (1, 1, 1)}
    (part,) = node.add("slice", [node.inputs[i]], attrs)
    return node.add("reshape", [part], {"shape": shape})[0]


def _biases(
    node: ImportNode, d: int, gates: int, hidden: int, linear: bool
) -> tuple[str, str]:  # fmt: skip
    """What is added to the input's part of all gates, and what to the state's part of the candidate."""
    if not node.has(3):
        return "", ""
    both = _flat(node, 3, d, (2, gates * hidden))
    if not linear:
        return node.add("reduce_sum", [both], {"axes": (0,), "keepdims": False})[0], ""

    def part(row: int, start: int, end: int) -> str:
        attrs = {"starts": (row, start), "ends": (row + 1, end), "steps": (1, 1)}
        (piece,) = node.add("slice", [both], attrs)
        return node.add("reshape", [piece], {"shape": (end - start,)})[0]

    gated = node.add("add", [part(0, 0, 2 * hidden), part(1, 0, 2 * hidden)])
    bias = node.add("concat", [*gated, part(0, 2 * hidden, 3 * hidden)], {"axis": 0})
    return bias[0], part(1, 2 * hidden, 3 * hidden)


def _results(
    node: ImportNode, parts: Sequence[str], steps: int, states: int, layout: int
) -> list[str]:
    """Y[T, D, N, H] and the last states [D, N, H]; with the batch first in layout 1."""
    _, batch, hidden = node.type_of(parts[0]).shape

    def cut(part: str, start: int, end: int, shape: tuple[int, ...]) -> str:
        attrs = {"starts": (start, 0, 0), "ends": (end, batch, hidden), "steps": (1, 1, 1)}
        return node.add("reshape", node.add("slice", [part], attrs), {"shape": shape})[0]

    def joined(pieces: Sequence[str], axis: int, perm: tuple[int, ...]) -> str:
        y = pieces[0] if len(pieces) == 1 else node.add("concat", pieces, {"axis": axis})[0]
        return node.add("transpose", [y], {"perm": perm})[0] if layout else y

    y = [cut(p, 0, steps, (steps, 1, batch, hidden)) for p in parts]
    out = [joined(y, 1, (2, 0, 1, 3))]
    for i in range(states):
        last = [cut(p, steps + i, steps + i + 1, (1, batch, hidden)) for p in parts]
        out.append(joined(last, 0, (1, 0, 2)))
    return out


# ---------------------------------------------------------------- samples


def _samples(name: str, rng: np.random.Generator) -> Iterator[Sample]:
    gates, functions, _ = _CELLS[name]

    def f(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.6).astype(np.float32)

    def sample(
        steps: int, count: int, hidden: int, full: bool, lengths: bool, **more: Any
    ) -> Sample:
        attrs: dict[str, Any] = {
            "activations": ",".join(["Sigmoid", "Tanh", "Tanh"][3 - functions :] if functions > 2
                                    else ["Sigmoid", "Tanh"][2 - functions :]),
            "alphas": (0.0,) * functions, "betas": (0.0,) * functions, "clip": 0.0, "reverse": False,
            **({"linear": False} if name == "gru" else {}),
            **({"coupled": False} if name.startswith("lstm") else {}), **more,
        }  # fmt: skip
        x, r = f(steps, count, gates * hidden), f(gates, hidden, hidden)
        h0 = f(count, hidden) if full else None
        lens = rng.integers(0, steps + 1, count).astype(np.int32) if lengths else None
        state = {"rnn": [], "gru": [f(hidden)], "lstm": [f(count, hidden), f(3 * hidden)]}
        state["lstm_dynamic"] = state["lstm"]
        own: list[Array | None] = list(state[name]) if full else [None] * len(state[name])
        if name == "lstm_dynamic":
            r = rng.integers(-127, 128, r.shape).astype(np.int8)
            own.append((rng.random(gates * hidden) * 0.01 + 0.001).astype(np.float32))
        return Sample((x, r, h0, lens, *own), attrs)

    yield sample(1, 1, 1, False, False)
    yield sample(3, 1, 16, True, False)
    yield sample(4, 2, 5, True, False, reverse=True)
    yield sample(3, 5, 35, True, True, clip=0.5)
    yield sample(2, 1, 40, False, True, reverse=True)
    if name == "gru":
        yield sample(3, 1, 19, True, False, linear=True)
        yield sample(3, 6, 33, False, True, linear=True)
    if name.startswith("lstm"):
        yield sample(3, 2, 20, True, False, coupled=True)
    for fn in _DEFAULTS:
        names = ",".join([fn] * functions)
        alphas, betas = ((0.3,) * functions, (0.4,) * functions)
        yield sample(2, 1, 9, True, False, activations=names, alphas=alphas, betas=betas)


_EXTRA = {
    "rnn": {},
    "gru": {"linear": bool},
    "lstm": {"coupled": bool},
    "lstm_dynamic": {"coupled": bool},
}

OPERATORS = [
    Operator(
        name=name, trait="opaque", infer=partial(_infer, name), reference=partial(_reference, name),
        attrs={
            "activations": str, "alphas": tuple, "betas": tuple, "clip": float, "reverse": bool,
            **_EXTRA[name],
        },
        lower=partial(_lower, name), schedule=schedule, samples=partial(_samples, name), flops=_flops,
        depth=partial(_depth, name),
        onnx={"tilewright::DynamicLSTM" if name == "lstm_dynamic" else name.upper(): partial(_import, name)},
        doc=f"all steps of one direction of a recurrent layer ({name.upper()})",
    )
    for name in _CELLS
]  # fmt: skip
