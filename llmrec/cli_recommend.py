"""The verbs that answer: recommend and serve. Like `llmrec.cli`, imports a stage when called."""

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from llmrec import terminal
from llmrec.cli_shipped import Json, Overrides, RecipeName, opened
from llmrec.errors import RecipeError


def recommend(
    recipe: RecipeName,
    overrides: Overrides = None,
    histories: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="JSON lines (-: stdin), [id, ...] or {user, history}; Parquet or CSV.",
        ),
    ] = None,
    all_users: Annotated[
        bool,
        typer.Option("--all-users", help="Everybody in the data, by all they did; needs --out."),
    ] = False,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE", help="Write these answers here, .parquet or .csv; resumed by user."
        ),
    ] = None,
    top_k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Items for each of these histories; else 10."),
    ] = None,
    coverage: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Not top-k but sets that hold the next item for this share of users."),
    ] = None,
    system: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which row of the table answers them; else what is trained furthest."),
    ] = None,
    candidates: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="The items that may be recommended, as those in stock."),
    ] = None,
    exclude: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Items that may not be recommended."),
    ] = None,
    unknown: Annotated[
        Literal["skip", "raise"],
        typer.Option(help="What to do with entries that are no item: count them, or stop."),
    ] = "skip",
    engine: Annotated[
        Optional[Literal["local", "accelerate", "ray"]],  # noqa: UP045
        typer.Option(help="For any number of users: Parquet in, a folder out; who works."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of --engine ray.")] = 1,
    as_json: Json = False,
) -> None:
    """Recommend for the test split, for histories of ids or titles (one JSON line per item), or for
    everybody.

    Files of items: Parquet or CSV with a column item_id or title, JSON lines, or one a line.
    """
    outside = histories is not None or all_users
    if histories is not None and all_users:
        raise RecipeError("--all-users has the histories of the data; leave out --histories")
    if all_users and out is None:
        raise RecipeError("--all-users writes one file for everybody: name it with --out")
    settings, folder = opened(recipe, overrides, None if outside else "recommend")
    if outside:
        from llmrec.stages import recommend_histories as stage

        wanted = stage.Wanted(top_k or 10, coverage, system, candidates, exclude, unknown)
        if engine is not None:
            if out is None or histories in (None, "-"):
                raise RecipeError(
                    "--engine reads Parquet and writes a folder: give --histories and --out"
                )
            from llmrec.stages import streaming

            source = Path(str(histories))
            with terminal.stdout_for_data():
                result = streaming.run(settings, folder, source, wanted, out, engine, workers)
            terminal.show(result, as_json)
            return
        stdout = sys.stdout
        with terminal.stdout_for_data():
            if all_users:
                batches = stage.of_everybody(settings, folder)
            else:
                stdin = histories == "-"
                lines = open(0, encoding="utf-8") if stdin else Path(str(histories))  # noqa: SIM115
                batches = stage.of_lines(settings, lines)
            if out is None:
                found = stage.tables(settings, folder, batches, wanted)
                rows = (row for table in found for row in table.to_pylist())
                terminal.show_lines(rows, stdout)
                return
            result = terminal.by_main(lambda: stage.write(settings, folder, batches, wanted, out))
        terminal.show(result, as_json)
        return
    given = (top_k, coverage, system, candidates, exclude, out, engine)
    if any(value is not None for value in given):
        raise RecipeError(
            "--top-k, --coverage, --system, --candidates, --exclude, --out and --engine are for "
            "histories of your own (--histories) or of everybody (--all-users); of the test split "
            "decode.top_k items are kept, for each of the recipe's systems"
        )
    from llmrec.stages import recommend as test_split

    with terminal.stdout_for_data():
        result = test_split.run(settings, folder)
    folder.keep(settings)
    terminal.show(result, as_json)


def serve(
    recipe: RecipeName,
    overrides: Overrides = None,
    system: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A row of the table to serve; may be repeated, the first by default."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    seconds: Annotated[float, typer.Option(min=0.1, help="A request's time, at most.")] = 30.0,
) -> None:
    """Answer over HTTP, with a page to try a run out; one loaded run, requests in batches."""
    settings, folder = opened(recipe, overrides, None)
    from llmrec.stages import serve as stage

    with terminal.stdout_for_data():
        result = stage.run(settings, folder, system or (), host, port, seconds)
    terminal.show(result, as_json=False)
