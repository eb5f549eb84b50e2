"""What classifiers and regressors of ai.onnx.ml do to their scores in the end (`post_transform`).

In: an `ImportNode`, a value of scores [rows, classes]. Out: the transformed scores.
"""

from __future__ import annotations

import numpy as np

from tilewright.registry import ImportNode

#: A score below this counts as none (SOFTMAX_ZERO), as ONNX Runtime has it.
_NOTHING = 1e-7


def transformed(node: ImportNode, scores: str, how: str) -> str:
    """NONE, LOGISTIC, SOFTMAX, or SOFTMAX_ZERO, which leaves scores of 0 at 0."""
    if how == "NONE":
        return scores
    t = node.type_of(scores)
    if how == "PROBIT" or t.shape[-1] < 2:
        raise node.fail(
            f"post_transform {how} of {t.shape[-1]} scores is not supported: use NONE, and transform them behind it"
        )
    if how == "LOGISTIC":
        return node.add("sigmoid", [scores])[0]
    if how == "SOFTMAX":
        return node.add("softmax", [scores], {"axis": t.rank - 1})[0]
    if how != "SOFTMAX_ZERO":
        raise node.fail(f"there is no post_transform `{how}`: repair the model")
    (top,) = node.add("reduce_max", [scores], {"axes": (t.rank - 1,), "keepdims": True})
    (below,) = node.add("sub", [scores, top])
    (each,) = node.add("exp", [below])
    (size,) = node.add("abs", [scores])
    (some,) = node.add("gt", [size, node.constant(np.asarray(_NOTHING, t.dtype.numpy), "nothing")])
    (each,) = node.add("where", [some, each, node.constant(np.zeros((), t.dtype.numpy), "zero")])
    (total,) = node.add("reduce_sum", [each], {"axes": (t.rank - 1,), "keepdims": True})
    return node.add("div", [each, total])[0]
