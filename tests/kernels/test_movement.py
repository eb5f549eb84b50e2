"""Operators that move data: inferred types, reference, views, loop nest, compiled code, importers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from tilewright.core.dtypes import ALL
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.ir import TensorType, type_of
from tilewright.registry import Sample, operator

NAMES = (
    "copy", "transpose", "reshape", "expand", "slice", "tile", "concat", "pad", "gather",
    "gather_elements", "gather_nd", "depth_to_space", "space_to_depth", "resize",
)  # fmt: skip
VIEWS = ("transpose", "reshape", "expand", "slice")


def _samples(name: str) -> list[Sample]:
    make = operator(name).samples
    assert make is not None
    return list(make(np.random.default_rng(1)))


def _cases(names: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(name, i) for name in names for i in range(len(_samples(name)))]


def _close(name: str, sample: Sample, got: Any, want: Any) -> None:
    """Exactly, but for interpolation: a few roundings, which may cross an integer."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if name != "resize" or sample.attrs["mode"] == "nearest":
        np.testing.assert_array_equal(got, want)
        return
    slack = {"f": 1e-5, "i": 1, "u": 1}[want.dtype.kind]
    rtol = 1e-3 if want.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=slack
    )


@pytest.mark.parametrize(("name", "case"), _cases(NAMES))
def test_inferred_type_is_the_reference_s(name: str, case: int, reference: Any) -> None:
    sample, op = _samples(name)[case], operator(name)
    types = [None if a is None else type_of(a) for a in sample.inputs]
    assert op.infer(types, sample.attrs) == [type_of(a) for a in reference(op, sample)]


@pytest.mark.parametrize(("name", "case"), _cases(NAMES))
def test_lowering_is_the_reference(name: str, case: int, reference: Any, interpret: Any) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), interpret(op, sample)
    _close(name, sample, got, want)


@pytest.mark.parametrize(("name", "case"), _cases(NAMES))
def test_compiled_code_is_the_reference(
    name: str, case: int, reference: Any, compile_and_run: Any
) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), compile_and_run(op, sample, True)
    _close(name, sample, got, want)


# ---------------------------------------------------------------- views


def _laid_out(x: Any, order: tuple[int, ...]) -> Any:
    """The same tensor in memory with `order` from outermost to innermost."""
    back = tuple(int(d) for d in np.argsort(order))
    return np.ascontiguousarray(x.transpose(order)).transpose(back) if x.ndim else x


def _viewed(name: str, sample: Sample, x: Any, reference: Any) -> tuple[Any, Any] | None:
    """What a view of `x` shows and what it should; None if the operator wants a copy."""
    op = operator(name)
    assert op.view is not None
    (out,) = op.infer([type_of(x)], sample.attrs)
    strides = tuple(s // x.itemsize for s in x.strides)
    got = op.view(type_of(x), strides, sample.attrs, out)
    (want,) = reference(op, Sample((x,), sample.attrs))
    if got is None:
        return None
    memory = np.ravel(x, order="K")
    assert np.shares_memory(memory, x) or x.size <= 1
    ends = [
        got.offset + sum(min(0, s * (n - 1)) for s, n in zip(got.strides, out.shape, strict=True))
    ]
    ends.append(
        got.offset + sum(max(0, s * (n - 1)) for s, n in zip(got.strides, out.shape, strict=True))
    )
    assert all(0 <= e < memory.size for e in ends), "the view leaves the allocation"
    window = as_strided(
        memory[got.offset :], out.shape, [s * x.itemsize for s in got.strides], writeable=False
    )
    return window, want


@pytest.mark.parametrize("reverse", [False, True], ids=["row-major", "column-major"])
@pytest.mark.parametrize(("name", "case"), _cases(VIEWS))
def test_view_shows_the_result(name: str, case: int, reverse: bool, reference: Any) -> None:
    sample = _samples(name)[case]
    (x,) = sample.inputs
    assert x is not None
    order = tuple(range(x.ndim))
    seen = _viewed(name, sample, _laid_out(x, order[::-1] if reverse else order), reference)
    assert seen is not None or (name == "reshape" and reverse), "only a reshape may want a copy"
    if seen is not None:
        np.testing.assert_array_equal(*seen)


#: shape, memory order, new shape, whether no copy is needed
RESHAPES = [
    ((2, 3, 4, 5), (0, 2, 3, 1), (2, 3, 20), True),  # merge H and W of a channels-last image
    ((2, 3, 4, 5), (0, 2, 3, 1), (2, 60), False),  # channels are innermost
    ((2, 6, 4, 5), (0, 2, 3, 1), (2, 2, 3, 4, 5), True),  # split the channels
    ((1, 8, 1, 1), (0, 2, 3, 1), (1, 8), True),  # dims of 1 do not matter
    ((1, 8, 1, 1), (0, 2, 3, 1), (8, 1, 1, 1, 1), True),
    ((4, 6), (1, 0), (24,), False),
    ((4, 6), (1, 0), (2, 2, 6), True),
    ((4, 6), (1, 0), (2, 2, 3, 2), True),
    ((4, 6), (1, 0), (8, 3), False),
    ((4, 6), (0, 1), (3, 8), True),
    ((1, 1, 1), (2, 1, 0), (), True),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "order", "new", "free"), RESHAPES)
