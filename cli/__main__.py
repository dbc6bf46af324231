"""The entry point: a dictionary of commands, and errors for people."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from siamdetr.cli.attention import attention
from siamdetr.cli.benchmark import benchmark
from siamdetr.cli.convert import convert
from siamdetr.cli.demo import demo
from siamdetr.cli.doctor import doctor
from siamdetr.cli.export import export
from siamdetr.cli.finetune import finetune
from siamdetr.cli.gate import gate
from siamdetr.cli.info import info
from siamdetr.cli.label import label
from siamdetr.cli.predict import predict
from siamdetr.cli.presets import presets
from siamdetr.cli.proposals import proposals
from siamdetr.cli.quickstart.command import quickstart
from siamdetr.cli.serve import serve
from siamdetr.cli.split import split
from siamdetr.cli.study import study
from siamdetr.cli.train import train
from siamdetr.cli.usage.rules import RULES
from siamdetr.cli.usage.unused_options import refusing_unused
from siamdetr.cli.val import val

COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "doctor": doctor,
    "split": split,
    "proposals": proposals,
    "train": train,
    "pretrain": train,
    "finetune": finetune,
    "study": study,
    "val": val,
    "predict": predict,
    "label": label,
    "demo": demo,
    "attention": attention,
    "export": export,
    "gate": gate,
    "serve": serve,
    "benchmark": benchmark,
    "convert": convert,
    "info": info,
    "presets": presets,
}

app = typer.Typer(
    help="Pretrain DETR detectors on images without labels, finetune them on few, export them with a check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, command in COMMANDS.items():
    app.command(name, hidden=name == "pretrain")(refusing_unused(command, RULES.get(name, ())))


def main() -> None:
    """Run a command. An error of the input or of the machine is one message, without a traceback.

    Exit codes: 0 done, 1 an error with a message, 2 wrong usage, 130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    from siamdetr.cli.console import console, log_to_console
    from siamdetr.errors import LoadingError, NonFiniteLossError
    from siamdetr.system.extras import missing_package
    from siamdetr.system.threads import limit_numeric_libraries

    log_to_console()
    limit_numeric_libraries()
    try:
        app()
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        console.print("[bold red]error[/] ", end="")
        console.print(str(missing), markup=False, soft_wrap=True)
        sys.exit(1)
    except (ValueError, OSError, NonFiniteLossError, LoadingError) as error:
        console.print("[bold red]error[/] ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
