"""ONNX's own backend tests, run through compiled code: `tilewright backend-suite`.

In: the cases of the installed `onnx` package. Out: a verdict per case, held against a status file.
"""
