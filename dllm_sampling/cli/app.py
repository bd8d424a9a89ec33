"""The commands, and how errors are shown."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dllm_sampling import __version__
from dllm_sampling.cli import shared_options, terminal
from dllm_sampling.cli.terminal import OutputError, say, tell, tell_of
from dllm_sampling.errors import ConfigurationError, DllmSamplingError

app = typer.Typer(
    cls=shared_options.Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Decode masked diffusion language models; every choice is a plugin.",
)
config_app = typer.Typer(
    cls=shared_options.Group, no_args_is_help=True, help="Look at and check run configurations."
)
app.add_typer(config_app, name="config")


def main() -> NoReturn:
    """Run the command line: exit code 2 for user errors, no tracebacks for them."""
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
    terminal.guard()
    try:
        code = _run()
        terminal.flush()
    except OutputError as error:
        code = 141 if error.reader_has_gone else 2  # as a program that a closed pipe ends
        if not error.reader_has_gone:
            with contextlib.suppress(OutputError):  # the stream may be the one that tells
                tell_of("error", error)
        # Nothing more can be written, not even what is still in a buffer at the interpreter's end.
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.exit(code)


def _run() -> int:
    """The command's exit code, its errors told."""
    try:
        return app(standalone_mode=False) or 0  # in this mode typer returns the code of an Exit
    except OutputError:
        raise
    except DllmSamplingError as error:
        return _told(error)
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except Exception as error:
        # Usage errors of the parser know how to show themselves.
        show = getattr(error, "show", None)
        if show is None:
            raise
        text = _Kept()
        show(text)
        tell(text.getvalue().rstrip("\n"))
        return int(getattr(error, "exit_code", 2))


def _told(error: DllmSamplingError) -> int:
    tell_of("error", error)
    return 2


class _Kept(io.StringIO):
    """Text of the parser's, which takes escapes out of what does not go to a terminal."""

    def isatty(self) -> bool:
        return True


def _version(wanted: bool) -> None:
    if wanted:
        say(f"dllm-sampling {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    warnings.showwarning = _show_warning
    # Where torchao is installed, importing it tells of GPU libraries that a CPU does not need.
    for noisy in ("torchao", "torch.utils._pytree"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _show_warning(message: Any, category: Any, *rest: Any, **more: Any) -> None:
    tell_of("warning", message)


ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A run as .yaml, .toml or .json; options below override it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as unmasking.threshold=0.8."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; none reads --file or stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="One prompt a line; or .jsonl or .json objects with `prompt`."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A folder or hub id; the bundled model without it.")
    ] = None,
    unmasking: Annotated[str | None, typer.Option("--unmasking", help="Unmasking policy, by name.")] = None,
    cache: Annotated[str | None, typer.Option("--cache", help="Cache policy, by name.")] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="Block schedule, by name.")] = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    gen_length: Annotated[int | None, typer.Option("--gen-length", help="Targets behind a prompt.")] = None,
    block_length: Annotated[
        int | None, typer.Option("--block-length", help="Of the schedule; --set schedule.block_length.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Rows decoded together.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the noise above temperature 0.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="A torch device.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take prompts as they stand, without the chat template.")
    ] = False,
    json_output: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no summary.")] = False,
) -> None:
    """Answer prompts with a chosen cache policy and unmasking policy."""
    from dllm_sampling.cli import run

    given = {
        "model.source": model,
        "model.device": device,
        "model.dtype": dtype,
        "unmasking": unmasking,
        "cache": cache,
        "schedule": schedule,
        "schedule.block_length": block_length,
        "batch_size": batch_size,
        "gen_length": gen_length,
        "seed": seed,
        "chat_template": False if raw else None,
    }
    run_config = run.configure(config, given, settings or [])
    texts = run.read_prompts(prompts or [], file)
    run.generate(run_config, texts, as_json=json_output, quiet=quiet)


@app.command()
def strategies(
    name: Annotated[str | None, typer.Argument(help="Show one, with its parameters.")] = None,
    json_output: JsonOption = False,
    bibtex: Annotated[
        bool,
        typer.Option("--bibtex", help="Print the BibTeX entries of what it builds on; of all without NAME."),
    ] = False,
) -> None:
    """List every policy of every kind: parameters, defaults, owner."""
    from dllm_sampling.cli import listing

    listing.strategies(name, as_json=json_output, bibtex=bibtex)


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="Show one, with its parameters.")] = None,
    json_output: JsonOption = False,
) -> None:
    """List every task a study can run: parameters, defaults, owner."""
    from dllm_sampling.cli import listing

    listing.tasks(name, as_json=json_output)


