import gc
import threading

import numpy as np
import pytest
from engines.fake_cuda import FakeCuda, nothing_left
from engines.fake_trt import plan, tensor
from engines.machine import Machine
from runtimes.graphs import WEIGHT, matmul

from optimizer.engines.cuda import CudaFailed
from optimizer.engines.flavors import FLAVORS, Flavor
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, UnknownName
from optimizer.runtime import TENSORRT_NATIVE
from optimizer.runtimes import tensorrt
from optimizer.runtimes.tensorrt import check_machine
from optimizer.types import Kind

#: Short and wide, long and narrow; they meet at eight steps.
SHORT, LONG = {"x": [[1, 1], [8, 4], [16, 8]]}, {"x": [[1, 8], [2, 32], [4, 64]]}
X, TWICE = tensor("x", "FLOAT", -1, -1), tensor("twice", "FLOAT", -1, -1, how="twice")
ROWS = tensor("rows", "FLOAT", -1, how="rows")
TOY = {"inputs": [X], "outputs": [TWICE, ROWS]}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Every test ends with nothing left on the GPU, and with everything given back in the right order."""
    made = Machine(tmp_path, monkeypatch)
    with nothing_left(made.gpu):
        yield made
        gc.collect()


@pytest.fixture
def toy(machine):
    """A session of two profiles, closed at the end."""
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, LONG), TOY))
    yield session
    session.close()


def numbers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def right(session, x):
    found = session.run({"x": x})
    assert list(found) == ["twice", "rows"]
    assert np.array_equal(found["twice"], x * 2)
    assert np.allclose(found["rows"], x.sum(1), rtol=1e-5)


# run


@pytest.mark.parametrize("shape", [(1, 1), (16, 8), (3, 5), (4, 64), (2, 9), (1, 8)])
def test_answers_are_right_for_every_shape_of_every_profile(toy, shape):
    right(toy, numbers(*shape))


def test_profiles_are_taken_in_turns(toy, machine):
    for seed in range(3):
        right(toy, numbers(16, 4, seed=seed))
        right(toy, numbers(2, 60, seed=seed))


def test_of_two_profiles_the_one_built_for_the_nearer_shape_is_taken(machine, monkeypatch):
    from engines import fake_trt

    taken = []
    set_profile = fake_trt.ExecutionContext.set_optimization_profile_async

    def spy(context, number, stream):
        taken.append(number)
        return set_profile(context, number, stream)

    monkeypatch.setattr(fake_trt.ExecutionContext, "set_optimization_profile_async", spy)
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, LONG), TOY))
    right(session, numbers(4, 8))  # both hold it; the first was built for 8 × 4, the second for 2 × 32
    right(session, numbers(3, 8))
    right(session, numbers(4, 9))
    session.close()
    assert taken == [0, 1]


def test_a_shape_that_no_profile_holds_is_refused_with_those_that_are(toy):
    with pytest.raises(BadInput, match=r"not built for these shapes: x 16x9") as caught:
        toy.run({"x": numbers(16, 9)})
    assert "x:1x1:8x4:16x8; x:1x8:2x32:4x64" in caught.value.hint
    right(toy, numbers(16, 8))


def test_memory_grows_and_is_used_again(toy, machine):
    right(toy, numbers(1, 2))
    small, blocks = machine.gpu.bytes_in_use, machine.gpu.count("malloc")
    right(toy, numbers(16, 8))
    grown = machine.gpu.bytes_in_use
    assert grown > small
    assert machine.gpu.in_use["memory"] == blocks == 3
    count = machine.gpu.count("malloc")
    for rows in (1, 7, 16, 3):
        right(toy, numbers(rows, 8))
    assert machine.gpu.count("malloc") == count
    assert machine.gpu.bytes_in_use == grown


def test_an_answer_is_not_changed_by_the_next_call(toy):
    x, other = numbers(2, 3), numbers(2, 3, seed=1)
    first = toy.run({"x": x})
    toy.run({"x": other})
    assert np.array_equal(first["twice"], x * 2)


@pytest.mark.parametrize(
    "made",
    [
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(">f4"),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    ],
    ids=["fortran", "big-endian", "strided"],
)
def test_arrays_may_lie_in_memory_as_they_like(toy, made):
    x = numbers(3, 4)
    assert np.array_equal(toy.run({"x": made(x)})["twice"], x * 2)


def test_feeds_are_checked(machine):
    told = {"inputs": [tensor("ids", "INT64", -1, -1)], "outputs": [tensor("twice", "INT64", -1, -1, how="twice")]}
    made = machine.put(plan(told["inputs"], told["outputs"], {"ids": SHORT["x"]}), told, limits={"ids": [0, 9]})
    session = machine.open(made)
    ids = np.array([[1, 9]])
    assert np.array_equal(session.run({"ids": ids})["twice"], ids * 2)
    with pytest.raises(BadInput, match="'ids' holds 10"):
        session.run({"ids": np.array([[10]])})
    with pytest.raises(BadInput, match="takes int64, not float32"):
        session.bind({"ids": numbers(1, 1)})
    with pytest.raises(BadInput, match="'ids' is missing"):
        session.run({})
    with pytest.raises(UnknownName, match="unknown input: 'x'"):
        session.run({"ids": ids, "x": ids})
    with pytest.raises(BadInput, match="takes 2 dimensions"):
        session.run({"ids": ids[0]})
    session.close()


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("HALF", numbers(2, 3, dtype=np.float16)),
        ("INT32", np.arange(6, dtype=np.int32).reshape(2, 3)),
        ("INT64", np.arange(6).reshape(2, 3) - 2**40),
    ],
)
def test_number_formats(machine, dtype, array):
    told = {"inputs": [tensor("x", dtype, -1, -1)], "outputs": [tensor("twice", dtype, -1, -1, how="twice")]}
    session = machine.open(machine.put(plan(told["inputs"], told["outputs"], SHORT), told))
    found = session.run({"x": array})["twice"]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array * 2)
    session.close()


def test_booleans_scalars_and_empty_arrays(machine):
    told = {
        "inputs": [tensor("x", "BOOL", -1, -1), tensor("scale", "FLOAT")],
        "outputs": [tensor("twice", "FLOAT", -1, -1, how="twice"), tensor("sum", "FLOAT", how="sum")],
    }
    session = machine.open(machine.put(plan(told["inputs"], told["outputs"], {"x": [[0, 0], [1, 1], [4, 4]]}), told))
    x = np.array([[True, False], [True, True]])
    found = session.run({"x": x, "scale": np.float32(0.5).reshape(())})
    assert np.array_equal(found["twice"], x * 2.0)
    assert found["sum"].shape == ()
    assert found["sum"] == 3.5
    empty = session.run({"x": np.empty((2, 0), bool), "scale": np.array(4, np.float32)})
    assert empty["twice"].shape == (2, 0)
    assert empty["sum"] == 4
    session.close()


def spreading(machine):
    told = {
        "inputs": [X, tensor("size", "INT64", 2, host=True)],
        "outputs": [
            tensor("spread", "FLOAT", -1, -1, how="spread"),
            tensor("shape", "INT64", 2, host=True, how="shape"),
        ],
    }
    ranges = [{**SHORT, "size": [[1, 1], [2, 2], [3, 3]]}, {**SHORT, "size": [[1, 4], [2, 8], [3, 9]]}]
    return machine.open(machine.put(plan(told["inputs"], told["outputs"], *ranges), told))


def test_inputs_whose_values_are_a_shape_lie_on_the_host_and_choose_the_profile(machine):
    session = spreading(machine)
    x = np.ones((2, 3), np.float32)
    for size in ((3, 2), (2, 9), (3, 2)):
        found = session.run({"x": x, "size": np.array(size)})
        assert found["spread"].shape == size
        assert np.array_equal(found["spread"], np.full(size, 6 + sum(size), np.float32))
        assert found["shape"].tolist() == [2, 3]
    with pytest.raises(BadInput, match=r"x 2x3, size 4x4"):
        session.run({"x": x, "size": np.array([4, 4])})
    session.close()


def test_values_on_the_host_are_the_sessions_own(machine):
    session = spreading(machine)
    x, size = np.ones((2, 3), np.float32), np.array([3, 2])
    call = session.bind({"x": x, "size": size})
    session.run({"x": x, "size": size})
    size[:] = 7  # the caller's array is the caller's
    assert session.run({"x": x, "size": np.array([3, 2])})["spread"].shape == (3, 2)
    call()
    session.close()


def test_an_output_whose_shape_only_the_data_knows_is_refused(machine):
    told = {"inputs": [X], "outputs": [tensor("found", "FLOAT", -1, how="found")]}
    session = machine.open(machine.put(plan(told["inputs"], told["outputs"], SHORT), told))
    for call in (session.run, session.bind):
        with pytest.raises(BadInput, match="'found' depends on the data"):
            call({"x": numbers(2, 2)})
    session.close()


def test_inputs_that_contradict_each_other_are_refused_in_the_vendors_words(machine):
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, contradicts=True), TOY))
    with pytest.raises(BadInput, match=r"do not fit together: .*sizes contradict each other"):
        session.run({"x": numbers(2, 2)})
    session.close()


def test_two_threads_get_their_own_answers(toy):
    wrong = []

    def work(seed):
        for count in range(20):
            x = numbers(1 + (seed + count) % 4, 8, seed=seed)
            if not np.array_equal(toy.run({"x": x})["twice"], x * 2):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_second_thread_waits_for_the_first(toy, machine):
    x, other, found = numbers(2, 3), numbers(2, 3, seed=1), []
    second = threading.Thread(target=lambda: found.append(toy.run({"x": other})))

    def meanwhile():
        second.start()
        second.join(0.2)
        assert second.is_alive()

    machine.gpu.pause = meanwhile
    assert np.array_equal(toy.run({"x": x})["twice"], x * 2)
    second.join()
    assert np.array_equal(found[0]["twice"], other * 2)


def test_what_the_context_knows_already_is_not_told_again(toy, monkeypatch):
    from engines import fake_trt

    right(toy, numbers(2, 3))
    told = []
    monkeypatch.setattr(fake_trt.ExecutionContext, "set_tensor_address", lambda *_: told.append(1) or True)
    right(toy, numbers(2, 3, seed=1))
    assert not told


# bind


def test_a_bound_call_launches_one_graph_and_copies_nothing(toy, machine):
    call = toy.bind({"x": numbers(4, 8)})
    assert toy.facts["cuda_graph"] is True
    assert toy.facts["device_ms"] == 0.25
    before = len(machine.gpu.calls)
    call()
    call()
    assert machine.gpu.calls[before:] == ["launch", "wait"] * 2
    assert machine.gpu.count("begin_capture") == 1


def test_a_bound_call_computes(toy, machine):
    x = numbers(4, 8)
    call = toy.bind({"x": x})
    (lane,) = toy._bound
    for pointer, room in lane._buffers._held.values():
        machine.gpu.view(pointer, room)[:] = 0
    machine.gpu.view(lane._buffers._held["x"][0], x.nbytes)[:] = np.frombuffer(x.tobytes(), np.uint8)
    call()
    assert np.array_equal(lane.answers()["twice"], x * 2)


def test_bound_calls_of_several_shapes_and_profiles_and_run_between_them(toy):
    calls = [toy.bind({"x": numbers(*shape)}) for shape in ((4, 8), (2, 60), (4, 8))]
    for call in calls:
        call()
        right(toy, numbers(16, 2))
    threads = [threading.Thread(target=call) for call in calls for _ in range(1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(toy._bound) == 3


def test_where_the_engine_cannot_be_recorded_its_kernels_are_launched(machine):
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, recordable=False), TOY))
    call = session.bind({"x": numbers(4, 8)})
    assert session.facts["cuda_graph"] is False
    before = len(machine.gpu.calls)
    call()
    assert machine.gpu.calls[before:] == ["wait"]
    right(session, numbers(4, 8))
    session.close()


@pytest.mark.parametrize("name", ["begin_capture", "end_capture"])
def test_where_cuda_cannot_record_nothing_is_left_recording(toy, machine, name):
    machine.gpu.fail(name)
    if name == "begin_capture":
        with pytest.raises(CudaFailed, match="begin_capture"):
            toy.bind({"x": numbers(4, 8)})
    else:
        call = toy.bind({"x": numbers(4, 8)})
        assert toy.facts["cuda_graph"] is False
        call()
    right(toy, numbers(4, 8))


# errors


@pytest.mark.parametrize("name", ["malloc", "to_device", "to_host", "wait"])
@pytest.mark.parametrize("after", [0, 1])
def test_an_error_in_the_middle_of_run_leaves_a_session_that_runs(toy, machine, name, after):
    x = numbers(16, 8)
    machine.gpu.fail(name, after)
    for _ in range(3):
        try:
            toy.run({"x": x})
        except CudaFailed as error:
            assert "planted" in error.message
            break
    else:
        pytest.fail(f"{name} did not fail")
    right(toy, numbers(3, 4))
    right(toy, x)


def test_memory_that_could_not_grow_is_forgotten(toy, machine):
    x = numbers(1, 2)
    right(toy, x)
    machine.gpu.fail("malloc")
    with pytest.raises(CudaFailed, match="planted"):
        toy.run({"x": numbers(16, 8)})
    right(toy, x)


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("stream", 0),
        ("malloc", 0),
        ("malloc", 1),
        ("to_device", 0),
        ("wait", 0),
        ("launch", 0),
        ("launch", 5),
        ("timed", 0),
    ],
)
def test_an_error_in_the_middle_of_bind_leaves_nothing_behind(toy, machine, name, after):
    right(toy, numbers(4, 8))
    before = machine.gpu.in_use
    machine.gpu.fail(name, after)
    with pytest.raises(CudaFailed, match="planted"):
        toy.bind({"x": numbers(4, 8)})
    assert machine.gpu.in_use == before
    toy.bind({"x": numbers(4, 8)})()
    right(toy, numbers(4, 8))


def test_a_gpu_that_is_full_says_so_and_goes_on(machine):
    machine.gpu.room = 700
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY))
    with pytest.raises(CudaFailed, match="out of memory"):
        session.run({"x": numbers(16, 8)})
    right(session, numbers(4, 4))
    session.close()


def test_the_vendors_refusal_is_in_the_error(machine):
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, weights=False), TOY))
    with pytest.raises(GateFailed, match=r"could not be started: .*the engine has no weights"):
        session.run({"x": numbers(2, 2)})
    session.close()


def test_no_memory_for_activations(machine):
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, big=True), TOY)
    with pytest.raises(MissingPiece, match="no memory for the engine's activations: OutOfMemory"):
        machine.open(made)


# close


def test_close_gives_everything_back_and_may_be_called_twice(machine):
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT, LONG), TOY))
    right(session, numbers(2, 2))
    call = session.bind({"x": numbers(2, 2)})
    session.bind({"x": numbers(2, 40)})
    session.close()
    assert machine.gpu.in_use == {"memory": 0, "streams": 0, "graphs": 0}
    session.close()
    for after in (call, lambda: session.run({"x": numbers(2, 2)}), lambda: session.bind({"x": numbers(2, 2)})):
        with pytest.raises(BadInput, match="was closed"):
            after()
    with pytest.raises(BadInput, match="was closed"):
        session.inspect()


def test_what_cannot_be_freed_does_not_keep_the_rest(machine):
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY))
    session.bind({"x": numbers(2, 2)})
    machine.gpu.fail("free")
    with pytest.raises(CudaFailed, match="planted"):
        session.close()
    assert machine.gpu.in_use == {"memory": 1, "streams": 0, "graphs": 0}
    machine.gpu.free(next(iter(machine.gpu._memory)))


def test_a_log_does_not_grow_while_an_engine_runs(machine):
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY))
    for _ in range(500):
        machine.trt.error("again")
    assert len(machine.vendor._sink) <= 200
    assert not any("nobody wants" in line for line in machine.vendor._sink)
    session.close()


# what is opened, and where


def test_facts(toy):
    assert toy.facts["provider"] == "tensorrt-native"
    assert toy.facts["tensorrt_rtx"] == "1.7.1.116"
    assert toy.facts["precision"] == "fp32"
    assert toy.facts["tf32"] is False
    assert toy.facts["nodes"] == {"tensorrt-native": 3}
    assert toy.facts["device_memory"] == 4096
    assert toy.facts["gpu"]["name"] == "Fake RTX"
    assert toy.facts["load_seconds"] > 0
    assert toy.runs() == {"float32": 3, "fell_back": []}
    assert toy.inspect() == '{"Layers": []}'


@pytest.mark.parametrize(
    ("precision", "asked", "has"), [("fp32", True, True), ("fp32", False, False), ("fp16", True, False)]
)
def test_an_engine_has_the_tf32_that_it_was_built_with(machine, precision, asked, has):
    made = machine.put(
        plan(TOY["inputs"], TOY["outputs"], SHORT), TOY, engine={"precision": precision}, options={"tf32": asked}
    )
    session = machine.open(made)
    assert session.facts["tf32"] is has
    session.close()


def test_kernels_are_compiled_once_for_all_sessions(machine):
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY)
    for process in range(2):
        machine.start()
        session = machine.open(made)
        right(session, numbers(4, 8))
        session.bind({"x": numbers(2, 2)})
        right(session, numbers(4, 8))
        session.close()
        assert len(machine.trt.compiled) == (0 if process else 2)
        assert session.facts["kernels_kept"] is True
        assert bool(session.facts["kernels_read"]) == bool(process)


@pytest.mark.parametrize("change", ["gpu", "damage"])
def test_kernels_of_another_gpu_or_damaged_ones_are_compiled_again(machine, change):
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY)
    session = machine.open(made)
    right(session, numbers(4, 8))
    session.close()
    (kept,) = (machine.folder / "cache").rglob("*.kernels")
    if change == "gpu":
        machine.gpu.capability = "12.0"
    else:
        kept.write_bytes(b"{")
    machine.start()
    session = machine.open(made)
    right(session, numbers(4, 8))
    session.close()
    assert len(machine.trt.compiled) == 1


def test_a_cache_folder_that_cannot_be_written_costs_only_time(machine):
    (machine.folder / "cache").write_text("a file")
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY))
    right(session, numbers(4, 8))
    session.close()
    assert session.facts["kernels_kept"] is False


def test_tensorrt_itself_keeps_no_kernels(machine):
    machine.flavor = FLAVORS["tensorrt"]
    machine.start("10.16.1.11")
    about = {"version": "10.16.1.11", "compute_capabilities": ["8.9"]}
    session = machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY, engine=about))
    right(session, numbers(4, 8))
    session.bind({"x": numbers(4, 8)})()
    session.close()
    assert not (machine.folder / "cache").exists()
    assert "kernels_read" not in session.facts


@pytest.mark.parametrize(("free", "kept"), [(1000, 600), (250, 250)])
def test_weights_that_do_not_fit_stay_on_the_host(machine, free, kept):
    made = machine.put(
        plan(TOY["inputs"], TOY["outputs"], SHORT, streamable=600), TOY, options={"weight_streaming": True}
    )
    machine.trt.free = free
    session = machine.open(made)
    assert session.facts["weights_on_gpu"] == kept
    right(session, numbers(4, 8))
    session.close()


def test_weights_that_fit_nowhere(machine):
    told = plan(TOY["inputs"], TOY["outputs"], SHORT, streamable=600, least=300)
    made = machine.put(told, TOY, options={"weight_streaming": True})
    machine.trt.free = 100
    with pytest.raises(MissingPiece, match="no memory for the engine's weights: the weights do not fit"):
        machine.open(made)


def stripped(machine, wants, precision):
    folder = machine.folder / "models" / "toy" / "1" / "fp32"
    folder.mkdir(parents=True)
    matmul(folder / "model.onnx")
    parent = machine.write(folder, Kind.ONNX, {"weights": {"float32": WEIGHT.size}})
    told = plan(TOY["inputs"], TOY["outputs"], SHORT, weights=False, wants=wants)
    source = {"type": "artifact", "ref": "toy@1:fp32", "digest": parent.digest}
    options = {"strip_weights": True}
    return parent, machine.put(told, TOY, options=options, source=source, engine={"precision": precision})


@pytest.mark.parametrize(("wants", "precision"), [("FLOAT", "fp32"), ("FLOAT16", "fp16")])
def test_a_stripped_engine_gets_its_weights_in_its_own_precision(machine, wants, precision):
    _, made = stripped(machine, wants, precision)
    session = machine.open(made)
    right(session, numbers(4, 8))
    session.close()


def test_weights_that_are_gone_changed_or_wrong(machine):
    parent, made = stripped(machine, "FLOAT16", "fp32")
    with pytest.raises(Damaged, match="the weights are not FLOAT16"):
        machine.open(made)
    model = parent.model_file.read_bytes()
    parent.model_file.write_bytes(model[:-1] + b"\0")
    with pytest.raises(Damaged, match=r"model\.onnx"):
        machine.open(made)
    (parent.path / "manifest.json").unlink()
    with pytest.raises(MissingPiece, match="toy@1:fp32, which is not there any more"):
        machine.open(made)


def test_a_version_compatible_engine_may_run_its_own_code_and_no_other_may(machine):
    lean = plan(TOY["inputs"], TOY["outputs"], SHORT, lean=True)
    with pytest.raises(Damaged, match="host code is not allowed"):
        machine.open(machine.put(lean, TOY))
    session = machine.open(machine.put(lean, TOY, name="compatible", options={"version_compatible": True}))
    right(session, numbers(4, 8))
    session.close()


def test_a_file_that_is_no_engine(machine):
    with pytest.raises(Damaged, match=r"model\.engine is no engine of TensorRT-RTX, or it is damaged"):
        machine.open(machine.put(b"nonsense", TOY))


def test_a_file_in_no_artifact(machine, tmp_path):
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY)
    (made.path / "manifest.json").unlink()
    with pytest.raises(BadInput, match="is no engine of a store"):
        machine.open(made)


def test_an_engine_that_is_gone(machine):
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY)
    made.runnable.unlink()
    with pytest.raises(Damaged, match=r"model\.engine cannot be read: No such file"):
        machine.open(made)


def test_an_engine_with_other_outputs_than_its_manifest_says(machine):
    other = {"inputs": [X], "outputs": [TWICE]}
    with pytest.raises(Damaged, match=r"toy@1:fp32-rtx: the engine has other outputs than its manifest says"):
        machine.open(machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), other))


def test_numbers_that_numpy_does_not_have(machine):
    told = {"inputs": [X], "outputs": [tensor("twice", "BF16", -1, -1, how="twice")]}
    with pytest.raises(BadInput, match=r"toy@1:fp32-rtx: output 'twice' is bfloat16, which numpy does not have"):
        machine.open(machine.put(plan(told["inputs"], told["outputs"], SHORT), told))


@pytest.mark.parametrize(
    ("flavor", "built", "options", "here", "fits"),
    [
        ("rtx", ("1.7.1.116", ["8.0", "8.6", "8.9", "12.0"]), {}, ("1.7.1.116", "8.9"), True),
        ("rtx", ("1.7.1.116", ["8.0", "8.6", "8.9", "12.0"]), {}, ("1.7.1.116", "12.1"), True),
        ("rtx", ("1.7.1.116", ["8.0", "8.6", "8.9", "12.0"]), {}, ("1.7.1.116", "7.5"), False),
        ("rtx", ("1.7.1.116", ["8.9"]), {"compute_capability": ["8.9"]}, ("1.7.1.116", "12.0"), False),
        ("rtx", ("1.7.1.116", ["8.9"]), {"compute_capability": ["8.9"]}, ("1.7.1.116", "8.9"), True),
        ("rtx", ("1.7.1.116", ["8.0"]), {}, ("1.7.2.1", "8.0"), False),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {}, ("10.16.1.11", "8.9"), True),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {}, ("10.16.1.11", "9.0"), False),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {"hardware_compatible": True}, ("10.16.1.11", "9.0"), True),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {"hardware_compatible": True}, ("10.16.1.11", "8.6"), True),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {"hardware_compatible": True}, ("10.16.1.11", "7.5"), False),
        ("tensorrt", ("10.9.0.34", ["8.9"]), {}, ("10.16.1.11", "8.9"), False),
        ("tensorrt", ("10.9.0.34", ["8.9"]), {"version_compatible": True}, ("10.16.1.11", "8.9"), True),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {"version_compatible": True}, ("10.9.0.34", "8.9"), False),
        ("tensorrt", ("10.16.1.11", ["8.9"]), {"version_compatible": True}, ("11.4.0.106", "8.9"), False),
    ],
)
def test_machines_that_an_engine_runs_on(machine, flavor, built, options, here, fits):
    about = {"flavor": flavor, "version": built[0], "compute_capabilities": built[1]}
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY, engine=about, options=options)
    version, capability = here
    gpu = FakeCuda(capability).facts()
    if fits:
        check_machine(made, FLAVORS[flavor], version, gpu)
        return
    with pytest.raises(MissingPiece, match=r"toy@1:fp32-rtx was built (by|for)") as caught:
        check_machine(made, FLAVORS[flavor], version, gpu)
    assert caught.value.hint.endswith("ml-opt build-trt-engine toy@1:fp32-rtx --rebuild")
    wrong = (built[0], version) if built[0] != version else (", ".join(built[1]), capability)
    assert all(word in caught.value.message for word in wrong)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("7.5", True), ("8.9", True), ("9.0", False), ("10.0", False), ("12.1", True), ("13.0", True)],
)
def test_a_gpu_that_tensorrt_rtx_never_runs_on(machine, monkeypatch, capability, runs):
    """An H100 (9.0) refuses every engine of it, so that building one again is no way out; TensorRT takes them all."""
    facts = FakeCuda(capability).facts()
    monkeypatch.setattr(tensorrt, "FLAVORS", {"rtx": FLAVORS["rtx"]})
    monkeypatch.setattr(Flavor, "installed", property(lambda self: True))
    machine.gpu = FakeCuda(capability)
    assert FLAVORS["tensorrt"].runs_on(capability)
    found = tensorrt.RUNTIME.available(TENSORRT_NATIVE)
    assert found.ok is runs
    if runs:
        return
    assert "TensorRT-RTX runs on GPUs of compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and later" in found.reason
    assert found.reason.endswith(f"{facts['name']} here has {capability}")
    assert "provider cuda" in found.hint
    about = {"flavor": "rtx", "version": "1.7.1.116", "compute_capabilities": ["8.0", "8.9"]}
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY, engine=about)
    with pytest.raises(MissingPiece, match="TensorRT-RTX runs on GPUs of compute capability"):
        check_machine(made, FLAVORS["rtx"], "1.7.1.116", facts)


def test_another_version_is_refused_before_anything_is_loaded(machine):
    made = machine.put(plan(TOY["inputs"], TOY["outputs"], SHORT), TOY)
    machine.start("1.8.0.1")
    with pytest.raises(MissingPiece, match=r"built by TensorRT-RTX 1\.7\.1\.116, and 1\.8\.0\.1 is installed here"):
        machine.open(made)
    assert machine.trt.log is None
