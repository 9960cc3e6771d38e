"""The shapes that parity is proven on: small and large batches, one step, an odd number of them, the longest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optimizer.data.golden import Golden, counts_rows, is_sequence
from optimizer.engines.profiles import Profile
from optimizer.evaluate.parity import Case
from optimizer.types import JSON, TensorSpec

__all__ = ["profile_cases", "shape_sweep", "sweep_cases"]

_BATCHES = (1, 2, 8)
#: Long enough to cross every block size of a kernel, short enough to run in seconds where no limit is known; for audio
#: as many samples as a hundred frames or more.
_DEFAULT_LONGEST, _LONGEST_FRAMES = 512, 40
_ODD = 17


def shape_sweep(specs: Sequence[TensorSpec], model: Mapping[str, JSON]) -> list[tuple[int, int, bool]]:
    """``(batch, sequence, padded)`` of every case.

    Models with a sequence: batch 1, 2, 8 by sequence 1 (or the shortest the model takes), an odd length and the
    longest it takes, unpadded; and padded where there is a batch and a mask. Others: the batches alone. A model whose
    rows are fixed has one batch.
    """
    masked = any(spec.name == "attention_mask" for spec in specs)
    dims = [(dim, place) for spec in specs for place, dim in enumerate(spec.shape)]
    batches = _allowed(_BATCHES, model) if any(counts_rows(dim, place) for dim, place in dims) else [1]
    if not any(is_sequence(dim) for dim, _ in dims):
        return [(b, 1, padded) for b in batches for padded in (False, True) if not padded or (masked and b > 1)]
    shortest = int(model.get("min_length") or 1)
    longest = int(model.get("max_length") or max(_DEFAULT_LONGEST, _LONGEST_FRAMES * shortest))
    odd = min(_ODD if shortest < _ODD else shortest * 2 + 1, longest)
    lengths = sorted({shortest, odd, longest})
    cases = []
    for batch in batches:
        for length in lengths:
            # The longest shape at the largest batch says nothing that batch 2 does not, and costs most of the time.
            if batch == max(_BATCHES) and length == longest and longest > 64:
                continue
            cases.append((batch, length, False))
            if masked and batch > 1 and length > shortest:
                cases.append((batch, length, True))
    return cases


def _allowed(batches: Sequence[int], model: Mapping[str, JSON]) -> list[int]:
    limit = model.get("max_batch")
    return [b for b in batches if not limit or b <= int(limit)] or [1]


def sweep_cases(golden: Golden, specs: Sequence[TensorSpec], model: Mapping[str, JSON]) -> Iterator[Case]:
    """The sweep with the golden values in it."""
    for batch, sequence, padded in shape_sweep(specs, model):
        name = f"{batch}x{sequence}{' padded' if padded else ''}"
        yield Case(name, golden.feeds(specs, batch, sequence, padded=padded))


def profile_cases(golden: Golden, specs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> Iterator[Case]:
    """Golden values in the smallest shape of every profile, and in the one that its kernels were chosen for."""
    for profile in profiles:
        for which in ("min", "opt"):
            batch = sequence = 1
            for spec in specs:
                sizes = getattr(profile.ranges[spec.name], which) if spec.name in profile.ranges else ()
                for place, size in enumerate(sizes):
                    if is_sequence(spec.shape[place]):
                        sequence = size
                    elif counts_rows(spec.shape[place], place):
                        batch = size
            yield Case(f"{batch}x{sequence}", golden.feeds(specs, batch, sequence))
