"""The `mmreason` command. It imports nothing of the training stack, so `mmreason --help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmreason import __version__
from mmreason.cli._parser import CommandParser
from mmreason.cli.report import add_arguments
from mmreason.types import MMReasonError

EPILOG = """\
Training starts from the recipes, which are scripts:
  accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/grpo_math.py --help
"""


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="mmreason",
        description="Training multimodal reasoning models on the Hugging Face stack.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmreason {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("env", help="versions, machine, and the sampling engines that can be used here")
    build = commands.add_parser(
        "build", help="run a data builder; without a name, list them", add_help=False, prefix_chars="\0"
    )
    build.add_argument("name", nargs="?", help="the builder, for example arithmetic")
    build.add_argument("arguments", nargs="*", help="passed on to the builder; try --help")
    ask = commands.add_parser(
        "ask",
        help="ask an OpenAI-compatible server a file of prompts, each once",
        add_help=False,
        prefix_chars="\0",
    )
    ask.add_argument("arguments", nargs="*", help="PROMPTS.jsonl and options; try --help")
    compose = commands.add_parser(
        "compose",
        help="a checkpoint of a vision encoder, a projector and a decoder",
        add_help=False,
        prefix_chars="\0",
    )
    compose.add_argument("arguments", nargs="*", help="--out FOLDER and the parts; try --help")
    student = commands.add_parser(
        "student",
        help="a smaller checkpoint out of a larger one: fewer layers, narrower ones, or from scratch",
        add_help=False,
        prefix_chars="\0",
    )
    student.add_argument("arguments", nargs="*", help="--from TEACHER --out FOLDER and sizes; try --help")
    canary = commands.add_parser(
        "canary",
        help="do images reach a model, in training and in rollouts, and does it use them?",
        add_help=False,
        prefix_chars="\0",
    )
    canary.add_argument("arguments", nargs="*", help="--model M --dataset D and options; try --help")
    show = commands.add_parser(
        "show", help="a row of a dataset as the model sees it, token by token", add_help=False, prefix_chars="\0"
    )
    show.add_argument("arguments", nargs="*", help="DATASET, --model M and options; try --help")
    doctor = commands.add_parser(
        "doctor",
        help="every fault of a dataset, by row, and what it costs to train on",
        add_help=False,
        prefix_chars="\0",
    )
    doctor.add_argument("arguments", nargs="*", help="DATASET, --model M and options; try --help")
    adapters = commands.add_parser(
        "adapters", help="list, combine, merge, extract and switch saved adapters", add_help=False, prefix_chars="\0"
    )
    adapters.add_argument("arguments", nargs="*", help="ACTION and its arguments; try --help")
    add_arguments(commands.add_parser("report", help="one HTML file about a run, or about several next to each other"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Args:
        argv: arguments without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit status: 0, 2 with a one-line error on stderr for what the user can put right, or what the command
        documents.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.command == "env":
            from mmreason.cli.env import describe_environment

            print(describe_environment())
        elif args.command == "build":
            from mmreason.cli.build import run_builder

            return run_builder(args.name, args.arguments)
        elif args.command == "ask":
            from mmreason.cli.ask import run_ask

            return run_ask(args.arguments)
        elif args.command == "compose":
            from mmreason.cli.compose import run_compose

            return run_compose(args.arguments)
        elif args.command == "student":
            from mmreason.cli.student import run_student

            return run_student(args.arguments)
        elif args.command == "canary":
            from mmreason.cli.canary import run_canary

            return run_canary(args.arguments)
        elif args.command == "show":
            from mmreason.cli.show import run_show

            return run_show(args.arguments)
        elif args.command == "doctor":
            from mmreason.cli.doctor import run_doctor

            return run_doctor(args.arguments)
        elif args.command == "adapters":
            from mmreason.cli.adapters import run_adapters

            return run_adapters(args.arguments)
        elif args.command == "report":
            from mmreason.cli.report import run_report

            return run_report(args.runs, args.out, args.watch, args.open)
        else:
            parser.print_help()
    except MMReasonError as error:
        from mmreason.report.tokens import printable

        print(f"mmreason: error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
