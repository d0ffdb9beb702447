"""An engineer with a shop log: from raw exports to a table, and what is said on the way."""

from journeys.shop import write_shop
from journeys.walk import SMALL, Journey

RECIPE = """\
name: shop
data:
  source: shop
  items: shop/produkte.jsonl
  delimiter: ";"
  columns: {user_id: kunde, item_id: artikel, timestamp: zeit, title: titel}
  events: {column: ereignis, keep: [kauf, korb]}
prompt: {domain: product}
objective: {name: msl}
systems: [popularity, markov, item_knn, tuned]
"""


def journey(go: Journey) -> None:
    """All of it."""
    write_shop(go.place / "shop")
    recipe = go.place / "shop.yaml"
    recipe.write_text(RECIPE, "utf-8")
    with go.step("validate names the column that is not there"):
        said = go.llmrec("validate", recipe, code=2)
        assert "produkte.jsonl has no column for title ('titel')" in said
        assert "it has artikel, name, marke" in said
        items = "items_columns: {title: name, brand: marke}\n"
        text = RECIPE.replace(", title: titel}\n", f"}}\n  {items}")
        recipe.write_text(text, "utf-8")
        go.llmrec("validate", recipe)
    with go.step("prepare shows the bad rows by file and line, and writes nothing"):
        said = go.llmrec("prepare", recipe, code=3)
        assert "2 bad rows, 0 allowed" in said
        assert "part-0002.csv:101:zeit: 'gestern'" in said
        assert not (go.place / "runs" / "shop" / "data").exists()
    with go.step("prepare, the bad rows allowed, says what it understood and what is odd"):
        said = go.llmrec("prepare", recipe, "data.max_bad_rows=2")
        assert "items: 800" in said
        assert "users: 5000" in said
        assert "left out: " in go.log
        assert "'sicht'" in go.log
        assert "6% of the items have no title" in go.log
        assert "of the test targets stand in the user's own history" in go.log
    tiny = ["data.max_bad_rows=2", "decode.filter_seen=false", f"model.base={go.model}", *SMALL]
    with go.step("train --dry-run says what it would cost"):
        said = go.numbers("train", recipe, "--dry-run", *tiny)
        assert said["optimiser_steps"] == 6
    with go.step("run, from the data to the headline and the table"):
        said = go.llmrec("run", recipe, *tiny)
        lines = said.splitlines()
        assert lines[0].startswith("By NLL, tuned stand")
        assert [line.split()[0] for line in lines if line.startswith(("markov", "tuned "))]
        assert (go.place / "runs" / "shop" / "report.html").is_file()
    with go.step("run again does nothing twice"):
        go.llmrec("run", recipe, *tiny)
        assert "stands already" in go.log
