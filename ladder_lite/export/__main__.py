"""`python -m ladder_lite.export`: export the model of a run. See `ladder_lite.export`."""

from pathlib import Path
from typing import Annotated

import typer

from ladder_lite.errors import UserError
from ladder_lite.errors import run as run_app
from ladder_lite.export import Format, Quantization, export, push


def _check_push(repo: str) -> None:
    """Raise UserError if the repository's name is invalid or there is no token, before the export takes minutes."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public by its documentation

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: not a valid repository name; write it as you/some-name") from error
    if get_token() is None:
        raise UserError(f"--push {repo}: no Hugging Face token; log in with `hf auth login`, or set HF_TOKEN")


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/llama3b-s0.")],
    format_: Annotated[Format, typer.Option("--format", help="What to write.")],
    condition: Annotated[str, typer.Option(help="The condition whose adapter to export.")] = "ladder",
    out: Annotated[Path | None, typer.Option(help="A new folder.  [default: RUN/export/CONDITION-FORMAT]")] = None,
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="REPO", help="Upload it to the hub, private if REPO is new.")
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(metavar="NAME", help="Of GGUF files, such as q8_0.  [default: q4_k_m]")
    ] = None,
) -> None:
    """Export what a run made: the adapter, the merged model, GGUF files, or the variants as a data set."""
    if quantization is not None and format_ != "gguf":
        raise UserError(f"--quantization {quantization}: only GGUF files are quantized; add --format gguf")
    folder = out or run / "export" / f"{condition}-{format_}"
    if push_to is not None:
        _check_push(push_to)
    for line in export(run, format_, condition, folder, quantization or "q4_k_m"):
        print(line)
    print(f"written: {folder}")
    if push_to is not None:
        print(f"pushed: {push(folder, push_to, 'dataset' if format_ == 'variants' else 'model')}")


if __name__ == "__main__":
    run_app(app)
