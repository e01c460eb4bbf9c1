"""Vessel trees: the cheapest ways along the sulci, as wide as what they supply asks for."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from .motion import Motion
from .probe import STANDOFF, ProbeGrid
from .tissues import Array

__all__ = ["Vessels", "draw_vessels", "grow_vessels", "tree_grid"]

_STEP = 3.2  # mm, between the nodes that paths run over
_EXTENT = (96.0, 96.0, 68.0)  # mm, the box along depth, lateral and elevation
_SULCAL_LEAVES, _DEEP_LEAVES = 170, 40
_TUMOUR_LEAVES = {True: 45, False: 10}  # by whether the tumour enhances
_LEAF_RADIUS = 0.30  # mm
_WIDEST = 1.9  # mm
_SAMPLE = 0.4  # mm, between the balls that a tube is drawn with
_NEIGHBOURS = [
    (i, j, k)
    for i in (-1, 0, 1)
    for j in (-1, 0, 1)
    for k in (-1, 0, 1)
    if (i, j, k) > (0, 0, 0) and abs(i) + abs(j) + abs(k) < 3
]  # nine of eighteen: each edge once


@dataclass(frozen=True)
class Vessels:
    """Short conical tubes that touch each other, in the head of the patient."""

    ends: Array
    r"""The ends of each tube, mm, with shape :math:`(E, 2, 3)`."""
    radii: Array
    r"""The radii there, mm, with shape :math:`(E, 2)`."""


def tree_grid(contact: Array, directions: Array) -> Array:
    """Returns the nodes that paths can run over, mm: the same box for every size of image."""
    depth, lateral, elevation = (np.arange(0, extent + 1e-6, _STEP) for extent in _EXTENT)
    axes = np.meshgrid(
        depth - STANDOFF, lateral - _EXTENT[1] / 2, elevation - _EXTENT[2] / 2, indexing="ij"
    )
    points = np.einsum("ij,j...->i...", directions, np.stack(axes))
    return (points + contact.reshape(3, 1, 1, 1)).astype(np.float32)


def grow_vessels(
    rng: np.random.Generator,
    points: Array,
    sulcus: Array,
    tissue: Array,
    rim: Array,
    *,
    enhancing: bool,
) -> Vessels:
    r"""Grows trees from two roots, the lowest sulcus and the one nearest to the midline.

    The tree is the union of the cheapest paths (Dijkstra) from the nearest root to many leaves,
    where fluid between the gyri is cheap to pass, tissue is dear, and each edge has a random
    factor. A tube that leads to :math:`n` leaves has the radius :math:`r_1 n^{1/3}`: Murray's
    law, :math:`r^3 = \sum_i r_i^3` at every branching (Murray, PNAS 12:207, 1926).

    Arguments:
        rng: The source of randomness.
        points: The nodes, mm, with shape (3, X, Y, Z).
        sulcus: The fraction of fluid between the gyri at the nodes, with shape (X, Y, Z).
        tissue: The fraction of grey and white matter there.
        rim: How likely the tumour is supplied there.
        enhancing: Whether the tumour enhances: it then has many feeding vessels.

    Returns:
        The tubes; none if there is no sulcus.
    """
    shape = sulcus.shape
    nodes = points.reshape(3, -1).T.astype(np.float64)  # (N, 3)
    sulcus, tissue, rim = (array.astype(np.float64).ravel() for array in (sulcus, tissue, rim))
    # Per mm: 1 in a sulcus, some 8 in tissue, and hardly ever through ventricles or outside.
    price = 1 / (0.03 + 0.97 * sulcus**0.7 + 0.10 * tissue * (1 - sulcus))
    graph = _graph(rng, shape, price)

    allowed = np.flatnonzero(sulcus > 0.5)
    if allowed.size == 0:
        return Vessels(np.zeros((0, 2, 3)), np.zeros((0, 2)))
    lowest = allowed[nodes[allowed, 2].argmin()]
    midline = allowed[(np.abs(nodes[allowed, 0]) - 0.3 * nodes[allowed, 2]).argmin()]
    roots = np.unique([lowest, midline])
    leaves = np.concatenate(
        [
            _draw(rng, sulcus, _SULCAL_LEAVES),
            _draw(rng, tissue**4, _DEEP_LEAVES),
            _draw(rng, rim, _TUMOUR_LEAVES[enhancing]),
        ]
    )
    _, before, _ = csgraph.dijkstra(
        graph, directed=False, indices=roots, return_predecessors=True, min_only=True
    )
    supplied = np.zeros(len(nodes))
    child = np.full(len(nodes), -1)  # the last path that came by goes on as the main branch
    for leaf in leaves:
        node = leaf
        while before[node] >= 0:
            supplied[node] += 1
            child[before[node]] = node
            node = before[node]
        supplied[node] += 1
    return _tubes(rng, nodes, before, child, supplied)


def draw_vessels(vessels: Vessels, grid: ProbeGrid, motion: Motion | None = None) -> Array:
    r"""Returns how deep inside a vessel each voxel is, :math:`\max_v (r_v - d_v)` in mm.

    Distances across slices count little more than half, as a slice has a thickness.

    Arguments:
        vessels: The tubes.
        grid: The voxels.
        motion: Where the grid finds the head, if that moved.

    Returns:
        The depth, negative outside and at least -2, with the shape of the grid.
    """
    depth = np.full(grid.shape, -2.0, dtype=np.float32)
    if len(vessels.ends) == 0:
        return depth
    length = np.linalg.norm(np.diff(vessels.ends, axis=1)[:, 0], axis=1)
    counts = np.maximum(1, np.ceil(length / _SAMPLE).astype(int))
    tube = np.repeat(np.arange(len(counts)), counts)
    place = (np.arange(len(tube)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[tube]
    ends, radii = vessels.ends[tube], vessels.radii[tube]
    centres = ends[:, 0] + place[:, None] * (ends[:, 1] - ends[:, 0])  # (N, 3)
    radius = radii[:, 0] + place * (radii[:, 1] - radii[:, 0])
    if motion is not None:
        centres = motion.from_head(centres.T).T
    voxels = grid.to_voxels(centres.T).T
    flat = depth.reshape(-1)
    scale = np.array(grid.voxel) * np.array([1.0, 1.0, 0.6])
    for wide in (radius < 0.6, radius >= 0.6):  # small balls need only a small window
        if wide.any():
            _fill(flat, grid.shape, voxels[wide], radius[wide], scale)
    return depth


def _fill(
    flat: Array, shape: tuple[int, int, int], voxels: Array, radius: Array, scale: Array
) -> None:
    """Raises the depth around some balls, given their centres in voxels."""
    reach = np.ceil((radius.max() + 0.7) / scale).astype(int)
    near = np.all((voxels > -reach - 1) & (voxels < np.array(shape) + reach), axis=1)
    voxels, radius = voxels[near], radius[near]
    first = np.rint(voxels).astype(int)
    for offset in np.ndindex(*(2 * reach + 1)):
        index = first + (np.array(offset) - reach)
        inside = np.all((index >= 0) & (index < shape), axis=1)
        distance = np.sqrt((((index - voxels) * scale) ** 2).sum(1))
        value = (radius - distance).astype(np.float32)
        inside &= value > -0.8
        np.maximum.at(flat, np.ravel_multi_index(tuple(index[inside].T), shape), value[inside])


def _graph(rng: np.random.Generator, shape: tuple[int, ...], price: Array) -> sparse.csr_matrix:
    """Joins neighbouring nodes by edges that cost their length times the mean price."""
    number = np.arange(price.size).reshape(shape)
    starts, stops, costs = [], [], []
    for offset in _NEIGHBOURS:
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, shape, strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, shape, strict=True))
        first, second = number[here].ravel(), number[there].ravel()
        whim = np.exp(0.35 * rng.standard_normal(first.size))
        length = _STEP * np.sqrt(np.square(offset).sum())
        starts.append(first)
        stops.append(second)
        costs.append(length * 0.5 * (price[first] + price[second]) * whim)
    ends = (np.concatenate(starts), np.concatenate(stops))
    return sparse.csr_matrix((np.concatenate(costs), ends), shape=(price.size, price.size))


def _draw(rng: np.random.Generator, weight: Array, count: int) -> np.ndarray:
    """Draws nodes in proportion to a weight; none where it is zero everywhere."""
    total = np.cumsum(np.clip(weight, 0, None, dtype=np.float64))
    places = rng.random(count)
    if total[-1] <= 0:
        return np.zeros(0, dtype=int)
    return np.minimum(np.searchsorted(total, places * total[-1], side="right"), len(total) - 1)


def _tubes(
    rng: np.random.Generator,
    nodes: Array,
    before: np.ndarray,
    child: np.ndarray,
    supplied: Array,
) -> Vessels:
    """Bends the paths over the grid into smooth curves, and gives them their radii."""
    used = np.flatnonzero(supplied)
    parent = np.where(before[used] >= 0, before[used], used)
    onward = np.where(child[used] >= 0, child[used], used)
    place = nodes + 0.25 * _STEP * rng.standard_normal(nodes.shape)
    for _ in range(2):
        smooth = place.copy()
        smooth[used] = 0.5 * place[used] + 0.25 * (place[parent] + place[onward])
        place = smooth
    radius = np.minimum(_LEAF_RADIUS * np.maximum(supplied, 1) ** (1 / 3), _WIDEST)

    edges = used[parent != used]
    start, stop = before[edges], edges
    earlier = np.where(before[start] >= 0, before[start], start)
    later = np.where(child[stop] >= 0, child[stop], stop)
    p0, p1, p2, p3 = place[earlier], place[start], place[stop], place[later]
    middle = (9 * (p1 + p2) - p0 - p3) / 16  # of a Catmull-Rom spline
    between = 0.5 * (radius[start] + radius[stop])
    # A side branch starts at its own width, not at that of the trunk that it leaves.
    begin = np.where(child[start] == stop, radius[start], radius[stop])
    ends = np.concatenate([np.stack([p1, middle], 1), np.stack([middle, p2], 1)])
    radii = np.concatenate(
        [
            np.stack([begin, np.minimum(between, begin)], 1),
            np.stack([np.minimum(between, begin), radius[stop]], 1),
        ]
    )
    return Vessels(ends, radii)
