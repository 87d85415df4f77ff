"""clipreel serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    import socket

    from clipreel.server.settings import Settings

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Many = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


def serve(
    *,
    index: str | None = None,
    port: int = 8017,
    host: str = "127.0.0.1",
    open: Flag = False,
    model: str | None = None,
    adapter: str | None = None,
    other: Many = (),
    rerank: Many = (),
    device: str = "auto",
    cache: Path | None = None,
    cache_gb: float = 8.0,
    token: str | None = None,
    remember: bool = True,
    log: Flag = False,
) -> int:
    """Open an index as a page in the browser and as an HTTP API: search, play at the moment, collect, export.

    Only this machine can reach it, unless --host names another address; then a token is needed, which is printed once.
    Try `clipreel serve --index my-index --open`

    Args:
        index: Folder or URI of the index (default: the platform's data folder).
        port: Where to listen; 0 takes a free one.
        host: The address to listen on.
        open: Open the page in the browser.
        model: The model, where it lies elsewhere than when the index was made.
        adapter: The adapter of the index, where it lies elsewhere.
        other: Another index of these videos, made with an adapter on the same base, to switch to; may be given several
            times.
        rerank: What searches may have their best hits ordered by, as in `clipreel search --rerank`: folder of a head or
            of an ALPRO, mean, top_frames, soft_frames, or alpro for the model of the index; may be given several times.
        device: Where the model runs: auto takes the GPU where there is one.
        cache: Where converted videos and thumbnails are kept (default: the platform's cache folder).
        cache_gb: How large converted videos may get together.
        token: What others must send instead of a new one each time (also CLIPREEL_TOKEN).
        remember: Keep the texts that are searched for beside the index, for `clipreel index --bank past`; they stay on
            this machine.
        log: Write a line for each request.
    """
    try:
        from clipreel.server import running
    except ImportError as e:
        raise ClipreelError("the server needs fastapi and uvicorn: pip install 'clipreel[server]'") from e
    from dataclasses import replace

    from clipreel.search.bank import KIND
    from clipreel.search.index import Index, default_place
    from clipreel.search.lines import Lines
    from clipreel.search.loading import base_of, on_base
    from clipreel.server.app import create_app

    if host == "":
        raise ClipreelError("--host is empty: give an address of this machine, e.g. 127.0.0.1")
    if not 0 <= port < 65536 or not cache_gb > 0:
        raise ClipreelError(f"--port {port} and --cache-gb {cache_gb:g}: a port is 0 to 65535, the size above 0")
    store = Index(index or default_place())
    listening = bound(host, port)
    token = token or os.environ.get("CLIPREEL_TOKEN", "")
    settings = replace(
        settings_of(store, host, cache, cache_gb, token), others=other, rerankers=rerank, remember=remember
    )
    print(f"loading {store.facts['model']} ...", file=sys.stderr)
    base = base_of(store, device, model)
    retriever = on_base(base, store, adapter)
    address = address_of(host, listening.getsockname()[1])
    app = create_app(store.place, retriever, settings, device, base)
    shown = f"{address}/?token={settings.token}" if settings.token else address

    def ready() -> None:
        print(f"clipreel serves {store.place} at {shown}  (Ctrl-C ends it)", flush=True)
        if settings.read_only:
            print(f"note: {settings.read_only}", file=sys.stderr)
        elif remember and store.local:
            print(f"note: texts are kept in {Lines.of(store, KIND).path} (--no-remember keeps none)", file=sys.stderr)
        if open:
            import threading
            import webbrowser

            threading.Thread(target=webbrowser.open, args=[shown], daemon=True).start()

    running.run(app, listening, ready, log)
    return 0


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ClipreelError where the address is taken or is not ours."""
    import socket

    try:
        family, kind, proto, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(2048)  # who comes before the model is loaded waits a moment
    except OSError as e:
        raise ClipreelError(f"{host}:{port} cannot be listened on ({e.strerror}); try --port 0") from e
    return listening


def settings_of(store: Any, host: str, cache: Path | None, cache_gb: float, token: str) -> Settings:
    """The settings for an address: others than loopback need a token."""
    import hashlib

    from platformdirs import user_cache_dir

    from clipreel.server.security import is_loopback, new_token, own_names
    from clipreel.server.settings import Settings
    from clipreel.server.sole import claimed

    alone = is_loopback(host)
    if cache is None:  # one for each index, so that two servers do not clear each other's
        mark = hashlib.blake2b(os.path.abspath(store.place).encode(), digest_size=6).hexdigest()
        cache = Path(user_cache_dir("clipreel", appauthor=False)) / "server" / mark
    read_only = claimed(store)
    if read_only:
        cache = Path(scratch_folder())
    return Settings(
        cache=cache,
        token=token if token or alone else new_token(),
        loopback=alone,
        hosts=() if alone else own_names(host),
        read_only=read_only,
        media_bytes=int(cache_gb * 2**30),
    )


def scratch_folder() -> str:
    """A cache that goes with this process."""
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="clipreel-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def address_of(host: str, port: int) -> str:
    import socket

    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