@app.command()
def frequencies(
    sources: Annotated[list[str], typer.Argument(help="Text files, JSON lines, or installed tasks.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table, a JSON file.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose tokenizer: a folder or a hub id.", show_default="bundled"),
    ] = None,
) -> None:
    """Count how often each token stands in some texts: the table that pc_sampler asks for."""
    from dllm_sampling.cli.frequencies import count

    count(sources, model, output)


@app.command()
def plugins(
    show_all: Annotated[bool, typer.Option("--all", help="Shipped and disabled ones, too.")] = False,
    json_output: JsonOption = False,
) -> None:
    """List installed plugins: version, what they offer, and why one could not be loaded."""
    from dllm_sampling.cli import listing

    listing.plugins(show_all=show_all, as_json=json_output)


@app.command()
def compare(
    study: Annotated[
        str, typer.Argument(help="A study as .yaml, .toml or .json, or the name of a shipped one.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The results folder; by default results/STUDY.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the cells and estimate what each costs; decode a few steps."),
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", help="Only so many examples of each task.")] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="PATTERN", help="Only cells whose sampler or title matches."),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--resume", help="Forget finished cells first, or (default) never run them again."
        ),
    ] = False,
    executor: Annotated[str, typer.Option("--executor", help="local or ray.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Ray: batches in flight; one a GPU or core without it."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="Ray: a running cluster, or auto; starts one without it."),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Every N-th batch, from the I-th, for --merge.")
    ] = "1/1",
    merge: Annotated[
        bool, typer.Option("--merge", help="Put the shards of the folder together; run nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a study and report it: samplers on tasks, against a baseline, with error bars.

    Stopped at any moment, it goes on where it was when the same command is given again.
    """
    from dllm_sampling.cli import compare as comparing

    options = comparing.Options(
        study=study,
        output=output,
        limit=limit,
        only=only,
        fresh=fresh,
        executor=executor,
        workers=workers,
        ray_address=ray_address,
        shard=shard,
        quiet=quiet,
    )
    act = comparing.dry_run if dry_run else comparing.merge if merge else comparing.run
    raise typer.Exit(act(options))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder of `compare`.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; by default there.")] = None,
) -> None:
    """Write the report of a results folder anew, from its records alone."""
    from dllm_sampling.cli import compare as comparing

    comparing.report(folder, output)


@app.command()
def studies() -> None:
    """List the studies that ship, for `compare NAME`."""
    from dllm_sampling.cli import compare as comparing

    comparing.studies()


@app.command()
def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="unmasking-policy, cache-policy, block-schedule, transform, wrapper, observer, model-family "
            "or task.",
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of what it offers, such as my-rule.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder in which the package's own folder is made.")
    ] = Path(),
) -> None:
    """Write a package for a plugin of your own: a module that works, its tests, a study, a README."""
    from dllm_sampling.cli.new import new as write_package

    write_package(kind, name, output)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def harness(context: typer.Context) -> None:
    """Run lm-evaluation-harness with a sampler as its model; what follows is the harness's command line.

    dllm-sampling harness run --tasks gsm8k --model_args config=run.yaml,cache=dual
    """
    from dllm_sampling.integrations.lm_eval_model import main as run_harness

    try:
        run_harness(context.args)
    except (ValueError, OSError) as error:
        if isinstance(error, DllmSamplingError) or not _is_of_harness(error):
            raise
        raise ConfigurationError(f"lm-evaluation-harness: {error}") from None


def _is_of_harness(error: Exception) -> bool:
    """Whether the harness itself raised it: that is how it tells of a misspelt task and the like."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lm_eval.")


@config_app.command("schema")
def config_schema(
    file: Annotated[
        Path | None, typer.Argument(help="A run whose folder of plugins counts as installed.")
    ] = None,
) -> None:
    """Print the JSON Schema of a run, installed plugins included."""
    import json

    from dllm_sampling.config.run_config import RunConfig
    from dllm_sampling.config.schema import json_schema

    if file is not None:  # the rest of it may be unfinished: the schema is there to finish it
        RunConfig.of({key: value for key, value in RunConfig.read_data(file).items() if key == "plugins"})
    say(json.dumps(json_schema(), indent=2))


@config_app.command("show")
def config_show(
    file: Annotated[Path | None, typer.Argument(help="A run; without it, the defaults.")] = None,
    settings: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print a run with every default filled in, as YAML."""
    import json

    import yaml

    from dllm_sampling.cli import run

    data = run.configure(file, {}, settings or []).to_dict()
    say(json.dumps(data, indent=2) if json_output else yaml.safe_dump(data, sort_keys=False).rstrip())


@config_app.command("validate")
def config_validate(files: Annotated[list[Path], typer.Argument(help="Runs to check.")]) -> None:
    """Check run files; exit with 2 at the first that cannot work."""
    from dllm_sampling.cli import run

    for file in files:
        run.configure(file, {}, [])
        say(f"{file}: valid")
