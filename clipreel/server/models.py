"""The models that look at an archive: the one that answers, the one it moves to, the one before (search/migrate.py).

A switch is the act of `clipreel migrate --switch` (and --undo, for the one before), done while the server runs: the new
model is loaded beside the old one, searches wait for the two renames, then the new one answers. Where the renames were
done by another process, the server follows: searches are told to come back until the model of the new index is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipreel.errors import ClipreelError, NotHere
from clipreel.search import migrate
from clipreel.search.index import Index
from clipreel.search.loading import base_of, on_base
from clipreel.server.errors import ApiError
from clipreel.server.rerankers import Rerankers
from clipreel.server.sizes import index_bytes, licences, made_at
from clipreel.server.sole import claimed
from clipreel.server.variants import Variants, free, named

if TYPE_CHECKING:
    from clipreel.server.services import Services

COMMANDS = {"next": "clipreel migrate --switch", "before": "clipreel migrate --undo"}
RETRY_S = 20.0  # from a model that could not be loaded to the next try
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An index of the archive: `role` is current, next or before."""

    name: str
    role: str
    index: Index

    def to_dict(self, answers: bool) -> dict[str, Any]:
        made, facts = made_at(self.index.place), self.index.facts
        return {
            "name": self.name,
            "role": self.role,
            "active": answers and self.role == "current",
            "ready": self.role != "next" or migrate.REPORT in facts,
            "videos": len(self.index.visible()),
            "vectors": self.index.guard(self.index.vectors.count_rows),
            "bytes": index_bytes(self.index.place) if self.index.local else None,
            "age_s": None if made is None else round(time.time() - made, 1),
            "licences": licences(facts),
        }


