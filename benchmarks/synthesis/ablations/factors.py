"""The list of all variants, factor by factor."""

from __future__ import annotations

__all__ = ["BASE_LABELS", "GROUPS", "MISSING", "WEIGHT", "variants"]

from dataclasses import replace

from .variants import BASE, COARSE, FUSIONS, Variant, most_groups

BEFORE, NETWORK = "before and after", "network"
GIVEN, PROPER = "weight of what was given", "what is given"
GROUPS, FUSION, ADVERSARY = "latent groups", "fusion", "adversary"
WEIGHT, SUBSETS, MISSING = "weight of the divergence", "subsets in a step", "missing images"
BASE_LABELS = {
    BEFORE: "MMHVAE, after",
    NETWORK: "patches of 2 x 2 pixels, 16 finest latent channels",
    GIVEN: f"{BASE.reconstruction:g}",
    PROPER: "proper subsets",
    GROUPS: "3 finest",
    FUSION: BASE.fusion,
    ADVERSARY: "off",
    WEIGHT: f"{BASE.beta:g}",
    SUBSETS: f"{BASE.subsets}",
}
"""The label of the base beside the variants of a factor."""
BETAS = (0.001, 0.01, 0.1, 1.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
"""The shares of images that are dropped."""


def variants(size: int) -> list[Variant]:
    """Returns all variants for images of a size, the base first.

    Arguments:
        size: The height and width of the images, in pixels.
    """
    before = [
        Variant(
            "before",
            BEFORE,
            "MMHVAE, before: patches of 4 x 4 pixels, any subset, weight of what was given 1, of "
            "the divergence 0.1",
            network=COARSE,
            proper=False,
            reconstruction=1.0,
            beta=0.1,
        ),
        Variant("unet", BEFORE, "U-Net", system="unet"),
    ]
    fewer = replace(BASE.network, latents=(*BASE.network.latents[:-1], 8))
    network = [
        Variant("network-coarse", NETWORK, "patches of 4 x 4 pixels", network=COARSE),
        Variant("network-latents", NETWORK, "8 finest latent channels", network=fewer),
    ]
    given = [
        Variant(f"given-{weight:g}", GIVEN, f"{weight:g}", reconstruction=weight)
        for weight in (0.0, 1.0)
    ]
    proper = [Variant("given-any", PROPER, "any subsets", proper=False)]
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
    return [
        *(BASE, *before, *network, *given, *proper),
        *(*groups, *fusion, *adversary, *weight, *subsets, *missing),
    ]
