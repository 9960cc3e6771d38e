"""Other toolchains on the same models, the same inputs and in the same rounds as ml-opt.

Each lives in a virtual environment of its own under ``.venv-peers`` (`make bench-peers`), as their requirements
contradict each other's. A peer's module is run there twice: as ``prepare JOB.json`` it makes its models from the same
source, and without arguments it is the worker that one of them is measured in.
"""
