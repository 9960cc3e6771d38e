"""export-genai: a model that writes text, with its cache of keys and values, for ONNX Runtime's generate loop."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Source, SourceModel
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import BadInput, GateFailed
from optimizer.exporting.genai_builder import ALGORITHMS
from optimizer.exporting.options import allow_pickle_opt, revision_opt, trust_remote_code_opt
from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.stages._decoder_graph import BITS, LEARNED, build_graph, offer_last_row, trace_graph, trace_pair
from optimizer.types import JSON, Kind, Precision

if TYPE_CHECKING:
    from optimizer.exporting.genai_golden import Golden
    from optimizer.hf import LoadedModel

__all__ = ["STAGE", "ExportGenai"]

#: A traced or built fp32 graph differs from PyTorch by rounding alone: this much of its largest logit at most.
_FP32_MAX = 1e-3
#: From this share of places on where int4 or int8 would write another token, the reader hears of it.
_WORTH_SAYING = 0.9


class ExportGenai(Options):
    """Options of export-genai."""

    precision: Precision = opt(Precision.FP32, "Number format of the weights.")
    block_size: int = opt(32, "Weights that share a scale, in int4 and int8: 16, 32, 64, 128 or 256.", ge=16, le=256)
    algorithm: str = opt(
        "default",
        "How weights are rounded to int4 or int8. …_last keeps the head in 8 bits, …_mixed other sensitive products "
        "too; gptq and awq learn from --calib.",
        choices=(*ALGORITHMS, *LEARNED),
    )
    calib: Path | None = opt(
        None, "Text like the model will see, for gptq and awq: jsonl, csv, parquet or txt.", data=True, metavar="FILE"
    )
    column: tuple[str, ...] = column_opt()
    samples: int = opt(128, "Pieces of that text, of up to 512 tokens each.", ge=1, le=100000)
    float_head: bool = opt(False, "Leave the head, the last product, in float.")
    share_embeddings: bool = opt(
        True, "Where head and embeddings are one matrix, store it once: in int4, tokens are then looked up in 4 bits."
    )
    accuracy_level: int | None = opt(
        None,
        "What products in blocks may round activations to: 4 int8, 3 bf16, 2 fp16, 1 fp32, 0 as they like "
        "[4 on a processor, 0 on a GPU].",
        ge=0,
        le=4,
    )
    provider: str = opt("cpu", "Which kernels the graph is for.", choices=("cpu", "cuda"))
    max_length: int | None = opt(
        None, "Most tokens of a prompt and its answer together [what the model has positions for].", ge=8
    )
    revision: str | None = revision_opt()
    trust_remote_code: bool = trust_remote_code_opt()
    allow_pickle: bool = allow_pickle_opt()

    def check(self) -> None:
        if self.precision is Precision.FP8:
            raise BadInput("--precision fp8: no decoder is built in fp8", "write fp32, fp16, bf16, int8 or int4")
        half = self.precision in (Precision.FP16, Precision.BF16)
        if half and self.provider == "cpu":
            raise BadInput(
                f"--precision {self.precision}: on a processor, ONNX Runtime lacks the kernels of a decoder in "
                f"{self.precision}",
                f"write --precision fp32, and --provider openvino-native:{self.precision} where it is run (generate, "
                "bench, serve): OpenVINO computes in it; or write int8 or int4, or --provider cuda",
            )
        if self.precision is Precision.FP32 and self.provider == "cuda":
            raise BadInput(
                "--provider cuda: fused attention computes in 16 bits there", "write --precision fp16, bf16 or int4"
            )
        if self.block_size & (self.block_size - 1):
            raise BadInput(f"--block-size {self.block_size} is no power of two", "write 16, 32, 64, 128 or 256")
        if self.precision not in BITS:
            for name in ("block_size", "algorithm", "float_head", "accuracy_level"):
                if name in self.changed():
                    raise BadInput(
                        f"--{name.replace('_', '-')} is for int4 and int8, and {self.precision} rounds no weights",
                        "add --precision int4, or leave it out",
                    )
        self._check_learned()
        base = self.algorithm.partition("_last")[0].removesuffix("_mixed")
        if base != self.algorithm and self.precision is Precision.INT8:
            raise BadInput(
                f"--algorithm {self.algorithm} keeps something in 8 bits, and in int8 all is",
                f"write --algorithm {base}, or --precision int4",
            )
        if base != self.algorithm and self.float_head:
            raise BadInput(
                f"--float-head leaves the head in float, and --algorithm {self.algorithm} puts it into 8 bits",
                f"write --algorithm {base} with --float-head, or leave --float-head out",
            )

    def _check_learned(self) -> None:
        named_columns(self.column)
        if self.algorithm in LEARNED:
            if self.precision is not Precision.INT4:
                raise BadInput(
                    f"--algorithm {self.algorithm} is for 4 bits: 8 bits lose nothing that it could win",
                    "add --precision int4",
                )
            if self.calib is None:
                raise BadInput(
                    f"--algorithm {self.algorithm} learns from text, and none was given", "add --calib text.jsonl"
                )
            return
        for name in ("calib", "column", "samples"):
            if name in self.changed():
                raise BadInput(
                    f"--{name} is for GPTQ and AWQ, and --algorithm {self.algorithm} learns from nothing",
                    "add --algorithm gptq, or leave it out",
                )


def _run(source: Source, out: Path, options: ExportGenai, progress: Progress) -> Outcome:
    from optimizer.data.continuations import save_continuations
    from optimizer.exporting import genai_builder
    from optimizer.exporting.genai_golden import copy_text_files, load_tokenizer, parity, write_on
    from optimizer.exporting.growing_decoder import growing_parity
    from optimizer.graph.decoder import GENAI_CONFIG_NAME, cache_grows, read_genai_config
    from optimizer.hf import generator_class, load_model, read_config
    from optimizer.stages._lessons import lesson

    assert isinstance(source, SourceModel)
    if source.type == "file":
        raise BadInput(
            f"{source.spec} is an .onnx file, and export-genai starts from a model folder or a hub id",
            "give the folder that it was exported from (with config.json and safetensors)",
        )
    raw = read_config(source.path)
    name = generator_class(raw)
    _refuse_quantized(source, raw)
    if raw.get("is_encoder_decoder"):
        return _run_pair(source, out, options, progress)
    tokenizer = load_tokenizer(source.path, options.trust_remote_code)
    progress("loading the model")
    loaded = load_model(source.path, "text-generation", trust_remote_code=options.trust_remote_code)
    context = _context(loaded, options.max_length)
    built = genai_builder.knows(name, raw)
    facts: dict[str, JSON] = {"built_by": "onnxruntime-genai" if built else "torch.onnx"}
    known = int(loaded.module.get_input_embeddings().weight.shape[0])
    copy = functools.partial(copy_text_files, tokenizer, source.path)
    with lesson(out, options, copy, context, known) as learned:
        progress("asking PyTorch for the golden continuations")
        golden = write_on(loaded, tokenizer, context)
        folder, floats = source.path, None
        if learned is not None:
            floats = learned.floats
            if scaled := learned.scale(loaded, options.block_size, progress):
                facts["awq"] = scaled
                folder = learned.save(loaded) if built else folder
        if built:
            build_graph(loaded, folder, out, options, floats, raw, progress)
        else:
            trace_graph(loaded, out, options, context, floats, progress)
        config = read_genai_config(out)
        if learned is not None and floats is not None:
            facts["gptq"] = learned.learn(out, config, progress)
    if options.provider == "cpu":
        offer_last_row(out, config["model"]["decoder"]["outputs"])
    config["model"]["context_length"] = config["search"]["max_length"] = context
    (out / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    has_template = copy_text_files(tokenizer, source.path, out)
    save_continuations(out, golden.continuations)
    warnings = list(loaded.warnings)
    if options.provider == "cpu":
        progress("comparing with PyTorch")
        held = growing_parity if cache_grows(config) and not built else parity
        facts["parity"] = held(out, golden)
        warnings += _judged(facts["parity"], options, golden, "gptq_mixed with --calib, or k_quant_mixed without")
    return Outcome(facts, _about(loaded, source, options, config, has_template, context), warnings)


def _run_pair(source: SourceModel, out: Path, options: ExportGenai, progress: Progress) -> Outcome:
    """The same for a model that reads with an encoder and writes with a decoder."""
    from optimizer.data.continuations import save_continuations
    from optimizer.exporting import seq2seq
    from optimizer.exporting.genai_golden import copy_text_files, load_tokenizer, write_on
    from optimizer.graph.decoder import read_genai_config
    from optimizer.hf import load_model

    _refuse_for_pairs(source, options)
    tokenizer = load_tokenizer(source.path, options.trust_remote_code)
    progress("loading the model")
    loaded = load_model(source.path, "text2text-generation", trust_remote_code=options.trust_remote_code)
    context = _context(loaded, options.max_length)
    progress("asking PyTorch for the golden continuations")
    golden = write_on(loaded, tokenizer, context, seq2seq.start_tokens(loaded))
    trace_pair(loaded, out, options, context, progress)
    has_template = copy_text_files(tokenizer, source.path, out)
    save_continuations(out, golden.continuations)
    progress("comparing with PyTorch")
    facts: dict[str, JSON] = {"built_by": "torch.onnx", "parity": seq2seq.parity(out, golden)}
    warnings = [*loaded.warnings, *_judged(facts["parity"], options, golden, "k_quant_last")]
    about = _about(loaded, source, options, read_genai_config(out), has_template, context)
    return Outcome(facts, about, warnings)


def _refuse_for_pairs(source: SourceModel, options: ExportGenai) -> None:
    """Refuse what is for decoders alone."""
    what = f"{source.spec} reads with an encoder and writes with a decoder"
    if options.provider != "cpu":
        raise BadInput(f"{what}, which are exported for processors alone", "leave --provider out")
    if options.algorithm in LEARNED or options.algorithm.endswith("_mixed"):
        raise BadInput(
            f"{what}, and --algorithm {options.algorithm} is for decoders alone",
            "write --algorithm k_quant_last, or k_quant",
        )


def _context(loaded: LoadedModel, asked: int | None) -> int:
    """Most tokens that the model has positions for, or fewer where fewer were asked for."""
    limit = getattr(loaded.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        # T5 and BLOOM count distances, of which there is no largest; this is how long the texts were that they learned
        # from.
        learned = (getattr(loaded.config, name, None) for name in ("n_positions", "seq_length"))
        asked = asked or next((length for length in learned if isinstance(length, int) and length > 0), None)
        if asked is None:
            raise BadInput(f"{loaded.class_name} does not say how long a text may be", "say it: --max-length 2048")
        return asked
    if asked is not None and asked > limit:
        raise BadInput(
            f"--max-length {asked} is beyond the model: it has positions for {limit} tokens",
            f"write --max-length {limit} or less",
        )
    return asked or limit


def _refuse_quantized(source: SourceModel, raw: Mapping[str, JSON]) -> None:
    found = raw.get("quantization_config")
    if found:
        method = found.get("quant_method", "some method") if isinstance(found, Mapping) else found
        raise BadInput(
            f"the weights of {source.spec} are quantized already ({method})",
            "give the model that they were quantized from, and say --precision int4",
        )


def _judged(found: Mapping[str, JSON], options: ExportGenai, golden: Golden, better: str) -> list[str]:
    """Hold an fp32 graph to PyTorch's logits; of others, what a reader should hear.

    Args:
        found: how far its logits are from PyTorch's.
        options: what was asked for.
        golden: PyTorch's.
        better: the algorithm to try where it would write another text.

    Raises:
        GateFailed: the fp32 graph is another model.
    """
    import numpy as np

    if options.precision is Precision.FP32:
        largest = max(1.0, float(np.abs(golden.logits).max()))
        if not found["max_abs"] <= _FP32_MAX * largest:
            raise GateFailed(
                f"the exported graph is not the model: its logits differ by {found['max_abs']:g} from PyTorch's",
                "this is a fault of the exporter, not of the model; please report it with the model's config.json",
            )
    elif found["top1"] < _WORTH_SAYING:
        return [
            f"in {options.precision} it would write another token than PyTorch in {1 - found['top1']:.0%} of places; "
            f"try --algorithm {better}, a smaller --block-size, or --precision int8"
        ]
    return []


def _about(
    loaded: LoadedModel,
    source: SourceModel,
    options: ExportGenai,
    config: Mapping[str, Any],
    has_template: bool,
    context: int,
) -> dict[str, JSON]:
    """The manifest's ``model``: what the model is, whatever its precision."""
    from optimizer.exporting.genai_golden import end_tokens

    return {
        "task": "text-generation",
        "modality": "text",
        "architecture": loaded.class_name,
        "class": loaded.class_name,
        "model_type": loaded.config.model_type,
        "max_length": context,
        "vocabulary": config["model"]["vocab_size"],
        "end_tokens": list(end_tokens(loaded)),
        "chat_template": has_template,
        "prefers": options.provider,
        "trust_remote_code": options.trust_remote_code,
        "source": source.to_json(),
    }


