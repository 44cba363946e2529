"""Procedurally drawn street scenes with CamVid's 11 classes: data that needs no download.

A scene is a small world in metres seen by a pinhole camera. It is painted back to front into one
raster whose four channels are red, green, blue and class, so that a pixel cannot be painted
without being labelled. The scenes are ambiguous from close up, on purpose: road, pavement and
walls share their greys, shop boards the colours of cars and signs, windows those of the sky,
trunks and drainpipes those of poles, and a cyclist is a pedestrian but for the bicycle. What a
pixel is follows from where it lies and what surrounds it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from ..cache import Source, stamp_of
from ..camvid import SYNTHETIC
from ..errors import InputError
from ..eval_transform import EvalTransform
from ..scenes import SceneDataset, Transform
from ..transforms import Sample
from . import street
from .street import FAR, HAZE_DEPTH, MOST_HAZE, NEAR, View

Thing = tuple[float, Callable[..., None], tuple]  # depth, painter, its arguments
Foot = tuple[float, float, float]  # x, z, radius of the shadow

CLOSEST, FURTHEST = 7.0, 24.0  # metres: between them stands what is smaller than a house
SHADE = (0.62, 0.64, 0.70)  # what shadow leaves of red, green and blue
SMALLEST = 48  # pixels of height and width below which nothing can be told apart


def draw_scene(
    index: int, seed: int = 0, height: int = 360, width: int = 480
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a street scene; equal arguments give equal bytes.

    Another size shows the same street through another window, drawn anew and not resized.

    Returns:
        image: height, width, 3, uint8, RGB.
        label: height, width, uint8, classes 0..10 in CamVid's order; every pixel has one.

    Raises:
        ValueError: a negative index or seed, or a side shorter than SMALLEST.
    """
    if index < 0 or seed < 0:
        raise InputError(f"scene {index} of seed {seed}: accepted are 0 and above")
    if min(height, width) < SMALLEST:
        raise InputError(f"scene size is {height}x{width}; accepted: {SMALLEST}x{SMALLEST} and up")
    view = View(index, seed, height, width)
    things, feet = _furniture(view)
    things += _houses(view)
    _paint_sky(view)
    _paint_ground(view)
    _cast_shadows(view, feet)
    _paint_far_end(view)
    for _, paint, arguments in sorted(things, key=lambda thing: -thing[0]):
        paint(view, *arguments)
    return _develop(view)


