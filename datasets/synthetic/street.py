"""What the embedded street scenes are made of: palette, camera, and painters of single things.

Lengths are metres: x to the right of the road's centre, y up, z ahead of the camera.
"""

from collections.abc import Iterable

import cv2
import numpy as np

BICYCLIST, BUILDING, CAR, POLE, FENCE, PEDESTRIAN, ROAD, SIDEWALK, SIGN, SKY, TREE = range(11)

Color = tuple[float, float, float]
Part = tuple[Color, tuple[float, ...]]  # see View.figure

# fmt: off
PAINTS: tuple[Color, ...] = (
    (178, 52, 46), (54, 92, 168), (224, 186, 66), (62, 122, 84), (228, 228, 222),
    (50, 53, 60), (162, 166, 170), (212, 120, 54), (86, 148, 160), (120, 40, 52),
)
WALLS: tuple[Color, ...] = (
    (206, 190, 160), (158, 92, 72), (222, 214, 196), (176, 190, 204), (196, 160, 112),
    (226, 226, 226), (170, 142, 128), (186, 168, 176),
)
SKIES: tuple[tuple[Color, Color], ...] = (  # overhead, at the horizon
    ((90, 148, 212), (202, 222, 236)), ((176, 184, 192), (216, 220, 224)),
    ((104, 112, 166), (242, 194, 152)), ((124, 170, 216), (232, 226, 204)),
    ((150, 166, 186), (206, 208, 206)),
)
# fmt: on
LEAVES: tuple[Color, ...] = ((74, 112, 52), (94, 124, 58), (58, 98, 60), (128, 128, 56))
BARK: tuple[Color, ...] = ((92, 78, 66), (112, 104, 96), (74, 68, 64), (128, 116, 100))
SKIN: tuple[Color, ...] = ((232, 190, 160), (196, 146, 110), (140, 96, 70), (96, 66, 50))
BLACK, STEEL, CREAM = (38, 39, 42), (150, 150, 150), (250, 236, 190)
GLASS: tuple[Color, ...] = ((70, 80, 92), BLACK)

NEAR, FAR = 1.3, 80.0  # metres: nothing is drawn closer; the street ends there
DETAIL = 30.0  # metres: what lies further away is painted plainly
HAZE_DEPTH, MOST_HAZE = 160.0, 0.55  # metres to full haze; the most that is ever mixed in
THIN = 1 / 72  # least width of a pole, as a share of the image height


