"""What the titles of a large catalog cost each process: catalog, encoder and trie.

Titles of a dozen drawn words, SmolLM2's tokenizer. One process makes the files that are shared, the
next one opens them, looks items up by id and by title and encodes prompts, and a third keeps all of
it to itself, as every process did without the files. Memory is that of no file (RssAnon), beyond
what the process had when the tokenizer was loaded. The prompts of both are compared first. One
line of JSON for each figure on stdout.

    python tools/bench/titles.py --sizes 1e6
"""

import argparse
import json
import platform
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

SEED, WORDS = 0, 12
PROMPTS, HISTORY = 200, 10


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6])
    options.add_argument("--shared-alone", action="store_true", help="without the third process")
    given = options.parse_args()
    for titles in map(int, given.sizes):
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            in_a_process(written, root, titles)
            hows = ("first", "mapped") if given.shared_alone else ("first", "mapped", "own")
            found = {how: in_a_process(opened, root, how == "own") for how in hows}
            prompts = {json.dumps(said.pop("prompts")) for said in found.values()}
            if len(prompts) != 1:
                raise SystemExit("the prompts differ")
            files = sum(p.stat().st_size for p in root.rglob("*.npy"))
            for how, said in found.items():
                line = {"figure": "titles", "titles": titles, "how": how, **said}
                line["bytes_a_title"] = round(said["private_mb"] * 1e6 / titles, 1)
                print(json.dumps({**line, "files_mb": round(files / 1e6, 1), **machine()}))


def in_a_process(do, *given):
    """What `do` gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(do, *given).result()


def written(root: Path, titles: int) -> None:
    """Draw a catalog and write it."""
    from llmrec.data.catalog import Catalog

    rng = np.random.default_rng(SEED)
    known = np.array(["".join(rng.choice([*"abdeiklmnorst"], 5)) for _ in range(5000)])
    drawn = known[rng.integers(0, len(known), (titles, WORDS))]
    texts = tuple(f"{' '.join(words)} {number}" for number, words in enumerate(drawn))
    Catalog(tuple(map(str, range(titles))), texts, texts).write(root / "items.parquet")


def opened(root: Path, own: bool) -> dict:
    """Open catalog, encoder and trie, use them, and tell what this process has for itself."""
    from transformers import AutoTokenizer

    from llmrec.data import catalog as catalogs
    from llmrec.data.catalog import Catalog
    from llmrec.fetch.cache import model_path
    from llmrec.recipe import shipped
    from llmrec.text import encoding
    from llmrec.text.encoding import PromptEncoder
    from llmrec.text.templates import PromptTemplate

    template = PromptTemplate(shipped.prompt_text("next_item/product"), "next_item/product")
    tokenizer = AutoTokenizer.from_pretrained(model_path("smollm2-135m-instruct"))
    if own:
        catalogs.LARGE = encoding.LARGE = 10**12
    PromptEncoder(template, tokenizer, ["one", "two"]).trie  # noqa: B018  what is needed once
    before, started = private(), time.perf_counter()
    catalog = Catalog.read(root / "items.parquet")
    encoder = PromptEncoder(template, tokenizer, catalog.titles, tries=root / "trie")
    trie = encoder.trie
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(SEED)
    prompts = []
    for _ in range(PROMPTS):
        history = rng.integers(0, len(catalog), HISTORY)
        ids = [catalog.position_of[catalog.item_ids[p]] for p in history]
        named = [encoder.position_of[catalog.titles[p]] for p in history]
        if not ids == named == history.tolist():
            raise SystemExit("an item was not found where it is")
        trie.walk(encoder.completions[int(history[0])])
        prompts.append(encoder.prompt(history).ids.tolist())
    return {
        "private_mb": round((private() - before) / 1e6, 1),
        "seconds_to_open": round(seconds, 1),
        "prompts": prompts,
    }


def private() -> int:
    """Bytes of memory that is of no file: what is of one, other processes may have mapped too."""
    said = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", said)[1])


def machine() -> dict:
    """What every figure ran on."""
    return {"machine": platform.machine(), "python": platform.python_version()}


if __name__ == "__main__":
    main()
