"""`mmreason adapters list|combine|merge|extract|switch`: what to do with saved adapters."""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmreason._adapters import KINDS, kind_of, read_config
from mmreason._files import nearest_path
from mmreason._functions import did_you_mean
from mmreason.cli._parser import CommandParser
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from mmreason.models.adapter_switch import AdapterSwitch

METHODS = ("linear", "svd", "ties", "dare", "dare_ties")


@dataclass(frozen=True)
class Found:
    """A saved adapter. parameters: numbers in its file, None where it is pickled; size: of the file, in bytes."""

    folder: Path
    kind: str
    rank: str
    targets: str
    base: str
    parameters: int | None
    size: int
    uses: str


def run_adapters(arguments: Sequence[str]) -> int:
    """The command; returns 0. Raises: ConfigError for what can be put right; SystemExit after --help."""
    args = make_parser().parse_args(list(arguments) or ["--help"])
    run: int = args.run(args)
    return run


def make_parser() -> argparse.ArgumentParser:
    """The command's own parser."""
    parser = CommandParser(prog="mmreason adapters", description="Saved adapters: see docs/adapters.md.")
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listed = commands.add_parser("list", help="the adapters in folders and below: kind, rank, targets, base, size")
    listed.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="an adapter's, or a folder above it")
    listed.set_defaults(run=_list)

    combined = commands.add_parser("combine", help="a new LoRA adapter out of several")
    combined.add_argument("adapters", nargs="+", metavar="FOLDER[=WEIGHT]", help="weight 1 where none is given")
    combined.add_argument("--method", choices=METHODS, default="linear", help="see docs/adapters.md (default linear)")
    combined.add_argument(
        "--rank", type=int, help="rank of the new one, but for linear (default: the sum of the ranks)"
    )
    combined.add_argument("--density", type=float, default=0.5, help="share that ties and dare keep (default 0.5)")
    combined.add_argument("--seed", type=int, default=0, help="of what dare drops by chance (default 0)")
    _add_base(combined)
    combined.set_defaults(run=_combine)

    merged = commands.add_parser("merge", help="a whole model with an adapter in its weights")
    merged.add_argument("adapter", metavar="FOLDER", help="a saved adapter")
    _add_base(merged)
    merged.set_defaults(run=_merge)

    extracted = commands.add_parser("extract", help="a LoRA adapter out of a model and its fine-tuned form")
    extracted.add_argument("base", metavar="BASE", help="the model before: folder or hub id")
    extracted.add_argument("tuned", metavar="TUNED", help="the same model, trained: folder or hub id")
    extracted.add_argument("--rank", type=int, default=16, help="of the adapter (default 16)")
    extracted.add_argument(
        "--target_modules", nargs="+", default=["all-linear"], metavar="NAME", help="layers (default: all-linear)"
    )
    extracted.add_argument("--out", type=Path, required=True, help="a new folder")
    extracted.set_defaults(run=_extract)

    switched = commands.add_parser("switch", help="answer prompts, each under the adapter that it names")
    switched.add_argument("prompts", nargs="+", metavar="NAME:PROMPT", help="`base:` for none")
    switched.add_argument(
        "--adapter", action="append", required=True, metavar="NAME=FOLDER", help="may be given several times"
    )
    switched.add_argument("--max_tokens", type=int, default=64, help="of an answer, at most (default 64)")
    _add_base(switched, out=False)
    switched.set_defaults(run=_switch)
    return parser


def _add_base(parser: argparse.ArgumentParser, out: bool = True) -> None:
    parser.add_argument("--base", help="the model, where it is no longer where the adapter was trained")
    parser.add_argument("--any_base", action="store_true", help="take a base of the same class and shapes for the same")
    if out:
        parser.add_argument("--out", type=Path, required=True, help="a new folder")


# --------------------------------------------------------------------------------------------------------------------
# list: reads two small files of each adapter, and no library


