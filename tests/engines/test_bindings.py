"""Every name that is used of NVIDIA's packages is there, in every version that is supported.

TensorRT 10 and 11 and TensorRT-RTX as bindings.py wrote them down; TensorRT-RTX and CUDA also as they are installed.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from engines import fake_trt
from engines.bindings import known

import optimizer
from optimizer.engines import callbacks, cuda, engine, vendor
from optimizer.engines.flavors import FLAVORS
from optimizer.environment import has_module

PACKAGES = known()
SOURCES = [Path(module.__file__) for module in (vendor, callbacks, engine)]
TREES = [ast.parse(source.read_text()) for source in SOURCES]


def used(flavor):
    """Class → attributes that a flavour has to have."""
    found = {}
    for name, attributes in vendor.USED.items():
        only, _, own = name.rpartition(":")
        if only in ("", flavor):
            found[own] = {*found.get(own, ()), *attributes}
    return found


def flavor_of(package):
    return "rtx" if package.startswith("tensorrt_rtx-") else "tensorrt"


def test_all_three_are_written_down():
    assert [package.rpartition("-")[0] for package in PACKAGES] == ["tensorrt", "tensorrt", "tensorrt_rtx"]
    majors = [package.rpartition("-")[2].split(".")[0] for package in PACKAGES]
    assert majors == ["10", "11", "1"]
    assert all(len(classes) > 150 for classes in PACKAGES.values())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_version_has_what_is_used(package):
    classes = PACKAGES[package]
    for name, attributes in used(flavor_of(package)).items():
        assert name in classes, f"{package} has no {name}"
        assert attributes <= set(classes[name]), f"{package}: {name} has no {attributes - set(classes[name])}"


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_installed_package_has_what_is_used(flavor):
    module = FLAVORS[flavor].module
    if not has_module(module):
        pytest.skip(f"{module} is not installed; what it has is written down in tests/engines/bindings")
    package = importlib.import_module(module)
    for name, attributes in used(flavor).items():
        assert [each for each in attributes if not hasattr(getattr(package, name), each)] == [], name


def test_what_is_written_down_is_what_is_installed():
    """The way it is found out (bindings.py) gives what the package itself says."""
    if not has_module("tensorrt_rtx"):
        pytest.skip("TensorRT-RTX is not installed")
    package = importlib.import_module("tensorrt_rtx_bindings")
    written = PACKAGES.get(f"tensorrt_rtx-{package.__version__}")
    assert written is not None, "another version is installed: python tests/engines/bindings.py WHEEL"
    for name, parts in written.items():
        if name != "module":
            assert {each for each in dir(getattr(package, name)) if not each.startswith("_")} == set(parts), name


def attributes(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def words(tree):
    """Names that are defined, asked for, or written as a string: what an entry of the list can be used by."""
    found = {node.attr for node in attributes(tree)}
    found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    listed = next((each for each in tree.body if isinstance(each, ast.AnnAssign) and each.target.id == "USED"), None)
    inside = set(map(id, ast.walk(listed))) if listed else set()
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found | {node.value for node in strings if id(node) not in inside}


def test_no_name_is_used_that_is_not_listed():
    """Whatever attribute has a name that the vendor knows has to be listed, on whatever object it is used."""
    theirs = {
        part for classes in PACKAGES.values() for name, parts in classes.items() for part in parts if name != "module"
    }
    classes = {name for package in PACKAGES.values() for name in package}  # the next test's
    ours = {"append", "builder", "clear", "max", "min", "opt", "pop", "start"}  # of lists, threads, ranges and networks
    listed = {part for parts in vendor.USED.values() for part in parts}
    touched = {node.attr for tree in TREES for node in attributes(tree)}
    assert (touched & theirs) - listed - classes == ours


def classes_of(tree):
    """What is taken out of the vendor's module."""
    found = set()
    for node in attributes(tree):
        owner = node.value
        if (isinstance(owner, ast.Name) and owner.id == "trt") or (
            isinstance(owner, ast.Attribute) and owner.attr in ("trt", "_trt")
        ):
            found.add(node.attr)
    return found


def test_no_class_is_used_that_is_not_listed():
    names = {name.rpartition(":")[2] for name in vendor.USED}
    found = set().union(*map(classes_of, TREES))
    assert found - names == set()
    assert {"Builder", "ILogger", "IProgressMonitor", "Runtime", "Refitter", "TensorLocation"} <= found


def test_no_other_file_touches_the_vendor():
    every = {path: path.read_text() for path in Path(optimizer.__file__).parent.rglob("*.py")}
    assert {path for path, text in every.items() if classes_of(ast.parse(text))} == set(SOURCES)
    importing = re.compile(r"^\s*(?:import|from) tensorrt|import_module\((?:flavor|.*tensorrt)", re.MULTILINE)
    assert [path for path, text in every.items() if importing.search(text)] == [Path(vendor.__file__)]


def test_nothing_is_listed_that_is_not_used():
    used_words = set().union(*map(words, TREES))
    capabilities = {"SM" + each.replace(".", "") for each in FLAVORS["rtx"].capabilities}
    unused = {part for parts in vendor.USED.values() for part in parts} - used_words - capabilities
    assert not unused


def test_flags_of_the_builder_are_listed_and_are_there():
    """They are looked up by name, which no attribute shows."""
    (flags,) = [
        node.value
        for node in ast.walk(TREES[0])
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "flags"
    ]
    assert {key.value for key in flags.keys} == set(vendor.USED["BuilderFlag"])


def test_every_number_format_has_its_name():
    for package, classes in PACKAGES.items():
        formats = {name for name in classes["DataType"] if name.isupper()} - {"E8M0"}
        assert formats <= set(engine._DTYPES), package


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fake_trt.CudaEngine, "ICudaEngine"),
        (fake_trt.ExecutionContext, "IExecutionContext"),
        (fake_trt.Runtime, "Runtime"),
        (fake_trt.Refitter, "Refitter"),
        (fake_trt.OnnxParserRefitter, "OnnxParserRefitter"),
        (fake_trt.RuntimeConfig, "IRuntimeConfig"),
        (fake_trt.RuntimeCache, "IRuntimeCache"),
    ],
)
def test_the_fake_is_called_as_the_real_one_is(package, ours, theirs):
    """A fake that took other arguments would hide a call that the real one refuses."""
    classes = PACKAGES[package]
    if theirs == "IRuntimeCache" and flavor_of(package) == "tensorrt":
        assert theirs not in classes
        return
    for name, method in inspect.getmembers(ours, inspect.isfunction):
        if name.startswith("_") or (flavor_of(package) == "tensorrt" and name.endswith("_runtime_cache")):
            continue
        told = classes[theirs][name]
        takes = list(inspect.signature(method).parameters)[1:]
        assert f"({', '.join(takes)})" in told.split(" | "), f"{theirs}.{name} takes {told}"


def test_every_call_of_cuda_is_listed_and_is_there():
    tree = ast.parse(Path(cuda.__file__).read_text())
    called = {
        node.args[index].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        for index in range(min(2, len(node.args)))
        if isinstance(node.args[index], ast.Constant) and str(node.args[index].value).startswith("cuda")
    }
    constants = {
        node.attr
        for node in attributes(tree)
        if isinstance(node.value, ast.Attribute) and node.value.attr == "_runtime" and node.attr.startswith("cuda")
    }
    called = {name for name in called if name != "cuda"}
    assert called | constants == set(cuda.CALLS)
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    assert [name for name in cuda.CALLS if not hasattr(runtime, name)] == []
    assert runtime.cudaMemcpyKind.cudaMemcpyHostToDevice != runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