class SyntheticScenes(SceneDataset):
    """The scenes `first` .. `last` - 1 as a dataset (items: see SceneDataset).

    Args:
        first, last: scene numbers; ranges that do not overlap have no scene in common.
        size: (height, width) to draw at.
        transform: (Sample, Generator) -> normalised Sample; None = only normalise.
        need_boundary: items carry `boundary`; the transform must make it.
        seed: of the world; another one gives other scenes under the same numbers.

    Raises:
        ValueError: no scene in the range, or one that cannot be drawn (see draw_scene).
    """

    def __init__(
        self,
        first: int,
        last: int,
        size: tuple[int, int] = (360, 480),
        transform: Transform | None = None,
        need_boundary: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 <= first < last:
            raise InputError(f"scenes {first}..{last}: accepted are 0 <= first < last")
        super().__init__(SYNTHETIC, transform or EvalTransform(), need_boundary)
        self.first, self.last, self.size, self.seed = first, last, tuple(size), seed
        self.load(0)  # refuse an impossible size or seed now, not in a worker

    def __len__(self) -> int:
        return self.last - self.first

    def name(self, index: int) -> str:
        """For example `scene_000042`."""
        return f"scene_{self.first + index:06d}"

    def source(self, index: int) -> Source:
        """Number, seed and size of scene `index`, which decide what it looks like."""
        drawn = f"{self.meta.name} {self.name(index)} {self.seed} {self.size}"
        return Source(index, drawn, stamp_of())

    def load(self, index: int) -> Sample:
        """Draw scene `first` + `index`. Raises IndexError outside of the range."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return Sample(*draw_scene(self.first + index, self.seed, *self.size))


def _houses(view: View) -> list[Thing]:
    """Houses and gardens along both sides, and now and then a railing along the kerb."""
    things: list[Thing] = []
    for side in (-1, 1):
        z, garden = NEAR, view.chance(0.3)
        while z < FAR:
            end = z + (view.between(5, 9) if garden else view.between(8, 18))
            edge = view.project(side * view.wall, 0.0, end)[0]
            if 0 <= edge < view.width:  # else all of it lies outside the image
                paint = street.garden if garden else street.house
                things.append((end, paint, (side, z, end)))
            z, garden = end, not garden and view.chance(0.6)
        if view.chance(0.45):
            start, stop = view.between(5, 12), view.between(15, 22)
            things.append((stop, street.fence, (side * (view.curb + 0.5), start, stop, 1.1)))
    return things


def _furniture(view: View) -> tuple[list[Thing], list[Foot]]:
    """What stands on the pavement and moves on the road, and where it casts shadows."""
    curb, wall, crossers = view.curb, view.wall, 2 if view.crossing else 0
    plan = (  # lane, painter, fewest, most, x from, x to, metres kept free, shadow's radius
        ("edge", street.lamp_post, 3, 5, curb + 0.4, curb + 0.8, 0.8, 0.4),
        ("edge", street.sign, 3, 6, curb + 0.5, curb + 0.9, 0.8, 0.5),
        ("edge", street.tree, 1, 3, curb + 0.6, curb + 1.0, 1.5, 1.6),
        ("walk", street.pedestrian, 5, 9, curb + 1.1, wall - 0.5, 0.5, 0.4),
        ("zebra", street.pedestrian, 0, crossers, 0.5, curb - 0.5, 0.0, 0.4),
        ("kerb", street.cyclist, 2, 4, curb - 1.1, curb - 0.7, 1.5, 0.7),
        ("kerb", street.car, 1, 3, curb - 1.0, curb - 0.95, 5.0, 1.2),
        ("lane", street.crossing_car, 0, 1, 0.0, 0.5, 5.0, 2.2),
        ("lane", street.car, 1, 2, 1.35, 1.45, 5.0, 1.2),
    )
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    things: list[Thing] = []
    feet: list[Foot] = []
    for lane, paint, fewest, most, x0, x1, room, radius in plan:
        for _ in range(view.count(fewest, most)):
            side, x = view.pick((-1, 1)), view.between(x0, x1)
            z = 1 / view.between(1 / FURTHEST, 1 / CLOSEST)  # even on the image, not on the ground
            if lane == "zebra":
                z = view.crossing + view.between(0.4, 2.2)
            sides = (-1, 1) if paint is street.crossing_car else (side,)
            if all(abs(z - other) >= room for s in sides for other in taken[lane, s]):
                for s in sides:
                    taken[lane, s].append(z)
                things.append((z, paint, (side * x, z)))
                feet.append((side * x, z, radius))
    return things, feet


def _paint_sky(view: View) -> None:
    """A vertical gradient with soft clouds, down to the horizon."""
    rows = view.horizon + 1
    top, low = (np.array(color) for color in view.sky)
    part = view.raster[:rows]
    code = np.full((rows, 4), street.SKY, np.uint8)
    code[:, :3] = (top + (low - top) * np.linspace(0, 1, rows)[:, None]) * view.light
    part.view(np.uint32)[..., 0] = code.view(np.uint32)  # a pixel is one word, equal along a row
    white = view.code(street.dim(view.sky[1], 1.08), street.SKY, 0)
    for _ in range(view.count(0, 6)):
        x, y = view.between(0, view.width), view.between(0, rows)
        size = view.height * view.between(0.03, 0.08)
        for _ in range(4):
            spot = int(x + size * view.between(-2, 2)), int(y + size * view.between(-0.3, 0.3))
            axes = int(size * view.between(0.8, 1.8)), int(size * view.between(0.25, 0.5))
            cv2.ellipse(part, spot, axes, 0, 0, 360, white, -1)
    side = 2 * (view.height // 40) + 1
    cv2.blur(part, (side, side), dst=part)


def _paint_ground(view: View) -> None:
    """Pavement up to the horizon, the road on it, and its markings."""
    ground = view.raster[view.horizon :]
    road, pavement, sky = view.gray(), view.gray(), np.array(view.sky[1])
    depth = view.focal * view.eye / np.arange(0.5, len(ground))
    haze = np.minimum(depth / HAZE_DEPTH, MOST_HAZE)[:, None]
    strip = np.geomspace(NEAR, FAR * 2, 18)
    lane = [view.project(side * view.curb, 0, strip)[::side] for side in (-1, 1)]
    mask = np.zeros((view.height, view.width), np.uint8)
    cv2.fillPoly(mask, [np.concatenate(lane)], 1)
    for color, label, where in (
        (pavement, street.SIDEWALK, True),
        (road, street.ROAD, mask[view.horizon :].view(bool)),
    ):
        code = np.full((len(ground), 4), label, np.uint8)
        code[:, :3] = (np.array(color) * (1 - haze) + sky * haze) * view.light
        np.copyto(ground.view(np.uint32)[..., 0], code.view(np.uint32), where=where)
    _mark_ground(view, pavement, strip)


def _mark_ground(view: View, pavement: street.Color, strip: np.ndarray) -> None:
    """Joints and kerb stones of the pavement; lane markings and a zebra crossing on the road."""
    across, along = np.array((-1, -1, 1, 1)), np.array((0, 1, 1, 0))
    joint, stone = street.dim(pavement, 0.88), street.dim(pavement, view.between(0.8, 1.25))
    joints = np.arange(2.0, 30.0, view.between(1.0, 2.0))[:, None] + 0.05 * along
    ends = np.stack([strip[:-1], strip[1:], strip[1:], strip[:-1]], -1)
    for side in (-1, 1):
        reach = side * (view.curb + (view.wall - view.curb) * (across > 0))
        view.quads(reach, 0.0, joints, joint, street.SIDEWALK, 12.0)
        kerb = side * (view.curb + 0.13 * across)
        view.quads(kerb, 0.0, ends, stone, street.SIDEWALK, 9.0)
    white = (222, 220, 210) if view.chance(0.8) else (214, 176, 80)
    dashes = np.arange(2.0, 60.0, 4.0)[:, None] + 2.2 * along
    view.quads(0.09 * across, 0.0, dashes, white, street.ROAD, 12.0)
    if view.crossing:
        bars = np.arange(-view.curb + 0.5, view.curb - 0.4, 0.95)[:, None] + 0.24 * across
        view.quads(bars, 0.0, view.crossing + 2.6 * along, white, street.ROAD, 10.0)


def _cast_shadows(view: View, feet: Iterable[Foot]) -> None:
    """Darken the ground under things and along the side away from the sun."""
    mask = np.zeros((view.height, view.width), np.uint8)
    for x, z, radius in feet:
        scale = view.focal / z
        spot = view.project(x - view.sun * radius * 0.5, 0.0, z).tolist()
        axes = int(radius * scale), max(int(radius * 0.17 * scale), 1)
        cv2.ellipse(mask, spot, axes, 0, 0, 360, 255, -1)
    for z in np.arange(NEAR, 60.0, 6.0):
        near, far = view.sun * (view.wall - view.between(1, 6)), view.sun * 30
        x = np.array((near, near, far, far))
        cv2.fillPoly(mask, [view.project(x, 0.0, z + np.array((0, 6, 6, 0)))], 255)
    table = (np.arange(256)[:, None] * np.array((*SHADE, 1.0))).astype(np.uint8)
    ground = view.raster[view.horizon :]
    cv2.copyTo(cv2.LUT(ground, table[None]), mask[view.horizon :], ground)


def _paint_far_end(view: View) -> None:
    """Where the street ends: a row of distant houses and trees over the whole width."""
    scale = view.focal / FAR
    base, x = int(view.horizon + view.eye * scale), 0.0
    while x < view.width:
        step, height = view.between(7, 18) * scale, view.between(7, 16) * scale
        leafy = view.chance(0.4)
        tone = street.dim(view.pick(street.LEAVES if leafy else street.WALLS), 0.85)
        shade = view.code(tone, street.TREE if leafy else street.BUILDING, FAR)
        cv2.rectangle(view.raster, (int(x), int(base - height)), (int(x + step), base), shade, -1)
        x += step


def _develop(view: View) -> tuple[np.ndarray, np.ndarray]:
    """The finished image and label: soft edges, stains (not in the sky), leaves, and grain."""
    label = cv2.extractChannel(view.raster, 3)
    image = cv2.GaussianBlur(cv2.cvtColor(view.raster, cv2.COLOR_RGBA2RGB), (3, 3), 0)

    def speckle(cell: int) -> np.ndarray:
        """Random values 0..255 with about one independent value per cell x cell pixels."""
        rows, columns = view.height // cell + 2, view.width // cell + 2
        values = view.rng.integers(0, 256, (rows, columns), np.uint8)
        if cell > 1:
            shape = (columns * cell, rows * cell)
            values = cv2.resize(values, shape, interpolation=cv2.INTER_LINEAR_EXACT)
        return values[: view.height, : view.width]

    grain = speckle(1) >> 4
    noise = grain + (speckle(max(view.height // 16, 2)) >> 4)  # 0..30
    leaves = grain + (speckle(max(view.height // 70, 2)) >> 3)
    cv2.copyTo(leaves, cv2.inRange(label, street.TREE, street.TREE), noise)
    cv2.copyTo(grain + 7, cv2.inRange(label, street.SKY, street.SKY), noise)
    image = cv2.add(image, cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB))
    return cv2.subtract(image, (15, 15, 15, 0)), label