class View:
    """The raster, the camera, the random numbers and the layout of one scene."""

    def __init__(self, index: int, seed: int, height: int, width: int) -> None:
        self.rng = np.random.default_rng([seed, index])
        self.height, self.width = height, width
        self.raster = np.zeros((height, width, 4), np.uint8)
        self.horizon = round(height * self.between(0.42, 0.52))
        self.center = width / 2 + height * self.between(-0.16, 0.16)  # vanishing point, pixels
        self.focal = height * self.between(0.82, 1.0)  # pixels
        self.eye = self.between(1.7, 2.3)  # camera height, metres
        self.bend = self.between(-0.003, 0.003)  # sideways metres per squared metre ahead
        self.curb = self.between(4.2, 5.2)  # half width of the road, metres
        self.wall = self.curb + self.between(3.4, 5.0)  # from the road's centre to the facades
        self.side = self.pick((-1, 1))  # of the road, the one to drive on
        self.x = self.side * self.between(0.8, 2.4)  # camera
        self.sun = self.pick((-1, 1))  # the side it shines from
        self.sky = self.pick(SKIES)
        light, warmth = self.between(0.82, 1.02), self.between(-0.05, 0.05)
        self.light = (light * (1 + warmth), light, light * (1 - warmth))  # on red, green, blue
        self.crossing = self.between(8, 18) if self.chance(0.5) else None  # its depth, metres

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def count(self, fewest: int, most: int) -> int:
        return fewest + int(self.rng.random() * (most + 1 - fewest))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, options):
        return options[int(self.rng.random() * len(options))]

    def gray(self) -> Color:
        """A neutral tone, from the one range that road, pavement and many walls are made of."""
        level, warmth = self.between(92, 172), self.between(-7, 7)
        return (level + warmth, level, level - warmth)

    def code(self, color: Color, label: int, z: float) -> tuple[int, int, int, int]:
        """What goes into the raster: the colour, hazy with distance and lit, and the class."""
        haze = min(z / HAZE_DEPTH, MOST_HAZE)
        (r, g, b), (r1, g1, b1), (r2, g2, b2) = color, self.sky[1], self.light
        red, green, blue = r + (r1 - r) * haze, g + (g1 - g) * haze, b + (b1 - b) * haze
        return int(red * r2), int(green * g2), int(blue * b2), label

    def project(self, x, y, z) -> np.ndarray:
        """Pixels (..., 2) int32 of points in the world, broadcast against one another."""
        z = np.maximum(z, NEAR)
        scale = self.focal / z
        across = self.center + (x - self.x + self.bend * z * z) * scale
        down = self.horizon + (self.eye - y) * scale
        points = np.empty((*np.broadcast(across, down).shape, 2))
        points[..., 0], points[..., 1] = across, down
        return np.rint(points).astype(np.int32)

    def quads(self, x, y, z, color: Color, label: int, depth: float) -> None:
        """Fill quads; their 4 corners run along the last axis of x, y and z (broadcast)."""
        corners = self.project(x, y, z).reshape(-1, 4, 2)
        cv2.fillPoly(self.raster, list(corners), self.code(color, label, depth))

    def panels(self, x: float, z0, z1, y0, y1, color: Color, label: int) -> None:
        """Fill upright rectangles along the street at x (z and y broadcast)."""
        z = np.multiply.outer(z0, (1, 0, 0, 1)) + np.multiply.outer(z1, (0, 1, 1, 0))
        y = np.multiply.outer(y0, (1, 1, 0, 0)) + np.multiply.outer(y1, (0, 0, 1, 1))
        if z.size and y.size:
            self.quads(x, y, z, color, label, (max(z.min(), 4.0) + z.max()) / 2)

    def figure(self, x: float, z: float, label: int, parts: Iterable[Part], face: int = 1) -> None:
        """Draw flat parts that face the camera, in metres around the foot point at (x, z).

        A part is a colour and 3 numbers (disc: x, y, radius), 4 (box: x0, y0, x1, y1) or more
        (polygon: x0, y0, x1, y1, ...). `face` -1 mirrors them.
        """
        scale = self.focal / z
        px = self.center + (x - self.x + self.bend * z * z) * scale + 0.5
        py = self.horizon + self.eye * scale + 0.5
        for color, numbers in parts:
            code = self.code(color, label, z)
            across = [int(px + face * v * scale) for v in numbers[::2]]
            down = [int(py - v * scale) for v in numbers[1::2]]
            if len(numbers) == 3:
                radius = int(numbers[2] * scale + 0.5)
                cv2.circle(self.raster, (across[0], down[0]), radius, code, -1)
            elif len(numbers) == 4:
                corners = zip(across, down, strict=True)
                cv2.rectangle(self.raster, *corners, code, -1)
            else:
                corners = np.array([across, down], np.int32).T
                cv2.fillPoly(self.raster, [corners], code)

    def post(self, x: float, z: float, top: float, width: float, color: Color, label: int) -> None:
        """A vertical bar from the ground up, never thinner than THIN."""
        half = max(width, THIN * self.height * z / self.focal) / 2
        self.figure(x, z, label, [(color, (-half, 0, half, top))])


def dim(color: Color, factor: float) -> Color:
    r, g, b = color
    return (min(r * factor, 255.0), min(g * factor, 255.0), min(b * factor, 255.0))


