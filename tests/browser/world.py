"""A small archive for the page: films of several scenes of the shapes world at known times, in folders and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipreel.data.shapes import ShapesWorld, VideoItem
from clipreel.data.shapes_render import write_mp4

FPS, SCENE_S, SCENES = 12, 3, 4
SIZES = {"landscape": (320, 180), "square": (240, 240), "portrait": (180, 320)}
# name -> shape of the picture
FILMS = {
    "garden/first snow": "landscape",
    "garden/kites": "landscape",
    "garden/the long table": "landscape",
    "garden/rain on the roof": "square",
    "harbour/ferry at noon": "landscape",
    "harbour/lanterns": "portrait",
    "harbour/regatta": "landscape",
    "harbour/two gulls": "landscape",
    "workshop/clockwork": "square",
    "workshop/glass": "landscape",
    "workshop/night shift": "portrait",
    "workshop/paper boats": "landscape",
}


@dataclass(frozen=True)
class Film:
    """A file, and what is to be seen in it: (start in seconds, caption) of each scene."""

    path: Path
    scenes: tuple[tuple[float, str], ...]


def scene_pixels(item: VideoItem, width: int, height: int) -> NDArray[np.uint8]:
    """The frames (T, H, W, 3) of a scene, with its ground to the sides."""
    side = min(width, height)
    frames = item.scene.render(side, FPS * SCENE_S)
    across, down = (width - side) // 2, (height - side) // 2
    around = ((0, 0), (down, height - side - down), (across, width - side - across), (0, 0))
    return np.pad(frames, around, constant_values=item.scene.shade)


def write(folder: Path) -> list[Film]:
    """Render the archive below `folder`; the same films every time."""
    items = [i for i in ShapesWorld().videos("test") if i.id.endswith("a")]
    films = []
    for n, (name, shape) in enumerate(FILMS.items()):
        chosen = items[n :: len(FILMS)][:SCENES]
        path = folder / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(path, np.concatenate([scene_pixels(i, *SIZES[shape]) for i in chosen]), FPS)
        films.append(Film(path, tuple((float(k * SCENE_S), i.captions[0]) for k, i in enumerate(chosen))))
    return films


def write_remade(path: Path) -> None:
    """A film that no browser plays as it is: MPEG-4 part 2 in an AVI file."""
    import av

    items = [i for i in ShapesWorld().videos("val") if i.id.endswith("a")][:SCENES]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height = SIZES["landscape"]
        stream.pix_fmt = "yuv420p"
        for pixels in np.concatenate([scene_pixels(i, stream.width, stream.height) for i in items]):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
