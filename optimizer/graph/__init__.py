"""Reading and writing ONNX files: the one place that knows the format."""
