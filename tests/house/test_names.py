"""One spelling, help for everything, and ``__all__`` is what is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import optimizer
from optimizer import api, check, stage
from optimizer.options import Options

from .test_imports import MODULES, PACKAGE, ROOT

DECLARATIONS: dict[str, Any] = {**stage.discover(), **check.discover()}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_one_spelling(name: str) -> None:
    does = DECLARATIONS[name]
    package = "stages" if isinstance(does, stage.Stage) else "checks"
    file = PACKAGE / package / f"{name.replace('-', '_')}.py"
    assert file.is_file(), "the file is not called what the stage is called"
    module = importlib.import_module(f"optimizer.{package}.{file.stem}")
    assert (module.STAGE if package == "stages" else module.CHECK) is does
    assert does.function == file.stem
    assert api.functions()[file.stem].__name__ == file.stem
    assert "-".join(getattr(does, "words", (name,))) == name


@pytest.mark.parametrize("name", DECLARATIONS)
def test_every_stage_and_check_has_its_test_twin(name: str) -> None:
    package = "stages" if isinstance(DECLARATIONS[name], stage.Stage) else "checks"
    assert (ROOT / "tests" / package / f"test_{name.replace('-', '_')}.py").is_file()


@pytest.mark.parametrize("folder", ["stages", "checks"])
def test_every_file_there_declares_something(folder: str) -> None:
    files = {p.stem.replace("_", "-") for p in (PACKAGE / folder).glob("[!_]*.py")}
    assert files == set((stage if folder == "stages" else check).discover())


def test_no_two_declarations_share_a_name_or_hide_a_module() -> None:
    assert not set(stage.discover()) & set(check.discover())
    commands = [tuple(s.words) for s in stage.discover().values()]
    commands += [(alias,) for s in stage.discover().values() for alias in s.aliases]
    commands += [(name,) for name in check.discover()]
    commands += [(name,) for name in ("run", "ls", "show", "diff", "alias", "rm", "gc", "check", "doctor", "keys")]
    assert len(commands) == len(set(commands))
    # `optimizer.bench` could not be both the function and a package: whichever was imported last would win.
    modules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert not modules & set(api.functions())


@pytest.mark.parametrize("name", DECLARATIONS)
def test_every_option_has_help(name: str) -> None:
    does = DECLARATIONS[name]
    sentences = {"help": does.help, **{f.flag: f.opt.help for f in does.options.fields()}}
    if does.details:
        sentences["details"] = does.details
    for of, text in sentences.items():
        assert re.fullmatch(r"[A-Z0-9`\"'].*[.]", text, re.DOTALL), f"{of}: {text!r} is not a sentence"
        assert text == text.strip()
        assert "  " not in text


@pytest.mark.parametrize("name", [m for m in MODULES if m != "optimizer"])
def test_all_is_what_is_there(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    declared = getattr(module, "__all__", None)
    if declared is None:
        public = [
            n for n in vars(module) if not n.startswith("_") and getattr(vars(module)[n], "__module__", "") == name
        ]
        assert public == [], f"{name} has no __all__, and {public} in it"
        return
    assert len(set(declared)) == len(declared)
    missing = [n for n in declared if not hasattr(module, n)]
    assert missing == []
    tree = ast.parse(Path(str(module.__file__)).read_text())
    defined = {
        n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")
    }
    assert defined <= set(declared), f"public, and not in __all__: {sorted(defined - set(declared))}"


def test_the_packages_own_all() -> None:
    assert optimizer.__all__ == sorted(optimizer.__all__)
    assert set(api.functions()) | {"run_recipe"} < set(optimizer.__all__)
    for name in optimizer.__all__:
        assert getattr(optimizer, name) is not None
    star: dict[str, Any] = {}
    exec("from optimizer import *", star)
    assert set(optimizer.__all__) <= set(star)
    assert set(optimizer.__all__) <= set(dir(optimizer))
    errors = importlib.import_module("optimizer.errors")
    classes = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, errors.MlOptError)}
    assert classes <= set(optimizer.__all__)


def test_the_typed_stub_names_what_the_package_hands_out() -> None:
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    names |= {a.asname for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
    assert set(optimizer.__all__) == names


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_options_classes_are_declared_with_opt_alone() -> None:
    for does in DECLARATIONS.values():
        assert issubclass(does.options, Options)
        hints = typing.get_type_hints(does.options)
        declared = {name for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar}
        assert {f.name for f in does.options.fields()} == declared


def test_module_sizes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A number to look at: what does not fit on a screen or three is two files."""
    sizes = sorted(
        ((len(p.read_text().splitlines()), str(p.relative_to(ROOT))) for p in PACKAGE.rglob("*.py")), reverse=True
    )
    with capsys.disabled():
        print("\n" + "\n".join(f"{lines:5} {name}" for lines, name in sizes[:8]))
        print(f"{sum(n for n, _ in sizes):5} lines in {len(sizes)} modules")
    assert sizes[0][0] < 600


def test_no_function_is_endless() -> None:
    long = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 90:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == []


def test_the_project_names_no_machine() -> None:
    """No path of the machine that it was written on, nor of its tools, in anything that is published."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    words = [
        "/".join(("", "work", "")),
        "/".join(("", "root", "")),
        "/".join(("", "home", "")),
        "/".join(("", "tmp", "spike")),
    ]
    pattern = re.compile("|".join(f"(?<![\\w.]){re.escape(w)}" for w in words))
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {
            ".py",
            ".pyi",
            ".md",
            ".toml",
            ".yml",
            ".yaml",
            ".json",
            ".jsonl",
            ".txt",
            ".sh",
            "",
        }:
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if pattern.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []
