"""Where tests find CLIP's vocabulary, which the project does not contain."""

from pathlib import Path

import pytest

given: Path | None = None  # the --realdata folder, set when the test run starts


def clip_vocabulary(fixture: Path) -> Path:
    """The folder `clip_tokenizer` of --realdata, or of a `realdata` folder beside a folder above the fixture."""
    here = Path(__file__).resolve()
    roots = [] if given is None else [given]
    roots += [above / "realdata" for above in fixture.resolve().parents]
    roots += [above / "shared" / "realdata" for above in here.parents]
    for root in roots:
        if (root / "clip_tokenizer" / "merges.txt").is_file():
            return root / "clip_tokenizer"
    pytest.fail("CLIP's vocabulary was not found: give --realdata DIR, a folder that contains clip_tokenizer/")
