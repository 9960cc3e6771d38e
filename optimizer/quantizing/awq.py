"""AWQ: channels that matter get larger before weights are rounded, and what makes them smaller by as much.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023 (arXiv:2306.00978):
``W x = (W s) (x / s)`` for any positive ``s``, one number an input channel; a channel whose weights are larger loses
less of itself to rounding. ``s = mean|x|^α`` (its equation 4), with the α of a grid from 0 to 1 that leaves a product's
answers nearest (equation 5 and section 3.2). Here α is chosen by products that read the same, on rows of real data.

Nothing is divided while the model runs: the weights of what makes ``x`` are, a normalization's or another product's.
Which those are is not looked up by name: a fold that suggests itself is tried with planted scales, and what the model
says must stay the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optimizer.quantizing.blocks import BITS
from optimizer.quantizing.gptq import mean_noise
from optimizer.quantizing.prepare import not_finite
from optimizer.stage import Progress
from optimizer.types import JSON

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Site", "find_sites", "save", "scale"]

#: Values of α (``n_grid`` of the authors' code).
_GRID = tuple(step / 20 for step in range(20))
#: The smallest part of ``s`` (the authors' code).
_LEAST = 1e-4
#: Rows of data that α is chosen on.
_ROWS = 1024
#: By how much logits may move where weights are scaled by powers of two, as a share of the largest: nothing is rounded
#: then, but where a weight counts from one.
_SAME = 1e-5


@dataclass(frozen=True)
class Site:
    """Products that read one value, and what makes it.

    Attributes:
        maker: name of the normalization or of the product before.
        readers: names of the products.
        from_one: the normalization's weight counts from one (Gemma's): it multiplies by ``1 + weight``.
    """

    maker: str
    readers: tuple[str, ...]
    from_one: bool = False

    @property
    def kind(self) -> tuple[str, ...]:
        """The same for the same place of every layer."""
        return (str(self.from_one), *(re.sub(r"\d+", "#", name) for name in (self.maker, *self.readers)))


def scale(
    module: torch.nn.Module, pieces: Sequence[Sequence[int]], block_size: int, progress: Progress
) -> dict[str, JSON]:
    """Scale a decoder's weights for rounding to 4 bits; it answers as before.

    Args:
        module: a causal language model of transformers, in float32; changed in place.
        pieces: tokens that it reads.
        block_size: weights that will share a scale.
        progress: told what is done.

    Returns:
        ``sites`` (how many values are scaled), ``products`` (how many read them), ``alpha`` (the mean) and ``noise``
        before and after: the power of the error of a product's answers over the power of its answers, rounded to the
        nearest of 16 levels a block, the mean over sites.

    Raises:
        BadInput: what a product reads is not finite.
    """
    import torch

    sites = find_sites(module, pieces[0])
    before: list[float] = []
    after: list[float] = []
    alphas: list[float] = []
    with torch.inference_mode():
        seen = _seen(module, sites, pieces, progress)
        for number, site in enumerate(sites):
            progress("scaling weights by what products read", number, len(sites))
            rows, mean = seen[number]
            if not mean.isfinite().all():
                raise not_finite(site.readers[0])
            weights = torch.cat([_matrix(module.get_submodule(name)) for name in site.readers])
            noises = _noises(weights, rows, [_scales(mean, alpha) for alpha in _GRID], block_size)
            best = min(range(len(_GRID)), key=noises.__getitem__)
            _apply(module, site, _scales(mean, _GRID[best]))
            before.append(noises[0])
            after.append(noises[best])
            alphas.append(_GRID[best])
    return {
        "sites": len(sites),
        "products": sum(len(site.readers) for site in sites),
        "alpha": round(fmean(alphas), 3) if alphas else 0.0,
        "noise": mean_noise(before, after),
    }


def save(module: torch.nn.Module, folder: Path) -> None:
    """Write a scaled model of transformers to a folder where its tokenizer and settings are already.

    Its configuration says float32 afterwards, whatever the weights were stored in: what they were multiplied by has
    more digits. How it generates stays as it was.
    """
    from transformers import GenerationConfig

    kept, settings = module.generation_config, folder / "generation_config.json"
    before = settings.read_bytes() if settings.is_file() else None
    module.generation_config = GenerationConfig()  # some that are loaded are refused when they are to be saved
    try:
        module.save_pretrained(folder)
    finally:
        module.generation_config = kept
        settings.unlink(missing_ok=True)
        if before is not None:
            settings.write_bytes(before)


def find_sites(module: torch.nn.Module, piece: Sequence[int]) -> tuple[Site, ...]:
    """Where a model can be scaled without answering anything else; found by trying.

    Args:
        module: the model; as it was afterwards.
        piece: tokens to try it on.
    """
    import torch

    tokens = torch.tensor([list(piece[:32])])
    found: list[Site] = []
    with torch.inference_mode():
        said = module(input_ids=tokens, use_cache=False).logits
        kinds: dict[tuple[str, ...], list[Site]] = defaultdict(list)
        for site in _suggested(module, tokens):
            kinds[site.kind].append(site)
        taken: set[str] = set()
        for sites in kinds.values():
            if taken.isdisjoint(sites[0].readers) and _same(module, sites, tokens, said):
                found += sites
                taken.update(name for site in sites for name in site.readers)
    order = {name: place for place, (name, _) in enumerate(module.named_modules())}
    return tuple(sorted(found, key=lambda site: order[site.readers[0]]))


def _suggested(module: torch.nn.Module, tokens: torch.Tensor) -> Iterator[Site]:
    """Normalizations with the products that read them; then, for other products, every one beside it that might fit."""
    reads, makes = _flow(module, tokens)
    products = _products(module)
    lone: list[str] = []
    for value, names in reads.items():
        norm = makes.get(value)
        readers = tuple(name for name in names if name in products)
        if len(readers) < len(names):
            continue
        if norm is None:
            lone += readers
            continue
        yield Site(norm, readers)
        yield Site(norm, readers, from_one=True)
    for name in lone:
        home = name.rpartition(".")[0]
        for other, maker in products.items():
            beside = other != name and other.rpartition(".")[0] == home
            if beside and _matrix(maker).shape[0] == _matrix(products[name]).shape[1]:
                yield Site(other, (name,))


def _flow(module: torch.nn.Module, tokens: torch.Tensor) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Which products and normalizations read each value, and which normalization makes it; values by their address."""
    products = _products(module)
    norms = {
        name
        for name, each in module.named_modules()
        if name not in products and getattr(getattr(each, "weight", None), "ndim", 0) == 1
    }
    reads: dict[int, list[str]] = defaultdict(list)
    makes: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # an address is given to another value as soon as this one is gone

    def watch(name: str, each: torch.nn.Module) -> None:
        def before(_: object, given: tuple[torch.Tensor, ...]) -> None:
            if given:
                kept.append(given[0])
                reads[given[0].data_ptr()].append(name)

        def after(_: object, __: object, made: torch.Tensor) -> None:
            kept.append(made)
            makes[made.data_ptr()] = name

        hooks.append(each.register_forward_pre_hook(before))
        if name in norms:
            hooks.append(each.register_forward_hook(after))

    hooks: list[Any] = []
    try:
        for name, each in module.named_modules():
            if name in norms or name in products:
                watch(name, each)
        module(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return reads, makes


def _kinds() -> tuple[type[Any], ...]:
    import torch
    from transformers.pytorch_utils import Conv1D

    return torch.nn.Linear, Conv1D


def _products(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Products by name. That a head is the table of tokens too need not be looked for: scaling it is found out."""
    return {name: each for name, each in module.named_modules() if isinstance(each, _kinds())}


def _matrix(product: torch.nn.Module) -> torch.Tensor:
    """The weight of a product, ``[N, K]``: a view of its own."""
    import torch

    weight: torch.Tensor = product.weight.data
    return weight if isinstance(product, torch.nn.Linear) else weight.T


def _same(module: torch.nn.Module, sites: Sequence[Site], tokens: torch.Tensor, said: torch.Tensor) -> bool:
    """Whether the model says the same where sites are scaled; what was planted is taken back.

    Powers of two take themselves back without a trace, so that no weight is held twice. A weight that counts from one
    does not, and is small.
    """
    import torch

    planted = []
    for site in sites:
        width = _matrix(module.get_submodule(site.readers[0])).shape[1]
        weight: Any = module.get_submodule(site.maker).weight
        planted.append((2.0 ** (torch.arange(width) * 7 % 3 - 1), weight.data.clone() if site.from_one else None))
        _apply(module, site, planted[-1][0])
    found = module(input_ids=tokens, use_cache=False).logits
    for site, (scales, before) in zip(sites[::-1], planted[::-1], strict=True):
        _apply(module, site, 1 / scales)
        if before is not None:
            module.get_submodule(site.maker).weight.data.copy_(before)
    return bool(((found - said).abs().max() <= _SAME * said.abs().max()).item())


def _apply(module: torch.nn.Module, site: Site, scales: torch.Tensor) -> None:
    """Multiply what products read, ``[K]``, and divide what makes it."""
    maker = module.get_submodule(site.maker)
    if isinstance(maker, _kinds()):
        _matrix(maker).div_(scales[:, None])
    elif site.from_one:
        weight: Any = maker.weight.data
        weight.add_(1).div_(scales).sub_(1)
    else:
        maker.weight.data.div_(scales)
    bias: Any = getattr(maker, "bias", None)
    if bias is not None:
        bias.data.div_(scales)
    for name in site.readers:
        _matrix(module.get_submodule(name)).mul_(scales)


def _seen(
    module: torch.nn.Module, sites: Sequence[Site], pieces: Sequence[Sequence[int]], progress: Progress
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of what each site's products read: some rows, ``[rows, K]``, and the mean size of each channel over all."""
    import torch

    share = -(-_ROWS // len(pieces))
    head: Any = module.get_output_embeddings()
    heads = {name for name, each in module.named_modules() if each is head}
    reading = any(heads.intersection(site.readers) for site in sites)
    runner: Any = module if reading else module.base_model  # the head is most of the work, and need not run
    rows: list[list[torch.Tensor]] = [[] for _ in sites]
    sums: list[Any] = [0.0] * len(sites)
    count = 0

    def watch(place: int) -> Any:
        def before(_: object, given: tuple[torch.Tensor, ...]) -> None:
            found = given[0].reshape(-1, given[0].shape[-1])
            sums[place] = sums[place] + found.abs().sum(0, dtype=torch.float64)
            rows[place].append(found[torch.linspace(0, len(found) - 1, min(share, len(found))).long()].clone())

        return before

    hooks = [
        module.get_submodule(site.readers[0]).register_forward_pre_hook(watch(place))
        for place, site in enumerate(sites)
    ]
    try:
        for number, piece in enumerate(pieces, 1):
            runner(input_ids=torch.tensor([list(piece)]), use_cache=False)
            count += len(piece)
            progress("learning what products read", number, len(pieces))
    finally:
        for hook in hooks:
            hook.remove()
    return [(torch.cat(found), (total / count).float()) for found, total in zip(rows, sums, strict=True)]


def _scales(mean: torch.Tensor, alpha: float) -> torch.Tensor:
    """``mean^α``, and its largest and smallest as far from one (the authors' code)."""
    raised = mean.pow(alpha).clamp(min=_LEAST)
    return raised / (raised.max() * raised.min()).sqrt()


def _noises(weights: torch.Tensor, rows: torch.Tensor, scales: Sequence[torch.Tensor], block_size: int) -> list[float]:
    """Power of the error of products' answers to rows over the power of the answers, for each way to scale weights."""
    power = float((rows @ weights.T).square().sum())
    errors = (rows @ (_rounded(weights * each, block_size) / each - weights).T for each in scales)
    return [float(error.square().sum()) / power if power > 0 else 0.0 for error in errors]


def _rounded(weights: torch.Tensor, block_size: int) -> torch.Tensor:
    """Weights ``[N, K]`` as the nearest of 16 levels between the least and the largest of their block, and zero."""
    from torch.nn.functional import pad

    outputs, inputs = weights.shape
    blocks = pad(weights, (0, -inputs % block_size)).reshape(outputs, -1, block_size)
    top = 2**BITS - 1
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / top).clamp(min=1e-12)
    zero = (-low / step).round()
    levels = ((blocks / step).round() + zero).clamp(0, top)
    return ((levels - zero) * step).reshape(outputs, -1)[:, :inputs]
