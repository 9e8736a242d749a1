"""Instruments for real faces: published networks as ONNX files that the user brings (extra ``real``, docs/bench.md)."""
