"""The advice after an int8 export names the fastest, and what is slower than float32."""

from __future__ import annotations

from siamdetr.export.timing.runtimes import RuntimeTime, advice


def test_int8_that_is_slower_than_fp32_is_not_recommended() -> None:
    rows = [
        RuntimeTime("int8", "openvino", 103.0, 0.1, 0.01),
        RuntimeTime("fp32", "openvino", 367.0, 0.0, 0.0),
        RuntimeTime("fp32", "onnxruntime", 380.0, 0.0, 0.0),
        RuntimeTime("int8", "onnxruntime", 443.0, 0.1, 0.01),
    ]
    assert advice(rows) == (
        "Fastest here: int8 under openvino (--backend openvino). Slower here than fp32, so not for deployment: int8 under onnxruntime."
    )


def test_int8_that_is_faster_everywhere_has_no_warning() -> None:
    rows = [RuntimeTime("int8", "onnxruntime", 1.0, 0.1, 0.01), RuntimeTime("fp32", "onnxruntime", 2.0, 0.0, 0.0)]
    assert advice(rows) == "Fastest here: int8 under onnxruntime (--backend onnxruntime)."
