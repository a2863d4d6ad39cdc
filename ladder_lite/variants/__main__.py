"""`python -m ladder_lite.variants`. See `ladder_lite.variants`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ladder_lite.config import load_recipe
from ladder_lite.doctor.checks import open_backend
from ladder_lite.errors import UserError, run
from ladder_lite.evaluate import Sampler
from ladder_lite.evaluate.scores import pass_rates
from ladder_lite.tasks import load_task
from ladder_lite.terminal import Live
from ladder_lite.variants import Writer, grow, summarize_tree, transformations
from ladder_lite.variants.tree_view import draw_tree

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(context_settings={"ignore_unknown_options": True})  # a problem may begin with a minus
def main(
    problem: Annotated[str, typer.Argument(help='A problem of the task, such as the integral of "x**2*exp(x)".')],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="Recipe whose model writes the variants.")] = "tiny",
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Approximate number of variants.")] = 24,
    tries: Annotated[int, typer.Option(min=0, metavar="N", help="Answers to each variant, for its pass rate.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the tree's files.")] = None,
) -> None:
    """Grow the variant tree of one problem and print it, with the number of rejected variants by reason."""
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: not an empty folder; name a new one")
    # Not adaptive: nothing is trained here, so the whole tree is grown at once.
    settings = load_recipe(recipe, ["variants.adaptive=null", f"variants.per_root={n}", *(overrides or ())])
    task = load_task(settings.task)
    root = task.read(problem)
    with Live() as live, TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        backend = open_backend(settings, None, live)
        if settings.variants.transformations == "model":
            with live.progress("transformations", None):
                transformations.write(task, backend, settings.variants, folder, settings.seed)
        library = transformations.open_library(task, settings.variants, folder)
        # The same held-out sets as in a run, so that what is shown here is what a run would keep.
        writer = Writer(task, backend, settings.variants, library, task.held_out(), settings.seed)
        with live.progress("variants", n) as bar:
            tree = grow(writer, [root], folder, bar)
        rates: dict[str, float] = {}
        if tries:
            with live.progress("answers", None):
                rates = pass_rates(Sampler(task, backend, settings.eval, settings.seed).sample([root, *tree], tries))
        live.print(draw_tree(live, task.statement, [root, *tree], rates))
        counts = summarize_tree(folder)
    # Tokens are what variants cost, so this is the number to compare models and settings by.
    per_1000 = 1000 * counts["kept"] / max(1, counts["tokens"])
    reasons = ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in sorted(counts["reasons"].items()))
    live.say(f"kept {counts['kept']} ({per_1000:.1f} per 1,000 generated tokens); rejected: {reasons or 'none'}")


if __name__ == "__main__":
    run(app)
