"""The commands `rethinker data ...`: build, check, select, passrate.

Owns their words, help texts and printed tables. What they do is the business of tasks and cluster.passrate, imported when needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_words import ConfigArgument, OverridesArgument, checked, example, refusals
from conf.loading import ConfigError, load_config
from conf.schema import Config

if TYPE_CHECKING:
    from tasks.checking import DataReport, Measure

QUICKSTART_DATA_DIR = Path(".cache/quickstart/data")
TOO_MANY_BAD_EXIT_CODE = 1
_SHOWN_BAD_ROWS = 20
_SHOWN_GROUPS = 30

data_app = typer.Typer(help="Build, check and select the data that a run is trained on.", no_args_is_help=True, rich_markup_mode=None)

DataArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="A data folder or file, in any layout that docs/data.md names.", show_default=False)
]
RecipeOption = Annotated[str, typer.Option("--config", help="Whose data settings select; a YAML file or the name of a shipped one.")]


@data_app.callback()
def _data() -> None:
    """Hold the data commands."""


@data_app.command("build", epilog=example("rethinker data build quickstart", "rethinker data build quickstart --folder /data/quickstart"))
def build_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to build: quickstart.", show_default=False)],
    folder: Annotated[Path, typer.Option(help="Gets the sub-folders train and test.")] = QUICKSTART_DATA_DIR,
    seed: Annotated[int, typer.Option(help="Of the choice of questions and of their order.")] = 1,
) -> None:
    """Write data from what installed packages ship, without a network.

    'quickstart' is easy-VQA's questions about images, arithmetic over handwritten digits, and arithmetic in words, in ViRL39K's layout
    (one Parquet file and images/). 'rethinker train quickstart' does this by itself.
    """
    with refusals():
        if name != "quickstart":
            raise ConfigError(f"There is no data set '{name}' to build, expected quickstart.")
        from tasks.quickstart.data import build_data as build

        try:
            built = build(folder, seed=seed)
        except FileExistsError as error:
            raise ConfigError(f"--folder '{folder}': {error}") from error
        typer.echo(f"{built.train}\n{built.test}")


@data_app.command(
    "check",
    epilog=example(
        "rethinker data check data/virl39k",
        "rethinker data check data/virl39k --config virl39k_13k --model models/qwen2.5-vl-7b --sheet samples.png",
    ),
)
def check_data(
    path: DataArgument,
    overrides: OverridesArgument = None,
    config: RecipeOption = "default",
    model: Annotated[Path | None, typer.Option(help="Its tokenizer measures prompts; without it: characters.", show_default=False)] = None,
    sheet: Annotated[Path | None, typer.Option(help="Where a picture sheet of samples goes (PNG).", show_default=False)] = None,
    samples: Annotated[int, typer.Option(min=1, help="On the sheet.")] = 12,
    all_bad: Annotated[bool, typer.Option("--all-bad", help=f"Print every bad row, not the first {_SHOWN_BAD_ROWS} only.")] = False,
) -> None:
    """Print what is in a data set and what is wrong with it; every picture is decoded.

    The selection of the configuration applies (data.categories, data.images, ...). Exit code 1 when more rows are bad than
    data.max_bad_fraction allows.
    """
    with refusals():
        settings = _with_path(config, overrides, path)
        from tasks.checking import characters
        from tasks.checking import check_data as look

        measure, unit = (_tokens(settings, model), "tokens") if model else (characters, "characters")
        limit = settings.model.max_prompt_tokens if model else None
        report = look(str(path), settings.data, measure=measure, max_length=limit, max_images=settings.model.max_images_per_prompt)
        _print_report(report, unit=unit, all_bad=all_bad)
        if sheet and report.prompts:
            from tasks.sheet import choose_samples, write_sheet

            write_sheet(choose_samples(report.prompts, samples, seed=settings.run.seed), sheet)
            typer.echo(f"picture sheet: {sheet}")
        allowed = settings.data.max_bad_fraction
        if report.bad_fraction > allowed or not report.prompts:
            typer.echo(f"too many bad rows: {report.bad_fraction:.1%} of those selected, over data.max_bad_fraction={allowed}")
            raise typer.Exit(TOO_MANY_BAD_EXIT_CODE)


@data_app.command(
    "select",
    epilog=example(
        "rethinker data select data/rated data/hard data.pass_rate_column=pass_rate data.max_pass_rate=0.9",
        "rethinker data select data/virl39k data/virl39k-11k --config virl39k_11k",
    ),
)
def select_data(
    path: DataArgument,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new folder for the rows that are kept.", show_default=False)],
    overrides: OverridesArgument = None,
    config: RecipeOption = "default",
) -> None:
    """Write the rows that a selection keeps as a data set of its own.

    Bad rows are left out. Columns stay as they are; folders of pictures are linked, not copied.
    """
    with refusals():
        settings = _with_path(config, overrides, path)
        if settings.data.reader:
            raise ConfigError(f"data.reader = {settings.data.reader!r} makes rows that have no files to select from.")
        from tasks.dataset import PromptDataset
        from tasks.rewriting import write_rows

        dataset = PromptDataset(str(path), settings.data)
        images = (image for prompt in dataset for image in prompt.image_paths)
        written = write_rows(path, output, keep=set(dataset.row_numbers), image_paths=images)
        left_out = f"{len(dataset.bad_rows)} bad, {dataset.num_duplicates} repeated"
        typer.echo(f"{written} of {dataset.num_rows} rows written to {output} ({left_out})")


@data_app.command(
    "passrate",
    epilog=example(
        "rethinker data passrate my.yaml data/rated --samples 8",
        "rethinker data select data/rated data/hard data.pass_rate_column=pass_rate data.max_pass_rate=0.9",
    ),
)
def rate_data(
    config: ConfigArgument,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new folder for the data with its rates.", show_default=False)],
    overrides: OverridesArgument = None,
    model: Annotated[Path | None, typer.Option(help="A Hugging Face model folder; without it, model.path.", show_default=False)] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 8,
) -> None:
    """Sample each prompt of data.path several times on the rollout actors and write how often the model solves it.

    The column pass_rate holds the share of right responses; rows that weren't sampled get none. A call that was cut short goes on when
    it is repeated.
    """
    with refusals():
        settings = checked(config, overrides)
        if settings.data.reader:
            raise ConfigError(f"data.reader = {settings.data.reader!r} makes rows that have no files to add a column to.")
        model_path = model or Path(settings.model.path)
        if not (model_path / "config.json").is_file():
            raise ConfigError(f"'{model_path}' is no Hugging Face model folder, there is no config.json in it; name one with --model.")
        from cluster.passrate import passrate

        raise typer.Exit(passrate(settings, model_path, output, samples=samples))


def _with_path(config: str, overrides: list[str] | None, path: Path) -> Config:
    """Settings whose data are the path's."""
    from conf.checks import check

    words = [f"data.path={path}", "data.generate=", "model.path=unused", *(overrides or [])]
    settings = load_config(config, words)
    check(settings, paths=False)
    return settings