def find_adapters(folder: Path) -> list[Found]:
    """Saved adapters in a folder and below. Raises ConfigError where there is none."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else f"no such folder{nearest_path(folder)}"
        raise ConfigError(f"{folder}: {what}")
    found = sorted(file.parent for file in folder.rglob("adapter_config.json"))
    if not found:
        raise ConfigError(f"{folder}: no adapter (adapter_config.json) in it or below")
    return [_describe(each) for each in found]


def _describe(folder: Path) -> Found:
    config = read_config(folder)
    kind = kind_of(config)
    known = KINDS.get(kind)
    uses = [] if known is None else ["vLLM"] * known.serves + ["merge"] * known.merges
    if config.get("modules_to_save"):  # vLLM refuses them
        uses = [use for use in uses if use != "vLLM"]
    targets = config.get("target_modules")
    if isinstance(targets, list):
        targets = sorted({name.rpartition(".")[2] for name in targets})
    ranks = [config[key] for key in ("target_r", "r", "num_virtual_tokens", "oft_block_size") if config.get(key)]
    file = folder / "adapter_model.safetensors"
    return Found(
        folder,
        kind,
        str(ranks[0]) if ranks and kind != "ia3" else "–",
        ", ".join(targets) if isinstance(targets, list) else str(targets or "–"),
        str(config.get("base_model_name_or_path") or "–"),
        _count(file) if file.is_file() else None,
        sum(each.stat().st_size for each in folder.glob("adapter_model.*")),
        ", ".join(uses) or "as it is",
    )


def _count(file: Path) -> int:
    """Numbers in a safetensors file, by its header: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(opened.read(length))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(f"{file} can't be read ({error})") from error


def _list(args: argparse.Namespace) -> int:
    for folder in args.folders:
        for each in find_adapters(folder):
            numbers = "pickled weights, refused" if each.parameters is None else f"{each.parameters:,} numbers"
            print(f"{each.folder}\n  {each.kind}, rank {each.rank}, {numbers}, {each.size / 2**20:.2f} MiB")
            print(f"  on {each.targets}\n  base {each.base}\n  can be used: {each.uses}")
    return 0


# --------------------------------------------------------------------------------------------------------------------
# The rest loads models


def _load(base: str | None, adapter: str | Path) -> tuple[Any, str]:
    """(model, its name): the base that is named, or that of an adapter."""
    from mmreason.models.loading import load_policy_model
    from mmreason.trainers.arguments import ModelArguments

    name = base or read_config(adapter).get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{adapter} doesn't say what model it was trained on: name it with --base")
    return load_policy_model(ModelArguments(model_name_or_path=str(name), dtype="auto")), str(name)


def _processor(name: str) -> Any:
    from mmreason.models.loading import load_processor
    from mmreason.trainers.arguments import ModelArguments

    return load_processor(ModelArguments(model_name_or_path=name))


def _combine(args: argparse.Namespace) -> int:
    from mmreason.models.adapter_ops import check_addable, check_new, combine

    check_new(args.out)
    if not 0 < args.density <= 1:
        raise ConfigError(f"--density {args.density:g} must be above 0 and at most 1")
    if args.rank is not None and args.rank < 1:
        raise ConfigError(f"--rank {args.rank} must be at least 1")
    adapters = [_weighted(text) for text in args.adapters]
    for folder, _ in adapters:
        check_addable(folder)
    model, _ = _load(args.base, adapters[0][0])
    done = combine(
        model,
        adapters,
        args.out,
        method=args.method,
        rank=args.rank,
        density=args.density,
        seed=args.seed,
        any_base=args.any_base,
    )
    share = "" if done.captured is None else f", {100 * done.captured:.2f} % of the wanted change"
    print(f"{args.out}: rank {done.rank}{share}")
    return 0


