"""Every limit of the server in one place: nothing that a request causes may grow beyond one of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Where the server stands and what it lets happen. Sizes in bytes, times in seconds.

    `token` is needed by every request where it is not empty; `hosts` are the names under which the server may be
    called beside IP addresses and loopback names. `waiting` are requests that may stand in line before 503.
    """

    cache: Path
    token: str = ""
    loopback: bool = True
    hosts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()  # indexes of the same videos made with adapters on the same base
    rerankers: tuple[str, ...] = ()  # heads and ALPROs that searches may name
    remember: bool = False  # whether texts that are searched for are kept as a bank of queries
    read_only: str = ""  # why this server starts no job; empty where it may

    body_bytes: int = 256 * 1024
    body_s: float = 30.0
    dropped_bytes: int = 160 * MIB  # that are read of a body that is refused, so that its sender hears why
    dropped_s: float = 10.0
    query_string_bytes: int = 16 * 1024

    search_waiting: int = 256
    search_batch: int = 64
    search_s: float = 30.0

    rerank_waiting: int = 16
    rerank_s: float = 60.0
    rerank_candidates: int = 50  # hits that a head looks at
    reread_candidates: int = 12  # hits whose files an ALPRO reads again
    reread_s: float = 5.0  # for each of these files

    upload_bytes: int = 20 * MIB
    upload_pixels: int = 50_000_000
    upload_s: float = 10.0
    uploads: int = 64
    upload_lives_s: float = 3600.0

    decoders: int = 2
    decode_waiting: int = 128
    decode_s: float = 20.0

    conversions: int = 2
    conversions_waiting: int = 8
    seeks: int = 2  # conversions from a moment on, beside those of whole videos
    seek_idle_s: float = 5.0
    conversion_s: float = 3600.0
    conversion_idle_s: float = 60.0
    media_wait_s: float = 1.5
    media_bytes: int = 8 << 30
    picture_bytes: int = 512 * MIB
    free_bytes: int = 256 * MIB  # of the cache's disk that stay free

    event_clients: int = 32
    jobs_kept: int = 32
    cut_hits: int = 50
    cut_s: float = 3600.0  # of video in one export of cut files
