"""Index a folder and ask it, without the command line. Usage: python examples/search_folder.py FOLDER INDEX TEXT"""

import sys

import clipreel
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.query import Hit, Query, Searcher
from clipreel.video.shots import Segments


def main(folder: str, place: str, text: str, source: str = "shapes-tiny") -> list[Hit]:
    model = clipreel.load(source)
    index = Index.create(place, facts_of(model, Segments("windows", seconds=8.0)))  # opened if it is there
    report = update(index, model, [folder])  # only what is new or has changed
    print(f"{report.indexed} new, {report.unchanged} unchanged, {len(report.skipped)} skipped")
    hits = Searcher(index, model).search(Query.parse(text), k=5)
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.start_s:6.1f} s  {hit.path}")
    return hits


if __name__ == "__main__":
    main(*sys.argv[1:])
