"""FastAPI around ONNX Runtime, a request a run: what is written first. ``uvicorn`` runs it."""

from __future__ import annotations

from embedder import Embedder
from fastapi import FastAPI
from pydantic import BaseModel


class Asked(BaseModel):
    """A text."""

    input: str


app = FastAPI()
embedder = Embedder()


@app.post("/embed")
def embed(asked: Asked) -> dict[str, list[float]]:
    """Its vector."""
    return {"embedding": embedder.vectors([asked.input])[0]}
