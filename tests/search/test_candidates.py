"""What is tried follows from the machine and from what was asked, and what is not has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.search.candidates import TARGETS, Machine, Plan, plan, split_names
from optimizer.stage import get_stage
from optimizer.types import Device

PLAIN = Machine(frozenset({"avx2"}), openvino=True)
VNNI = Machine(frozenset({"avx2", "avx512_vnni"}), openvino=True)
AMX = Machine(frozenset({"avx512_vnni", "amx_bf16", "amx_int8"}), openvino=True)
GPU = Machine(frozenset({"avx512_vnni"}), gpu=True)
CALIB = Path("calib.jsonl")


def names(found: Plan) -> list[str]:
    return [idea.name for idea in found.ideas]


def reason(found: Plan, name: str) -> str:
    return next(each.reason for each in found.left_out if each.name == name)


def test_each_machine_gets_what_it_is_good_at() -> None:
    assert names(plan(PLAIN, calib=CALIB)) == ["fp32", "fp32-fused"]
    assert "no VNNI" in reason(plan(PLAIN, calib=CALIB), "int8-dynamic")
    assert "no bf16 arithmetic" in reason(plan(VNNI), "bf16-openvino")
    assert names(plan(VNNI, calib=CALIB)) == [
        "fp32", "int8-dynamic", "int8-static", "int8-static-percentile", "int8-static-smooth", "fp32-fused",
    ]  # fmt: skip
    assert names(plan(AMX))[:3] == ["fp32", "bf16-openvino", "bf16-openvino-fp16-file"]
    assert "--calib" in reason(plan(AMX), "int8-static")
    assert "fp16-cuda" in names(plan(GPU))
    assert "no NVIDIA GPU" in reason(plan(AMX), "fp16-cuda")
    assert "ml-opt[openvino]" in reason(plan(Machine(AMX.features)), "bf16-openvino")
    assert "onnxscript" in reason(plan(Machine(AMX.features, fusing=False)), "fp32-fused")


def test_every_idea_is_tried_or_has_a_reason() -> None:
    found = plan(AMX, calib=CALIB)
    together = [*names(found), *(each.name for each in found.left_out)]
    assert len(together) == len(set(together)) == 9


def test_every_chain_is_one_that_the_stages_take() -> None:
    ideas = [*plan(AMX, calib=CALIB).ideas, *plan(GPU).ideas]
    for idea in ideas:
        for step in idea.steps:
            get_stage(step.stage).options.from_mapping(step.options)


def test_what_is_asked_for_filters() -> None:
    assert names(plan(AMX, calib=CALIB, precisions=("bf16",))) == ["bf16-openvino", "bf16-openvino-fp16-file"]
    assert names(plan(AMX, targets=("openvino",))) == ["bf16-openvino", "bf16-openvino-fp16-file"]
    assert names(plan(PLAIN, precisions=("int8",))) == ["int8-dynamic"]
    assert names(plan(GPU, device=Device.CUDA)) == ["fp16-cuda"]
    assert "fp16-cuda" not in names(plan(GPU, device=Device.CPU))


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(BadInput, match="no bf16 arithmetic"):
        plan(VNNI, precisions=("bf16",))
    with pytest.raises(BadInput, match="no candidate is all that was asked for"):
        plan(AMX, precisions=("int8",), targets=("openvino",))
    with pytest.raises(MissingPiece, match="NVIDIA GPU"):
        plan(AMX, device=Device.CUDA)


def test_names_may_be_separated_by_commas_or_repeated() -> None:
    assert split_names(("ort,openvino", "ort"), "value of --target", TARGETS) == ("ort", "openvino")
    with pytest.raises(UnknownName, match="did you mean openvino"):
        split_names(("openvin",), "value of --target", TARGETS)


def test_this_machine_is_looked_at_without_opening_anything() -> None:
    assert Machine.here().features
    assert names(plan(Machine.here()))[0] == "fp32"
