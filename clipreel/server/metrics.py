"""Counters, gauges and histograms in the text format of Prometheus; as many series as there are routes, never more."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 2.5, 5.0, 10.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What is measured. Names get the prefix clipreel_; a metric is made by its first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = {}
        self._times: dict[tuple[str, Labels], list[float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._help: dict[str, str] = {}

    def describe(self, name: str, text: str) -> None:
        self._help[name] = text

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0.0) + by

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Adds to a histogram in seconds."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            row = self._times.setdefault(key, [0.0] * (len(BUCKETS) + 2))
            row[bisect_left(BUCKETS, seconds)] += 1
            row[-1] += seconds

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is asked for when somebody looks."""
        self._gauges[name] = read
        self.describe(name, text)

    def text(self) -> str:
        """Everything, for GET /metrics."""
        with self._lock:
            counts, times = dict(self._counts), {k: list(v) for k, v in self._times.items()}
        out: list[str] = []
        for name in sorted({n for n, _ in counts}):
            out += self._head(name, "counter")
            out += [f"clipreel_{name}{shown(dict(ls))} {v:g}" for (n, ls), v in sorted(counts.items()) if n == name]
        for name in sorted({n for n, _ in times}):
            out += self._head(name, "histogram")
            for (n, ls), row in sorted(times.items()):
                out += histogram(f"clipreel_{name}", dict(ls), row) if n == name else []
        for name, read in sorted(self._gauges.items()):
            out += [*self._head(name, "gauge"), f"clipreel_{name} {read():g}"]
        return "\n".join(out) + "\n"

    def _head(self, name: str, kind: str) -> list[str]:
        return [f"# HELP clipreel_{name} {self._help.get(name, name)}", f"# TYPE clipreel_{name} {kind}"]


def histogram(name: str, labels: Mapping[str, str], row: list[float]) -> list[str]:
    out, seen = [], 0.0
    for edge, n in zip((*BUCKETS, "+Inf"), row[:-1], strict=True):
        seen += n
        out.append(f"{name}_bucket{shown({**labels, 'le': str(edge)})} {seen:g}")
    return [*out, f"{name}_sum{shown(labels)} {row[-1]:g}", f"{name}_count{shown(labels)} {seen:g}"]


def shown(labels: Mapping[str, str]) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{k}="{quoted(v)}"' for k, v in labels.items()) + "}" if labels else ""
