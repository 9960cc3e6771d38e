"""Images into pixel values, with Pillow and numpy.

The steps and their order are those of ``transformers``' Pillow image processors (``image_processing_pil_*.py``), so
that the numbers are theirs to the last bit; the torchvision processors resize a little differently. A processor with
steps of its own that are not known here is an error: pixels prepared almost right cost accuracy without a word.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import Columns
from optimizer.data.readers import Row
from optimizer.errors import BadInput, TooLarge, missing_package
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = NDArray[np.generic]

__all__ = ["MOST_MEGAPIXELS", "ImageEncoder", "file_bytes"]

#: Megapixels (10^6) of the largest picture that is decoded: Pillow itself refuses what has some 179.
MOST_MEGAPIXELS = 178

#: Processors that only resize, crop, rescale and normalize, each switched by its own key.
_PLAIN = frozenset({
    "BeitImageProcessor",
    "BitImageProcessor",
    "BlipImageProcessor",
    "ChineseCLIPImageProcessor",
    "CLIPImageProcessor",
    "DeiTImageProcessor",
    "MobileNetV1ImageProcessor",
    "MobileNetV2ImageProcessor",
    "PvtImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
})  # fmt: skip
#: Processors with a step of their own.
_OWN = frozenset({"ConvNextImageProcessor", "EfficientNetImageProcessor", "LevitImageProcessor"})

_SMALLER = "make it smaller first"

#: From this size on ConvNeXt squeezes the whole image instead of cropping its centre.
_CONVNEXT_WARPS_FROM = 384


class ImageEncoder:
    """The image half of a preprocessor.

    Args:
        settings: ``preprocessor_config.json``, as ``transformers`` 5 saves it.
        model: the manifest's ``model``; the channels of its ``pixel_values`` are read.
        columns: which column is the image.
        megapixels: of the largest picture that is decoded, or comes out of resizing one.

    Raises:
        BadInput: the processor is of a sort that is not known here, or lacks a setting.
    """

    inputs: tuple[str, ...] = ("pixel_values",)

    def __init__(
        self, settings: Mapping[str, JSON], model: Mapping[str, JSON], columns: Columns,
        megapixels: int = MOST_MEGAPIXELS,
    ) -> None:  # fmt: skip
        written = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
        kind = written.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
        if kind not in _PLAIN | _OWN:
            raise BadInput(
                f"images for {written or 'a model without image_processor_type'} cannot be prepared without torch yet",
                "prepare them yourself and give pixel_values in an .npz file",
            )
        if settings.get("do_pad"):
            raise BadInput(f"{written} pads images, which is not known here", "give pixel_values in an .npz file")
        self._kind = kind
        self._settings = settings
        self._columns = columns
        self._channels = _channels(model, settings)
        self._megapixels = megapixels

    def content(self, row: Row) -> tuple[bytes, ...]:
        """What decides the pixels of a row: the picture's bytes, or the array's."""
        value = self._columns.get(row, "image")
        if isinstance(value, str | Path | Mapping):
            return (file_bytes(row, value, "image"),)
        import numpy as np

        array = np.ascontiguousarray(value)
        return (repr(array.shape).encode(), array.tobytes())

    def values(self, row: Row) -> dict[str, Any]:
        """``image``: the file's bytes, or the array."""
        value = self._columns.get(row, "image")
        return {"image": file_bytes(row, value, "image") if isinstance(value, str | Path | Mapping) else value}

    def lengths(self, rows: Sequence[Row]) -> None:
        """None: images have no length."""

    def feeds(self, rows: Sequence[Row], pad_to: int | None) -> dict[str, NDArray[np.generic]]:
        """``pixel_values`` ``[rows, channels, height, width]`` (float32); ``pad_to`` means nothing to an image."""
        import numpy as np

        pixels = [self._pixels(row) for row in rows]
        shapes = {array.shape for array in pixels}
        if len(shapes) > 1:
            raise BadInput(
                f"the images from {rows[0]} on come out in {len(shapes)} sizes, and a batch needs one",
                "use a batch of one, or a processor that crops",
            )
        return {"pixel_values": np.stack(pixels)}

    def _pixels(self, row: Row) -> Pixels:
        image = self._load(row)
        pixels: Pixels = self._resized(image)
        if self._settings.get("do_center_crop"):
            size = self._need("crop_size")
            pixels = _center_crop(pixels, int(size["height"]), int(size["width"]))
        if self._settings.get("do_rescale"):
            pixels = self._rescaled(pixels)
        mean, std = self._settings.get("image_mean"), self._settings.get("image_std")
        if self._settings.get("do_normalize"):
            pixels = _normalized(pixels, mean, std)
        if self._kind == "EfficientNetImageProcessor" and self._settings.get("include_top", True):
            pixels = _normalized(pixels, 0.0, std)
        return pixels

    def _need(self, key: str) -> Mapping[str, Any]:
        value = self._settings.get(key)
        if not isinstance(value, Mapping):
            raise BadInput(
                f"preprocessor_config.json: {key} should say height and width, or shortest_edge, and is {value!r}",
                "load the processor with transformers 5 and save it again: that writes sizes in full",
            )
        return value

    def _load(self, row: Row) -> Image:
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError:
            raise missing_package("PIL", "preparing images") from None
        value = self._columns.get(row, "image")
        if not isinstance(value, str | Path | Mapping):
            return self._from_array(row, value)
        data = file_bytes(row, value, "image")
        try:
            with Image.open(io.BytesIO(data)) as opened:  # which reads the head, and no pixel
                self._need_small(f"{row}: the image", opened.width, opened.height)
                image = ImageOps.exif_transpose(opened)
                if self._channels == 1:
                    return image.convert("L")
                if self._settings.get("do_convert_rgb") and image.has_transparency_data:
                    image = image.convert("RGBA")
                    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                    image = Image.alpha_composite(white, image)
                return image.convert("RGB")
        except Image.DecompressionBombError:
            raise TooLarge(f"{row}: the image has more than {self._megapixels} megapixels", _SMALLER) from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            # An OSError's own words name only a memory address, because the picture came as bytes.
            reason = "no picture that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise BadInput(f"{row}: the image cannot be read ({reason})") from None

    def _need_small(self, what: str, width: int, height: int) -> None:
        if width * height > self._megapixels * 1_000_000:
            raise TooLarge(
                f"{what} has {width} × {height} pixels; {self._megapixels} megapixels are the most", _SMALLER
            )

    def _from_array(self, row: Row, value: Any) -> Image:
        """An array ``[height, width]``, ``[height, width, channels]`` or ``[channels, height, width]`` of bytes."""
        import numpy as np
        from PIL import Image

        array = np.asarray(value)
        if array.dtype == np.int64 and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)  # JSON's lists of numbers
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            array = np.moveaxis(array, 0, -1)
        if (
            array.dtype != np.uint8
            or array.ndim not in (2, 3)
            or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4))
        ):
            raise BadInput(
                f"{row}: an image array should be bytes [height, width(, 1, 3 or 4)], not {array.dtype} {array.shape}",
                "give the path of a picture, or the model's own pixel_values",
            )
        plain = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
        return Image.fromarray(plain).convert("L" if self._channels == 1 else "RGB")

    def _resized(self, image: Image) -> Pixels:
        """Channels first, resized as this processor does it (ConvNeXt's crop belongs to its resizing)."""
        if not self._settings.get("do_resize"):
            return _planes(image)
        size = self._need("size")
        short = size.get("shortest_edge")
        if self._kind == "ConvNextImageProcessor":
            short = int(self._need("size").get("shortest_edge") or 0)
            if short >= _CONVNEXT_WARPS_FROM:
                return self._to(image, short, short)
            crop = float(self._settings.get("crop_pct") or 224 / 256)
            return _center_crop(self._to(image, *_shortest_edge(image, int(short / crop))), short, short)
        if self._kind == "LevitImageProcessor" and short:
            return self._to(image, *_shortest_edge(image, int((256 / 224) * short)))
        if short and size.get("longest_edge"):
            return self._to(image, *_between_edges(image, int(short), int(size["longest_edge"])))
        if short:
            return self._to(image, *_shortest_edge(image, int(short)))
        if size.get("height") and size.get("width"):
            return self._to(image, int(size["height"]), int(size["width"]))
        raise BadInput(f"preprocessor_config.json: a size of {dict(size)} is not known here")

    def _to(self, image: Image, height: int, width: int) -> Pixels:
        from PIL.Image import Resampling

        # A picture of one line becomes as many times as long as it becomes high.
        self._need_small(f"an image of {image.width} × {image.height} pixels, resized for this model,", width, height)
        resample = self._settings.get("resample")
        return _planes(image.resize((width, height), Resampling.BILINEAR if resample is None else Resampling(resample)))

    def _rescaled(self, pixels: Pixels) -> Pixels:
        """Scaled in double precision and then rounded to float32, as transformers does."""
        import numpy as np

        factor = float(self._settings.get("rescale_factor", 1 / 255))
        scaled = (pixels.astype(np.float64) * factor).astype(np.float32)
        return scaled - 1 if self._settings.get("rescale_offset") else scaled


