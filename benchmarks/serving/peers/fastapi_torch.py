"""The guide's own service: FastAPI around Transformers in fp32. ``async``, which is the better of its two forms."""

from __future__ import annotations

import os

import torch
from embedder import THREADS
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoTokenizer

SOURCE = os.environ["PEER_SOURCE"]
torch.set_num_threads(int(os.environ[THREADS]))
tokenizer = AutoTokenizer.from_pretrained(SOURCE)
model = AutoModel.from_pretrained(SOURCE).eval()
app = FastAPI()


class Asked(BaseModel):
    """A text."""

    input: str


@app.post("/embed")
async def embed(asked: Asked) -> dict[str, list[float]]:
    """Its vector."""
    with torch.inference_mode():
        feeds = tokenizer([asked.input], return_tensors="pt", truncation=True, max_length=256)
        states = model(**feeds).last_hidden_state
        wide = feeds["attention_mask"].unsqueeze(-1)
        pooled = (states * wide).sum(1) / wide.sum(1)
        return {"embedding": torch.nn.functional.normalize(pooled)[0].tolist()}
