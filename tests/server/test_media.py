"""Playing: ranges, repacking, encoding, pictures; and what happens when a decoder does not behave."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from clipreel.server.errors import ApiError
from clipreel.server.media import judged, range_of
from tests.server.conftest import API, Serve, code, ids, services
from tests.video.make import level


def media(client: TestClient, name: str) -> str:
    return f"{API}/videos/{ids(client)[name]}/media"


def levels(data: bytes) -> list[int]:
    with av.open(io.BytesIO(data)) as container:
        return [int(f.to_ndarray(format="rgb24").mean()) for f in container.decode(video=0)]


def test_a_playable_file_is_served_as_it_is_and_by_ranges(client: TestClient, archive: tuple[Path, str]) -> None:
    data = (archive[0] / "a.mp4").read_bytes()
    url = media(client, "a.mp4")
    whole = client.get(url)
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, data, "bytes")
    for asked, part in (
        ("bytes=0-", data),
        ("bytes=10-19", data[10:20]),
        ("bytes=-7", data[-7:]),
        ("bytes=5-999999999", data[5:]),
    ):
        answer = client.get(url, headers={"range": asked})
        assert (answer.status_code, answer.content) == (206, part)
        first = len(data) - len(part) if asked != "bytes=10-19" else 10
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/{len(data)}"
    beyond = client.get(url, headers={"range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    head = client.head(url)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(data)))
    assert client.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    stale = client.get(url, headers={"range": "bytes=0-1", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, data)


@pytest.mark.parametrize("text", ["bytes=", "bytes=-", "items=0-1", "bytes=0-1,4-5", "bytes=9-2", "bytes=a-b", ""])
def test_a_range_that_is_none_is_ignored(text: str) -> None:
    assert range_of(text, 100) is None


def test_ranges_stay_inside_the_file() -> None:
    assert range_of("bytes=0-0", 100) == (0, 0)
    assert range_of("bytes=-500", 100) == (0, 99)
    for text in ("bytes=100-", "bytes=-0", "bytes=9999999999999999999-"):
        first, last = range_of(text, 100) or (0, 0)
        assert first > last


@pytest.mark.parametrize(("name", "frames", "slack"), [("b.mkv", 36, 2), ("c.avi", 24, 6)])
def test_what_browsers_do_not_play_is_remade_and_kept(client: TestClient, name: str, frames: int, slack: int) -> None:
    first = client.get(media(client, name))
    assert (first.status_code, first.headers["content-type"]) == (200, "video/mp4")
    again = client.get(media(client, name), headers={"range": "bytes=0-"})
    assert again.status_code == 206
    for data in (first.content, again.content):
        shown = levels(data)
        assert len(shown) == frames
        assert max(abs(a - level(n)) for n, a in enumerate(shown)) <= slack
    assert b"moov" in again.content[:64_000]
    assert client.get(f"{API}/videos/{ids(client)[name]}").json()["ready"]


def test_it_streams_before_the_end_is_ready(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], media_wait_s=0.0)
    answer = client.get(media(client, "c.avi"))
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
    assert len(levels(answer.content)) == 24


def test_a_player_need_not_wait_for_the_whole(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], media_wait_s=0.0)
    for name, first, last, slack in (("c.avi", 12, 24, 6), ("b.mkv", 30, 36, 6)):
        for _ in range(2):  # while it is made, and from the cache
            answer = client.get(media(client, name), params={"from": first / 12})
            assert (answer.status_code, answer.headers["x-clipreel-from"]) == (200, f"{round(first / 12, 1):g}")
            shown = levels(answer.content)
            assert len(shown) == last - first
            assert max(abs(a - level(n)) for n, a in enumerate(shown, first)) <= slack
    assert not client.get(f"{API}/videos/{ids(client)['c.avi']}").json()["ready"]  # the whole is another matter
    data = (archive[0] / "a.mp4").read_bytes()
    assert client.get(media(client, "a.mp4"), params={"from": 1}).content == data  # it has ranges
    assert code(client.get(media(client, "c.avi"), params={"from": 99})) == (422, "no-moment")
    for wrong in ("-1", "nan", "inf", "x", "1e9"):
        assert code(client.get(media(client, "c.avi"), params={"from": wrong})) == (422, "invalid")


def test_who_jumps_about_leaves_nothing_running(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], seeks=1, conversions=1, conversions_waiting=1)
    its = services(client).media
    file = services(client).archive.file(ids(client)["c.avi"])
    assert client.portal is not None

    async def jump() -> tuple[bool, list[bool], int]:
        first = its._begin("one", file, "encode", 0.5)
        second = its._begin("two", file, "encode", 1.0)
        left = [first.left.is_set(), second.left.is_set()]
        try:
            its._begin("three", file, "encode", 1.5)
        except ApiError as e:
            return True, left, e.status
        finally:
            await first.finished.wait()
            await second.finished.wait()
        return False, left, 200

    assert client.portal.call(jump) == (True, [True, False], 503)
    assert its.running == {}


def test_thumbnails_show_the_moment(client: TestClient) -> None:
    id = ids(client)["a.mp4"]
    brightness = []
    for at_s in (0.0, 1.0, 1.9, 99.0):
        answer = client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": at_s, "width": 64})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        picture = Image.open(io.BytesIO(answer.content)).convert("L")
        assert picture.size == (64, 48)
        brightness.append(sum(picture.tobytes()) / (64 * 48))
    for found, frame in zip(brightness, (0, 12, 23, 23), strict=True):
        assert abs(found - level(frame)) < 6


def test_a_strip_is_its_frames_side_by_side(client: TestClient) -> None:
    id = ids(client)["a.mp4"]
    strip = f"{API}/videos/{id}/strip"
    answer = client.get(strip, params={"n": 4, "start_s": 0, "end_s": 2, "width": 80})
    picture = Image.open(io.BytesIO(answer.content)).convert("L")
    assert picture.size == (4 * 64, 48)  # never wider than the video
    shown = [picture.getpixel((32 + 64 * i, 24)) for i in range(4)]
    for found, frame in zip(shown, (3, 9, 15, 21), strict=True):
        assert abs(int(str(found)) - level(frame)) < 10
    assert client.get(strip, params={"n": 25}).status_code == 422


def test_pictures_are_made_once(client: TestClient) -> None:
    id = ids(client)["a.mp4"]
    first = client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": 0.5, "width": 100})
    decodes = client.get(f"{API}/metrics").text
    assert client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": 0.49, "width": 120}).content == first.content

    def count(text: str) -> str:
        return next(x for x in text.splitlines() if x.startswith("clipreel_decodes_total"))

    assert count(client.get(f"{API}/metrics").text) == count(decodes)


@pytest.mark.parametrize(
    ("facts", "how"),
    [
        ({"container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "h264", "audio": "aac"}, "direct"),
        ({"container": "matroska,webm", "codec": "vp9", "audio": "opus"}, "direct"),
        ({"container": "matroska,webm", "codec": "h264", "audio": "aac"}, "remux"),
        ({"container": "mpegts", "codec": "h264", "audio": "mp2"}, "remux"),
        ({"container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "h264", "audio": "pcm_s16le"}, "remux"),
        ({"container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "hevc", "audio": "aac"}, "transcode"),
        ({"container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "h264", "audio": "", "pix_fmt": "yuv422p10le"}, "transcode"),
        ({"container": "mpegts", "codec": "h264", "audio": "", "rotation": 90}, "transcode"),
        ({"container": "h264", "codec": "h264", "audio": "", "timed": False}, "transcode"),
    ],
)
def test_what_is_done_with_which_codecs(facts: dict, how: str) -> None:
    found = judged({"pix_fmt": "yuv420p", "rotation": 0, "timed": True, **facts})
    assert found.how == how
    assert (found.why == "") == (how == "direct")


def test_a_file_that_vanished_and_one_that_was_replaced(serve: Serve, own_archive: tuple[Path, str]) -> None:
    videos, place = own_archive
    client = serve(place)
    known = ids(client)
    (videos / "b.mkv").unlink()
    old = (videos / "a.mp4").stat()
    forged = bytearray((videos / "a.mp4").read_bytes())
    forged[len(forged) // 2] ^= 0xFF
    (videos / "a.mp4").write_bytes(forged)
    os.utime(videos / "a.mp4", ns=(old.st_atime_ns, old.st_mtime_ns))  # same size and same time
    for name, status, state in (("a.mp4", 409, "changed"), ("b.mkv", 404, "missing")):
        assert client.get(f"{API}/videos/{known[name]}").json()["state"] == state
        for what in ("media", "thumbnail", "strip"):
            answer = client.get(f"{API}/videos/{known[name]}/{what}")
            assert code(answer) == (status, state)
            assert answer.json()["error"]["state"] == state
    touched = videos / "sub" / "c.avi"
    os.utime(touched)  # another time, the same content
    assert client.get(f"{API}/videos/{known['c.avi']}").json()["state"] == "present"


def test_a_link_in_place_of_a_file_leads_nowhere(serve: Serve, own_archive: tuple[Path, str], tmp_path: Path) -> None:
    videos, place = own_archive
    client = serve(place)
    id = ids(client)["a.mp4"]
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (videos / "a.mp4").unlink()
    (videos / "a.mp4").symlink_to(secret)
    answer = client.get(f"{API}/videos/{id}/media")
    assert code(answer) == (409, "changed")
    assert "secret" not in answer.json()["error"]["message"]


def test_paths_are_no_ids(client: TestClient, archive: tuple[Path, str]) -> None:
    path = str(archive[0] / "a.mp4")
    for id in (path, path.replace("/", "%2f"), "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "a.mp4", "%00"):
        assert client.get(f"{API}/videos/{id}/media").status_code in (404, 422)


def test_a_crash_of_the_decoder_costs_one_picture(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], decoders=1)
    id = ids(client)["a.mp4"]
    assert client.get(f"{API}/videos/{id}/thumbnail").status_code == 200
    decoders = services(client).decoders
    decoder = decoders.idle.get_nowait()
    decoders.idle.put_nowait(decoder)
    os.kill(decoder.process.pid, 11)
    first = client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": 0.5})
    assert first.status_code in (200, 422)
    assert client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": 1.0}).status_code == 200
    assert client.get(f"{API}/search", params={"q": "red"}).status_code == 200


def test_a_decoder_that_hangs_is_ended(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], decoders=1, decode_s=0.5)
    id = ids(client)["a.mp4"]
    assert client.get(f"{API}/videos/{id}/thumbnail").status_code == 200
    decoders = services(client).decoders
    decoder = decoders.idle.get_nowait()
    decoders.idle.put_nowait(decoder)
    os.kill(decoder.process.pid, 19)  # SIGSTOP: it holds still
    assert code(client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": 0.5})) == (422, "timeout")
    assert client.get(f"{API}/videos/{id}/thumbnail", params={"at_s": 1.0}).status_code == 200


def test_a_full_disk_is_a_clear_state(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], free_bytes=1 << 60)
    assert code(client.get(media(client, "c.avi"))) == (507, "disk-full")
    assert client.get(media(client, "a.mp4")).status_code == 200
    assert client.get(f"{API}/videos/{ids(client)['c.avi']}/thumbnail").status_code == 200


def test_the_media_cache_stays_within_its_size(serve: Serve, archive: tuple[Path, str], tmp_path: Path) -> None:
    client = serve(archive[1], media_bytes=1)
    for name in ("b.mkv", "c.avi", "b.mkv"):
        assert len(levels(client.get(media(client, name)).content)) in (24, 36)
    assert len(list((tmp_path / "cache" / "media").iterdir())) == 1
