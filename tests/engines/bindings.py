"""What NVIDIA's Python bindings have, by class, so that a renamed attribute is found without their libraries.

The wheels ``tensorrt-cu12-bindings``, ``tensorrt-cu13-bindings`` and ``tensorrt-rtx-cu13-bindings`` hold one extension
module each and none of the libraries that it is linked with. It needs those only when something is called, so that it
can be imported beside libraries that are empty: then every class is registered, and ``dir()`` says what each has. That
is the real package's own answer, and no guess from the strings in its file. ::

    python tests/engines/bindings.py WHEEL_OR_FOLDER …

writes ``tests/engines/bindings/MODULE-VERSION.json`` for each (a C compiler is needed, and the Python that the wheel is
for): public names by class, of enumerations the members as well, of methods how they are called.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_suffix("")

_LOOK = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
found = {"module": {name: "" for name in dir(module) if not name.startswith("_")}}
for name, each in vars(module).items():
    if isinstance(each, type) and not name.startswith("_"):
        found[name] = {
            part: (getattr(getattr(each, part), "__doc__", None) or "") if callable(getattr(each, part)) else ""
            for part in dir(each) if not part.startswith("_")
        }
print("@@" + json.dumps({"version": module.__version__, "classes": found}))
"""


def known() -> dict[str, dict[str, dict[str, str]]]:
    """Class → name → how it is called (empty for what is not), of every ``MODULE-VERSION`` that is written down."""
    return {path.stem: _parts(json.loads(path.read_text())["classes"]) for path in sorted(FOLDER.glob("*.json"))}


def _parts(classes: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    return {
        name: {head: bracket + tail for head, bracket, tail in (part.partition("(") for part in parts)}
        for name, parts in classes.items()
    }


def look(folder: Path) -> dict[str, Any]:
    """Import the bindings in an unpacked wheel, in a process of its own, beside empty libraries."""
    (module,) = [path.parent.name for path in folder.glob("*_bindings/__init__.py")]
    (extension,) = folder.glob("*_bindings/*.so")
    dynamic = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(["nm", "-D", "-u", str(extension)], capture_output=True, text=True, check=True).stdout
    # Names of the C library carry a version (`malloc@GLIBC_2.2.5`), those of Python begin with Py.
    wanted = re.findall(r"U ((?!_?Py|_?_)\w*(?:Infer|Onnx|Plugin)\w*)$", symbols, re.MULTILINE)
    with tempfile.TemporaryDirectory() as libraries:
        source = Path(libraries) / "empty.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
        for name in re.findall(r"\[(libnv\w+\.so[.\d]*|libtensorrt\w+\.so[.\d]*)\]", dynamic):
            words = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", f"{libraries}/{name}", str(source)]
            subprocess.run(words, check=True)
        done = subprocess.run(
            [sys.executable, "-c", _LOOK, module],
            capture_output=True,
            text=True,
            env={"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(folder)},
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"module": module, **json.loads(done.stdout.rpartition("@@")[2])}


def written(found: dict[str, Any]) -> str:
    """The file's text, one line a class."""
    classes = [
        f" {json.dumps(name)}: {json.dumps([part + _call(part, text) for part, text in sorted(parts.items())])}"
        for name, parts in sorted(found["classes"].items())
    ]
    made = (
        "by tests/engines/bindings.py: the extension module was imported beside empty libraries, and asked with dir()"
    )
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in (("made", made), *_facts(found)))
    return "{" + head + '"classes": {\n' + ",\n".join(classes) + "\n}}\n"


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, found[key]) for key in ("module", "version")]


def _call(name: str, text: str) -> str:
    """``(stream_handle)`` out of pybind's first lines, which say how a method is called; several forms by ``|``."""
    forms = re.findall(rf"{name}\(self: [^,)]+((?:, [^\n]*)?)\) -> ", text)
    return " | ".join(dict.fromkeys("(" + ", ".join(re.findall(r"(?:^|, )(\w+): ", form)) + ")" for form in forms))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for given in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            if given.is_file():
                zipfile.ZipFile(given).extractall(folder)
            found = look(Path(folder) if given.is_file() else given)
        (FOLDER / f"{found['module'].removesuffix('_bindings')}-{found['version']}.json").write_text(written(found))


if __name__ == "__main__":
    main()
