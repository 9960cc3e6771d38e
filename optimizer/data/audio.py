"""Sound into a model's inputs, with numpy: waveforms for Wav2Vec2 and its kin, log-mel spectrograms for Whisper."""

from __future__ import annotations

import functools
import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import Columns
from optimizer.data.image import file_bytes
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Wave = NDArray[np.float32]

__all__ = ["AudioEncoder", "log_mel"]

_KINDS = ("Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor")
#: Added to a variance before its root is divided by (transformers' ``zero_mean_unit_var_norm``).
_TINY_VARIANCE = 1e-7


class AudioEncoder:
    """The sound half of a preprocessor.

    Args:
        settings: ``preprocessor_config.json``, as ``transformers`` saves it.
        columns: which column is the sound.

    Raises:
        BadInput: the feature extractor is of a sort that is not known here.
    """

    def __init__(self, settings: Mapping[str, JSON], columns: Columns) -> None:
        kind = str(settings.get("feature_extractor_type") or "")
        if kind not in _KINDS:
            raise BadInput(
                f"sound for {kind or 'a model without feature_extractor_type'} cannot be prepared without torch yet",
                "prepare it yourself and give the model's inputs in an .npz file",
            )
        self._whisper = kind == "WhisperFeatureExtractor"
        self.inputs: tuple[str, ...] = ("input_features" if self._whisper else "input_values", "attention_mask")
        self._settings = settings
        self._columns = columns
        self._rate = int(settings.get("sampling_rate", 16000))

    def content(self, row: Row) -> tuple[bytes, ...]:
        """What decides the inputs of a row: its samples."""
        return (self._samples(row).tobytes(),)

    def values(self, row: Row) -> dict[str, Any]:
        """``audio``: the file's bytes, or its samples at the model's sampling rate."""
        value = self._columns.get(row, "audio")
        if isinstance(value, Mapping) and "array" in value:
            value = value["array"]
        return {"audio": file_bytes(row, value, "sound") if isinstance(value, str | Path | Mapping) else value}

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Samples of each row."""
        return [len(self._samples(row)) for row in rows]

    def feeds(self, rows: Sequence[Row], pad_to: int | None) -> dict[str, NDArray[np.generic]]:
        """``input_values`` ``[rows, samples]``, or Whisper's ``input_features`` ``[rows, mels, frames]``; float32.

        The mask is over samples, and for Whisper over frames. Whisper has one length, whatever ``pad_to`` says.
        """
        waves = [self._samples(row) for row in rows]
        return self._mels(waves) if self._whisper else self._waveforms(waves, pad_to)

    def _waveforms(self, waves: list[Wave], pad_to: int | None) -> dict[str, NDArray[np.generic]]:
        import numpy as np

        values, mask = self._padded(waves, pad_to or max(map(len, waves)))
        if self._settings.get("do_normalize", True):
            # Without a mask the padding counts in mean and variance. It should not, but models were trained on it.
            masked = bool(self._settings.get("return_attention_mask"))
            for index, keep in enumerate(mask.astype(bool)):
                heard = values[index, keep] if masked else values[index]
                normal = (values[index] - heard.mean()) / np.sqrt(heard.var() + _TINY_VARIANCE)
                values[index] = np.where(keep, normal, self._silence) if masked else normal
        return {"input_values": values, "attention_mask": mask}

    def _mels(self, waves: list[Wave]) -> dict[str, NDArray[np.generic]]:
        import numpy as np

        samples = int(self._settings["chunk_length"]) * self._rate
        hop, fft = int(self._settings["hop_length"]), int(self._settings["n_fft"])
        values, mask = self._padded(waves, samples)
        mels = int(self._settings["feature_size"])
        features = np.stack([log_mel(value, mels, self._rate, fft, hop) for value in values])
        return {"input_features": features, "attention_mask": mask[:, ::hop][:, : features.shape[-1]]}

    @property
    def _silence(self) -> float:
        return float(self._settings.get("padding_value", 0.0))

    def _padded(self, waves: list[Wave], width: int) -> tuple[Wave, NDArray[np.int64]]:
        import numpy as np

        values = np.full((len(waves), width), self._silence, np.float32)
        mask = np.zeros((len(waves), width), np.int64)
        left = self._settings.get("padding_side", "right") == "left"
        for index, samples in enumerate(waves):
            cut = samples[:width]
            span = slice(width - len(cut), width) if left else slice(0, len(cut))
            values[index, span] = cut
            mask[index, span] = 1
        return values, mask

    def _samples(self, row: Row) -> Wave:
        """One row's waveform, float32 from -1 to 1, at the model's sampling rate."""
        import numpy as np

        value = self._columns.get(row, "audio")
        rate = row.values.get("sampling_rate")
        if isinstance(value, Mapping) and "array" in value:
            rate, value = value.get("sampling_rate", rate), value["array"]
        if isinstance(value, str | Path | Mapping):
            samples, rate = _wav(row, file_bytes(row, value, "sound"))
        else:
            try:
                samples = np.asarray(value, np.float32)
            except (TypeError, ValueError):
                raise BadInput(f"{row}: a sound should be the path of a .wav file or a list of samples") from None
        if rate is not None and rate != self._rate:
            raise BadInput(
                f"{row}: the sound has {rate} samples a second, the model takes {self._rate}",
                f"convert it first, e.g.: ffmpeg -i in.wav -ar {self._rate} -ac 1 out.wav",
            )
        if samples.ndim != 1 or not len(samples):
            raise BadInput(f"{row}: a sound should be one channel of samples, not an array of shape {samples.shape}")
        if not np.isfinite(samples).all():
            raise BadInput(f"{row}: the sound has samples that are not finite numbers")
        return samples


def _wav(row: Row, data: bytes) -> tuple[Wave, int]:
    """Samples and rate of a PCM file; the standard library knows no compressed and no float ones."""
    import numpy as np

    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise BadInput(
            f"{row}: the sound is no PCM .wav file ({error or 'it ends too early'})",
            "convert it first, e.g.: ffmpeg -i in.mp3 -ac 1 -c:a pcm_s16le out.wav",
        ) from None
    if channels != 1:
        raise BadInput(
            f"{row}: the sound has {channels} channels, the model takes one", "e.g.: ffmpeg -i in.wav -ac 1 out.wav"
        )
    if len(frames) % width:
        raise BadInput(f"{row}: the sound ends in the middle of a sample")
    raw: Any
    match width:
        case 1:  # the only unsigned one
            raw = np.frombuffer(frames, np.uint8).astype(np.float32) - 128
        case 3:
            # Three bytes go to the upper end of four, so that the sign comes out right.
            wide = np.zeros((len(frames) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
            raw = wide.view("<i4")[:, 0] >> 8
        case _:
            raw = np.frombuffer(frames, f"<i{width}")
    return (raw / float(1 << (8 * width - 1))).astype(np.float32), rate


def log_mel(samples: Wave, mels: int, rate: int, fft: int, hop: int) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2, as ``WhisperFeatureExtractor`` computes it).

    Args:
        samples: one waveform, already cut or padded.
        mels: how many mel bands (80 or 128).
        rate: samples a second.
        fft: samples in a window.
        hop: samples from one window to the next.

    Returns:
        ``[mels, len(samples) // hop]``, about -1 to 1.
    """
    import numpy as np

    around = np.pad(samples.astype(np.float64), fft // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(around, fft)[::hop]
    hann = np.hanning(fft + 1)[:-1]
    power = np.abs(np.fft.rfft(windows * hann)[:-1]) ** 2
    spectrum = np.log10(np.maximum(power @ _mel_filters(mels, rate, fft), 1e-10)).T
    result: NDArray[np.float32] = ((np.maximum(spectrum, spectrum.max() - 8.0) + 4.0) / 4.0).astype(np.float32)
    return result


@functools.cache
def _mel_filters(mels: int, rate: int, fft: int) -> NDArray[np.float64]:
    """Triangular filters ``[fft // 2 + 1, mels]`` up to 8 kHz, of equal area (Slaney's Auditory Toolbox, 1998).

    Slaney's mel scale is linear below 1 kHz (3 mels to 200 Hz) and logarithmic above (27 mels to a factor of 6.4).
    """
    import numpy as np

    knee, slope = 15.0, np.log(6.4) / 27.0
    top = knee + np.log(8000.0 / 1000.0) / slope
    scale = np.linspace(0.0, top, mels + 2)
    hertz = np.where(scale < knee, scale * 200.0 / 3.0, 1000.0 * np.exp(slope * (scale - knee)))
    bins = np.linspace(0, rate // 2, fft // 2 + 1)[:, None]
    rising = (bins - hertz[:-2]) / np.diff(hertz)[:-1]
    falling = (hertz[2:] - bins) / np.diff(hertz)[1:]
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (hertz[2:] - hertz[:-2])
    return filters