def house(view: View, side: int, z0: float, z1: float) -> None:
    """A block from z0 to z1: the end that faces the camera, roof, long facade, windows, shop."""
    x, height = side * view.wall, view.between(5.5, 15.0)
    color = view.pick(WALLS) if view.chance(0.6) else view.gray()
    facade, tiles = dim(color, 0.78 if side == view.sun else 1.05), dim(view.pick(BARK), 0.9)
    if view.chance(0.6):  # a mansard roof
        slope = side * np.array((0.0, 1.2, 9.0, 12.0)) + x
        level = height + np.array((0.0, 2.2, 2.2, 0.0))
        view.quads(slope, level, z0, dim(tiles, 0.85), BUILDING, z0)
        view.quads(slope[[0, 1, 1, 0]], level, np.array((z0, z0, z1, z1)), tiles, BUILDING, z0)
    end, top = side * np.array((0, 0, 12, 12)) + x, height * np.array((0, 1, 1, 0))
    view.quads(end, top, z0, dim(color, 0.9), BUILDING, z0)
    view.panels(x, z0, z1, 0.0, height, facade, BUILDING)
    view.panels(x, z0, z1, height - 0.35, height, dim(facade, 0.86), BUILDING)
    fine = z0 < DETAIL
    if fine and view.chance(0.6):  # drainpipes and pilasters
        pipe = np.arange(z0 + 0.3, z1, view.between(4, 8))
        view.panels(x, pipe, pipe + 0.3, 0.0, height, view.pick(BARK), BUILDING)
    if fine and view.chance(0.4):  # courses of stone
        course = np.arange(0.4, height, 0.7)[:, None]
        view.panels(x, z0, z1, course, course + 0.06, dim(facade, 0.9), BUILDING)
    bay = view.between(2.0, 3.2)
    z = np.arange(z0 + 0.8, z1 - bay * 0.7, bay)
    y = np.arange(3.9, height - 1.9, view.between(2.7, 3.2))[:, None]
    glass = view.pick((*view.sky, *GLASS, CREAM))
    view.panels(x, z, z + bay * 0.5, y, y + 1.5, glass, BUILDING)
    if view.chance(0.6):  # a shop
        view.panels(x, z, z + bay * 0.8, 0.3, 2.5, view.pick((glass, *GLASS)), BUILDING)
        view.panels(x, z0 + 0.3, z1 - 0.3, 2.7, 3.3, view.pick(PAINTS), BUILDING)
    else:
        view.panels(x, z[::2], z[::2] + 1.1, 0.0, 2.2, view.pick(PAINTS), BUILDING)


def fence(view: View, x: float, z0: float, z1: float, height: float) -> None:
    """Boards or panels along the street at x, with dark gaps between them."""
    color = view.pick((view.gray(), view.pick(WALLS), view.pick(BARK), view.pick(PAINTS)))
    view.panels(x, z0, z1, 0.0, height, color, FENCE)
    if z0 < DETAIL:
        gap = np.arange(z0, z1 - 0.1, view.between(0.4, 0.8))
        view.panels(x, gap, gap + 0.1, 0.1, height - 0.1, dim(color, 0.6), FENCE)
    view.panels(x, z0, z1, height - 0.12, height, dim(color, 1.15), FENCE)


def garden(view: View, side: int, z0: float, z1: float) -> None:
    """A gap between houses: trees, a hedge before them, and a fence in front."""
    x = side * view.wall
    for z in (z1, z0 + 1) if z0 < DETAIL else (z1,):
        tree(view, x + side * view.between(2, 4), z)
    view.panels(x + side * 0.8, z0, z1, 0.0, view.between(2.2, 3.2), view.pick(LEAVES), TREE)
    fence(view, x, z0, z1, view.between(1.4, 2.1))


def tree(view: View, x: float, z: float) -> None:
    """A trunk in the colours of poles and a crown of three tones."""
    leaf, size = view.pick(LEAVES), view.between(1.2, 1.8)
    middle = 2.2 + size
    view.post(x, z, middle, view.between(0.22, 0.36), view.pick(BARK), TREE)
    blobs = [(view.between(-0.8, 0.8), view.between(-0.6, 0.7)) for _ in range(6)]
    for tone, shift, radius in ((0.72, -0.1, 0.62), (1.0, 0.04, 0.5), (1.22, 0.18, 0.3)):
        color = dim(leaf, tone)
        crown = [(size * (u + view.sun * shift), middle + size * (v + shift)) for u, v in blobs]
        view.figure(x, z, TREE, [(color, (u, v, size * radius)) for u, v in crown])