def _weighted(text: str) -> tuple[str, float]:
    folder, sign, weight = text.rpartition("=")
    if not sign or Path(text).is_dir():  # such as runs/lr=0.1
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{text}: {weight!r} is no weight; write FOLDER=0.5")
    return folder, number


def _merge(args: argparse.Namespace) -> int:
    from mmreason.models.adapter_ops import check_mergeable, check_new, merge

    check_new(args.out)
    check_mergeable(args.adapter)
    model, name = _load(args.base, args.adapter)
    gap = merge(model, args.adapter, _processor(name), args.out, any_base=args.any_base)
    print(f"{args.out}: a whole model; its logits differ by at most {gap:.1e} of the largest from base and adapter")
    return 0


def _extract(args: argparse.Namespace) -> int:
    from mmreason.models.adapter_ops import check_new, extract

    if args.rank < 1:
        raise ConfigError(f"--rank {args.rank} must be at least 1")
    check_new(args.out)
    base, _ = _load(args.base, args.base)
    tuned, _ = _load(args.tuned, args.tuned)
    done = extract(base, tuned, args.out, rank=args.rank, target_modules=args.target_modules)
    print(f"{args.out}: {done.modules} layers, {100 * done.captured:.2f} % of their change")
    print(f"  least: {done.worst[0]}, {100 * done.worst[1]:.2f} %")
    if done.others:
        more = f" and {len(done.others) - 3} more" if len(done.others) > 3 else ""
        print(f"  changed, too, and not in the adapter: {', '.join(done.others[:3])}{more}")
    return 0


def _switch(args: argparse.Namespace) -> int:
    if args.max_tokens < 1:
        raise ConfigError(f"--max_tokens {args.max_tokens} must be at least 1")
    pairs = [text.partition("=") for text in args.adapter]
    for (name, sign, folder), text in zip(pairs, args.adapter, strict=True):
        if not (name and sign and folder):
            raise ConfigError(f"--adapter {text}: write NAME=FOLDER")
        if name == "base" or [other for other, _, _ in pairs].count(name) > 1:
            why = "means the model without an adapter" if name == "base" else "is given twice"
            raise ConfigError(f"--adapter {text}: the name {name!r} {why}; take another one")
    requests = [text.partition(":") for text in args.prompts]
    if odd := [text for text, (_, sign, _) in zip(args.prompts, requests, strict=True) if not sign]:
        raise ConfigError(f"{odd[0]!r}: write NAME:PROMPT, or base:PROMPT for the model without an adapter")
    known = ["base", *(name for name, _, _ in pairs)]
    if unknown := [name for name, _, _ in requests if name not in known]:
        raise ConfigError(f"no adapter {unknown[0]!r}; named: {', '.join(known)}.{did_you_mean(unknown[0], known)}")
    from mmreason.models.adapter_switch import AdapterSwitch

    model, name = _load(args.base, pairs[0][2])
    switch = AdapterSwitch(model, {name: folder for name, _, folder in pairs}, any_base=args.any_base)
    asked = [(None if name == "base" else name, prompt.strip()) for name, _, prompt in requests]
    for (who, _), answer in zip(asked, answers(switch, _processor(name), asked, args.max_tokens), strict=True):
        print(f"{who or 'base'}: {answer}")
    return 0


def answers(
    switch: AdapterSwitch, processor: Any, requests: Sequence[tuple[str | None, str]], max_tokens: int
) -> list[str]:
    """Greedy answers to (adapter, prompt) pairs, all of them at once."""
    tokenizer = getattr(processor, "tokenizer", processor)
    texts = [prompt for _, prompt in requests]
    if tokenizer.chat_template:
        chats = [[{"role": "user", "content": text}] for text in texts]
        texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    inputs = tokenizer(
        texts, padding=True, padding_side="left", add_special_tokens=not tokenizer.chat_template, return_tensors="pt"
    )
    new = switch.generate(
        inputs["input_ids"],
        inputs["attention_mask"],
        [name for name, _ in requests],
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
