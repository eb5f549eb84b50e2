"""ONNX operators that become others of ours and have no operator file of their own.

In: an `ImportNode`. Out: value names. Invariant: one entry per operator type; what it does is in a module of
its family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tilewright.frontend.affine import affine_grid
from tilewright.frontend.einsum import einsum
from tilewright.frontend.fourier import dft, stft
from tilewright.frontend.ngrams import max_unpool, tf_idf
from tilewright.registry import ImportNode

COMPOSED: Mapping[str, Callable[[ImportNode], Sequence[str]]] = {
    "AffineGrid": affine_grid,
    "Einsum": einsum,
    "DFT": dft,
    "STFT": stft,
    "TfIdfVectorizer": tf_idf,
    "MaxUnpool": max_unpool,
}
