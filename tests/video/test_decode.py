"""Odd files: each gives the frames that were asked for, or one reason."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipreel.video import decode
from clipreel.video.decode import probe, read_frames
from clipreel.video.packets import WHAT_TO_DO, DecodeError
from clipreel.video.sampling import Sampling
from tests.video.make import level, numbers, write, write_audio

ALL = Sampling("rate", 0, 12.0)
SIX = Sampling("uniform", 6)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.ts"])
def test_uniform_frames_of_every_container(tmp_path: Path, name: str, b_frames: int) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write(tmp_path / name, b_frames=0 if codec == "mpeg4" else b_frames, codec=codec)
    found = read_frames(path, SIX)
    # the middle of each of six parts of 24 frames, as a player shows it: times 1/6, 1/2, ... are frames 2, 6, ...
    assert numbers(found.pixels, 24) == [2, 6, 10, 14, 18, 22]
    np.testing.assert_allclose(found.times_s, np.array([2, 6, 10, 14, 18, 22]) / 12, atol=2e-3)
    assert found.info.frames == 24
    assert found.info.duration_s == pytest.approx(2.0, abs=0.01)


def test_every_frame_is_the_exact_one(tmp_path: Path) -> None:
    found = read_frames(write(tmp_path / "a.mp4", b_frames=2), Sampling("middles", 24))
    assert numbers(found.pixels, 24) == list(range(24))


@pytest.mark.parametrize("gop", [1, 4, 24])
def test_seeking_finds_the_same_frames(tmp_path: Path, gop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", gop=gop, b_frames=2 if gop > 1 else 0)
    jumped = read_frames(path, SIX)
    monkeypatch.setattr(decode, "leap", lambda keys, position, target: False)
    plain = read_frames(path, SIX)
    assert torch.equal(jumped.pixels, plain.pixels)
    assert np.array_equal(jumped.times_s, plain.times_s)


def test_it_jumps_only_where_a_keyframe_lies_between() -> None:
    keys = [0, 100, 200]
    assert not decode.leap(keys, None, 90)
    assert decode.leap(keys, None, 100)
    assert decode.leap(keys, 50, 150)
    assert not decode.leap(keys, 150, 199)
    assert not decode.leap(keys, 100, 150)


def test_a_part_of_a_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    part = read_frames(path, Sampling("uniform", 3), start_s=1.0, end_s=1.99)
    assert all(12 <= n <= 23 for n in numbers(part.pixels, 24))
    beyond = read_frames(path, Sampling("uniform", 2), start_s=50.0)
    assert numbers(beyond.pixels, 24) == [23, 23]


def test_keyframes_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", gop=6)
    found = read_frames(path, Sampling("keyframes", 0))
    assert numbers(found.pixels, 24) == [0, 6, 12, 18]
    assert numbers(read_frames(path, Sampling("keyframes", 2)).pixels, 24) == [0, 18]


def test_variable_rate_is_addressed_by_time(tmp_path: Path) -> None:
    times = [*range(12), *range(12, 60, 4)]  # one second fast, then slow
    path = write(tmp_path / "a.mkv", frames=24, times=times)
    found = read_frames(path, Sampling("rate", 0, 1.0))
    assert not found.info.constant_rate
    assert numbers(found.pixels, 24)[:4] == [0, 12, 15, 18]


def test_first_time_stamp_above_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", start=100)
    found = read_frames(path, SIX)
    assert numbers(found.pixels, 24) == [2, 6, 10, 14, 18, 22]
    assert found.info.start_s == pytest.approx(100 / 12, abs=0.01)
    assert found.times_s[0] == pytest.approx(2 / 12, abs=2e-3)


def test_one_frame_is_repeated(tmp_path: Path) -> None:
    found = read_frames(write(tmp_path / "a.mp4", frames=1), SIX)
    assert numbers(found.pixels, 1) == [0] * 6


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "yuv444p", (64, 48)),
        ("libx264", "yuv420p10le", (64, 48)),
        ("libx264", "yuv444p", (33, 27)),
        ("libvpx-vp9", "yuv420p", (64, 48)),
        ("mpeg2video", "yuv420p", (64, 48)),
        ("ffv1", "bgr0", (64, 48)),
        ("mjpeg", "yuvj420p", (64, 48)),
    ],
)
def test_pixel_formats_and_sizes(tmp_path: Path, codec: str, pix_fmt: str, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mkv", frames=8, codec=codec, pix_fmt=pix_fmt, size=size, rate=24 if "2" in codec else 12)
    found = read_frames(path, Sampling("middles", 8))
    assert tuple(found.pixels.shape) == (8, size[1], size[0], 3)
    assert numbers(found.pixels, 8) == list(range(8))


def test_raw_stream_without_times(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h264", container="h264")
    found = read_frames(path, Sampling("middles", 4))
    assert numbers(found.pixels, 24) == [2, 8, 14, 20]


def test_animated_gif(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gif", frames=6, codec="gif", pix_fmt="rgb8", rate=10)
    assert read_frames(path, Sampling("middles", 6)).pixels.shape[0] == 6


def test_cut_off_file_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", gop=4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    found = read_frames(path, SIX)
    assert 0 < found.info.frames < 24
    assert found.warnings


def test_flipped_bytes_cost_frames_not_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", gop=4)
    raw = bytearray(path.read_bytes())
    for at in range(len(raw) // 2, len(raw) // 2 + 400):
        raw[at] ^= 0xFF
    path.write_bytes(bytes(raw))
    found = read_frames(path, SIX)
    assert len(found.pixels) == 6
    assert numbers(found.pixels, 24)[0] == 2


def test_transform_sees_single_frames(tmp_path: Path) -> None:
    shapes = []

    def shrink(frame: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(frame.shape))
        return frame[:, ::2, ::2]

    found = read_frames(write(tmp_path / "a.mp4"), SIX, transform=shrink)
    assert set(shapes) == {(1, 48, 64, 3)}
    assert tuple(found.pixels.shape) == (6, 24, 32, 3)


def test_rotation_is_applied_and_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", top_mark=True)
    monkeypatch.setattr(decode, "rotation_of", lambda frame: 90)
    upright = read_frames(path, Sampling("uniform", 1))
    assert tuple(upright.pixels.shape) == (1, 64, 48, 3)
    assert upright.info.rotation == 90
    # a quarter turn against the clock brings the white top to the left
    assert upright.pixels[0, :, :10].float().mean() > upright.pixels[0, :, -10:].float().mean() + 50
    assert tuple(read_frames(path, Sampling("uniform", 1), rotate=False).pixels.shape) == (1, 48, 64, 3)


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    files: dict[str, tuple[Path, str]] = {"missing": (folder / "none.mp4", "missing")}
    for name, content, reason in (
        ("empty", b"", "empty"),
        ("text", b"this is not a video\n" * 50, "not-video"),
        ("zeros", bytes(5000), "not-video"),
        ("header", b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "incomplete"),
    ):
        path = folder / f"{name}.mp4"
        path.write_bytes(content)
        files[name] = (path, reason)
    whole = write(folder / "whole.mp4").read_bytes()
    no_index = folder / "no_index.mp4"
    no_index.write_bytes(whole[: len(whole) // 2])
    files["no index"] = (no_index, "incomplete")
    (folder / "folder.mp4").mkdir()
    files["folder"] = (folder / "folder.mp4", "not-video")
    os.mkfifo(folder / "endless.mp4")
    files["endless"] = (folder / "endless.mp4", "not-video")
    files["audio"] = (write_audio(folder / "sound.m4a"), "not-video")
    return files


def test_broken_files_have_one_reason_and_a_next_step(tmp_path: Path) -> None:
    for name, (path, reason) in broken_files(tmp_path).items():
        with pytest.raises(DecodeError) as e:
            read_frames(path, SIX)
        assert e.value.reason == reason, name
        assert WHAT_TO_DO[reason] in str(e.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_film_that_is_cut_off_before_its_index_is_not_called_no_video(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name).read_bytes()
    fast = whole[whole.index(b"moov") - 4 :]  # the index first, as files for the web have it
    for content in (whole[: whole.index(b"moov") + 40], whole[: whole.index(b"moov") - 4], fast[:200]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=r"its index is missing.*copy it again") as e:
            read_frames(tmp_path / name, SIX)
        assert e.value.reason == "incomplete"


def test_time_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    with pytest.raises(DecodeError) as e:
        read_frames(path, SIX, timeout_s=0.0)
    assert e.value.reason == "timeout"


def test_names_with_blanks_lines_and_broken_unicode(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4").read_bytes()
    for name in (b"with blank.mp4", b"two\nlines.mp4", "Büro – 漢字.mp4".encode(), b"broken\xff.mp4", b"-dash.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(source)
        assert len(read_frames(path, SIX).pixels) == 6


def test_probe(tmp_path: Path) -> None:
    info = probe(write(tmp_path / "a.mp4"))
    assert (info.width, info.height, info.frames, info.codec) == (64, 48, 24, "h264")
    assert info.fps == pytest.approx(12, abs=0.1)
    assert info.constant_rate
    assert level(0) == 8


def test_real_clips_behave(real_clip: Path) -> None:
    refused = {"audio_only.m4a": "not-video", "empty.mp4": "empty", "text.mp4": "not-video"}
    refused["truncated_no_moov_or_tail.mp4"] = "incomplete"
    counts = {"truncated_mid.webm": 14, "vfr.mp4": 90, "discard_first_keyframe.mp4": 25, "single_frame.mp4": 1}
    counts |= {"animated.gif": 4, "nasa_13013.mp4": 325, "gt_7348.mp4": 900, "pred_8807.mp4": 420, "gt_9474.mp4": 360}
    if real_clip.name in refused:
        with pytest.raises(DecodeError) as e:
            read_frames(real_clip, SIX)
        assert e.value.reason == refused[real_clip.name]
        return
    found = read_frames(real_clip, SIX)
    assert len(found.pixels) == 6
    assert found.info.frames == counts.get(real_clip.name, found.info.frames)
    assert (np.diff(found.times_s) >= 0).all()
    assert found.info.constant_rate == (real_clip.name != "vfr.mp4")
    assert (found.info.rotation == 90) == (real_clip.name == "nasa_13013_rotated.mp4")


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{film}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {film}\n",
    ],
)
def test_a_playlist_does_not_open_other_files(tmp_path: Path, text: str) -> None:
    write(tmp_path / "film.mp4", frames=12)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(text.format(film="film.mp4"))
    with pytest.raises(DecodeError) as e:
        read_frames(playlist, Sampling("uniform", 2))
    assert e.value.reason == "not-video"


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff"])
def test_a_picture_is_a_film_of_one_frame(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"0001.{ending}"
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(path)
    pixels = read_frames(path, Sampling("uniform", 1)).pixels
    assert pixels.shape == (1, 48, 64, 3)
    assert abs(pixels.float().mean().item() - 200) < 3
