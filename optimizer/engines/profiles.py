"""Optimization profiles: the shapes that an engine is built for, as people write them and as data suggests them.

An engine takes only shapes between a profile's smallest and largest, and its kernels are chosen for the one in the
middle. Inputs share dimensions (``batch``, ``sequence``), so that naming one input settles the others::

    input_ids:1x8:8x64:32x128           smallest : best : largest, of every input with the same dimensions
    input_ids:8x128                     one shape and no other
    image:1x3x224x224:8x3x224x224:32x3x224x224,mask:1x196:8x196:32x196
    batch=1:8:32,sequence=8:64:128      the same by dimension
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.data.golden import counts_rows, is_sequence
from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON, TensorSpec

__all__ = ["Profile", "Range", "check_limits", "from_lengths", "parse", "read_range", "usual"]

_SIZE = re.compile(r"[1-9]\d{0,8}\Z")
_EXAMPLE = "write NAME:MIN:BEST:MAX, such as --profile input_ids:1x8:8x64:32x128"
#: A sequence that nothing limits is built for this many steps: what most sentence encoders take.
_USUAL_LONGEST = 512
_USUAL_ROWS = (1, 8, 32)
#: From which ratio of the longest row to the shortest a second profile pays, and a third. Kernels are chosen for one
#: shape, and those of a long one waste their tiles on a row of an eighth of its length.
_TWO, _THREE = 4, 16
#: Shares of the rows at which several profiles meet.
_CUTS = {1: (), 2: (0.5,), 3: (0.5, 0.9)}

#: Dimensions of one input.
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes that one input may have: smallest, the one that kernels are chosen for, largest."""

    min: Dims
    opt: Dims
    max: Dims

    def __str__(self) -> str:
        texts = ["x".join(map(str, dims)) for dims in (self.min, self.opt, self.max)]
        return texts[0] if len(set(texts)) == 1 else ":".join(texts)

    def to_json(self) -> dict[str, JSON]:
        return {"min": list(self.min), "opt": list(self.opt), "max": list(self.max)}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Range:
        return cls(tuple(data["min"]), tuple(data["opt"]), tuple(data["max"]))

    def holds(self, dims: Sequence[int]) -> bool:
        """Whether an input of these dimensions fits."""
        return len(dims) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, dims, self.max, strict=True)
        )


