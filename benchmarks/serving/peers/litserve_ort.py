"""LitServe around ONNX Runtime, 16 requests within 5 ms in a run at most: ``python litserve_ort.py PORT``."""

import sys

import litserve
from embedder import Embedder
from starlette.requests import Request


class Api(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's four steps."""

    def setup(self, device: str) -> None:
        """Open the model."""
        self.embedder = Embedder()

    def decode_request(self, request: Request) -> str:
        """The text of a request."""
        return str(request["input"])

    def batch(self, inputs: list[str]) -> list[str]:
        """Texts that share a run."""
        return inputs

    def predict(self, x: list[str]) -> list[list[float]]:
        """Their vectors."""
        return self.embedder.vectors(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """One for each request."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """The answer to one request."""
        return {"embedding": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=16, batch_timeout=0.005, api_path="/embed"), accelerator="cpu", workers_per_device=1
    )
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")