def _variant(options: ExportGenai, source: Source) -> str:
    words = [options.precision.value, "genai"]
    if options.algorithm != "default":
        words.append(options.algorithm)
    if options.block_size != 32:
        words.append(f"b{options.block_size}")
    if options.float_head:
        words.append("float-head")
    if not options.share_embeddings:
        words.append("float-table")
    if options.accuracy_level is not None:
        words.append(f"level{options.accuracy_level}")
    if options.provider != "cpu":
        words.append(options.provider)
    if options.max_length is not None:
        words.append(f"len{options.max_length}")
    return "-".join(words)


def _verify(options: ExportGenai, facts: Mapping[str, JSON], source: Source) -> None:
    decoder, blocks = facts["decoder"], facts["blocks"]
    fused = 0 if decoder["grows"] else decoder["layers"]
    if "encoder" not in facts and facts["attention"] != fused:
        raise GateFailed(f"{facts['attention']} attentions of {fused} layers are fused with their cache")
    if options.precision not in BITS:
        if facts["quantized"]["total"]:
            raise GateFailed(f"{options.precision} was asked for, and {facts['quantized']['total']} nodes are rounded")
        return
    bits = BITS[options.precision]
    if bits not in blocks["bits"]:
        raise GateFailed(
            f"{options.precision} was asked for, and no product of the file has weights of {bits} bits",
            "export it in fp32 and look at its products: ml-opt export-genai MODEL, then ml-opt inspect REF --layers",
        )
    if blocks["block_size"] != [options.block_size]:
        raise GateFailed(f"blocks of {options.block_size} were asked for, and the file has {blocks['block_size']}")
    left = facts["float_products"]
    if len(left) > options.float_head:
        raise GateFailed(f"{len(left)} products stayed in float: {', '.join(left[:3])}")
    if options.float_head and not left:
        raise GateFailed("the head was to stay in float, and every product is rounded")


STAGE = Stage(
    name="export-genai",
    help="Export a model that writes text, with its cache of keys and values.",
    details="For decoders: Llama, Qwen, Mistral, Gemma and their kin through the builder of onnxruntime-genai, others "
    "(GPT-2, GPT-NeoX, OPT, …) through PyTorch's exporter, with the same fused attention; Falcon, BLOOM, GPT-J and "
    "others with attention of their own keep it, and a cache that grows. T5, BART, Marian and others "
    "that read with an encoder become two graphs. Tokenizer, chat template, and what PyTorch writes after a few "
    "prompts are kept beside them.",
    options=ExportGenai,
    accepts=frozenset({Kind.SOURCE}),
    produces=Kind.GENERATOR,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=2,  # 2: logits of the last token alone may be asked for
    needs=("torch", "transformers", "onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "onnxscript"),
    modules=("torch", "transformers", "onnx", "onnx_ir", "onnxruntime"),
)
