"""kserve's two clients against a server; run by judges.py in an environment that has kserve: URL GRPC_ADDRESS."""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(binary: bool) -> InferRequest:
    ids = np.array([[101, 2307, 2143, 102]])
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    inputs = []
    for name, array in arrays.items():
        inputs.append(InferInput(name, list(array.shape), "INT64"))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return InferRequest("minilm", inputs, request_id="mine", parameters={"binary_data_output": binary})


async def main(url: str, grpc: str) -> None:
    rest, rpc = InferenceRESTClient(RESTConfig(protocol="v2", retries=1, timeout=60)), InferenceGRPCClient(grpc)
    assert await rest.is_server_live(url)
    assert await rest.is_server_ready(url)
    assert await rest.is_model_ready(url, "minilm")
    assert not await rest.is_model_ready(url, "nobody")
    assert await rpc.is_server_live()
    assert await rpc.is_server_ready()
    assert await rpc.is_model_ready("minilm")
    answers = []
    for binary in (False, True):
        answers.append(await rest.infer(url, request(binary), model_name="minilm"))
        answers.append(await rpc.infer(request(binary)))
    for each in answers:
        assert each.id == "mine"
        np.testing.assert_allclose(each.outputs[0].as_numpy(), answers[0].outputs[0].as_numpy(), rtol=1e-6)
    await rest.close()
    await rpc.close()
    print("REST (JSON, binary) and gRPC (typed, raw): 4 answers, equal")


asyncio.run(main(*sys.argv[1:]))
