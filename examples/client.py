"""Searches a running `clipreel serve` for several texts at once, and fetches the best moment of each as a file.

python examples/client.py http://127.0.0.1:8017 "a red circle" "a dog on a beach"
"""

import asyncio
import sys
from pathlib import Path

import httpx


async def best(client: httpx.AsyncClient, text: str) -> dict | None:
    """The best hit of a text; None where the archive has nothing that matches."""
    answer = await client.post("/api/v1/search", json={"text": text, "k": 1})
    answer.raise_for_status()
    found = answer.json()
    return found["hits"][0] if found["state"] == "ok" and found["hits"] else None


async def cut(client: httpx.AsyncClient, hits: list[dict], out: Path) -> None:
    """The moments of hits, cut out of their videos, as a zip."""
    wanted = [{k: h[k] for k in ("video", "start_s", "end_s")} for h in hits]
    async with client.stream("POST", "/api/v1/export", json={"format": "mp4", "hits": wanted}) as answer:
        answer.raise_for_status()
        with out.open("wb") as file:
            async for piece in answer.aiter_bytes():
                file.write(piece)


async def ask(client: httpx.AsyncClient, texts: list[str], out: Path) -> list[dict]:
    """The best hit of each text that has one, printed and cut."""
    hits = [h for h in await asyncio.gather(*(best(client, t) for t in texts)) if h is not None]
    for hit in hits:
        print(f"{hit['start_s']:7.1f} s  {hit['score']:.3f}  {hit['words']}  {hit['folder']}/{hit['name']}")
    if hits:
        await cut(client, hits, out)
        print(f"wrote {out}")
    return hits


async def main(address: str, *texts: str) -> list[dict]:
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        return await ask(client, list(texts), Path("moments.zip"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
