"""What is varied: the list of all variants."""

from __future__ import annotations

__all__ = ["BASE_LABELS", "GROUPS", "MISSING", "WEIGHT", "variants"]

from dataclasses import replace

from .variants import BASE, FUSIONS, Variant, most_groups

GROUPS, FUSION, ADVERSARY = "latent groups", "fusion", "adversary"
WEIGHT, SUBSETS, MISSING = "weight of the divergence", "subsets in a step", "missing images"
BASE_LABELS = {
    GROUPS: "3 finest",
    FUSION: BASE.fusion,
    ADVERSARY: "off",
    WEIGHT: f"{BASE.beta:g}",
    SUBSETS: f"{BASE.subsets}",
}
"""What the base is called beside the variants of a factor."""
BETAS = (0.001, 0.01, 0.1, 1.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
"""The shares of images that are dropped."""


def variants(size: int) -> list[Variant]:
    """Returns all variants for images of a size, the base first.

    Arguments:
        size: The height and width of the images, in pixels.
    """
    groups = [
        Variant(f"groups-{n}", GROUPS, f"{n} coarsest", groups=n)
        for n in range(1, most_groups(size) + 1)
    ]
    fusion = [
        Variant(f"fusion-{name.lower().replace(' ', '-')}", FUSION, name, fusion=name)
        for name in FUSIONS
        if name != BASE.fusion
    ]
    adversary = [Variant("adversary", ADVERSARY, "on", adversary=True)]
    weight = [
        Variant(f"beta-{beta:g}", WEIGHT, f"{beta:g}", beta=beta)
        for beta in BETAS
        if beta != BASE.beta
    ]
    subsets = [Variant(f"subsets-{n}", SUBSETS, f"{n}", subsets=n) for n in (2, 4)]
    missing = []
    for share in SHARES:
        name = f"missing-{round(100 * share)}"
        whole = Variant(name, MISSING, f"{share:.0%}", missing=share)
        alone = replace(whole, name=f"{name}-complete", discard=True)
        missing += [whole] if share == 0 else [whole, alone]
    return [BASE, *groups, *fusion, *adversary, *weight, *subsets, *missing]