def _upper_body(view: View, hip: float, lean: float = 0.0) -> list[Part]:
    """Torso, arms and head above the height of the hip; the same for walkers and riders."""
    coat, top = view.pick((*PAINTS, view.gray())), hip + 0.62
    x, hand = lean * 0.62, lean * 1.1
    torso = (
        -0.2, hip, 0.2, hip, x + 0.24, top - 0.1, x + 0.15, top, x - 0.15, top, x - 0.24, top - 0.1,
    )  # fmt: skip
    parts = [(coat, torso)]
    for s in (-0.1, 0.1):
        upper = (x + 2 * s, top - 0.03, x + 3 * s, top - 0.1)
        parts.append((dim(coat, 0.8), (*upper, hand + 3 * s, hip, hand + 2.2 * s, hip)))
    parts.append((view.pick(SKIN), (lean * 0.82, top + 0.14, 0.135)))
    parts.append((view.pick(BARK), (lean * 0.82, top + 0.2, 0.11)))
    return parts


def _legs(view: View) -> Color:
    return view.pick((BLACK, (58, 66, 92), view.gray(), *BARK))


def pedestrian(view: View, x: float, z: float) -> None:
    cloth, step = _legs(view), view.between(0.0, 0.2)
    legs = [(0, 0.9, s * 0.2, 0.9, s * (0.16 + step), 0, s * (0.01 + step), 0) for s in (-1, 1)]
    body = _upper_body(view, 0.86)
    view.figure(x, z, PEDESTRIAN, [*((cloth, leg) for leg in legs), *body])


def cyclist(view: View, x: float, z: float) -> None:
    """A rider from the side or from behind: a pedestrian's body above two wheels."""
    frame, cloth = view.pick(PAINTS), _legs(view)
    if view.chance(0.6):
        hubs = (-0.57, 0.57)
        parts = [(BLACK, (hub, 0.36, 0.37)) for hub in hubs]
        parts += [(STEEL, (hub, 0.36, 0.25)) for hub in hubs]
        bars = (-0.57, 0.36, -0.2, 0.9, 0.42, 0.9, 0.57, 0.36, 0.4, 0.62, 0, 0.28)
        leg = (-0.3, 1.0, 0.0, 1.0, 0.22, 0.62, 0.08, 0.2, -0.06, 0.2, 0.0, 0.58)
        parts += [(frame, bars), (cloth, leg), *_upper_body(view, 0.92, 0.35)]
        view.figure(x, z, BICYCLIST, parts, face=view.pick((-1, 1)))
        return
    view.post(x, z, 0.72, 0.12, BLACK, BICYCLIST)
    legs = [(0, 1.05, s * 0.2, 1.0, s * 0.24, 0.3, s * 0.08, 0.3) for s in (-1, 1)]
    parts = [*((cloth, leg) for leg in legs), (frame, (-0.34, 0.98, 0.34, 1.06))]
    view.figure(x, z, BICYCLIST, [*parts, *_upper_body(view, 0.92)])


