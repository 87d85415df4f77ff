"""Options of the test run: folders of parity fixtures, and a folder of real videos and annotations."""

from pathlib import Path

import pytest

from tests.parity import realdata

HERE = Path(__file__).parent
FIXTURE_SUFFIXES = (".safetensors", ".json", ".pt")


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest has a --fixtures of its own (a second name of --funcargs), which gives way to the folders of fixtures
    listing = parser.optparser._option_string_actions.pop("--fixtures", None)
    if listing is not None:
        listing.option_strings.remove("--fixtures")
    parser.addoption(
        "--fixtures",
        action="append",
        default=[],
        metavar="DIR",
        help="another folder of parity fixtures, searched recursively (may be given several times)",
    )
    parser.addoption("--realdata", default=None, metavar="DIR", help="folder of real videos, annotations, vocabulary")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tests of the page run where their folder is asked for, and nowhere else: they need a browser."""
    browser = HERE / "browser"
    if collection_path != browser and browser not in collection_path.parents:
        return None
    asked = [Path(str(a).partition("::")[0]).resolve() for a in config.args]
    return None if any(a == browser or browser in a.parents for a in asked) else True


def fixture_files(folders: list[Path]) -> list[Path]:
    """Every fixture below the folders; an empty or missing folder is an error, not an empty test run."""
    files: list[Path] = []
    for folder in folders:
        found = sorted(p for p in folder.rglob("*") if p.suffix in FIXTURE_SUFFIXES and p.is_file())
        if not found:
            raise pytest.UsageError(f"--fixtures {folder}: no fixture files below this folder")
        files += found
    return files


def pytest_configure(config: pytest.Config) -> None:
    realdata.given = real_folder(config)


def real_folder(config: pytest.Config) -> Path | None:
    given = config.getoption("--realdata")
    if given is None:
        return None
    folder = Path(given).resolve()  # tests make links to its files
    if not (folder / "clips").is_dir():
        raise pytest.UsageError(f"--realdata {folder}: expected a folder that contains clips/")
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fixture_path" in metafunc.fixturenames:
        given = [Path(f) for f in metafunc.config.getoption("--fixtures")]
        files = fixture_files([HERE / "parity" / "fixtures", *given])
        metafunc.parametrize("fixture_path", files, ids=[f"{p.parent.name}/{p.name}" for p in files])
    if "real_annotations" in metafunc.fixturenames:
        folder = real_folder(metafunc.config)
        there = folder is not None and (folder / "annotations").is_dir()
        metafunc.parametrize("real_annotations", [folder / "annotations" if folder and there else None], ids=["real"])
    if "real_clip" in metafunc.fixturenames:
        folder = real_folder(metafunc.config)
        clips = [None] if folder is None else sorted(p for p in (folder / "clips").rglob("*") if p.is_file())
        metafunc.parametrize("real_clip", clips, ids=["none" if p is None else p.name for p in clips])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests over real clips and annotations exist only where --realdata gives some."""
    real = ("real_clip", "real_annotations")
    without = [i for i in items if hasattr(i, "callspec") and any(i.callspec.params.get(k, i) is None for k in real)]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [i for i in items if i not in without]
