"""Draws the demo's world: coloured figures that move on a background, 17 frames of 96 x 96 pixels.

Every figure is a signed distance in its own coordinates. A clip is therefore one expression over
arrays, with edges anti-aliased over one pixel and positions that are not rounded. `world_scene`
makes the small world that the checkpoint should understand. `wild_scene` makes the wider world that
only its autoencoder sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

FRAMES = 17
SIZE = 96  # pixels, both ways
FPS = 8

COLOURS = {
    "red": (220, 35, 40),
    "green": (40, 165, 60),
    "blue": (35, 80, 220),
    "yellow": (250, 225, 40),
    "purple": (135, 45, 180),
    "orange": (250, 130, 20),
}
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "pink": (255, 175, 200),
}
DIRECTIONS = {
    "right": (1, 0),
    "left": (-1, 0),
    "down": (0, 1),
    "up": (0, -1),
}  # x and y, y pointing down
SMALLEST, LARGEST = 12.0, 34.0  # radius, where figures begin anywhere
MOTIONS = (*DIRECTIONS, "grows", "shrinks")


@dataclass(frozen=True)
class Outline:
    """A figure of about unit size.

    It has `points` outer corners at distance 1, with inner corners between them at distance
    `inner`. If `arm` is set, it has `points` straight arms of half-width `arm` instead. Without
    points it is a disc. `hole` is the radius of a round hole. `turn` is in radians. `scale` makes
    figures look equally large.
    """

    points: int = 0
    inner: float = 1.0
    arm: float = 0.0
    hole: float = 0.0
    turn: float = 0.0
    scale: float = 1.0


def polygon(corners: int, turn: float = 0.0, scale: float = 1.0) -> Outline:
    """A regular polygon with one corner up before it is turned."""
    return Outline(corners, inner=float(np.cos(np.pi / corners)), turn=turn, scale=scale)


SHAPES = {
    "circle": Outline(),
    "square": polygon(4, turn=np.pi / 4, scale=1.25),
    "triangle": polygon(3, scale=1.4),
}
UNSEEN_SHAPES = {  # in no training clip, not even the autoencoder's
    "cross": Outline(points=4, arm=0.36, scale=1.15),
    "ring": Outline(hole=0.55, scale=1.1),
}
WILD_SHAPES = (
    *SHAPES.values(),
    *(polygon(corners) for corners in (4, 5, 6)),
    Outline(points=5, inner=0.45, scale=1.2),
    Outline(points=6, inner=0.6, scale=1.2),
    Outline(points=4, inner=0.4, scale=1.2),
    Outline(points=3, arm=0.3, scale=1.1),
)


def varied_outlines(rng: np.random.Generator, count: int) -> list[Outline]:
    """Draws figures for the autoencoder alone: polygons, stars and arms, half of them with a hole.

    None of them is in `UNSEEN_SHAPES`, however it is sized: there is no disc with a hole, and no
    figure with four arms.
    """
    outlines = []
    for _ in range(count):
        hole = float(rng.uniform(0.2, 0.5)) if rng.random() < 0.5 else 0.0
        if rng.random() < 0.3:
            points, inner = int(rng.choice([2, 3, 5, 6])), 1.0
            arm = float(rng.uniform(0.2, 0.45))
        else:
            points, arm = int(rng.integers(3, 9)), 0.0
            inner = float(rng.uniform(0.4, np.cos(np.pi / points)))
        outlines.append(Outline(points, inner, arm, hole, scale=1.2))
    return outlines


@dataclass
class Sprite:
    """One moving figure in each of N clips.

    `x`, `y` and `radius` (pixels) and `turn` (radians) are [N, FRAMES], `colour` is RGB [N, 3], the
    rest [N]. A `squash` below 1 makes the figure flatter.
    """

    points: np.ndarray
    inner: np.ndarray
    arm: np.ndarray
    hole: np.ndarray
    squash: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    turn: np.ndarray
    colour: np.ndarray


@dataclass
class Backdrop:
    """Two RGB colours [N, 3] blended along a direction [N] in radians.

    The blend is a ramp, or `waves` [N] stripes.
    """

    first: np.ndarray
    second: np.ndarray
    direction: np.ndarray
    waves: np.ndarray


@dataclass
class Scene:
    backdrop: Backdrop
    sprites: list[Sprite]


def _column(values) -> mx.array:
    """Shapes [N] or [N, F] numbers to broadcast over pixels: [N, 1 or F, 1, 1]."""
    array = mx.array(np.asarray(values, dtype=np.float32))
    return array.reshape(array.shape[0], -1, 1, 1)


def coverage(sprite: Sprite, size: int = SIZE) -> mx.array:
    """The share of each pixel that the figure covers: [N, F, size, size] in [0, 1]."""
    pixel = (mx.arange(size) + 0.5) * (SIZE / size)
    dx = pixel[None, None, None, :] - _column(sprite.x)
    dy = (pixel[None, None, :, None] - _column(sprite.y)) / _column(sprite.squash)
    radius, points = _column(sprite.radius), _column(sprite.points)
    sector = np.pi / mx.maximum(points, 1)
    angle = mx.arctan2(dx, -dy) - _column(sprite.turn)
    folded = mx.abs(mx.remainder(angle + sector, 2 * sector) - sector)
    distance = mx.sqrt(dx * dx + dy * dy) / radius
    along, across = distance * mx.cos(folded), distance * mx.sin(folded)

    corner_x = _column(sprite.inner) * mx.cos(sector)
    corner_y = _column(sprite.inner) * mx.sin(sector)
    edge = (along - 1) * corner_y + across * (1 - corner_x)
    edge = edge / mx.sqrt(corner_y**2 + (1 - corner_x) ** 2)
    arms = mx.maximum(along - 1, across - _column(sprite.arm))

    outside = mx.where(points == 0, distance - 1, mx.where(_column(sprite.arm) > 0, arms, edge))
    outside = mx.maximum(outside, _column(sprite.hole) - distance) * radius * (size / SIZE)
    return mx.clip(0.5 - outside, 0, 1)


def _backdrop_pixels(backdrop: Backdrop, size: int) -> mx.array:
    """The background's pixels: [N, 1, size, size, 3] in [0, 255]."""
    pixel = (mx.arange(size) + 0.5) / size - 0.5
    direction, waves = _column(backdrop.direction), _column(backdrop.waves)
    place = pixel[None, None, None, :] * mx.cos(direction) + pixel[None, None, :, None] * mx.sin(
        direction
    )
    stripes = 0.5 + 0.5 * mx.sin(2 * np.pi * waves * place)
    blend = mx.where(waves > 0, stripes, mx.clip(place + 0.5, 0, 1))[..., None]
    return _rgb(backdrop.first) * (1 - blend) + _rgb(backdrop.second) * blend


def _rgb(colour: np.ndarray) -> mx.array:
    return mx.array(np.asarray(colour, dtype=np.float32))[:, None, None, None, :]


def render(scene: Scene, size: int = SIZE) -> mx.array:
    """Draws the clips: [N, FRAMES, size, size, 3] in [-1, 1]."""
    pixels = _backdrop_pixels(scene.backdrop, size)
    for sprite in scene.sprites:
        alpha = coverage(sprite, size)[..., None]
        pixels = pixels * (1 - alpha) + _rgb(sprite.colour) * alpha
    return pixels / 127.5 - 1


def _fields(outlines: list[Outline]) -> dict[str, np.ndarray]:
    names = ("points", "inner", "arm", "hole", "scale", "turn")
    return {name: np.array([getattr(o, name) for o in outlines]) for name in names}


def _sprite(outlines, x, y, radius, colour, turn=0.0, squash=None) -> Sprite:
    """Makes a sprite from one outline a clip; `turn` is added to the turn of the outline."""
    fields = _fields(outlines)
    return Sprite(
        points=fields["points"],
        inner=fields["inner"],
        arm=fields["arm"],
        hole=fields["hole"],
        squash=np.ones(len(outlines)) if squash is None else squash,
        x=x,
        y=y,
        radius=radius * fields["scale"][:, None],
        turn=np.broadcast_to(fields["turn"][:, None] + turn, x.shape),
        colour=colour,
    )


