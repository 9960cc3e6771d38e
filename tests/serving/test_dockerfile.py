"""deploy/Dockerfile, as far as that can be known without Docker: its lines, and what it starts and asks for health."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from served_texts import ended
from serving.conftest import ROOT

from optimizer.serving.guard.keys import KeyFile

FILE = ROOT / "deploy" / "Dockerfile"

#: A file system of which nothing can be written but one folder, for all that Python does.
_READ_ONLY = """
import os, sys
room = sys.argv.pop(1)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def heard(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & WRITES or event in ("os.mkdir", "os.rename"):
        path = os.path.abspath(os.fsdecode(args[0]))
        if not path.startswith((room, "/dev/")):
            raise OSError(30, "Read-only file system", path)
sys.addaudithook(heard)
from optimizer.cli.main import main
main()
"""


def stages() -> list[list[tuple[str, str]]]:
    """Instructions and what they say, by stage; those before the first ``FROM`` are the first stage."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    found: list[list[tuple[str, str]]] = [[]]
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, said = line.strip().partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append((name, " ".join(said.split())))
    return found


def said(stage: list[tuple[str, str]], name: str) -> str:
    (found,) = (text for each, text in stage if each == name)
    return found


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in said(stage, "ENV").split())


def test_the_image_is_small_and_nobody_in_it_is_root() -> None:
    _, build, final = stages()
    known = {
        "FROM",
        "ARG",
        "ENV",
        "RUN",
        "COPY",
        "USER",
        "WORKDIR",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
    }
    assert {name for stage in stages() for name, _ in stage} == known
    assert all(re.fullmatch(r"python:\$\{PYTHON\}-slim( AS build)?", said(stage, "FROM")) for stage in (build, final))
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", said(final, "USER"))
    # What builds stays in the first stage: nothing runs in the second, and it takes one folder.
    assert "RUN" not in dict(final)
    assert said(final, "COPY") == "--from=build /opt/ml-opt /opt/ml-opt"
    assert said(final, "STOPSIGNAL") == "SIGTERM"


def test_it_installs_the_extra_and_copies_what_that_needs() -> None:
    build = stages()[1]
    assert said(build, "ARG") == "EXTRAS=serve"
    assert re.findall(r"pip install (\S+)", said(build, "RUN")) == ['".[${EXTRAS}]"']
    copied = {word for name, text in build if name == "COPY" for word in text.split()[:-1]}
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needs |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert copied == needs
    let_in = (FILE.with_name("Dockerfile.dockerignore")).read_text().split("!")[1:]
    assert {line.split()[0] for line in let_in} == needs


def test_what_it_starts_is_healthy_and_writes_into_its_room_alone(tiny_store: Path, tmp_path: Path) -> None:
    final = stages()[2]
    program, *words = json.loads(said(final, "ENTRYPOINT"))
    assert program == "ml-opt"
    health = json.loads(said(final, "HEALTHCHECK").partition(" CMD ")[2])
    assert health[:2] == ["python", "-c"]
    room, keys = tmp_path / "tmp", tmp_path / "keys" / "keys.json"
    room.mkdir()
    _, key = KeyFile(keys).create(name="web")
    places = {"/models": str(tiny_store), "/keys/keys.json": str(keys), "/tmp": str(room)}
    own = {name: places.get(value, value) for name, value in environment(final).items() if name != "PATH"}
    assert {own["HOME"], own["ML_OPT_STORE"], own["ML_OPT_KEYS"]} == set(places.values())
    command = [
        sys.executable,
        "-c",
        _READ_ONLY,
        str(room),
        *words,
        "classes",
        "--port",
        "0",
        "--json",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        command, cwd=room, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT), "TMPDIR": str(room)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith('{"event":"ready"'), line + process.stdout.read()
        port = json.loads(line)["url"].rpartition(":")[2]

        def healthy(port: str) -> bool:
            asked = [sys.executable, *health[1:2], health[2].replace("8000", port)]
            return subprocess.run(asked, capture_output=True, timeout=30).returncode == 0

        assert healthy(port)
        assert not healthy("9")  # nobody is there
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/classify", b'{"input": "fed"}', {"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200
    finally:
        code = ended(process)
    assert code == 0
