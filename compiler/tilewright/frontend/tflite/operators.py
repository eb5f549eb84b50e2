"""Which importer takes which builtin operator, and why some are refused.

Invariant: `BYTES` compute nothing and take quantised tensors as they are; `FLOAT` take floats and plain
integers. Builtins of neither kind are refused by name, with the reason where there is more to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.frontend.tflite import convolution, elementwise, movement, picking, reduction
from tilewright.frontend.tflite.node import Importers

BYTES: Importers = {**movement.BYTES, **picking.BYTES}

FLOAT: Importers = {
    **convolution.FLOAT,
    **elementwise.FLOAT,
    **movement.FLOAT,
    **reduction.FLOAT,
}

_STRINGS = "strings and hash tables are not supported: compute this step outside the model"
_RANDOM = "random numbers are not supported: make them an input of the model"
_COMPLEX = "complex numbers are not supported: compute this step outside the model"
_DATA_SHAPE = "the shape of its result depends on the data: compute this step outside the model"

#: builtin -> reason and what to do
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE", "HASHTABLE_LOOKUP",
         "LSH_PROJECTION", "SKIP_GRAM"), _STRINGS,
    ),
    **dict.fromkeys(
        ("RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL", "STABLEHLO_RNG_BIT_GENERATOR"),
        _RANDOM,
    ),
    **dict.fromkeys(("RFFT2D", "REAL", "IMAG", "COMPLEX_ABS"), _COMPLEX),
    **dict.fromkeys(("WHERE", "UNIQUE"), _DATA_SHAPE),
    "DELEGATE": "the model was compiled for a delegate: use the model it was made from",
}  # fmt: skip
