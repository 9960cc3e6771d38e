"""What lies beside the two graphs of an encoder-decoder: how its answers begin, its settings, and whether it answers as
PyTorch does.
"""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.errors import BadInput, GateFailed
from optimizer.exporting.genai_golden import Golden, difference, end_tokens
from optimizer.exporting.seq2seq_graphs import LENGTHS, Graphs
from optimizer.graph.decoder import GENAI_CONFIG_NAME, read_genai_config
from optimizer.graph.io import MODEL_NAME
from optimizer.hf import LoadedModel
from optimizer.hf_errors import first_lines
from optimizer.types import JSON

__all__ = ["ENCODER_NAME", "parity", "start_tokens", "suppressed_tokens", "write_config"]

ENCODER_NAME = "encoder.onnx"


def start_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """What every answer begins with: the start token, and one that is forced behind it where there is one.

    Raises:
        BadInput: the model does not say how an answer begins.
    """
    settings = loaded.module.generation_config
    start = settings.decoder_start_token_id
    start = settings.bos_token_id if start is None else start
    if not isinstance(start, int):
        raise BadInput(
            f"{loaded.class_name} does not say with which token an answer begins",
            "put decoder_start_token_id into its generation_config.json",
        )
    forced = settings.forced_bos_token_id
    return (start,) if forced is None else (start, int(forced))


def suppressed_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """Tokens that the model's settings never let it write (Marian's padding, which answers begin with)."""
    settings = loaded.module.generation_config
    words = [each[0] for each in settings.bad_words_ids or () if len(each) == 1]
    return tuple(sorted({*words, *(settings.suppress_tokens or ())}))


def write_config(out: Path, graphs: Graphs, loaded: LoadedModel, context: int) -> None:
    """Write ``genai_config.json``, in the words that onnxruntime-genai has for encoders and decoders.

    Args:
        out: the folder of ``encoder.onnx`` and ``model.onnx``.
        graphs: those.
        loaded: the model.
        context: most tokens that either side has positions for.
    """
    ends, start = end_tokens(loaded), start_tokens(loaded)
    # What an answer begins with takes places too; its last token is not read again.
    answers = context - len(start) + 1
    sides = ("key", "value")
    decoder: dict[str, JSON] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_NAME,
        "head_size": graphs.head_size,
        "hidden_size": graphs.heads * graphs.head_size,
        "inputs": {
            **{name: name for name in ("input_ids", "encoder_attention_mask", LENGTHS)},
            **{f"cross_past_{side}_names": f"cross.%d.{side}" for side in sides},
            **{f"past_{side}_names": f"past_key_values.%d.{side}" for side in sides},
        },
        "outputs": {"logits": "logits", **{f"present_{side}_names": f"present.%d.{side}" for side in sides}},
        "num_attention_heads": graphs.heads,
        "num_hidden_layers": graphs.layers,
        "num_key_value_heads": graphs.heads,
        "start_tokens": list(start),
        "suppressed_tokens": list(suppressed_tokens(loaded)),
    }
    encoder: dict[str, JSON] = {
        "filename": ENCODER_NAME,
        "inputs": {name: name for name in ("input_ids", "attention_mask")},
        "outputs": {f"cross_present_{side}_names": f"cross.%d.{side}" for side in sides},
    }
    model: dict[str, JSON] = {
        "type": loaded.config.model_type,
        "context_length": context,
        "vocab_size": int(graphs.decoder.graph.outputs[0].shape[-1]),
        "eos_token_id": list(ends) if len(ends) > 1 else ends[0] if ends else None,
        "decoder_start_token_id": start[0],
        "encoder": encoder,
        "decoder": decoder,
    }
    config = {"model": model, "search": {"max_length": answers, "do_sample": False}}
    (out / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def parity(out: Path, golden: Golden) -> dict[str, JSON]:
    """Write the golden answer token by token on ONNX Runtime, beside PyTorch's logits.

    Returns:
        see :func:`optimizer.exporting.genai_golden.difference`.

    Raises:
        GateFailed: ONNX Runtime does not run the graphs.
    """
    import numpy as np
    import onnxruntime

    said = read_genai_config(out)["model"]["decoder"]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    prompt = np.array([golden.continuations[0].prompt], np.int64)
    try:
        encoder, decoder = (
            onnxruntime.InferenceSession(str(out / name), settings, providers=["CPUExecutionProvider"])
            for name in (ENCODER_NAME, MODEL_NAME)
        )
        outputs = [each.name for each in encoder.get_outputs()]
        feeds = {"encoder_attention_mask": np.ones_like(prompt)}
        feeds |= dict(zip(outputs, encoder.run(None, {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}),
                          strict=True))  # fmt: skip
        known = [each.name for each in decoder.get_inputs()]
        past = [name for name in known if name.startswith("past_key_values")]
        empty = np.zeros((1, said["num_key_value_heads"], 0, said["head_size"]), np.float32)
        feeds |= dict.fromkeys(past, empty)
        rows = []
        for place, token in enumerate(golden.tokens[0]):
            feeds |= {"input_ids": np.array([[token]], np.int64), LENGTHS: np.array([place], np.int64)}
            logits, *present = decoder.run(None, {name: feeds[name] for name in known})
            feeds |= dict(zip(past, present, strict=True))
            rows.append(logits[0, 0])
    except Exception as error:  # ONNX Runtime's errors have no common class of its own
        raise GateFailed(f"ONNX Runtime does not run what was exported: {first_lines(error)}") from error
    return difference(golden.logits[0], np.stack(rows))
