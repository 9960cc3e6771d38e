"""A runtime of MLServer around ONNX Runtime; its settings ask for up to 16 requests within 5 ms in a run."""

from __future__ import annotations

import numpy as np
from embedder import Embedder
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Vectors(MLModel):  # type: ignore[misc]
    """Texts into vectors, by V2."""

    async def load(self) -> bool:
        """Open the model."""
        self.embedder = Embedder()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The vectors of a batch."""
        vectors = np.array(self.embedder.vectors(StringCodec.decode_input(payload.inputs[0])), np.float32)
        outputs = [NumpyCodec.encode_output("embedding", vectors)]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