def follow(outline: Outline, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> Sprite:
    """One clip's figure along a given path, [F] pixels each, to compare with a measured one."""
    return _sprite([outline], x[None], y[None], radius[None], np.zeros((1, 3)))


def world_scene(
    rng: np.random.Generator,
    combinations,
    outlines: list[Outline] | None = None,
    *,
    anywhere: bool = False,
) -> Scene:
    """Makes clips of the small world with random sizes and paths, one for each combination.

    Travel is 28 to 36 pixels; growing and shrinking change the area three- to fivefold.

    Args:
        combinations: see captions.Combination.
        outlines: figures to draw instead of those that the combinations name, one for each.
        anywhere: begin at any place and size, as a previous clip may have ended, and stop at the
            edge or at the largest or smallest size. By default paths are in the middle.
    """
    count = len(combinations)
    motions = [combination.motion for combination in combinations]
    heading = np.array([DIRECTIONS.get(motion, (0, 0)) for motion in motions])
    growth = np.array([{"grows": 1, "shrinks": -1}.get(motion, 0) for motion in motions])[:, None]
    time = np.linspace(-0.5, 0.5, FRAMES) + 0.5 * anywhere
    travel = rng.uniform(28, 36, (count, 1)) * time
    begin = SIZE / 2 + rng.uniform(-5, 5, (count, 2))
    small, large = rng.uniform(12, 14.5, (count, 1)), rng.uniform(25, 28, (count, 1))
    steady = rng.uniform(16.5, 21, (count, 1))
    change = growth * (large - small) * time
    shapes = outlines or [SHAPES[combination.shape] for combination in combinations]
    reach = np.array([[outline.scale] for outline in shapes])  # of the corners, in radii
    if anywhere:
        first = np.where(growth == 0, steady, rng.uniform(SMALLEST, LARGEST, (count, 1)))
        sizes = np.clip(first + change, SMALLEST, LARGEST)
        room = np.minimum(first * reach, SIZE / 2)
        begin = room + rng.uniform(0, 1, (count, 2)) * (SIZE - 2 * room)
    else:
        sizes = np.where(growth == 0, steady, (small + large) / 2 + change)
    path = begin[:, :, None] + heading[:, :, None] * travel[:, None]
    if anywhere:
        room = np.minimum(sizes * reach, SIZE / 2)[:, None]
        path = np.clip(path, room, SIZE - room)

    colour = np.array([COLOURS[combination.colour] for combination in combinations])
    plain = np.array([BACKGROUNDS[combination.background] for combination in combinations])
    sprite = _sprite(shapes, path[:, 0], path[:, 1], sizes, colour)
    return Scene(Backdrop(plain, plain, np.zeros(count), np.zeros(count)), [sprite])


def wild_scene(
    rng: np.random.Generator, count: int, outlines: Sequence[Outline] = WILD_SHAPES
) -> Scene:
    """Makes clips of the wider world: any colours, ramps, stripes, figures that turn and race."""
    first, second = rng.uniform(0, 255, (2, count, 3))
    second = np.where(rng.random((count, 1)) < 0.3, first, second)
    waves = np.where(rng.random(count) < 0.25, rng.uniform(1, 5, count), 0)
    backdrop = Backdrop(first, second, rng.uniform(0, 2 * np.pi, count), waves)
    sprites = [_wild_sprite(rng, count, outlines, presence) for presence in (1.0, 0.4)]
    return Scene(backdrop, sprites)


def _wild_sprite(
    rng: np.random.Generator, count: int, outlines: Sequence[Outline], presence: float
) -> Sprite:
    """One random figure a clip; in clips without it, the figure is far outside the picture."""
    time = np.linspace(0, 1, FRAMES)
    start, end = rng.uniform(12, SIZE - 12, (2, count, 2, 1))
    path = start + (end - start) * time * rng.uniform(0, 1, (count, 1, 1))
    path = path + np.where(rng.random((count, 1, 1)) < presence, 0, 10 * SIZE)
    sizes = rng.uniform(8, 28, (2, count, 1))
    steady = rng.random((count, 1)) < 0.5
    return _sprite(
        [outlines[index] for index in rng.integers(len(outlines), size=count)],
        path[:, 0],
        path[:, 1],
        sizes[0] + np.where(steady, 0, sizes[1] - sizes[0]) * time,
        rng.uniform(0, 255, (count, 3)),
        turn=np.where(
            rng.random((count, 1)) < 0.5,
            0,
            rng.uniform(-3, 3, (count, 1)) + rng.uniform(-3, 3, (count, 1)) * time,
        ),
        squash=np.where(rng.random(count) < 0.6, 1, rng.uniform(0.5, 1, count)),
    )


def to_uint8(clips: mx.array) -> np.ndarray:
    """Rounds [-1, 1] pixels to uint8."""
    return np.array(
        mx.round(mx.clip(clips.astype(mx.float32) * 127.5 + 127.5, 0, 255)).astype(mx.uint8)
    )
