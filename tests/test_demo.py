"""The demo's page: film strips inside, nothing from the network, names escaped."""

from pathlib import Path

from clipreel.cli import main
from clipreel.data.shapes import ShapesWorld
from clipreel.evaluation.gallery import Card, Shown, cards, numbers, page, paragraph


def test_page_stands_alone_and_escapes_what_it_shows(tmp_path: Path) -> None:
    sample = ShapesWorld().write_videos(tmp_path, "test", count=1)[0]
    odd = sample.video.rename(tmp_path / "a<b>&.mp4")
    answers = cards([Card("<script>", [Shown(odd, "0.5 & more", True)])])
    table = numbers([["", "R@1"], ["x", "5"]]) + paragraph("p")
    content = page("Title <1>", "lead", [("Answers", answers), ("Numbers", table)])
    assert "data:image/jpeg;base64," in content
    assert "<script>" not in content
    assert "a&lt;b&gt;&amp;.mp4" in content
    assert "http" not in content.replace("data:image", "")
    assert "prefers-color-scheme: dark" in content


def test_demo_on_own_videos(tmp_path: Path) -> None:
    ShapesWorld().write_videos(tmp_path / "v", "test", count=4)
    out = tmp_path / "out"
    assert main(["demo", "--videos", str(tmp_path / "v"), "--model", "shapes-tiny", "--out", str(out)]) == 0
    assert (out / "report.html").read_text().count("<section") == 3
