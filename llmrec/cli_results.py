"""The verbs about what came out: evaluate, export, compare, report.

None brings torch, but to merge a model.
"""

import logging
from pathlib import Path
from typing import Annotated, Any, Optional, cast, get_args

import typer

from llmrec import terminal
from llmrec.cli_shipped import Json, Overrides, RecipeName, opened
from llmrec.errors import RecipeError

log = logging.getLogger("llmrec")


def evaluate(
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="RECIPE", help="Recipe or run folder; none with --targets."),
    ] = None,
    overrides: Overrides = None,
    predictions: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=FILE", help="A ranking of another program, as a row more."),
    ] = None,
    drop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME", help="Take such a ranking out of the run again."),
    ] = None,
    targets: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Judge the --predictions by this file alone, without a run."),
    ] = None,
    output: Annotated[
        str, typer.Option("--format", help="Of a table without a run: text, markdown or latex.")
    ] = "text",
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration", help="Also whether probabilities can be trusted, and prediction sets."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Metrics per user, means, intervals and tests, of a run or of anybody's rankings. Needs no
    torch."""
    from llmrec.evaluation.layout import Form
    from llmrec.stages import evaluate_files

    if output not in get_args(Form):
        raise RecipeError(f"--format {output!r} is none of {', '.join(get_args(Form))}.")
    if targets is not None:
        # One --predictions may be followed by several NAME=FILE: no recipe is there to override.
        more = [text for text in (recipe, *(overrides or ())) if text is not None]
        if calibration or drop or not predictions or not all(map(_named_file, more)):
            raise RecipeError(
                "--targets FILE judges --predictions NAME=FILE and nothing else: name at least "
                "one, and leave out the recipe, its settings and --calibration"
            )
        judged = evaluate_files.run(targets, [*predictions, *more], form=cast("Form", output))
        terminal.show(judged["metrics"] if as_json else _without(judged, "metrics"), as_json)
        return
    if recipe is None:
        raise RecipeError("name a recipe or a run folder, or give --targets and --predictions")
    if predictions:
        more = [text for text in overrides or () if _named_file(text) and not _is_a_key(text)]
        predictions += more
        overrides = [text for text in overrides or () if text not in more]
    settings, folder = opened(recipe, overrides, "evaluate")
    from llmrec.stages import calibrate
    from llmrec.stages import evaluate as stage

    if drop:
        terminal.by_main(lambda: evaluate_files.drop(folder, drop))
    for noticed in evaluate_files.adopt(settings, folder, predictions) if predictions else ():
        log.warning("evaluate: %s", noticed)

    if calibration:
        calibrate.asked(settings)
    result = terminal.by_main(lambda: stage.run(settings, folder))
    if calibration:
        result["calibration"] = terminal.by_main(lambda: calibrate.run(settings, folder))
    folder.keep(settings)
    numbers = result.pop("numbers", None)
    if as_json:
        from llmrec.runs.evaluated import read_metrics

        numbers = numbers or read_metrics(folder.metrics)
        result |= {name: numbers[name] for name in ("table", "comparisons", "gates")}
        result.pop("findings")
    terminal.show(result, as_json)


def _named_file(text: str) -> bool:
    name, equals, file = text.partition("=")
    return bool(name and equals and file) and "." not in name


def _is_a_key(text: str) -> bool:
    from llmrec.recipe import Recipe

    return text.partition("=")[0] in Recipe.model_fields


def _without(said: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name != key}


def export(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to write to; else `export` in the run folder."),
    ] = None,
    output: Annotated[str, typer.Option("--format", help="parquet or csv.")] = "parquet",
    merge: Annotated[
        bool,
        typer.Option("--merge", help="The model instead: merged weights, catalog, trie, card."),
    ] = False,
    push: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="OWNER/NAME", help="Upload the merged model to the Hub, private."),
    ] = None,
    system: Annotated[str, typer.Option(help="Whose weights are merged.")] = "tuned",
    as_json: Json = False,
) -> None:
    """A run's splits and predictions by item id and title, for other programs; or its model."""
    settings, folder = opened(recipe, overrides, "export" if out is None else None)
    if push is not None and not merge:
        raise RecipeError("--push uploads the merged model; add --merge")
    if merge:
        from llmrec.stages import export_model

        with terminal.stdout_for_data():
            result = export_model.run(settings, folder, out, push, system)
        terminal.show(result, as_json)
        return
    from llmrec.stages import export as stage

    terminal.show(stage.run(settings, folder, out, output), as_json)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    output: Annotated[
        str, typer.Option("--format", help="text, markdown, latex or json.")
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Paired tests between the systems of runs."""
    from llmrec.stages import compare as stage

    form = "json" if as_json else output
    terminal.show(stage.run(runs, form), form == "json")


def report(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE.html", help="Write it here; else `report.html` in the run."),
    ] = None,
    as_json: Json = False,
) -> None:
    """One page: table, training curve, three users."""
    settings, folder = opened(recipe, overrides, "report" if out is None else None)
    from llmrec.stages import report as stage

    terminal.show(terminal.by_main(lambda: stage.run(settings, folder, out)), as_json)
