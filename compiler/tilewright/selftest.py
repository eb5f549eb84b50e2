"""Test vectors of a compiled model, for NAME_selftest in C.

In: a `Program`. Out: `Vectors`.
Invariant: what is expected comes from the NumPy interpreter, which shares nothing with generated code. Only
models that would take it minutes are run as compiled, which needs a target that this machine runs.
"""

from __future__ import annotations

from tilewright.artifact.selftest import Vectors, expect, make_inputs
from tilewright.bench.inputs import whole_numbers
from tilewright.codegen.llvm import runs_here
from tilewright.errors import TargetError
from tilewright.graph.interp import run
from tilewright.program import Program, spec_of
from tilewright.session import Session

#: More work than this is not given to the interpreter.
MAX_INTERPRETED_FLOPS = 1 << 30


def make_vectors(program: Program, seed: int = 1) -> Vectors:
    """Inputs and expected outputs of `program`; `TargetError` if nothing here can compute them."""
    if program.target.gpu is not None:
        raise TargetError("self-tests run on the processor: leave out --selftest for CUDA targets")
    spec = spec_of(program)
    ranges = tuple(whole_numbers(program.graph, t) for t in spec.inputs)
    inputs = make_inputs(spec, ranges, seed)
    if sum(s.flops for s in program.steps) <= MAX_INTERPRETED_FLOPS:
        values = run(program.graph, dict(zip(program.graph.inputs, inputs, strict=True)))
        outputs = [values[name] for name in program.graph.outputs]
    elif runs_here(program.target):
        session = Session(program)
        session.set_inputs(inputs)
        outputs = session.run()
    else:
        raise TargetError(
            f"{program.name} is too large to be interpreted, and {program.target.name} does not run here: "
            "leave out --selftest"
        )
    return Vectors(seed, ranges, tuple(expect(o) for o in outputs))
