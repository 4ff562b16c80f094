"""Hard distillation with a teacher at hand: it answers the training prompts, and the student learns its answers.

Each process samples for its share of the prompts with a whole copy of the teacher, before the student is loaded. Parts
are kept in `texts/` of the output folder, so that a run which is continued samples only what is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmreason._files import write_whole
from mmreason.answers import verify_many
from mmreason.data.schema import to_dataset
from mmreason.data.visual import Visuals, visuals_of
from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.rollout.hf import HFEngine, lone_process
from mmreason.rollout.types import Request, Sampling
from mmreason.trainers.arguments import DataArguments
from mmreason.trainers.distill_arguments import DistillOptions, TeacherOptions
from mmreason.trainers.distill_teacher import load_teacher_model, teacher_digest
from mmreason.trainers.problems import Say, check_problems
from mmreason.trainers.records import write_rows
from mmreason.trainers.reporting import decode
from mmreason.types import ConfigError

FOLDER = "texts"
"""In a run's output folder: what a teacher wrote."""
PART_PROMPTS = 64
"""Prompts of one file."""
_KEY = "key.json"
_COLUMNS = ("prompt", "completion", "images", "answer", "tools", "id", "source", "meta")


def teacher_texts(args: DistillOptions, data: DataArguments, train: Any, config: Any, say: Say) -> Any:
    """The training rows with the teacher's answers as their completions; without those that are not kept.

    Args: train: rows with prompts. config: TRL's configuration, of which the processes are known.
    Raises: ConfigError: what lies in the folder was sampled otherwise, or nothing is left; DataError for a bad prompt.
    """
    from mmreason.models.loading import load_processor

    (options,) = args.all_teachers()
    if args.mode == "reinforce":
        without = next((row for row, answer in zip(train["id"], train["answer"], strict=True) if answer is None), None)
        if without is not None:
            raise ConfigError(f"mode: reinforce needs an answer in every row; row {without} has none")
    processor = load_processor(options.model_arguments())
    rows, prompt_ids, _ = check_problems(train, {}, processor, data, args.chat_template_kwargs, say)
    folder, state = Path(args.output_dir) / FOLDER, config.distributed_state
    if state.is_main_process:
        _claim(folder, args, options, prompt_ids)
    state.wait_for_everyone()
    parts = [range(i, min(i + PART_PROMPTS, len(prompt_ids))) for i in range(0, len(prompt_ids), PART_PROMPTS)]
    mine = [part for number, part in enumerate(parts) if number % state.num_processes == state.process_index]
    missing = [part for part in mine if not _path(folder, part).is_file()]
    if missing:
        model = load_teacher_model(options)
        if options.quantization is None:  # a quantised one is where it belongs
            model.to(state.device)
        visuals = visuals_of(rows, prompt_ids, processor, args.chat_template_kwargs)
        _sample(args, model, processor, prompt_ids, visuals, missing, folder, state)
        del model
    state.wait_for_everyone()
    return _kept(args, rows, [answer for part in parts for answer in _read(folder, part)], say)


def _claim(folder: Path, args: DistillOptions, teacher: TeacherOptions, prompt_ids: Sequence[Sequence[int]]) -> None:
    """Write down what decides the texts, or hold it against what is there. Raises: ConfigError."""
    import hashlib

    prompts = hashlib.sha256(json.dumps([list(ids) for ids in prompt_ids]).encode()).hexdigest()
    key = {
        "teacher": teacher_digest(teacher),
        "prompts": prompts,
        "samples": args.teacher_samples,
        "temperature": args.teacher_temperature,
        "max_completion_length": args.max_completion_length,
        "seed": args.seed,
    }
    path = folder / _KEY
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in key if before.get(name) != key[name]]
        if changed:
            raise ConfigError(
                f"{folder}: these texts were sampled with another {' and '.join(changed)}; delete the folder, or "
                "choose another --output_dir"
            )
    write_whole(path, json.dumps(key, indent=1))


def _sample(
    args: DistillOptions,
    model: Any,
    processor: Any,
    prompt_ids: Sequence[list[int]],
    visuals: Visuals | None,
    parts: Sequence[range],
    folder: Path,
    state: Any,
) -> None:
    """Have the teacher answer the prompts of these parts, one file after the other."""
    from tqdm.auto import tqdm

    tokenizer = getattr(processor, "tokenizer", processor)
    engine = HFEngine(
        model,
        lone_process(state.device),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_ids=end_token_ids(model, tokenizer),
        banned_token_ids=placeholder_token_ids(model),
        batch_size=args.hf_generation_batch_size,
    )
    sampling = Sampling(max_tokens=args.max_completion_length, temperature=args.teacher_temperature)
    bar = tqdm(parts, desc="teacher's texts", unit="part", disable=not state.is_main_process)
    for part in bar:
        requests = [Request(prompt_ids[i], args.teacher_samples, None if visuals is None else visuals[i]) for i in part]
        groups = engine.generate(requests, sampling, args.seed * 1_000_003 + part.start)
        rows = [
            {"row": i, "text": decode(tokenizer, one.token_ids), "truncated": one.truncated}
            for i, group in zip(part, groups, strict=True)
            for one in group
        ]
        write_rows(_path(folder, part), rows)


def _kept(args: DistillOptions, rows: Any, answers: Sequence[Mapping[str, Any]], say: Say) -> Any:
    """A row for each different answer that is whole and, where that is asked, right."""
    examples = [rows[i] for i in range(len(rows))]
    right: list[bool | None] = [None] * len(answers)
    if args.mode == "reinforce":
        asked = [examples[answer["row"]] for answer in answers]
        metas = [example.get("meta") or {} for example in asked]
        judged = verify_many(
            [answer["text"] for answer in answers],
            [example["answer"] for example in asked],
            [meta.get("kind") for meta in metas],
            [meta.get("choices") for meta in metas],
        )
        right = [judgement.correct for judgement in judged]
    made, dropped, seen = [], Counter[str](), set()
    for answer, is_right in zip(answers, right, strict=True):
        key = (answer["row"], answer["text"])
        reason = "cut off" if answer["truncated"] else "wrong" if is_right is False else "twice" if key in seen else ""
        if reason or not answer["text"].strip():
            dropped[reason or "empty"] += 1
            continue
        seen.add(key)
        example = examples[answer["row"]]
        turn = [{"role": "assistant", "content": answer["text"]}]
        completion = answer["text"] if isinstance(example["prompt"], str) else turn
        made.append(example | {"completion": completion})
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    say(f"{len(made)} of {len(answers)} texts of the teacher are learned from" + (f"; dropped: {told}" if told else ""))
    if not made:
        raise ConfigError(f"none of the teacher's texts can be learned from ({told or 'there are no prompts'})")
    columns = [name for name in _COLUMNS if name in made[0]]
    return to_dataset(made, columns, plain_prompt=isinstance(made[0]["prompt"], str))


def _path(folder: Path, part: range) -> Path:
    return folder / f"{part.start // PART_PROMPTS:06d}.parquet"


def _read(folder: Path, part: range) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(_path(folder, part)).to_pylist()
    return rows