@dataclass(frozen=True)
class Profile:
    """A range for every input with a dimension that is not fixed.

    Attributes:
        ranges: by input name.
    """

    ranges: Mapping[str, Range]

    def __str__(self) -> str:
        return ",".join(f"{name}:{each}" for name, each in self.ranges.items())

    def to_json(self) -> dict[str, JSON]:
        return {name: each.to_json() for name, each in self.ranges.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Profile:
        return cls({name: Range.from_json(each) for name, each in data.items()})

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes fit; an input that is not ranged has a fixed shape and is not looked at."""
        return all(each.holds(shapes[name]) for name, each in self.ranges.items())

    def distance(self, shapes: Mapping[str, Sequence[int]]) -> float:
        """How far inputs are from the shapes that kernels were chosen for: the ratio of their sizes, at least 1."""
        far = 1.0
        for name, each in self.ranges.items():
            for best, size in zip(each.opt, shapes[name], strict=True):
                low, high = sorted((best, size))
                far *= high / max(low, 1)
        return far


def parse(text: str, specs: Sequence[TensorSpec], values: Mapping[str, int] | None = None) -> Profile:
    """One profile as it was typed.

    Args:
        text: see the top of this file.
        specs: the model's inputs; a dimension that is fixed must be written as it is.
        values: inputs whose *values* are a shape (shape tensors), by how many numbers they hold; their ranges are
            written in the same form and are ranges of those numbers.

    Raises:
        BadInput: it cannot be read, is empty on one side (smallest above largest), or leaves a dimension open.
        UnknownName: an input or a dimension that the model does not have.
    """
    values = values or {}
    ranges: dict[str, Range] = {}
    sizes: dict[str, tuple[int, int, int]] = {}
    by_name = {spec.name: spec for spec in specs}
    for part in filter(None, (each.strip() for each in text.split(","))):
        head, sign, rest = part.partition("=")
        if sign and ":" not in head:
            three = read_range(rest, head, f"--profile {part}", "DIMENSION=MIN:BEST:MAX, such as sequence=8:64:128")
            _add_size(sizes, head, three, specs, part)
            continue
        name, rest = _split(part, by_name)
        given = _dims(rest, part)
        spec = by_name[name]
        wanted = values.get(name, len(spec.shape))
        for dims in (given.min, given.opt, given.max):
            if len(dims) != wanted:
                raise BadInput(
                    f"--profile {part}: {name} has {wanted} dimensions, and {len(dims)} are written", _EXAMPLE
                )
        if name in values:
            ranges[name] = given
            continue
        for place, dim in enumerate(spec.shape):
            three = (given.min[place], given.opt[place], given.max[place])
            if isinstance(dim, str):
                _add_size(sizes, dim, three, specs, part)
            elif three != (dim,) * 3:
                raise BadInput(f"--profile {part}: dimension {place} of {name} is fixed at {dim}")
    if not ranges and not sizes:
        raise BadInput(f"--profile {text!r} names no input", _EXAMPLE)
    return _filled(specs, sizes, ranges, values, text)


def read_range(text: str, what: str, said: str, form: str) -> tuple[int, int, int]:
    """``8:64:128``: smallest, best and largest of something that is counted; one number is all three.

    Args:
        text: the numbers alone.
        what: is counted, for errors.
        said: the option as it was typed, for errors.
        form: how it is to be written.

    Raises:
        BadInput: these are no such numbers, or they are not in order.
    """
    words = text.split(":")
    if len(words) not in (1, 3) or not all(map(_SIZE.match, words)):
        raise BadInput(f"{said}: {text!r} is no range", f"write {form}")
    low, best, high = (int(word) for word in (words if len(words) == 3 else words * 3))
    _check_order(low, best, high, what, said)
    return low, best, high


def usual(specs: Sequence[TensorSpec], model: Mapping[str, JSON], batch: Sequence[int] = ()) -> Profile | None:
    """What an engine is built for when nobody says: 1 to 32 rows, of any length that the model takes.

    Args:
        specs: the model's inputs.
        model: the manifest's ``model``.
        batch: smallest, best and largest number of rows (1, 8 and 32).

    Returns:
        None where every dimension is fixed.

    Raises:
        BadInput: a dimension that is neither rows nor steps, so that nothing can be supposed of it.
    """
    shortest = int(model.get("min_length") or 1)
    longest = int(model.get("max_length") or _USUAL_LONGEST)
    best = min(longest, max(shortest, 128))
    return _ranged(specs, tuple(batch) or _rows(model), (shortest, best, longest))


def from_lengths(
    lengths: Sequence[int], specs: Sequence[TensorSpec], model: Mapping[str, JSON], batch: Sequence[int] = ()
) -> list[Profile]:
    """Profiles for the rows of a data file: one, or two or three where their lengths differ widely.

    Two from a ratio of 4 between the longest row and the shortest, which meet at the median; three from 16, which meet
    at the median and at the 90th percentile. The best shape of each is the median of the rows within it. The last one
    reaches to the longest sequence that the model takes, as other rows will come.

    Args:
        lengths: of every row, as the model sees it.
        specs: the model's inputs.
        model: the manifest's ``model``.
        batch: smallest, best and largest number of rows (1, 8 and 32).

    Raises:
        BadInput: there are no rows, or the model has no input with a length.
    """
    if not lengths:
        raise BadInput("--profiles-from has no rows")
    if not any(isinstance(dim, str) and is_sequence(dim) for spec in specs for dim in spec.shape):
        raise BadInput("--profiles-from chooses lengths, and no input of this model has one", "leave it out")
    rows = sorted(lengths)
    shortest = int(model.get("min_length") or 1)
    longest = max(rows[-1], int(model.get("max_length") or rows[-1]))
    spread = rows[-1] / max(1, rows[0])
    count = 3 if spread >= _THREE else 2 if spread >= _TWO else 1
    bounds = sorted({rows[int(cut * (len(rows) - 1))] for cut in _CUTS[count]})
    made: list[Profile] = []
    low = shortest
    for high in (*bounds, longest):
        within = [length for length in rows if low <= length <= high] or [high]
        best = within[len(within) // 2]
        profile = _ranged(specs, tuple(batch) or _rows(model), (low, best, high))
        assert profile is not None
        made.append(profile)
        low = min(high + 1, longest)
    return made


def check_limits(profile: Profile, specs: Sequence[TensorSpec], model: Mapping[str, JSON]) -> None:
    """Refuse shapes that the model itself does not take: sequences beyond its position table, batches beyond its own.

    Raises:
        BadInput: naming the dimension, what was asked and the limit.
    """
    limits = {
        "sequence": (int(model.get("min_length") or 1), model.get("max_length")),
        "rows": (1, model.get("max_batch")),
    }
    for spec in specs:
        each = profile.ranges.get(spec.name)
        if each is None or len(each.min) != len(spec.shape):
            continue
        for place, dim in enumerate(spec.shape):
            sort = "sequence" if is_sequence(dim) else "rows" if counts_rows(dim, place) else ""
            low, high = limits.get(sort, (1, None))
            if high and each.max[place] > int(high):
                what = "longest sequence (its position table)" if sort == "sequence" else "largest batch"
                raise BadInput(
                    f"the profile asks for {spec.name} up to {each.max[place]} in dimension {place} ({dim}); the "
                    f"model's {what} is {high}",
                    f"let the profile end at {high}",
                )
            if isinstance(dim, str) and each.min[place] < low:
                raise BadInput(
                    f"the profile asks for {spec.name} from {each.min[place]} in dimension {place} ({dim}); the "
                    f"model takes no less than {low}"
                )


def _rows(model: Mapping[str, JSON]) -> tuple[int, int, int]:
    low, best, high = _USUAL_ROWS
    most = int(model.get("max_batch") or high)
    return min(low, most), min(best, most), min(high, most)


def _ranged(specs: Sequence[TensorSpec], batch: Sequence[int], length: tuple[int, int, int]) -> Profile | None:
    """A range for every input whose open dimensions are rows and steps."""
    ranges: dict[str, Range] = {}
    for spec in specs:
        if all(isinstance(dim, int) for dim in spec.shape):
            continue
        columns: list[tuple[int, ...]] = []
        for place, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                columns.append((dim,) * 3)
            elif is_sequence(dim) or (place == 1 and len(spec.shape) == 2):
                columns.append(length)
            elif counts_rows(dim, place):
                columns.append(tuple(batch))
            else:
                raise BadInput(
                    f"nothing says how large dimension {place} ({dim}) of {spec.name} gets",
                    f"say it: --profile {dim}=MIN:BEST:MAX,… (every open dimension)",
                )
        ranges[spec.name] = Range(*(tuple(sizes) for sizes in zip(*columns, strict=True)))
    return Profile(ranges) if ranges else None


def _split(part: str, by_name: Mapping[str, TensorSpec]) -> tuple[str, str]:
    """The input's name and what follows: a name may hold colons of its own (``x:0``)."""
    fitting = [name for name in by_name if part.startswith(name + ":")]
    if fitting:
        name = max(fitting, key=len)
        return name, part[len(name) + 1 :]
    name, colon, _ = part.partition(":")
    if not colon:
        raise BadInput(f"--profile {part!r} names no shapes", _EXAMPLE)
    raise UnknownName("input", name, by_name)


def _dims(text: str, part: str) -> Range:
    """``1x8:8x64:32x128``, or one shape for all three."""
    shapes = []
    for each in text.split(":"):
        words = each.lower().replace("×", "x").split("x")
        if not all(_SIZE.match(word) for word in words):
            raise BadInput(f"--profile {part}: {each!r} is not a shape", _EXAMPLE)
        shapes.append(tuple(int(word) for word in words))
    if len(shapes) == 1:
        shapes *= 3
    if len(shapes) != 3:
        raise BadInput(f"--profile {part}: {len(shapes)} shapes; smallest, best and largest are wanted", _EXAMPLE)
    if len({len(shape) for shape in shapes}) == 1:
        for place, (low, best, high) in enumerate(zip(*shapes, strict=True)):
            _check_order(low, best, high, f"dimension {place}", f"--profile {part}")
    return Range(*shapes)


def _check_order(low: int, best: int, high: int, what: str, said: str) -> None:
    if not low <= best <= high:
        raise BadInput(f"{said}: {what} goes from {low} over {best} to {high}; smallest ≤ best ≤ largest is wanted")


def _add_size(
    sizes: dict[str, tuple[int, int, int]],
    dim: str,
    three: tuple[int, int, int],
    specs: Sequence[TensorSpec],
    part: str,
) -> None:
    known = {each for spec in specs for each in spec.shape if isinstance(each, str)}
    if dim not in known:
        raise UnknownName("dimension", dim, known)
    if sizes.setdefault(dim, three) != three:
        was = ":".join(map(str, sizes[dim]))
        raise BadInput(f"--profile {part}: {dim} is {was} already, and is the same dimension in every input")


def _filled(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, tuple[int, int, int]],
    ranges: dict[str, Range],
    values: Mapping[str, int],
    text: str,
) -> Profile:
    """Ranges for every input with an open dimension, by the sizes of the dimensions."""
    for spec in specs:
        if spec.name in ranges:
            continue
        if spec.name in values:
            raise BadInput(f"--profile {text} says nothing of {spec.name}, whose values are a shape", _EXAMPLE)
        if all(isinstance(dim, int) for dim in spec.shape):
            continue
        if open_ := [dim for dim in spec.shape if isinstance(dim, str) and dim not in sizes]:
            raise BadInput(
                f"--profile {text} leaves {open_[0]} of {spec.name} open", f"add {open_[0]}=MIN:BEST:MAX to it"
            )
        columns = [sizes[dim] if isinstance(dim, str) else (dim,) * 3 for dim in spec.shape]
        ranges[spec.name] = Range(*(tuple(each) for each in zip(*columns, strict=True)))
    order = [spec.name for spec in specs]
    return Profile({name: ranges[name] for name in order if name in ranges})
