"""A few slices of a few cases, with all that a model makes of them, to look at."""

from __future__ import annotations

__all__ = ["choose", "make_view"]

from collections.abc import Sequence
from typing import Any

import numpy as np

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import Subject, axis_codes
from mmpoe.models import MMHVAE

from .scores import Scores
from .subsets import all_subsets
from .synthesis import synthesise, to_unit, truths
from .volumes import MOST, SPREAD_LIMIT, make_volumes, spread

SLICES = 5
"""The number of slices of a case that are kept at least, if it has as many."""

SIDE = 96
"""The largest height and width of what is kept, in pixels; larger images are halved."""


def choose(scores: Sequence[Scores], model: str, protocol: str, count: int) -> dict[str, str]:
    """Chooses cases to show, of those with most modalities, and says why each of them.

    Arguments:
        scores: The scores.
        model: The model that is shown.
        protocol: The protocol whose PSNR orders the cases.
        count: The number of cases: the worst, the median and the best of cross-modal PSNR, and
            then what lies between.

    Returns:
        For each case the reason to show it.
    """
    values: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for s in scores:
        if (s.model, s.protocol) == (model, protocol):
            sizes[s.case] = max(sizes.get(s.case, 0), len(s.given))
            if s.kind == "cross":
                values.setdefault(s.case, []).extend(s.values["psnr"])
    means = {case: float(np.mean(v)) for case, v in values.items() if sizes[case] > 1}
    most = max((sizes[case] for case in means), default=0)
    order = sorted((c for c in means if sizes[c] == most), key=lambda c: means[c])
    if not order:
        return dict.fromkeys(list(sizes)[:count], "has a single modality")
    last = len(order) - 1
    wanted = [(0.5, "median"), (0.0, "worst"), (1.0, "best")]
    wanted += [(k / count, f"quantile {k / count:.2f}") for k in range(1, count)]
    chosen: dict[str, str] = {}
    for quantile, name in wanted:
        case = order[round(quantile * last)]
        if len(chosen) < count:
            chosen.setdefault(
                case, f"{name} cross-modal PSNR of {counted(len(order), 'case')}, {protocol}"
            )
    return chosen


def make_view(
    model: MMHVAE, subject: Subject, samples: int, seed: int = 0, *, size: int | None = None
) -> dict[str, Any]:
    """Returns slices of a subject and of what the model makes of them, as whole numbers.

    Arguments:
        model: The model.
        subject: The case, complete or not.
        samples: The number of latent samples behind the standard deviations; none below 2.
        seed: What they are drawn from.
        size: The height and width of the model's slices, in pixels; None for the subject's.

    Returns:
        Arrays: ``slices`` (S), ``fov`` (S, H, W), ``truth_<modality>`` (S, H, W), and
        ``mean_<modality>`` and ``std_<modality>`` (subsets, S, H, W), with the ``subsets`` as
        names with plus signs between them. 255 stands for 1, and for `SPREAD_LIMIT` in standard
        deviations, which are those of the decoder's mean over latent samples. ``axes`` says where
        rows, columns and slices point to, and ``spacing`` how far apart they are, mm. All slices
        of each modality, made of all others, are there too, see `make_volumes`.
    """
    subsets = all_subsets([m for m in model.modalities if m in subject.images])
    tiles = len(model.modalities) * (2 + 2 * len(subsets))
    places = _slices(subject, tiles)
    small = _reduce(subject, places)
    fov = _halved(small.fov.astype(np.float32))
    smaller = subject.fov.shape[1] // fov.shape[1]  # than the images, by this factor
    between, rows, columns = subject.spacing
    view: dict[str, Any] = {
        "slices": places,
        "subsets": np.array(["+".join(given) for given in subsets]),
        "fov": fov > 0.5,
        "axes": np.array(axis_codes(subject.affine)),
        "spacing": np.array([rows * smaller, columns * smaller, between]),
        **make_volumes(model, subject, samples, seed, size=size),
    }
    for m, image in truths(small).items():
        view[f"truth_{m}"] = _bytes(to_unit(image, small), 1.0)
    means: dict[str, list[np.ndarray]] = {m: [] for m in model.modalities}
    spreads: dict[str, list[np.ndarray]] = {m: [] for m in model.modalities}
    beside = getattr(model, "slices", 1) > 1  # a model that sees slices between those kept
    whole, kept = (subject, places) if beside else (small, slice(None))
    for given in subsets:
        for m, image in synthesise(model, whole, given, size=size).items():
            means[m].append(_bytes(image[kept], 1.0))
        if samples < 2:
            continue
        for m, values in spread(model, whole, given, samples, seed, size=size).items():
            spreads[m].append(_bytes(values[kept], SPREAD_LIMIT))
    for m in model.modalities:
        view[f"mean_{m}"] = np.stack(means[m])
        if spreads[m]:
            view[f"std_{m}"] = np.stack(spreads[m])
    return view


def _slices(subject: Subject, tiles: int) -> np.ndarray:
    """All slices that show much, or as many of them as can be kept, and that with most tumour."""
    area = subject.fov.sum(axis=(1, 2))
    large = np.flatnonzero(area >= 0.5 * area.max())
    pixels = _halved(subject.fov[:1].astype(np.float32)).size * tiles
    number = min(max(SLICES, MOST // pixels), len(large))
    places = set(large[np.linspace(0, len(large) - 1, number).round().astype(int)])
    if subject.label is not None and (subject.label[large] > 0).any():
        tumour = large[(subject.label[large] > 0).sum(axis=(1, 2)).argmax()]
        places.discard(min(places, key=lambda k: abs(k - tumour)))
        places.add(tumour)
    return np.array(sorted(int(k) for k in places))


def _reduce(subject: Subject, places: np.ndarray) -> Subject:
    images = {m: np.ascontiguousarray(v[places]) for m, v in subject.images.items()}
    targets = {m: np.ascontiguousarray(v[places]) for m, v in subject.targets.items()}
    fov = np.ascontiguousarray(subject.fov[places])
    return Subject(subject.name, images, fov, None, targets=targets, further=subject.further)


def _bytes(image: np.ndarray, limit: float) -> np.ndarray:
    return (255 * np.clip(_halved(image) / limit, 0, 1)).round().astype(np.uint8)


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, as often as the image is too large."""
    while max(image.shape[-2:]) > SIDE:
        height, width = (side // 2 * 2 for side in image.shape[-2:])
        blocks = image[..., :height, :width].reshape(
            *image.shape[:-2], height // 2, 2, width // 2, 2
        )
        image = blocks.mean(axis=(-3, -1))
    return image