def test_reshape_of_permuted_memory(
    shape: tuple[int, ...], order: tuple[int, ...], new: tuple[int, ...], free: bool, reference: Any
) -> None:
    x = _laid_out(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), order)
    seen = _viewed("reshape", Sample((x,), {"shape": new}), x, reference)
    assert (seen is not None) == free
    if seen is not None:
        np.testing.assert_array_equal(*seen)


# ---------------------------------------------------------------- importers


def f(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def n(*values: int) -> Any:
    return np.asarray(values, np.int64)


def v(*values: float) -> Any:
    return np.asarray(values, np.float32)


#: name -> (operator type, inputs, attributes, opset)
IMPORTS: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "transpose": ("Transpose", [f(2, 3, 4)], {}, 13),
    "transpose given": ("Transpose", [f(2, 3, 4)], {"perm": [1, 0, 2]}, 13),
    "reshape": ("Reshape", [f(2, 3, 4), n(4, 6)], {}, 13),
    "reshape -1": ("Reshape", [f(2, 3, 4), n(4, -1)], {}, 7),
    "reshape 0": ("Reshape", [f(2, 3, 4), n(0, -1)], {}, 13),
    "reshape to a scalar": ("Reshape", [f(1, 1), n()], {}, 13),
    "flatten": ("Flatten", [f(2, 3, 4)], {}, 13),
    "flatten 0": ("Flatten", [f(2, 3, 4)], {"axis": 0}, 9),
    "flatten -1": ("Flatten", [f(2, 3, 4)], {"axis": -1}, 11),
    "flatten rank": ("Flatten", [f(2, 3, 4)], {"axis": 3}, 13),
    "squeeze": ("Squeeze", [f(1, 3, 1)], {}, 13),
    "squeeze attribute": ("Squeeze", [f(1, 3, 1)], {"axes": [0]}, 11),
    "squeeze negative": ("Squeeze", [f(1, 3, 1)], {"axes": [-1]}, 11),
    "squeeze input": ("Squeeze", [f(1, 3, 1), n(-1)], {}, 13),
    "unsqueeze attribute": ("Unsqueeze", [f(3, 4)], {"axes": [0, 3]}, 7),
    "unsqueeze input": ("Unsqueeze", [f(3, 4), n(-1, 0)], {}, 13),
    "expand": ("Expand", [f(3, 1), n(2, 1, 4)], {}, 13),
    "expand less": ("Expand", [f(3, 4), n(1)], {}, 8),
    "tile": ("Tile", [f(3, 4), n(2, 3)], {}, 13),
    "slice attributes": ("Slice", [f(5, 6)], {"starts": [1, -3], "ends": [9, -1]}, 9),
    "slice attributes, axes": ("Slice", [f(5, 6)], {"starts": [1], "ends": [3], "axes": [1]}, 9),
    "slice": ("Slice", [f(5, 6), n(1), n(4)], {}, 10),
    "slice axes": ("Slice", [f(5, 6), n(1, 0), n(6, 4), n(-1, 0)], {}, 13),
    "slice steps": ("Slice", [f(5, 9), n(1), n(9), n(1), n(3)], {}, 13),
    "slice backwards": ("Slice", [f(5, 9), n(-1), n(-(2**62)), n(1), n(-2)], {}, 13),
    "slice backwards from beyond": ("Slice", [f(5), n(99), n(1), n(0), n(-1)], {}, 13),
    "slice far": ("Slice", [f(5), n(-99), n(2**62)], {}, 13),
    "concat": ("Concat", [f(2, 3), f(2, 5), f(2, 1)], {"axis": 1}, 13),
    "concat negative": ("Concat", [f(2, 3), f(2, 5)], {"axis": -1}, 11),
    "concat one": ("Concat", [f(2, 3)], {"axis": 0}, 11),
    "concat empty": ("Concat", [f(2, 3), f(0, 3), f(1, 3)], {"axis": 0}, 11),
    "concat one and empty": ("Concat", [f(2, 3), f(0, 3)], {"axis": 0}, 11),
    "pad attributes": ("Pad", [f(3, 4)], {"pads": [0, 1, 2, 0], "value": 2.5}, 10),
    "pad": ("Pad", [f(3, 4), n(0, 1, 2, 0), v(2.5)[0]], {}, 13),
    "pad zeros": ("Pad", [f(3, 4), n(0, 1, 2, 0)], {}, 13),
    "pad nothing": ("Pad", [f(3, 4), n(0, 0, 0, 0)], {}, 13),
    "pad negative": ("Pad", [f(5, 4), n(-1, 1, 2, -2)], {}, 13),
    "pad reflect": ("Pad", [f(3, 4), n(2, 1, 2, 3)], {"mode": "reflect"}, 13),
    "pad edge": ("Pad", [f(3, 4), n(2, 1, 0, 9)], {"mode": "edge"}, 13),
    "pad wrap": ("Pad", [f(3, 4), n(2, 1, 1, 3)], {"mode": "wrap"}, 19),
    "pad axes": ("Pad", [f(3, 4, 2), n(1, 2, 3, 4), v(1)[0], n(-1, 0)], {}, 18),
    "pad ints": ("Pad", [np.arange(4, dtype=np.int32), n(1, 2), np.asarray(7, np.int32)], {}, 13),
    "gather": ("Gather", [f(5, 6), n(0, 3, 1)], {}, 13),
    "gather axis": ("Gather", [f(5, 6), n(0, -1, 2, 2).reshape(2, 2)], {"axis": -1}, 13),
    "gather one": ("Gather", [f(5, 6), np.asarray(-2)], {"axis": 1}, 13),
    "gather one of a vector": ("Gather", [f(5), np.asarray(2)], {}, 13),
    "gather a range": ("Gather", [f(9, 4), n(1, 3, 5, 7)], {}, 13),
    "gather a range backwards": ("Gather", [f(9, 4), n(6, 3, 0)], {}, 13),
    "gather a square": ("Gather", [f(9, 4), n(1, 2, 3, 4).reshape(2, 2)], {}, 13),
    "gather nothing": ("Gather", [f(9, 4), n()], {}, 13),
    "gather bytes": ("Gather", [f(9, 4), np.array([3, 1, 1], np.int32)], {}, 13),
    "gather elements": ("GatherElements", [f(3, 4), n(0, -1, 2).reshape(1, 3)], {}, 13),
    "gather elements axis": ("GatherElements", [f(2, 4), n(0, -1, 2, 3).reshape(2, 2)], {"axis": 1}, 13),
    "gather nd": ("GatherND", [f(3, 4, 2), n(0, -1, 2, 3).reshape(2, 2)], {}, 13),
    "gather nd batch": ("GatherND", [f(2, 4, 3), n(0, -1).reshape(2, 1)], {"batch_dims": 1}, 13),
    "depth to space": ("DepthToSpace", [f(1, 8, 2, 3)], {"blocksize": 2}, 7),
    "depth to space CRD": ("DepthToSpace", [f(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, 11),
    "space to depth": ("SpaceToDepth", [f(1, 2, 4, 6)], {"blocksize": 2}, 13),
}  # fmt: skip

_IMAGE = [f(1, 1, 5, 7), None]
for _coord in (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"
):  # fmt: skip
    for _mode in ("nearest", "linear", "cubic"):
        _attrs = {"coordinate_transformation_mode": _coord, "mode": _mode}
        _key = f"resize {_mode} {_coord}"
        _opset = 19 if _coord == "half_pixel_symmetric" else 13
        IMPORTS[f"{_key} up"] = ("Resize", [*_IMAGE, None, n(1, 1, 8, 11)], _attrs, _opset)
        IMPORTS[f"{_key} down"] = ("Resize", [*_IMAGE, None, n(1, 1, 3, 1)], _attrs, _opset)
        if _coord != "align_corners":  # ONNX divides by 1.3 * 5 - 1, ONNX Runtime by 6 - 1
            IMPORTS[f"{_key} scales"] = ("Resize", [*_IMAGE, v(1, 1, 1.3, 0.6)], _attrs, _opset)
        if _mode != "nearest" and _coord != "half_pixel_symmetric":
            _wide = {**_attrs, "antialias": 1}
            IMPORTS[f"{_key} antialias"] = ("Resize", [*_IMAGE, None, n(1, 1, 2, 4)], _wide, 18)
            _wide = {**_wide, "exclude_outside": 1}
            IMPORTS[f"{_key} filter"] = ("Resize", [*_IMAGE, None, n(1, 1, 9, 2)], _wide, 18)
        IMPORTS[f"{_key} double"] = ("Resize", [*_IMAGE, v(1, 1, 2, 2)], _attrs, _opset)
for _near in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    for _coord in ("half_pixel", "asymmetric", "align_corners"):
        _attrs = {"coordinate_transformation_mode": _coord, "nearest_mode": _near}
        _key = f"resize {_near} {_coord}"
        IMPORTS[_key] = ("Resize", [f(9), v(), v(), n(17)], _attrs, 11)
        IMPORTS[f"{_key} down"] = ("Resize", [f(16), v(), v(0.25)], _attrs, 11)
        IMPORTS[f"{_key} third"] = ("Resize", [f(30), v(), v(1 / 3)], _attrs, 11)
_cubic = {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}
IMPORTS |= {
    "resize 10 up": ("Resize", [f(1, 1, 3, 4), v(1, 1, 2, 3)], {}, 10),
    "resize 10 down": ("Resize", [f(1, 1, 6, 9), v(1, 1, 0.6, 0.3)], {}, 10),
    "resize 10 linear": ("Resize", [f(1, 1, 3, 4), v(1, 1, 2, 3)], {"mode": "linear"}, 10),
    "resize crop": (
        "Resize",
        [f(1, 1, 5, 7), v(0, 0, 0.2, -0.1, 1, 1, 0.9, 1.3), None, n(1, 1, 6, 4)],
        {
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": 7.0,
        },
        13,
    ),
    "resize excluded": ("Resize", [*_IMAGE, None, n(1, 1, 9, 10)], _cubic, 13),
    "resize axes": ("Resize", [*_IMAGE, None, n(9, 10)], {"axes": [2, 3]}, 18),
    "resize not larger": (
        "Resize",
        [*_IMAGE, None, n(9, 10)],
        {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
        18,
    ),
    "resize not smaller": (
        "Resize",
        [*_IMAGE, None, n(9, 10)],
        {"axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller"},
        18,
    ),
    "resize bytes": (
        "Resize",
        [np.arange(35, dtype=np.uint8).reshape(1, 1, 5, 7), None, v(1, 1, 2, 2)],
        {},
        13,
    ),
    "upsample 7": ("Upsample", [f(1, 1, 3, 4)], {"scales": [1.0, 1.0, 2.0, 3.0]}, 7),
    "upsample 9": ("Upsample", [f(1, 1, 3, 4), v(1, 1, 2, 2)], {"mode": "linear"}, 9),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_importer_agrees_with_onnx_runtime(name: str, imported: Any, runtime: Any) -> None:
    op_type, arrays, attrs, opset = IMPORTS[name]
    (got,) = imported(op_type, arrays, attrs, opset)
    (want,) = runtime(op_type, arrays, attrs, opset)
    assert got.shape == want.shape and got.dtype == want.dtype
    interpolates = op_type in ("Resize", "Upsample") and attrs.get("mode", "nearest") != "nearest"
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 if interpolates else 0)


def test_gather_by_inputs(imported: Any, runtime: Any) -> None:
    """Indices known only at run time."""
    at = np.array([[1, -2], [0, 3]], np.int32)
    got = imported("Gather", [f(5, 4), at], {"axis": 1}, 13, constants=False)
    np.testing.assert_array_equal(got[0], runtime("Gather", [f(5, 4), at], {"axis": 1}, 13)[0])


@pytest.mark.parametrize(
    ("arrays", "attrs", "opset", "count"),
    [
        ([f(6, 4)], {"axis": 0}, 11, 3),
        ([f(6, 4)], {"axis": 1, "split": [1, 3]}, 11, 2),
        ([f(6, 4), n(2, 0, 4)], {"axis": -2}, 13, 3),
        ([f(7, 4)], {"axis": 0, "num_outputs": 3}, 18, 3),
    ],
)
def test_split(
    arrays: list[Any], attrs: dict[str, Any], opset: int, count: int, imported: Any
) -> None:
    got = imported("Split", arrays, attrs, opset, outputs=count)
    axis, x = attrs["axis"], arrays[0]
    sizes = attrs.get("split") or (arrays[1].tolist() if len(arrays) > 1 else None)
    sizes = sizes or [-(-x.shape[axis] // count)] * count
    for part, want in zip(got, np.split(x, np.cumsum(sizes)[:-1], axis), strict=True):
        np.testing.assert_array_equal(part, want)


# ---------------------------------------------------------------- refusals


def t(kind: str, *shape: int) -> TensorType:
    return TensorType(ALL[kind], shape)


_PAD: dict[str, Any] = {"before": (1,), "after": (1,), "mode": "constant", "value": 0.0}
_RESIZE: dict[str, Any] = {
    "sizes": (6,), "scales": (2.0,), "mode": "linear", "coord": "half_pixel", "nearest_mode": "floor",
    "cubic_a": -0.75, "exclude_outside": False,
}  # fmt: skip
REFUSED: list[tuple[str, list[TensorType], dict[str, Any], str]] = [
    ("transpose", [t("f32", 2, 3)], {"perm": (0, 0)}, "not a permutation"),
    ("reshape", [t("f32", 2, 3)], {"shape": (7,)}, "does not fit"),
    ("expand", [t("f32", 2)], {"shape": (3,)}, "does not broadcast"),
    ("tile", [t("f32", 2)], {"repeats": (1, 2)}, "wants 1 repeats"),
    ("slice", [t("f32", 4)], {"starts": (0,), "ends": (5,), "steps": (1,)}, "reach outside"),
    ("slice", [t("f32", 4)], {"starts": (0,), "ends": (4,), "steps": (0,)}, "no step may be 0"),
    ("concat", [t("f32", 4), t("f32", 4, 1)], {"axis": 0}, "does not fit"),
    ("concat", [t("f32", 4)], {"axis": 1}, "out of range"),
    ("pad", [t("f32", 4)], {**_PAD, "mode": "mirror"}, "is not one of"),
    ("pad", [t("f32", 4, 4)], _PAD, "for 2 dims"),
    ("pad", [t("f32", 4)], {**_PAD, "before": (-5,)}, "removes more than there is"),
    ("pad", [t("f32", 4)], {**_PAD, "after": (4,), "mode": "reflect"}, "wider than the tensor"),
    ("pad", [t("f32", 4)], {**_PAD, "before": (-4,), "mode": "edge"}, "nothing to repeat"),
    ("gather", [t("f32", 4), t("f32", 1)], {"axis": 0}, "wants integer indices"),
    ("gather", [t("f32", 4), t("i64", 1)], {"axis": 1}, "nothing to pick"),
    ("gather_elements", [t("f32", 4), t("i64", 1, 1)], {"axis": 0}, "ranks differ"),
    ("gather_elements", [t("f32", 4, 2), t("i64", 4, 3)], {"axis": 0}, "larger than the tensor"),
    ("gather_nd", [t("f32", 4), t("i64", 1, 2)], {"batch_dims": 0}, "do not fit"),
    ("depth_to_space", [t("f32", 1, 6, 2, 2)], {"blocksize": 2, "mode": "DCR"}, "multiple of 4"),
    ("depth_to_space", [t("f32", 1, 4, 2, 2)], {"blocksize": 2, "mode": "X"}, "not DCR or CRD"),
    ("space_to_depth", [t("f32", 1, 4, 3, 2)], {"blocksize": 2}, "multiples of 2"),
    ("resize", [t("f32", 3)], {**_RESIZE, "mode": "area"}, "is not one of"),
    ("resize", [t("f32", 3, 3)], _RESIZE, "wants 2 sizes"),
    ("resize", [t("f32", 3)], {**_RESIZE, "scales": (0.0,)}, "must be positive"),
    ("resize", [t("bool", 3)], _RESIZE, "interpolates numbers"),
]


@pytest.mark.parametrize(("name", "types", "attrs", "reason"), REFUSED)
def test_bad_operands_are_refused(
    name: str, types: list[TensorType], attrs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError) as error:
        operator(name).infer(types, attrs)
    assert reason in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(
    ("op_type", "arrays", "attrs", "opset", "reason"),
    [
        (
            "Resize",
            [f(4), v(0), v(2)],
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
            13,
            "region of interest",
        ),
        ("Gather", [f(4), n(4)], {}, 13, "out of range"),
        ("Transpose", [f(4)], {"perm": [1]}, 13, "not a permutation"),
        ("Concat", [f(4), f(4)], {"axis": 2}, 13, "axis 2 is out of range"),
        ("Split", [f(4), n(1, 2)], {}, 13, "do not add up"),
        ("Reshape", [f(4), n(-1, -1)], {}, 13, "more than one -1"),
        ("Reshape", [f(4), n(3, -1)], {}, 13, "do not match"),
        ("Squeeze", [f(4), n(0)], {}, 13, "a dim is not 1"),
        ("Unsqueeze", [f(4), n(0, 0)], {}, 13, "name a dim twice"),
        ("Slice", [f(4), n(0), n(2), n(0), n(0)], {}, 13, "step of 0"),
        ("Pad", [f(4), n(1, 1, 1)], {}, 13, "3 amounts for 1 dims"),
    ],
)
def test_bad_nodes_are_refused(
    op_type: str, arrays: list[Any], attrs: dict[str, Any], opset: int, reason: str, imported: Any
) -> None:
    count = 2 if op_type == "Split" else 1
    with pytest.raises((ModelError, UnsupportedError), match="the_node") as error:
        imported(op_type, arrays, attrs, opset, outputs=count)
    assert reason in str(error.value)
