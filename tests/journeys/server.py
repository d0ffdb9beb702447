"""Somebody who must serve: everybody at once by night, and single histories by day."""

import json

import pyarrow.parquet as pq
from journeys.engineer import RECIPE
from journeys.shop import write_shop
from journeys.walk import SMALL, Journey


def journey(go: Journey) -> None:
    """All of it."""
    write_shop(go.place / "shop")
    recipe = go.place / "shop.yaml"
    text = RECIPE.replace(", title: titel}", "}\n  items_columns: {title: name, brand: marke}")
    text = text.replace("[popularity, markov, item_knn, tuned]", "[markov, tuned, tuned_guided]")
    recipe.write_text(text, "utf-8")
    tiny = ["data.max_bad_rows=2", f"model.base={go.model}", "decode.guidance.baseline=markov"]
    tiny += ["decode.guidance.weight=0.3"]
    with go.step("run"):
        go.llmrec("run", recipe, *tiny, *SMALL)
    run, stock = go.place / "runs" / "shop", go.place / "stock.txt"
    stock.write_text("\n".join(f"A-{n:04d}" for n in range(0, 800, 2)) + "\n")
    with go.step("everybody into one file, of what is in stock"):
        out = go.place / "tonight.parquet"
        options = ["--all-users", "--out", out, "--system", "markov", "--candidates", stock]
        go.llmrec("recommend", run, *options, "--top-k", "5")
        table = pq.read_table(out)
        assert len(set(table["user"].to_pylist())) == 5000
        assert all(int(item[2:]) % 2 == 0 for item in table["item_id"].to_pylist())
    with go.step("histories of ids and of titles as they come, unknown ones counted"):
        lines = [["A-0021", "A-0022"], ["blue Coffee & Co no 0 11", "no such thing at all"]]
        asked = go.place / "asked.jsonl"
        asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = go.llmrec("recommend", run, "--histories", asked, "--top-k", "3")
        found = [json.loads(line) for line in said.splitlines()]
        assert [line["rank"] for line in found] == [1, 2, 3] * 2
    with go.step("in Python: two systems side by side"):
        from llmrec import Recommender

        for system in ("tuned", "tuned_guided"):
            answers = Recommender.from_pretrained(str(run), system=system)
            assert answers.recommend([["A-0021"]], top_k=4).num_rows == 4
    with go.step("splits and predictions by id for another program"):
        go.llmrec("export", run, "--format", "csv")
        assert (run / "export" / "test.csv").is_file()
