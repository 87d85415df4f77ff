"""The command line: `clipreel VERB ...`. Verbs import what they need when they run, so --help is instant."""

from __future__ import annotations

import os
import sys

from cyclopts import App

from clipreel import __version__
from clipreel.cli import (
    adapters,
    compare,
    demo,
    entities,
    evaluate,
    export,
    index,
    info,
    living,
    post_pretrain,
    prepare,
    quantize,
    search,
    serve,
    train,
    tune,
)
from clipreel.errors import ClipreelError

app = App(
    name="clipreel",
    help="Adapt CLIP to video, prove that it got better, and search videos with it.",
    version=__version__,
    help_format="markdown",
)
for verb in (
    demo.demo,
    index.index,
    search.search,
    search.status,
    search.forget,
    serve.serve,
    living.canary,
    living.migrate,
    living.pairs,
    entities.entities,
    entities.tag,
    entities.ask,
    prepare.prepare,
    tune.tune,
    post_pretrain.post_pretrain,
    train.train,
    evaluate.evaluate,
    compare.compare,
    adapters.adapters,
    export.export,
    quantize.quantize,
    info.info,
):
    app.command(verb)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; 0 all done, 1 done but inputs were skipped, 2 wrong use or nothing done.

    `--debug` anywhere shows tracebacks.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    # a broken name of a file must not break the report about it
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args, exit_on_error=False, print_error=True, result_action="return_value")
        return code if isinstance(code, int) else 0
    except ClipreelError as e:
        if debug:
            raise
        print(f"clipreel: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clipreel: stopped; what was stored is safe, the same command goes on from there", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if debug or not type(e).__module__.startswith("cyclopts"):
            raise
        return 2


def entry() -> None:
    sys.exit(main())
