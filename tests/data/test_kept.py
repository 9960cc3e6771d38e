"""Rows that were written down feed the model the same numbers, wherever they came from and whatever their columns."""

from __future__ import annotations

import io
import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.data.columns import Columns
from optimizer.data.kept import write_rows
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row, format_of, read_kept, read_rows
from optimizer.errors import BadInput, Damaged

IMAGE = [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
SOUND = [{"name": "input_values", "dtype": "float32", "shape": ["batch", "samples"]}]
PAIR = [{"name": name, "dtype": dtype, "shape": ["n", 2]} for name, dtype in (("a", "float32"), ("b", "int32"))]


def image_model(folder: Path) -> Preprocessor:
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return Preprocessor.open(folder, {"inputs": IMAGE})


def sound_model(folder: Path) -> Preprocessor:
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return Preprocessor.open(folder, {"inputs": SOUND})


def png(seed: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def wav(seed: int, rate: int = 16000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.random.default_rng(seed).integers(-9999, 9999, 400, np.int16).tobytes())
    return out.getvalue()


def kept(rows: list[Row], preprocessor: Preprocessor, folder: Path) -> list[Row]:
    """The rows, written, moved, and read where they are now."""
    (folder / "first").mkdir()
    write_rows(rows, preprocessor, folder / "first")
    shutil.move(folder / "first", folder / "moved")
    return read_kept(folder / "moved")


def same(rows: list[Row], again: list[Row], preprocessor: Preprocessor) -> None:
    assert [preprocessor.content(row) for row in again] == [preprocessor.content(row) for row in rows]
    for name, array in preprocessor.feeds(rows).items():
        np.testing.assert_array_equal(array, preprocessor.feeds(again)[name])


@pytest.mark.parametrize("form", ["path", "bytes", "list", "array"])
def test_pictures(tmp_path: Path, form: str) -> None:
    preprocessor = image_model(tmp_path)
    drawn = np.random.default_rng(5).integers(0, 256, (2, 9, 9, 3), np.uint8)
    rows = []
    for place in range(2):
        (tmp_path / f"{place}.png").write_bytes(png(place))
        value: Any = {
            "path": f"{place}.png", "bytes": {"bytes": png(place), "path": None}, "list": drawn[place].tolist(),
            "array": drawn[place],
        }[form]  # fmt: skip
        rows.append(Row(tmp_path / "rows.jsonl", place + 1, {"img": value, "label": "cat", "who": "me"}))
    again = kept(rows, preprocessor, tmp_path)
    for place in range(2):
        (tmp_path / f"{place}.png").unlink()
    expected = [Row(row.source, row.number, {**row.values}) for row in rows]
    if form == "path":
        expected = [Row(row.source, row.number, {"image": {"bytes": png(place)}}) for place, row in enumerate(rows)]
    same(expected, again, preprocessor)
    assert all(set(row.values) == {"image", "label"} for row in again)
    assert (tmp_path / "moved" / "files" / "000001.png").is_file() == (form in ("path", "bytes"))
    assert (tmp_path / "moved" / "rows.npz").is_file() == (form == "array")


@pytest.mark.parametrize("form", ["path", "bytes", "decoded", "list"])
def test_sounds(tmp_path: Path, form: str) -> None:
    preprocessor = sound_model(tmp_path)
    samples = [0.1, -0.2, 0.3, 1 / 3]
    (tmp_path / "a.wav").write_bytes(wav(1))
    value: Any = {
        "path": "a.wav", "bytes": {"bytes": wav(1)}, "decoded": {"array": samples, "sampling_rate": 16000},
        "list": samples,
    }[form]  # fmt: skip
    rows = [Row(tmp_path / "rows.jsonl", 1, {"speech": value})]
    again = kept(rows, preprocessor, tmp_path)
    same(rows, again, preprocessor)
    assert (tmp_path / "moved" / "files" / "000001.wav").is_file() == (form in ("path", "bytes"))


def test_arrays_keep_types_and_labels(tmp_path: Path) -> None:
    preprocessor = Preprocessor.open(tmp_path, {"inputs": PAIR})
    np.savez(
        tmp_path / "a.npz",
        a=np.arange(6, dtype=np.float32).reshape(3, 2) / 3,
        b=np.arange(6, dtype=np.int32).reshape(3, 2),
        label=np.array(["x", "y", "x"]),
        rest=np.zeros(3),
    )
    rows = read_rows(tmp_path / "a.npz")
    again = kept(rows, preprocessor, tmp_path)
    same(rows, again, preprocessor)
    assert [str(row.values["label"]) for row in again] == ["x", "y", "x"]
    assert set(again[0].values) == {"a", "b", "label"}
    # Lists of a jsonl file stay lists.
    plain = [Row(tmp_path / "a.jsonl", 1, {"a": [0.1, 1 / 3], "b": [1, 2]})]
    (tmp_path / "plain").mkdir()
    same(plain, kept(plain, preprocessor, tmp_path / "plain"), preprocessor)


def test_columns_that_were_named_by_hand_have_their_own_names_then(tmp_path: Path, minilm_dir: Path) -> None:
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in ("input_ids",)]
    model = {"inputs": inputs, "max_length": 32}
    named = Preprocessor.open(minilm_dir, model, columns={"text": "review", "label": "stars"})
    odd = "naïve café\u2028\n"
    rows = [Row(tmp_path / "a.jsonl", 1, {"review": "fine", "text": "no", "stars": 4, "label": 1})]
    rows += [Row(tmp_path / "a.jsonl", 2, {"review": odd, "stars": 2})]
    again = kept(rows, named, tmp_path)
    assert [dict(row.values) for row in again] == [
        {"text": "fine", "label": 4}, {"text": odd, "label": 2},
    ]  # fmt: skip
    # Whoever reads them needs no names, and those that were given for a file do no harm.
    same(rows, again, named)
    plain = Preprocessor.open(minilm_dir, model)
    assert [plain.content(row) for row in again] == [named.content(row) for row in rows]
    assert Columns({"text": "review"}).get(again[0], "text") == "fine"
    with pytest.raises(BadInput, match="no column for text"):
        Columns({"text": "review"}).get(Row(tmp_path, 1, {"text": "a"}), "text")


def test_a_folder_is_what_its_manifest_says(tmp_path: Path) -> None:
    """Pictures beside somebody else's manifest.json stay pictures."""
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    (tmp_path / "a.png").write_bytes(png(1))
    assert format_of(tmp_path) == "images"
    assert len(read_rows(tmp_path)) == 1
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(Damaged, match="is not a manifest"):
        read_rows(tmp_path)
