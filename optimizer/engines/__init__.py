"""TensorRT engines: how they are asked for, built, read back and run."""
