"""Layers with memory: SVDF, LSTM and RNN, over floats; SVDF over quantised tensors as well.

In: an operator with variable tensors for its state. Out: its steps one after the other, and what the
variable tensors hold after them (`TfliteNode.keep`). Weights may be bytes, operands are then quantised by the
range of each row (`hybrid.py`).
Invariant: what does not depend on the state is computed for all steps at once.
Hochreiter & Schmidhuber (1997); Sak et al. (2014) for peepholes and projection; Nakkiran et al. (2015),
"Compressing Deep Neural Networks using a Rank-Constrained Topology", for SVDF.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.core.dtypes import F32, I8, I16, I32
from tilewright.frontend import limits
from tilewright.frontend.tflite.fixed import centred, multiplied, requantized
from tilewright.frontend.tflite.hybrid import byte_weights, rows_product
from tilewright.frontend.tflite.movement import joined, part
from tilewright.frontend.tflite.node import Importers, TfliteNode, one

_F = np.float32
#: About what a step becomes: sequences are unrolled.
_NODES_PER_STEP = 32


def _floats(node: TfliteNode) -> None:
    """Operands are floats; weights may be bytes."""
    others = (node.tensor(i).dtype for i in range(1, len(node.inputs)) if node.has(i))
    if node.type(0).dtype is not F32 or any(t not in (F32, I8) for t in others):
        raise node.fail("only floats are supported here: convert the model without quantisation")


def _product(node: TfliteNode, x: str, weights: Sequence[int]) -> str:
    """x [.., I] times the weights [O, I] at these inputs, side by side: [.., sum of O]."""
    if node.type(weights[0]).dtype is F32:
        return node.add("matmul", x, joined(node, [_columns(node, i) for i in weights], 1))
    found = [byte_weights(node, i) for i in weights]
    if not all(q.per_tensor for _, q in found):
        raise node.fail("weights with a scale per channel are not supported here: convert it again")
    w = np.concatenate([v for v, _ in found])
    steps = np.concatenate([np.full(len(v), q.scale[0]) for v, q in found])
    shape = node.type_of(x).shape
    rows = node.reshape(x, (int(np.prod(shape[:-1])), shape[-1]))
    y = rows_product(node, rows, w, steps, bool(node.option("AsymmetricQuantizeInputs", False)))
    return node.reshape(y, (*shape[:-1], len(w)))


def _real(node: TfliteNode, i: int) -> str:
    """A vector of weights as floats."""
    if node.type(i).dtype is F32:
        return node.value(i)
    w, q = byte_weights(node, i)
    return node.constant(w.astype(np.float32) * q.scale, "weights")


def _columns(node: TfliteNode, i: int) -> str:
    """Weights [out, in] of the file as [in, out]."""
    return node.add("transpose", node.value(i), perm=(1, 0))


# ---------------------------------------------------------------- SVDF


def _svdf(node: TfliteNode) -> str:
    """(x [B, I], features [F, I], time [F, M], bias?, state [B, F * M]): a ring of M products per filter,
    weighted and summed over the filters of each of F / rank units."""
    features, time = node.type(1).shape, node.type(2).shape
    rank = int(node.option("Rank", 1))
    if len(features) != 2 or len(time) != 2 or rank < 1 or features[0] % rank:
        raise node.fail(f"weights {node.type(1)} and {node.type(2)} in rank {rank} do not fit")
    batch, (filters, memory) = node.type(0).shape[0], time
    state = node.reshape(node.value(4), (batch, filters, memory))
    x_type = node.type(0).dtype
    if x_type is F32 and node.type(1).dtype is F32:
        newest = node.add("matmul", node.value(0), _columns(node, 1))
    elif x_type is I8 and node.type(4).dtype in (I8, I16):
        newest = _svdf_features(node)
    else:
        raise node.fail(
            f"{node.type(0)} with weights {node.type(1)} is not supported: use floats or int8"
        )
    shifted = part(node, state, 2, 1, memory)
    ring = joined(node, [shifted, node.reshape(newest, (batch, filters, 1))], 2)
    node.keep(4, node.reshape(ring, node.type(4).shape))
    if x_type is F32:
        weighted = node.add("mul", ring, node.value(2))
        total = node.add("reduce_sum", weighted, axes=(2,), keepdims=False)
        return node.activated(_units(node, total, rank))
    step, zero = node.scale(node.tensor(4))
    weighted = node.add("mul", centred(node, ring, zero), node.cast(node.value(2), I32))
    total = _units(node, node.add("reduce_sum", weighted, axes=(2,), keepdims=False), rank)
    factor = float(_F(step) * _F(node.scale(node.tensor(2))[0]) / _F(node.scale(node.result())[0]))
    return requantized(node, total, np.asarray(factor), 1 << 31, node.result(), "")


def _svdf_features(node: TfliteNode) -> str:
    """The newest column of the state, in its integers."""
    (step, zero), state = node.scale(node.tensor(0)), node.tensor(4)
    by, _ = node.scale(node.tensor(1))
    out, out_zero = node.scale(state)
    w = node.need_const(1, "the feature weights").astype(np.int64)
    bias = node.constant(-zero * w.sum(axis=1), "bias", I32)
    total = node.add("matmul", node.value(0), _columns(node, 1), bias)
    assert state.dtype is not None
    info = np.iinfo(str(state.dtype.numpy))
    factor = np.asarray(float(_F(step) * _F(by) / _F(out)))
    steps = multiplied(node, total, factor, int(np.abs(w).sum(axis=1).max(initial=0)) * 255)
    for op, bound in (("max", int(info.min)), ("min", int(info.max))):
        steps = node.add(op, steps, node.like(steps, bound))
    steps = node.add("add", steps, node.like(steps, out_zero)) if out_zero else steps
    return node.cast(steps, state.dtype)


def _units(node: TfliteNode, total: str, rank: int) -> str:
    """Sums over the filters of a unit, plus the bias."""
    batch, filters = node.type_of(total).shape
    if rank > 1:
        cut = node.reshape(total, (batch, filters // rank, rank))
        total = node.add("reduce_sum", cut, axes=(2,), keepdims=False)
    return node.add("add", total, node.value(3)) if node.has(3) else total


# ---------------------------------------------------------------- steps over time


def _steps(node: TfliteNode, x: str, time_major: bool) -> tuple[str, int]:
    """(x as [T, B, I], T)."""
    t = node.type_of(x)
    if t.rank != 3:
        raise node.fail(f"{t} is not [batch, time, features]: repair the model")
    limits.check_nodes(_NODES_PER_STEP * t.shape[0 if time_major else 1])
    x = x if time_major else node.add("transpose", x, perm=(1, 0, 2))
    return x, node.type_of(x).shape[0]


def _sequence(node: TfliteNode, outputs: Sequence[str], time_major: bool) -> str:
    """Results of single steps [B, O] as a sequence."""
    wide = [node.reshape(h, (1, *node.type_of(h).shape)) for h in outputs]
    y = joined(node, wide, 0)
    return y if time_major else node.add("transpose", y, perm=(1, 0, 2))


def _moment(node: TfliteNode, x: str, t: int) -> str:
    """Step `t` of [T, B, O] as [B, O]."""
    return node.reshape(part(node, x, 0, t, t + 1), node.type_of(x).shape[1:])


# ---------------------------------------------------------------- LSTM


class _Lstm:
    """The float kernel's inputs: 1-4 and 5-8 weights of the gates (input, forget, cell, output), 9-11
    peepholes, 12-15 biases, 16 and 17 projection, 18 and 19 states, 20-23 layer normalisation."""

    def __init__(self, node: TfliteNode) -> None:
        _floats(node)
        self.node = node
        self.coupled = not node.has(1)
        self.gates = [g for g in range(4) if g or not self.coupled]
        self.units = node.type(2).shape[0]

    def product(self, x: str, first: int) -> str:
        """x times the weights of all gates."""
        return _product(self.node, x, [first + g for g in self.gates])

    def cut(self, value: str, gate: int) -> str:
        at = self.gates.index(gate) * self.units
        return part(self.node, value, len(self.node.type_of(value).shape) - 1, at, at + self.units)

    def gate(self, total: str, gate: int, cell: str, peephole: int) -> str:
        """A gate before its function: peephole, normalisation, bias."""
        node = self.node
        value = self.cut(total, gate)
        if peephole >= 0 and node.has(9 + peephole):
            value = node.add("add", value, node.add("mul", cell, _real(node, 9 + peephole)))
        if node.has(20 + gate):
            value = self.normalised(value, 20 + gate)
        return node.add("add", value, node.value(12 + gate)) if node.has(12 + gate) else value

    def normalised(self, value: str, i: int) -> str:
        node, last = self.node, self.node.type_of(value).rank - 1
        return node.add("layer_norm", value, node.value(i), axis=last, epsilon=1e-8)

    def squashed(self, value: str) -> str:
        return self.node.activated(value)

    def clipped(self, value: str, option: str) -> str:
        bound = float(self.node.option(option, 0.0))
        return self.node.add("clip", value, min=-bound, max=bound) if bound > 0 else value

    def step(self, given: str, h: str, c: str) -> tuple[str, str]:
        """One step from what the input adds to the gates; the new h and c."""
        node = self.node
        total = node.add("add", given, self.product(h, 5))
        forget = node.add("sigmoid", self.gate(total, 1, c, 1))
        if self.coupled:
            enter = node.add("sub", node.like(forget, 1.0), forget)
        else:
            enter = node.add("sigmoid", self.gate(total, 0, c, 0))
        new = self.squashed(self.gate(total, 2, c, -1))
        c = node.add("add", node.add("mul", forget, c), node.add("mul", enter, new))
        c = self.clipped(c, "CellClip")
        leave = node.add("sigmoid", self.gate(total, 3, c, 2))
        h = node.add("mul", leave, self.squashed(c))
        if node.has(16):
            h = _product(node, h, [16])
            h = node.add("add", h, node.value(17)) if node.has(17) else h
            h = self.clipped(h, "ProjClip")
        return h, c

    def run(self, x: str, steps: int) -> list[str]:
        """All steps over x [T, B, I]; the states are kept."""
        node = self.node
        given = self.product(x, 1)
        h, c = node.value(18), node.value(19)
        outputs: list[str] = []
        for t in range(steps):
            h, c = self.step(_moment(node, given, t), h, c)
            outputs.append(h)
        node.keep(18, h)
        node.keep(19, c)
        return outputs


def _sequence_lstm(node: TfliteNode) -> str:
    major = bool(node.option("TimeMajor", False))
    x, steps = _steps(node, node.value(0), major)
    return _sequence(node, _Lstm(node).run(x, steps), major)


def _lstm(node: TfliteNode) -> str:
    """One step; the kernel type with five inputs is not made any more."""
    if int(node.option("KernelType", 0)):
        raise node.fail("the basic kernel of LSTM is not supported: convert the model again")
    x = node.reshape(node.value(0), (1, *node.type(0).shape))
    return _Lstm(node).run(x, 1)[0]


# ---------------------------------------------------------------- RNN


def _rnn_steps(node: TfliteNode, x: str, steps: int) -> list[str]:
    """(x, weights, recurrent weights, bias, state): h = f(W x + R h + b)."""
    _floats(node)
    given, h = node.add("add", _product(node, x, [1]), node.value(3)), node.value(4)
    outputs: list[str] = []
    for t in range(steps):
        total = node.add("add", _moment(node, given, t), _product(node, h, [2]))
        h = node.activated(total)
        outputs.append(h)
    node.keep(4, h)
    return outputs


def _sequence_rnn(node: TfliteNode) -> str:
    major = bool(node.option("TimeMajor", False))
    x, steps = _steps(node, node.value(0), major)
    return _sequence(node, _rnn_steps(node, x, steps), major)


def _rnn(node: TfliteNode) -> str:
    return _rnn_steps(node, node.reshape(node.value(0), (1, *node.type(0).shape)), 1)[0]


RECURRENT: Importers = {
    "SVDF": one(_svdf),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": one(_sequence_lstm),
    "LSTM": one(_lstm),
    "UNIDIRECTIONAL_SEQUENCE_RNN": one(_sequence_rnn),
    "RNN": one(_rnn),
}