class Models:
    """Those of the archive that a server answers for."""

    def __init__(self, its: Services, place: str, device: str) -> None:
        self.its, self.place, self.device = its, place, device
        self._turn = threading.Lock()
        self._why, self._again = "", 0.0  # why the model of the index could not be loaded, when to try again

    def found(self) -> list[Candidate]:
        """The index that answers, then those beside it; call in a thread."""
        every: list[Candidate] = []
        endings = {"current": "", "next": migrate.NEXT, "before": migrate.BEFORE}
        for role, ending in endings.items():
            local = "://" not in self.place
            place = self.place.rstrip("/") + ending if local else self.place
            if ending and not (local and os.path.isdir(place)):
                continue
            try:
                index = Index(place)
            except ClipreelError:  # it has only begun, or is being renamed
                continue
            every.append(Candidate(free(called(index), {c.name for c in every}), role, index))
        return every

    def listed(self) -> dict[str, Any]:
        """For GET /models; the numbers are those that `clipreel migrate` printed."""
        found = self.found()
        report = next((c.index.facts.get(migrate.REPORT) for c in found if c.role == "next"), None)
        shown = []
        for candidate in found:
            with contextlib.suppress(ClipreelError):  # deleted meanwhile
                shown.append(candidate.to_dict(self.state() == "ok"))
        return {"models": shown, "canary": report}

    def activate(self, name: str) -> None:
        """Let another one answer. Raises ApiError: 404 for an unknown one, 409 where that cannot be done now."""
        every = self.found()
        found = next((c for c in every if c.name == name), None)
        if found is None:
            known = ", ".join(c.name for c in every)
            raise ApiError(
                404, "no-such-model", f"no model {name[:80]!r} looks at this archive; those that do: {known}"
            )
        if found.role == "current":
            return
        self._check(found)
        if not self._turn.acquire(blocking=False):
            raise ApiError(409, "busy", "a switch is under way; ask again when it is done")
        try:
            self._switch(found)
        finally:
            self._turn.release()

    def _check(self, found: Candidate) -> None:
        settings, command = self.its.settings, COMMANDS[found.role]
        if settings.read_only:
            raise ApiError(409, "read-only", settings.read_only)
        if settings.others:
            why = "the other indexes that this server was started with belong to the present model"
            raise ApiError(409, "switch", f"{why}: end it, run {command}, and start it without them")
        if any(job["state"] == "running" for job in self.its.jobs.listed()):
            raise ApiError(409, "busy", f"an index job runs; stop it or wait for it, or run {command} later")
        if found.role == "next" and migrate.REPORT not in found.index.facts:
            raise ApiError(409, "not-ready", f"{found.name} is not whole yet; clipreel migrate --to goes on with it")
        if found.role == "before" and os.path.isdir(self.place.rstrip("/") + migrate.NEXT):
            why = "a migration to another model is under way"
            raise ApiError(409, "switch", f"{why}; end it with clipreel migrate --cancel, then switch back")
        if why := claimed(found.index):
            raise ApiError(409, "switch", f"{why}; end that server first")

    def _switch(self, found: Candidate) -> None:
        loaded = self._loaded(found.index)

        def moved() -> Index:
            try:
                if found.role == "next":
                    migrate.switch(self.place, loaded.all[""].model)
                else:
                    migrate.undo(self.place)
            except ClipreelError as e:
                raise ApiError(409, "switch", str(e)) from e
            return Index(self.place)

        self._take(loaded, moved)

    def _loaded(self, index: Index) -> Variants:
        """The models that answer where this index is the first. Raises ClipreelError, also for rerankers."""
        its = self.its
        base, model = its.variants.base, its.model
        if index.facts["space"] != model.space:
            base = base_of(index, self.device)
            model = on_base(base, index)
        found = Variants(index, model, base, its.settings.others, its.variants.kept)
        Rerankers(its.settings.rerankers, found, its.settings, self.device)
        return found

    def _take(self, loaded: Variants, moved: Callable[[], Index]) -> None:
        """Let these models answer from now on; `moved` gives their index, while no search is answered."""
        its = self.its
        with ExitStack() as turns:
            for answers in its.answering:
                turns.enter_context(answers.turn)
            its.variants.take(loaded, moved())
            its.rerankers.fit(its.variants)
            its.model = loaded.all[""].model
            its.renew()
        its.archive.written()

    # ------------------------------------------------ a switch made elsewhere

    def state(self) -> str:
        """ok, or of an index that has taken the place of the one that answers: switching while its model is loaded,
        no-model where that could not be done."""
        if not self.its.variants.replaced:
            return "ok"
        return "no-model" if self._why else "switching"

    def ready(self) -> None:
        """Raises ApiError 503 while no model answers for the index that is there."""
        state = self.state()
        if state == "switching":
            what = "clipreel migrate has put another index in place of this one, and its model is being loaded"
            raise ApiError(503, state, f"{what}; ask again in 2 s", headers={"retry-after": "2"})
        if state == "no-model":
            raise ApiError(503, state, self._why, headers={"retry-after": f"{RETRY_S:g}"})

    def follow(self) -> None:
        """Load the model of an index that another process has put in place of one that answers; call in a thread."""
        if time.monotonic() < self._again or not self._turn.acquire(blocking=False):
            return
        try:
            if self.its.variants.replaced:
                self._follow()
            self._why = ""
        except Exception as e:  # whatever it is, the next try may go better
            self._again = time.monotonic() + RETRY_S
            self._why = self._refused(e)
        finally:
            self._turn.release()

    def _follow(self) -> None:
        index = Index(self.place)
        if not self.its.settings.read_only and (why := claimed(index)):
            raise ClipreelError(f"{why}; end that server first")
        self._take(self._loaded(index), lambda: index)

    def _refused(self, e: Exception) -> str:
        """What searches are told; paths are for this machine alone."""
        reason = str(e) if isinstance(e, ClipreelError) else f"{type(e).__name__}: {e}"
        found = self.found()
        if isinstance(e, NotHere):
            name = found[0].index.facts["model"]
            reason = f"{name} is not on this machine; fetch it with: clipreel info {name} --download"
        elif not self.its.settings.loopback:
            reason = "the log of the server says why"
        back = [f"; the former index comes back with: {COMMANDS[c.role]}" for c in found if c.role != "current"]
        why = f"another index is in the place of the one that answered, and cannot be searched: {reason}"
        why += f". This server goes on by itself when that is mended{back[-1] if back else ''}"
        if why != self._why:
            log.warning("%s (%s)", why, e)
        return why


def called(index: Index) -> str:
    """What people call the model of an index: the base, and its adapter."""
    base = index.facts["model"]
    base = os.path.basename(base) if os.path.isabs(base) else base
    return f"{base} + {named(index, '')}" if index.facts.get("adapter") else base