def car(view: View, x: float, z: float) -> None:
    """A car seen from its end, with the flank that faces the camera."""
    paint, tall = view.pick((*PAINTS, view.gray())), view.pick((1.45, 1.5, 1.75, 2.1))
    glass, dark, far = view.pick((*GLASS, view.sky[1])), dim(paint, 0.72), z + 4.2
    side = 1 if x < view.x else -1
    for (a, b, c, d), (low, high), inset, color in (
        ((z, z, far, far), (0.16, 0.9), 0.0, dark),
        ((z, z + 0.1, far - 1.2, far), (0.88, tall), 0.2, dark),
        ((z + 0.3, z + 0.4, far - 1.4, far - 0.5), (0.94, tall - 0.12), 0.18, glass),
        ((z + 0.5, z + 0.6, z + 1.0, z + 1.1), (0.0, 0.6), 0.0, BLACK),
        ((far - 1.3, far - 1.2, far - 0.8, far - 0.7), (0.0, 0.6), 0.0, BLACK),
    ):
        flank = x + side * (0.92 - np.array((0, inset, inset, 0)))
        level = np.array((low, high, high, low))
        view.quads(flank, level, np.array((a, b, c, d)), color, CAR, z)
    roof = tall - 0.12
    parts = [(BLACK, (s * 0.92, 0, s * 0.64, 0.4)) for s in (-1, 1)]
    parts += [
        (paint, (-0.92, 0.2, 0.92, 0.2, 0.92, 0.9, 0.7, tall, -0.7, tall, -0.92, 0.9)),
        (glass, (-0.76, 0.95, 0.76, 0.95, 0.6, roof, -0.6, roof)),
        (dark, (-0.92, 0.2, 0.92, 0.42)),
        ((232, 228, 206), (-0.26, 0.46, 0.26, 0.6)),
    ]
    light = CREAM if x * view.side < 0 else (206, 44, 40)
    parts += [(light, (s * 0.92, 0.62, s * 0.66, 0.82)) for s in (-1, 1)]
    view.figure(x, z, CAR, parts)


def crossing_car(view: View, x: float, z: float) -> None:
    """A car seen from the side."""
    hull = (
        -2.1, 0.25, 2.1, 0.25, 2.15, 0.75, 1.2, 0.92, 0.6, 1.45, -1.1, 1.45, -1.7, 0.95, -2.1, 0.9,
    )  # fmt: skip
    rear = (-1.4, 0.95, -0.2, 0.95, -0.2, 1.35, -1.0, 1.35)
    front = (-0.1, 0.95, 0.95, 0.95, 0.5, 1.35, -0.1, 1.35)
    glass = view.pick((*GLASS, view.sky[1]))
    parts = [(view.pick((*PAINTS, view.gray())), hull), (glass, rear), (glass, front)]
    for axle in (-1.3, 1.3):
        parts += [(BLACK, (axle, 0.33, 0.34)), (STEEL, (axle, 0.33, 0.18))]
    view.figure(x, z, CAR, parts, face=view.pick((-1, 1)))


def lamp_post(view: View, x: float, z: float) -> None:
    color, top = view.pick((*BARK, view.gray(), view.gray(), PAINTS[3])), view.between(4.8, 6.5)
    view.post(x, z, top, 0.22, color, POLE)
    view.post(x, z, 1.0, 0.36, color, POLE)
    arm = (0, top, 0, top - 0.2, 1.3, top + 0.1, 1.3, top + 0.3)
    head = (1.0, top + 0.02, 1.6, top + 0.3)
    view.figure(x, z, POLE, [(color, arm), (color, head)], face=-1 if x > 0 else 1)


def sign(view: View, x: float, z: float) -> None:
    """A post with a traffic light or with a plate of one of four shapes, in two colours."""
    view.post(x, z, 2.6, 0.16, view.pick((view.gray(), view.gray(), *BARK)), POLE)
    rim, face = view.pick(PAINTS), view.pick((*PAINTS, (240, 238, 232)))
    kind, size, y, parts = view.count(0, 4), view.between(0.5, 0.64), 2.7, []
    if kind == 0:
        lamps = ((70, 200, 110), (240, 190, 60), (220, 60, 50))
        lit = view.pick(lamps)
        parts = [(BLACK, (-0.36, 1.9, 0.36, 3.4))]
        for k, color in enumerate(lamps):
            parts.append((color if color == lit else (80, 80, 84), (0, 2.2 + 0.45 * k, 0.18)))
    for s, color in ((size, rim), (size * 0.68, face)):
        if kind == 1:
            parts.append((color, (0, y, s)))
        elif kind == 2:
            parts.append((color, (-1.2 * s, y - s, 1.2 * s, y - s, 0, y + 1.2 * s)))
        elif kind == 3:
            parts.append((color, (-1.3 * s, y - s, 1.3 * s, y + s)))
        elif kind == 4:
            parts.append((color, (-1.3 * s, y, 0, y - 1.3 * s, 1.3 * s, y, 0, y + 1.3 * s)))
    view.figure(x, z, SIGN, parts)