def _tokens(settings: Config, model: Path) -> Measure:
    from tasks.families import read_form
    from tasks.prompts import PromptEncoder

    if not model.is_dir():  # a name that isn't a folder would be looked for on the network
        raise ConfigError(f"--model '{model}' is no folder, so there is no tokenizer in it.")
    pixels = {"min_pixels": settings.model.min_pixels, "max_pixels": settings.model.max_pixels}
    try:
        form = read_form(model, **pixels, trust_remote_code=settings.model.trust_remote_code)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--model '{model}': {str(error).strip().splitlines()[0]}") from error
    encoder = PromptEncoder(
        form.tokenizer,
        suffix=settings.data.prompt_suffix,
        max_prompt_tokens=settings.model.max_prompt_tokens,
        image_pad=form.image_pad,
        count_tokens=form.count_tokens,
    )
    return encoder.num_tokens


def _print_report(report: DataReport, *, unit: str, all_bad: bool) -> None:
    usable = len(report.prompts)
    typer.echo(
        f"layout {report.layout}: {report.num_rows} rows, {report.num_selected} selected, {usable} usable, {len(report.bad_rows)} bad"
    )
    if report.num_duplicates:
        typer.echo(f"{report.num_duplicates} repeated questions left out")
    _print_counts("category", report.categories)
    _print_counts("source", report.sources)
    _print_counts("images of a prompt", {str(number): count for number, count in sorted(report.images_per_prompt.items())})
    if report.lengths:
        typer.echo(f"\nlength in {unit}: {_quantiles(report.lengths)}")
    for column, rates in report.pass_rates.items():
        typer.echo(f"\n{column}, all rows: " + ", ".join(f"{name} {count}" for name, count in rates.items()))
    if report.bad_rows:
        typer.echo("\nbad rows")
        shown = report.bad_rows if all_bad else report.bad_rows[:_SHOWN_BAD_ROWS]
        for row in shown:
            typer.echo(f"  {row.row_id}: {row.reason}")
        if len(shown) < len(report.bad_rows):
            typer.echo(f"  ... and {len(report.bad_rows) - len(shown)} more (--all-bad)")


def _print_counts(name: str, counts: Mapping[str, int]) -> None:
    typer.echo(f"\n{name}")
    ordered = counts.items() if name.startswith("images") else sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total = max(sum(counts.values()), 1)
    for key, count in list(ordered)[:_SHOWN_GROUPS]:
        typer.echo(f"  {count:8}  {count / total:6.1%}  {key or '(none)'}")
    if len(counts) > _SHOWN_GROUPS:
        typer.echo(f"  ... and {len(counts) - _SHOWN_GROUPS} more")


def _quantiles(lengths: Sequence[int]) -> str:
    at = {"shortest": 0.0, "median": 0.5, "95 %": 0.95, "99 %": 0.99, "longest": 1.0}
    return ", ".join(f"{name} {lengths[min(int(share * len(lengths)), len(lengths) - 1)]}" for name, share in at.items())
