"""The command line: verbs and flags, nothing else. Every verb imports its stage when it is called,
after the recipe has been read, so that a wrong recipe is told before torch is loaded.

stdout is data, stderr is logs. Exit codes: 0 done, 1 failed, 2 recipe or usage, 3 data,
75 interrupted and resumable, 130 Ctrl+C.
"""

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from llmrec import __version__, terminal
from llmrec.cli_habits import Verbs
from llmrec.cli_recommend import recommend, serve
from llmrec.cli_results import compare, evaluate, export, report
from llmrec.cli_shipped import (
    Json,
    Overrides,
    RecipeName,
    config_app,
    opened,
    prompts_app,
    recipes_app,
)
from llmrec.errors import RecipeError

app = typer.Typer(
    help="Turn a language model into a recommender for your catalog, and learn whether it is "
    "worth it.",
    no_args_is_help=True,
    cls=Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
check_app = typer.Typer(help="Proofs about a finished run.", no_args_is_help=True)
app.add_typer(prompts_app, name="prompts")
app.add_typer(recipes_app, name="recipes")
app.add_typer(config_app, name="config")
app.add_typer(check_app, name="check")
for verb in (recommend, serve, evaluate, export, compare, report):
    app.command()(verb)
Offline = Annotated[bool, typer.Option("--offline", help="Use the cache alone.")]


def main() -> None:
    """Run the command line and exit."""
    terminal.guarded(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _everywhere(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    terminal.set_up_logging(quiet)


@app.command()
def fetch(
    kind: Annotated[str, typer.Argument(metavar="model|data", help="What to fetch.")],
    name: Annotated[str, typer.Argument(help="Its name, or a model's Hub id.")],
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Bring a model or data set into the cache, verified."""
    from llmrec.fetch import cache as stage

    with terminal.stdout_for_data():
        result = stage.run(kind, name, offline)
    terminal.show(result if as_json else result["path"], as_json)


@app.command()
def prepare(
    recipe: RecipeName, overrides: Overrides = None, offline: Offline = False, as_json: Json = False
) -> None:
    """Read, filter and split the data."""
    settings, folder = opened(recipe, overrides, "prepare")
    from llmrec.stages import prepare as stage

    result = terminal.by_main(lambda: stage.run(settings, folder, offline))
    folder.keep(settings)
    terminal.show(result if as_json else stage.summary(result), as_json)


@app.command()
def validate(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a recipe, its names and its data's columns: every error at once, without torch."""
    from llmrec.stages import validate as stage

    terminal.show(stage.run(recipe, overrides or []), as_json)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what training would do; train nothing.")
    ] = False,
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="STEP",
            help="One step alone, of SOFT: sft, distill, soft; of a network: base, cpft, ce.",
        ),
    ] = None,
    sweep: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="SECTION.KEY=V1,V2,...",
            help="Train once for each of these values; of several keys, for all combinations.",
        ),
    ] = None,
    tune: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="SECTION.KEY=LOW..HIGH", help="Search in validation; or =V1,V2, or ..HIGH:log."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings that --tune may take.")] = 20,
    as_json: Json = False,
) -> None:
    """Fine-tune the model, with SOFT in three steps; goes on where it was interrupted."""
    if (sweep or tune) and (dry_run or only is not None or (sweep and tune)):
        raise RecipeError(
            "--sweep and --tune train whole recipes, one way or the other; leave out the other, "
            "--dry-run and --only"
        )
    if tune:
        from llmrec.studies import search

        with terminal.stdout_for_data():
            result = search.run(recipe, overrides or [], tune, trials)
        told = f"{result['table']}\nbest: {result['settings']}\nrun: {result['run']}"
        terminal.show(result if as_json else told, as_json)
        return
    if sweep:
        from llmrec.studies import sweep as sweep_stage

        with terminal.stdout_for_data():
            result = sweep_stage.run(recipe, overrides or [], *sweep)
        terminal.show(result if as_json else f"{result['tables']}\n{result['page']}", as_json)
        if result["failed"]:
            raise typer.Exit(1)
        return
    settings, folder = opened(recipe, overrides, "train")
    from llmrec.stages import pipeline, preview, prompts

    with terminal.stdout_for_data():
        if dry_run:
            result = preview.run(settings, folder)
        else:
            result = pipeline.train(settings, folder, only)
    if not dry_run:
        folder.keep(settings)
    elif "prompt" in result and not as_json:
        painted = prompts.painted(result.pop("prompt"), terminal.takes_colour())
        terminal.show(painted + "\n", as_json)
    terminal.show(result, as_json)


