"""How a model becomes ONNX: what to feed it, the exporter's adapter, and files that are ONNX already."""