def _channels(model: Mapping[str, JSON], settings: Mapping[str, JSON]) -> int:
    """Channels that the model takes: as its input says, else as many as there are means, else three."""
    for spec in model.get("inputs") or ():
        if spec["name"] == "pixel_values" and len(spec["shape"]) == 4 and isinstance(spec["shape"][1], int):
            return int(spec["shape"][1])
    mean = settings.get("image_mean")
    return len(mean) if isinstance(mean, Sequence) else 3


def file_bytes(row: Row, value: str | Path | Mapping[str, Any], what: str) -> bytes:
    """The bytes of a file named by a path, or held as a saved dataset holds them (``{"bytes", "path"}``)."""
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        if not isinstance(value.get("path"), str):
            raise BadInput(f"{row}: the {what} has neither bytes nor a path")
        value = str(value["path"])
    path = row.base / value
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{row}: the {what} {path} cannot be read ({error.strerror})") from None


def _planes(image: Image) -> Pixels:
    import numpy as np

    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _shortest_edge(image: Image, short: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes ``short`` and the longer keeps the ratio, rounded down."""
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))
    return (long, short) if width <= height else (short, long)


def _between_edges(image: Image, short: int, longest: int) -> tuple[int, int]:
    """The same, with the longer side held to ``longest`` (``get_size_with_aspect_ratio`` of transformers)."""
    width, height = image.size
    low, high = float(min(height, width)), float(max(height, width))
    exact = float(short)
    if high / low * short > longest:
        exact = longest * low / high
        short = round(exact)
    if (height <= width and height == short) or (width <= height and width == short):
        return height, width
    if width < height:
        return int(exact * height / width), short
    return short, int(exact * width / height)


def _center_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle ``[channels, height, width]``; an image that is too small is laid on black first."""
    import numpy as np

    have_height, have_width = pixels.shape[-2:]
    top, left = (have_height - height) // 2, (have_width - width) // 2
    if top >= 0 and left >= 0:
        return pixels[..., top : top + height, left : left + width]
    tall, wide = max(height, have_height), max(width, have_width)
    canvas = np.zeros((*pixels.shape[:-2], tall, wide), pixels.dtype)
    # Rounded up where the crop rounds down: transformers does so, and a pixel's shift would show.
    down, right = math.ceil((tall - have_height) / 2), math.ceil((wide - have_width) / 2)
    canvas[..., down : down + have_height, right : right + have_width] = pixels
    top, left = top + down, left + right
    return canvas[..., max(0, top) : min(tall, top + height), max(0, left) : min(wide, left + width)]


def _normalized(pixels: Pixels, mean: JSON, std: JSON) -> Pixels:
    """(x - mean) / std by channel, in float32."""
    import numpy as np

    channels = pixels.shape[0]
    values = []
    for name, value in (("image_mean", mean), ("image_std", std)):
        array = np.asarray(value, np.float32)
        if value is None or array.shape not in ((), (channels,)):
            raise BadInput(f"preprocessor_config.json: {name} is {value}, and the images have {channels} channels")
        values.append(np.broadcast_to(array, (channels,))[:, None, None])
    result: Pixels = (pixels.astype(np.float32) - values[0]) / values[1]
    return result