@app.command()
def distill(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """The fine-tuned model's answers to its training prompts, for SOFT; goes on by batch."""
    settings, folder = opened(recipe, overrides, "distill")
    from llmrec.stages import distill as stage

    with terminal.stdout_for_data():
        result = stage.run(settings, folder)
    folder.keep(settings)
    terminal.show(result, as_json)


@app.command()
def retrieve(
    recipe: RecipeName,
    overrides: Overrides = None,
    vectors: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Compare these item vectors too: factors, states, sentences."),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Search weights of the measures.")] = False,
    as_json: Json = False,
) -> None:
    """Similar users for the prompts, and how often they chose next what is asked."""
    settings, folder = opened(recipe, overrides, "retrieve")
    from llmrec.stages import retrieve as stage

    with terminal.stdout_for_data():
        result = terminal.by_main(lambda: stage.run(settings, folder, vectors, fit))
    folder.keep(settings)
    terminal.show(result if as_json else stage.table(result), as_json)


@check_app.command()
def leakage(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Prove that nothing later than what was asked reached a prompt of a run; exit 1 if it did."""
    from llmrec.runs.folder import open_run
    from llmrec.stages import leakage as stage

    settings, folder = open_run(recipe, overrides or [])
    result = terminal.by_main(lambda: stage.run(settings, folder))
    terminal.show(result, as_json)
    if result["violations"]:
        raise typer.Exit(1)


@app.command()
def run(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Prepare, train, recommend, evaluate and report; skips what is done."""
    from llmrec.stages import pipeline

    settings, folder = opened(recipe, overrides, "run")
    with terminal.stdout_for_data():
        result = pipeline.run(settings, folder)
    terminal.show(result if as_json else pipeline.told(result), as_json)


@app.command()
def study(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="File, or a shipped study's name.")],
    overrides: Overrides = None,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="CELL", help="These cells, arms or seeds (s0) alone; may be repeated."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE.md", help="Write the page's Markdown here."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Processes that share it.")
    ] = 1,
    no_page: Annotated[
        bool, typer.Option("--no-page", help="Run cells only, beside another that writes the page.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what stands; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Arms and seeds over one recipe, resumed cell by cell, and one page of what they found.

    Overrides are for the recipes of all cells; study.KEY=VALUE changes the study.
    """
    from llmrec.studies import study as stage
    from llmrec.studies.cells import planned

    if dry_run:
        terminal.show(stage.described(planned(study, overrides or [])), as_json)
        return
    with terminal.stdout_for_data():
        result = stage.run(study, overrides or [], only or [], out, jobs, not no_page)
    if not no_page:
        terminal.show(result if as_json else f"{result['tables']}\n{result['page']}", as_json)
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    strategy: Annotated[
        Literal["ddp", "zero2", "zero3", "fsdp2"], typer.Option(help="As the accelerate files.")
    ] = "ddp",
    memory: Annotated[float, typer.Option(min=0.1, help="GiB of a GPU.")] = 80.0,
    tflops: Annotated[float, typer.Option(min=0.001, help="Of a GPU at its best.")] = 989,
    utilisation: Annotated[
        float, typer.Option(min=0.001, max=1, help="The share of these that is reached.")
    ] = 0.25,
    users: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Whom to recommend to; else the test split."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 2 where it does not fit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Memory, time, tokens and disk that a recipe needs, with the arithmetic; runs nothing."""
    settings, folder = opened(recipe, overrides, None)
    from llmrec.stages import plan as stage

    with terminal.stdout_for_data():
        result = stage.run(
            settings, folder, gpus, nodes, strategy, memory, tflops, utilisation, users
        )
        if check:
            stage.require_fits(result)
    terminal.show(result, as_json)


@app.command()
def env(as_json: Json = False) -> None:
    """Versions and hardware, for a bug report."""
    from llmrec.stages import environment

    terminal.show(environment.run(), as_json)
