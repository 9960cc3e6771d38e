"""What is tried follows from the machine and from what was asked, and what is not has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import runtime
from optimizer.engines.flavors import FLAVORS
from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.runtime import Availability
from optimizer.search import machine
from optimizer.search.candidates import TARGETS, Plan, plan, split_names
from optimizer.search.machine import Machine
from optimizer.stage import get_stage
from optimizer.types import Device

INTEL = frozenset({"cpu", "openvino"})
PLAIN = Machine(frozenset({"avx2"}), INTEL)
VNNI = Machine(frozenset({"avx2", "avx512_vnni"}), INTEL)
AMX = Machine(frozenset({"avx512_vnni", "amx_bf16", "amx_int8"}), INTEL)
AMD = Machine(frozenset({"avx512_vnni", "avx512_bf16"}), reasons={"openvino": "it finds no device", "cuda": "no GPU"})
GPU = Machine(frozenset({"avx512_vnni"}), frozenset({"cpu", "cuda", "tensorrt", "rtx"}))
#: With NVIDIA's own libraries beside ONNX Runtime's providers.
BUILDER = Machine(GPU.features, GPU.providers | {"tensorrt-native"}, builders=frozenset({"tensorrt"}))
CALIB = Path("calib.jsonl")


def names(found: Plan) -> list[str]:
    return [idea.name for idea in found.ideas]


def reason(found: Plan, name: str) -> str:
    return next(each.reason for each in found.left_out if each.name == name)


def test_each_machine_gets_what_it_is_good_at() -> None:
    bare = plan(Machine(frozenset()), calib=CALIB)
    assert names(bare) == ["fp32", "fp32-fused"]
    assert "no int8 arithmetic" in reason(bare, "int8-dynamic")
    plain = plan(PLAIN, calib=CALIB)
    assert names(plain) == ["fp32", "int8-dynamic", "fp32-fused"]
    assert plain.ideas[1].steps[0].options == {"reduce_range": True}, "its sums would saturate"
    assert "no VNNI" in reason(plain, "int8-static")
    assert "no VNNI" in reason(plan(PLAIN, calib=CALIB), "int8-static-openvino")
    assert "no bf16 arithmetic" in reason(plan(VNNI), "bf16-openvino")
    assert names(plan(VNNI, calib=CALIB)) == [
        "fp32", "int8-static-openvino", "int8-static-smooth-openvino", "int8-dynamic", "int8-static",
        "int8-static-percentile", "int8-static-smooth", "int8-weights", "fp32-fused",
    ]  # fmt: skip
    assert names(plan(AMX, calib=CALIB))[:4] == [
        "fp32", "bf16-openvino", "bf16-openvino-fp16-file", "int8-static-openvino",
    ]  # fmt: skip
    for name in ("int8-static", "int8-static-openvino", "int8-static-smooth-openvino"):
        assert "--calib" in reason(plan(AMX), name)
    assert "onnxscript" in reason(plan(Machine(AMX.features, fusing=False)), "fp32-fused")


@pytest.mark.parametrize("fusing", [True, False])
def test_static_int8_on_onnx_runtime_takes_its_biases_in_where_that_can_be_done(fusing: bool) -> None:
    ideas = {idea.name: idea for idea in plan(Machine(VNNI.features, INTEL, fusing=fusing), calib=CALIB).ideas}
    static = [name for name in ideas if name.startswith("int8-static")]
    fused = [name for name in static if any(step.stage == "ort-optimize" for step in ideas[name].steps)]
    on_ort = ["int8-static", "int8-static-percentile", "int8-static-smooth"]
    assert sorted(static) == sorted([*on_ort, "int8-static-openvino", "int8-static-smooth-openvino"])
    assert sorted(fused) == (on_ort if fusing else [])


def test_what_a_provider_lacks_is_said_in_its_own_words() -> None:
    assert reason(plan(AMD, calib=CALIB), "bf16-openvino") == "it finds no device"
    assert reason(plan(AMD, calib=CALIB), "int8-static-openvino") == "it finds no device"
    assert reason(plan(AMD, calib=CALIB), "fp16-cuda") == "no GPU"
    assert "`ml-opt doctor` says why" in reason(plan(AMD), "fp16-tensorrt")
    assert not any("openvino" in name for name in names(plan(AMD, calib=CALIB)))


def test_openvino_by_its_own_package_where_onnx_runtimes_provider_has_no_device() -> None:
    native = Machine(AMD.features, frozenset({"cpu", "openvino-native"}), reasons={"openvino": "it finds no device"})
    found = plan(native, calib=CALIB)
    assert {str(idea.provider) for idea in found.ideas if "openvino" in idea.name} == {
        "openvino-native:bf16", "openvino-native:fp32",
    }  # fmt: skip
    assert {idea.target for idea in found.ideas if "openvino" in idea.name} == {"openvino"}
    assert names(plan(native, calib=CALIB, targets=("openvino",))) == [
        "bf16-openvino", "bf16-openvino-fp16-file", "int8-static-openvino", "int8-static-smooth-openvino",
        "int8-static-openvino-fp32",
    ]  # fmt: skip
    both = Machine(AMX.features, frozenset({"cpu", "openvino", "openvino-native"}))
    assert {str(idea.provider) for idea in plan(both).ideas if "openvino" in idea.name} == {"openvino:bf16"}


def test_a_gpu_gets_tensorrt_first() -> None:
    found = plan(GPU, calib=CALIB)
    assert names(found)[:7] == [
        "fp32", "fp16-tensorrt", "int8-static-tensorrt", "fp16-rtx", "int8-static-rtx", "fp16-fused-cuda", "fp16-cuda",
    ]  # fmt: skip
    by_name = {idea.name: idea for idea in found.ideas}
    assert [(step.stage, dict(step.options)) for step in by_name["fp16-fused-cuda"].steps] == [
        ("ort-optimize", {"target": "cuda"}),
        ("cast", {"to": "fp16"}),
    ], "fused in fp32, where every pattern is known"
    assert by_name["int8-static-tensorrt"].steps[0].options["symmetric"] is True, "TensorRT takes no other"
    assert by_name["int8-static-tensorrt"].family != by_name["int8-static"].family
    assert "int8-static-tensorrt" not in names(plan(GPU)), "no calibration data"
    # VNNI is about processors.
    assert "int8-static-tensorrt" in names(plan(Machine(PLAIN.features, GPU.providers), calib=CALIB))


def test_engines_are_built_where_a_gpu_and_a_builder_are() -> None:
    found = plan(BUILDER, calib=CALIB)
    assert names(found)[:3] == ["fp32", "fp16-tensorrt-engine", "int8-static-tensorrt-engine"]
    assert reason(found, "fp16-rtx-engine") == 'TensorRT-RTX is not installed: pip install "ml-opt[tensorrt-rtx]"'
    by_name = {idea.name: idea for idea in found.ideas}
    fp16, int8 = by_name["fp16-tensorrt-engine"], by_name["int8-static-tensorrt-engine"]
    assert [(step.stage, dict(step.options)) for step in fp16.steps] == [
        ("cast", {"to": "fp16"}),
        ("build-trt-engine", {"flavor": "tensorrt"}),
    ]
    assert [step.stage for step in int8.steps] == ["quantize-static", "build-trt-engine"]
    assert int8.steps[0].options["symmetric"] is True
    assert (str(fp16.provider), fp16.target, fp16.asked) == ("tensorrt-native", "tensorrt", "")
    assert "int8-static-tensorrt-engine" not in names(plan(BUILDER)), "no calibration data"


def test_a_builder_whose_engines_do_not_run_here_is_left_out() -> None:
    both = frozenset({"tensorrt", "rtx"})
    found = plan(Machine(BUILDER.features, BUILDER.providers, builders=both, misfits=frozenset({"rtx"})), calib=CALIB)
    assert reason(found, "fp16-rtx-engine") == "TensorRT-RTX does not run on this GPU"
    assert "fp16-tensorrt-engine" in names(found)


def test_engines_of_two_builders_are_two_families() -> None:
    """Milder kin of one are built by the same builder."""
    both = plan(Machine(BUILDER.features, BUILDER.providers, builders=frozenset({"tensorrt", "rtx"})), calib=CALIB)
    families = {idea.name: idea.family for idea in both.ideas if idea.precision == "int8" and idea.builder}
    assert set(families) == {"int8-static-tensorrt-engine", "int8-static-rtx-engine"}
    assert len(set(families.values())) == 2
    assert {idea.builder for idea in both.ideas} == {"", "tensorrt", "rtx"}


def test_target_tensorrt_without_a_gpu_says_what_is_missing() -> None:
    nowhere = Machine(PLAIN.features, reasons=dict.fromkeys(runtime.GPU_PROVIDERS, "no NVIDIA GPU here"))
    with pytest.raises(BadInput) as caught:
        plan(nowhere, calib=CALIB, targets=("tensorrt",))
    for name in ("fp16-tensorrt-engine", "int8-static-rtx-engine", "fp16-tensorrt", "int8-static-rtx"):
        assert f"{name}: no NVIDIA GPU here" in caught.value.message
    broken = Machine(PLAIN.features, reasons={"tensorrt-native": "cudaGetDeviceCount: error 35"})
    assert reason(plan(broken), "fp16-tensorrt-engine") == "cudaGetDeviceCount: error 35"


def test_what_int8_leaves_between_its_products_follows_the_processor() -> None:
    def provider(machine: Machine) -> str:
        ideas = plan(machine, calib=CALIB).ideas
        return next(str(idea.provider) for idea in ideas if idea.name == "int8-static-openvino")

    assert (provider(VNNI), provider(AMX)) == ("openvino", "openvino:bf16")
    assert "int8-static-openvino-fp32" not in names(plan(VNNI, calib=CALIB)), "it is what the other one is there"
    sister = next(idea for idea in plan(AMX, calib=CALIB).ideas if idea.name == "int8-static-openvino-fp32")
    assert (str(sister.provider), sister.family) == ("openvino:fp32", "")


def test_four_bits_are_for_those_who_ask() -> None:
    assert "--precision int4 or --objective size" in reason(plan(AMX), "int4-weights")
    assert names(plan(AMX, precisions=("int4",))) == ["int4-weights", "int4-weights-int4-tables"]
    learned = plan(AMX, precisions=("int4",), calib=CALIB).ideas
    assert [idea.name for idea in learned] == ["int4-weights-gptq", "int4-weights-gptq-int4-tables"]
    assert all(idea.steps[0].options["calib"] == str(CALIB) for idea in learned), "with rows, GPTQ learns from them"
    small = names(plan(PLAIN, objective="size"))
    assert {"int4-weights", "int4-weights-int4-tables", "int8-weights", "int8-dynamic"} <= set(small)


def test_every_idea_is_tried_or_has_a_reason() -> None:
    found = plan(AMX, calib=CALIB)
    together = [*names(found), *(each.name for each in found.left_out)]
    assert len(together) == len(set(together)) == 24
    assert all(each.reason for each in found.left_out)


def test_every_chain_is_one_that_the_stages_take() -> None:
    machines = AMX, GPU, Machine(BUILDER.features, BUILDER.providers, builders=frozenset({"tensorrt", "rtx"}))
    ideas = [idea for each in machines for idea in plan(each, calib=CALIB, objective="size").ideas]
    assert {step.stage for idea in ideas for step in idea.steps} >= {"cast", "quantize-static", "build-trt-engine"}
    for idea in ideas:
        for step in idea.steps:
            get_stage(step.stage).options.from_mapping(step.options)


def test_what_is_asked_for_filters() -> None:
    assert names(plan(AMX, calib=CALIB, precisions=("bf16",))) == ["bf16-openvino", "bf16-openvino-fp16-file"]
    assert names(plan(AMX, targets=("openvino",))) == ["bf16-openvino", "bf16-openvino-fp16-file"]
    assert names(plan(AMX, calib=CALIB, targets=("openvino",), precisions=("int8",))) == [
        "int8-static-openvino", "int8-static-smooth-openvino", "int8-static-openvino-fp32",
    ]  # fmt: skip
    assert names(plan(PLAIN, precisions=("int8",))) == ["int8-dynamic", "int8-weights"]
    assert names(plan(GPU, targets=("tensorrt",))) == ["fp16-tensorrt", "fp16-rtx"]
    assert names(plan(GPU, device=Device.CUDA)) == [
        "fp16-tensorrt", "fp16-rtx", "fp16-fused-cuda", "fp16-cuda",
    ]  # fmt: skip
    assert "fp16-cuda" not in names(plan(GPU, device=Device.CPU))


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(BadInput, match="no bf16 arithmetic"):
        plan(VNNI, precisions=("bf16",))
    with pytest.raises(BadInput, match="no candidate is all that was asked for"):
        plan(AMX, precisions=("int4",), targets=("openvino",))
    with pytest.raises(MissingPiece, match="NVIDIA GPU"):
        plan(AMX, device=Device.CUDA)


def test_names_may_be_separated_by_commas_or_repeated() -> None:
    assert split_names(("ort,openvino", "ort"), "value of --target", TARGETS) == ("ort", "openvino")
    with pytest.raises(UnknownName, match="did you mean openvino"):
        split_names(("openvin",), "value of --target", TARGETS)


def test_this_machine_is_tried_as_doctor_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def probed(name: str) -> Availability:
        tried.append(name)
        return Availability(name, False, "it finds no device", "look elsewhere")

    monkeypatch.setattr(runtime, "probe", probed)
    monkeypatch.setattr(runtime, "has_module", lambda name: name != "onnxruntime_ep_nv_tensorrt_rtx")
    monkeypatch.setattr(machine, "gpu_facts", lambda: ())
    found = Machine.here()
    assert tried == ["openvino", "openvino-native"], "what cannot work is not tried"
    assert found.providers == {"cpu"}
    assert found.why_not("openvino") == "it finds no device (look elsewhere)"
    assert found.why_not("tensorrt") == "no NVIDIA GPU here"
    monkeypatch.setattr(machine, "gpu_facts", lambda: ({"name": "x", "compute_capability": "9.0"},))
    assert "onnxruntime-gpu is not installed" in Machine.here().why_not("cuda")
    assert "ml-opt[rtx]" in Machine.here().why_not("rtx")
    monkeypatch.setattr(machine, "version_of", lambda name: "1.32")
    monkeypatch.setattr(runtime, "probe", lambda name: Availability(name, name != "openvino", "it finds no device"))
    assert Machine.here().providers == {"cpu", "openvino-native", "cuda", "tensorrt", "tensorrt-native"}
    assert Machine.here().gpu
    monkeypatch.setattr(runtime, "probe", lambda name: Availability(name, True))
    assert "openvino-native" not in Machine.here().providers, "what both can do is tried once"
    assert "openvino" in Machine.here().providers
    assert Machine.here().builders == {name for name, flavor in FLAVORS.items() if flavor.installed}
    assert Machine.here().misfits == {"rtx"}, "TensorRT-RTX takes no H100"
    monkeypatch.setattr(machine, "gpu_facts", lambda: ({"name": "x", "compute_capability": "8.9"},))
    assert Machine.here().misfits == frozenset()


def test_this_machine_has_a_plan() -> None:
    assert Machine.here().features
    assert names(plan(Machine.here()))[0] == "fp32"
