"""`mmreason student --from TEACHER --out FOLDER …`: a smaller checkpoint made out of a larger one, to be trained on."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmreason._files import nearest_path, whole_folder
from mmreason.config import parse_config
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from mmreason.models.student import Kept
    from mmreason.models.student_importance import Importance
    from mmreason.models.student_rank import Truncated
    from mmreason.models.student_sizes import Sizes
    from mmreason.trainers.arguments import ModelArguments

NOTE = "student.json"
"""Beside a student's weights: what it was made from, how, and by which numbers."""
COLUMNS = ("prompt", "completion", "text", "images", "tools", "id", "source")
WIDTHS = ("hidden_size", "intermediate_size", "heads", "kv_heads")

DESCRIPTION = """\
mmreason student --from TEACHER --out FOLDER: fewer layers, narrower layers, low rank, or the same architecture from
scratch. The student is an ordinary checkpoint; it computes worse than its teacher until it is trained."""


def _help(text: str, group: str = "Student") -> dict[str, str]:
    return {"help": text, "group": group}


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What `mmreason student` is told."""

    teacher: str = field(metadata=_help("Folder or hub id of a decoder or composed model; --from says the same."))
    out: Path = field(metadata=_help("Folder for the student."))
    overwrite: bool = field(default=False, metadata=_help("Replace an earlier student in that folder."))
    layers: int | list[int] | None = field(
        default=None, metadata=_help("How many layers, or which ones, from 0: --layers 0 2 5. None: all.")
    )
    layer_selection: Literal["uniform", "first", "last", "importance"] = field(
        default="uniform",
        metadata=_help("Which ones, where a number is given: evenly spread, first, last, or by block influence."),
    )
    hidden_size: int | None = field(default=None, metadata=_help("Channels of the residual stream. None: all."))
    intermediate_size: int | None = field(default=None, metadata=_help("Neurons of each MLP. None: all."))
    heads: int | None = field(default=None, metadata=_help("Query heads of each layer. None: all of each kv head."))
    kv_heads: int | None = field(default=None, metadata=_help("Key-value heads of each layer. None: all."))
    rank: int | None = field(
        default=None, metadata=_help("Rank of each linear layer's weight. The file doesn't get smaller by it.")
    )
    rank_share: float | None = field(
        default=None, metadata=_help("The same as a share of the rank that each weight can have, between 0 and 1.")
    )
    from_scratch: bool = field(default=False, metadata=_help("Random weights in place of the teacher's."))
    seed: int = field(default=0, metadata=_help("Of random weights, and of the word problems."))
    revision: str = field(default="main", metadata=_help("Branch, tag or commit of the teacher on the hub.", "Model"))
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata=_help("In which it computes and writes; auto: the teacher's.", "Model")
    )
    use_cpu: bool = field(default=False, metadata=_help("Stay on the CPU where there is a GPU.", "Model"))
    dataset: str | None = field(
        default=None,
        metadata=_help(
            "Hub id, file or folder: what importance and loss are measured on. None: word problems.", "Rows"
        ),
    )
    split: str = field(default="train", metadata=_help("Split; slices such as train[1000:] work.", "Rows"))
    samples: int = field(default=128, metadata=_help("The split's first rows that are used, at most.", "Rows"))
    max_length: int = field(
        default=1024, metadata=_help("Tokens of a row; longer answers are left out, documents are cut.", "Rows")
    )
    batch_size: int = field(default=8, metadata=_help("Rows of a forward pass.", "Rows"))
    dataset_format: str = field(default="auto", metadata=_help("A format's name, or auto: by the columns.", "Rows"))
    column_map: dict[str, str] | None = field(
        default=None, metadata=_help("Our column -> the dataset's, e.g. {prompt: question, images: image}.", "Rows")
    )
    prompt_template: str | None = field(
        default="none", metadata=_help("A named template (none, boxed …) or a text with {question}.", "Rows")
    )
    completion_template: str | None = field(
        default=None,
        metadata=_help(
            "How reasoning and answer become one text: boxed, gsm8k, think … None: apart where the chat template "
            "knows reasoning_content, else plain.",
            "Rows",
        ),
    )
    system_prompt: str | None = field(default=None, metadata=_help("System message before each prompt.", "Rows"))
    chat: bool | None = field(
        default=None, metadata=_help("Use the chat template. None: where the teacher has one.", "Rows")
    )
    on_bad_row: Literal["error", "drop"] = field(
        default="error", metadata=_help("What to do with a row that can't be used.", "Rows")
    )
    image_root: str | None = field(
        default=None, metadata=_help("Folder from which relative image paths start. None: the dataset's.", "Rows")
    )
    image_urls: bool = field(default=False, metadata=_help("Fetch images given as http(s) URLs.", "Rows"))

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_length < 2:
            raise ConfigError(f"max_length={self.max_length} must be at least 2: a token is predicted from another")
        if self.layer_selection != "uniform" and not isinstance(self.layers, int):
            why = "says itself which ones" if self.layers else "is not given"
            raise ConfigError(f"layer_selection={self.layer_selection} chooses so many layers: layers {why}")
        if self.rank is not None and self.rank_share is not None:
            raise ConfigError("rank and rank_share say the same: give one of them")
        if self.from_scratch:
            self._check_from_scratch()
        elif all(getattr(self, name) is None for name in ("layers", *WIDTHS, "rank", "rank_share")):
            raise ConfigError(f"the student would be its teacher: give --layers, --{', --'.join(WIDTHS)} or --rank")

    def _check_from_scratch(self) -> None:
        """Raises: ConfigError: an option that speaks of the teacher's weights, or of rows, which aren't read then."""
        given = [name for name in ("rank", "rank_share", "dataset") if getattr(self, name) is not None]
        given += ["layer_selection"] * (self.layer_selection != "uniform")
        if given:
            raise ConfigError(f"from_scratch takes no weights of the teacher's: leave out {' and '.join(given)}")
        if isinstance(self.layers, list):
            raise ConfigError(f"layers={self.layers} with from_scratch: give the number of layers, {len(self.layers)}")

    def model_arguments(self) -> ModelArguments:
        from mmreason.trainers.arguments import ModelArguments

        return ModelArguments(model_name_or_path=self.teacher, model_revision=self.revision, dtype=self.dtype)


def parse_arguments(arguments: Sequence[str]) -> StudentConfig:
    """The command line as settings. Raises: ConfigError; SystemExit after --help."""
    # A field of a dataclass can't be called `from`.
    words = ["--teacher" + word[6:] if word.partition("=")[0] == "--from" else word for word in arguments]
    if words and not any(word.startswith(("--teacher", "--config", "--help", "-h")) for word in words):
        raise ConfigError("no teacher: give --from, a folder or hub id")
    return parse_config(StudentConfig, words or ["--help"], "mmreason student", DESCRIPTION)


@dataclass
class Made:
    """A student on its way: the model, and what `student.json` and the table say of it. Losses in nats a token."""

    model: Any
    sizes: tuple[Sizes, Sizes]
    parameters: tuple[int, int]
    kept: Kept | None = None
    importance: Importance | None = None
    losses: tuple[float, float] | None = None
    truncated: Mapping[str, Truncated] = field(default_factory=dict)
    rows: Mapping[str, Any] | None = None


def run_student(arguments: Sequence[str]) -> int:
    """The command; returns 0.

    Raises:
        MMReasonError: what the user can put right; sizes and rows are checked before the teacher's weights are read.
    """
    config = parse_arguments(arguments)
    check_out(config)
    from transformers import AutoConfig

    import mmreason.models  # noqa: F401  (registers our model)
    from mmreason.models.loading import load_processor
    from mmreason.models.student_rank import check_rank
    from mmreason.models.student_sizes import count_parameters, decoder_config, student_config, student_sizes

    check_rank(config.rank, config.rank_share)
    try:
        teacher = AutoConfig.from_pretrained(config.teacher, revision=config.revision)
    except (OSError, ValueError) as error:
        near = nearest_path(Path(config.teacher)) if config.teacher.startswith(("/", ".")) else ""
        raise ConfigError(f"--from {config.teacher} can't be loaded: {str(error).splitlines()[0]}{near}") from error
    text = decoder_config(teacher)
    sizes = student_sizes(text, wanted(config))
    count_parameters(student_config(text, sizes, range(sizes.layers)))  # the architecture's own rules
    processor = load_processor(config.model_arguments())
    check_tokenizer(config, getattr(processor, "tokenizer", processor), int(text.vocab_size))
    made = scratch(config, teacher, sizes) if config.from_scratch else smaller(config, sizes, processor)
    note = describe(config, made)
    check_out(config)  # again: it may have come while this went on
    with whole_folder(config.out, replace=config.overwrite) as folder:
        made.model.save_pretrained(folder)
        processor.save_pretrained(folder)
        note["files"]["student"] = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
        (folder / NOTE).write_text(json.dumps(note, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(config, made, note))
    return 0


def check_out(config: StudentConfig) -> None:
    """Raises: ConfigError: the folder is there, and isn't an earlier student that may be replaced."""
    if not config.out.exists():
        return
    if not (config.out / NOTE).is_file():
        raise ConfigError(f"out={config.out} is there already, and holds no student: name another folder")
    if not config.overwrite:
        raise ConfigError(f"out={config.out} holds a student already: name another folder, or set --overwrite")


def check_tokenizer(config: StudentConfig, tokenizer: Any, rows: int) -> None:
    """Raises: ConfigError: a tokenizer without its files, or with more tokens than the embedding has rows."""
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):  # what a class is without its files
        raise ConfigError(f"--from {config.teacher} comes without a tokenizer's vocabulary")
    if len(tokenizer) > rows:
        raise ConfigError(
            f"--from {config.teacher}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows: they "
            "don't belong together"
        )


def wanted(config: StudentConfig) -> Any:
    """The sizes that are asked for, as `mmreason.models.student` takes them."""
    from mmreason.models.student_sizes import Wanted

    return Wanted(layers=config.layers, **{name: getattr(config, name) for name in WIDTHS})


# --------------------------------------------------------------------------------------------------------------------
# Making


def scratch(config: StudentConfig, teacher: Any, sizes: Sizes) -> Made:
    """Random weights. Of a decoder the teacher's aren't even read; a composed model's tower is."""
    import torch

    from mmreason.models.loading import load_policy_model
    from mmreason.models.student import from_scratch
    from mmreason.models.student_sizes import count_parameters, decoder_config, is_composed, sizes_of

    text = decoder_config(teacher)
    model = load_policy_model(config.model_arguments()) if is_composed(teacher) else None
    before = count_parameters(text) if model is None else parameters(model)
    dtype = getattr(text, "dtype", None) if config.dtype == "auto" else getattr(torch, config.dtype)
    student = from_scratch(teacher, sizes, seed=config.seed, dtype=dtype or torch.float32, teacher=model)
    if model is None:
        student.generation_config = generation_settings(config) or student.generation_config
    return Made(student, (sizes_of(text), sizes), (before, parameters(student)))


def generation_settings(config: StudentConfig) -> Any:
    """The teacher's, where it has some."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(config.teacher, revision=config.revision)
    except OSError:
        return None


def smaller(config: StudentConfig, sizes: Sizes, processor: Any) -> Made:
    """The teacher's most important parts."""
    import torch

    from mmreason.models.loading import load_policy_model
    from mmreason.models.student import prune
    from mmreason.models.student_importance import choose, measure_importance, measure_loss
    from mmreason.models.student_rank import truncate
    from mmreason.models.student_sizes import decoder_config, sizes_of

    rows = Rows(config, processor)
    gpu = not config.use_cpu and torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if gpu else torch.device("cpu")
    model = load_policy_model(config.model_arguments()).to(device).eval()
    text = decoder_config(model.config)
    before, found = parameters(model), measure_importance(model, rows)
    kept = choose(found, text, wanted(config), sizes, config.layer_selection)
    student = prune(model, kept)
    del model  # its memory is the student's now
    student.to(device)
    cut = config.rank is not None or config.rank_share is not None
    truncated = truncate(student, rows, rank=config.rank, share=config.rank_share) if cut else {}
    losses = (found.loss, measure_loss(student, rows))
    counted = (before, parameters(student))
    facts = rows.facts | {"tokens": found.tokens}
    return Made(student.cpu(), (sizes_of(text), sizes), counted, kept, found, losses, truncated, facts)


def parameters(model: Any) -> int:
    """Tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


class Rows:
    """The calibration rows, tokenized and checked; each pass gives them as batches.

    Of a prompt with its answer the answer is predicted, of a document each token.
    Attributes: facts: where they come from, and how many.
    Raises: MMReasonError: no row that can be used.
    """

    def __init__(self, config: StudentConfig, processor: Any) -> None:
        from mmreason.data import load_examples
        from mmreason.data.supervised import prepare_supervised

        tokenizer = getattr(processor, "tokenizer", processor)
        template = str(tokenizer.chat_template or "")
        chat = bool(template) if config.chat is None else config.chat
        plain = None if not chat or "reasoning_content" in template else "plain"
        source = config.dataset or word_problems(config)
        loaded = load_examples(
            source,
            split=config.split,
            format=config.dataset_format,
            column_map=config.column_map,
            system_prompt=config.system_prompt,
            prompt_template=config.prompt_template,
            completion_template=config.completion_template or plain,
            chat=chat,
            on_bad_row=config.on_bad_row,
            max_rows=config.samples,
            columns=COLUMNS,
            require_answer=False,
            image_root=config.image_root,
            image_urls=config.image_urls,
        )
        say(loaded.summary())
        self._pad, self._size = int(tokenizer.pad_token_id), config.batch_size
        self._rows: Any
        dropped: dict[str, int] = {}
        if loaded.dataset[0]["text"]:
            self._rows = documents(loaded.dataset, tokenizer, config)
        else:
            self._rows, dropped = prepare_supervised(
                loaded.dataset,
                processor,
                max_length=config.max_length,
                truncation="drop",
                on_bad_row=config.on_bad_row,
            )
        if dropped:
            say(f"dropped: {', '.join(f'{count} {reason}' for reason, count in sorted(dropped.items()))}")
        self.facts = {"source": config.dataset or "word problems", "split": config.split, "rows": len(self._rows)}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        from mmreason.data.collate import collate_rows

        for start in range(0, len(self._rows), self._size):
            stop = min(start + self._size, len(self._rows))
            batch = collate_rows([self._rows[i] for i in range(start, stop)], self._pad)
            yield {name: value for name, value in batch.items() if name not in ("loss_weights", "row_numbers")}


def word_problems(config: StudentConfig) -> str:
    """The folder of as many generated problems as are asked for."""
    from mmreason.cli.build import FOLDER, find_root

    say("No dataset was named: using word problems generated by data_builders/word_problems.py.")
    root = str(find_root())
    if root not in sys.path:  # an installed wheel has no top-level `data_builders`
        sys.path.append(root)
    module = importlib.import_module(f"{FOLDER}.word_problems")
    return str(module.cached(n=config.samples, n_test=0, n_unseen=0, seed=config.seed, say=say))


def documents(dataset: Any, tokenizer: Any, config: StudentConfig) -> list[Any]:
    """The first tokens of each text. Raises: DataError where no text has two."""
    from mmreason.data.supervised import SupervisedRow

    rows = []
    for example in dataset:
        ids = tokenizer(example["text"] or "", verbose=False)["input_ids"][: config.max_length]
        if len(ids) > 1:
            rows.append(SupervisedRow(ids, [1.0] * len(ids), example["id"], example["source"] or ""))
    if not rows:
        raise DataError(f"{config.dataset}: no text has two tokens", path=config.dataset, reason="empty")
    if len(rows) < len(dataset):
        say(f"dropped: {len(dataset) - len(rows)} of fewer than two tokens")
    return rows


# --------------------------------------------------------------------------------------------------------------------
# Telling


def describe(config: StudentConfig, made: Made) -> dict[str, Any]:
    """What `student.json` holds; the student's own files are added once they are written."""
    from mmreason.models.student_sizes import decoder_config, serving_note

    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    files = teacher_files(config)
    note: dict[str, Any] = {
        "settings": settings,
        "teacher": {"name": config.teacher, "sha256": {file.name: sha256(file) for file in files}},
        "files": {"teacher": {file.name: file.stat().st_size for file in files if file.suffix == ".safetensors"}},
        "parameters": dict(zip(("teacher", "student"), made.parameters, strict=True)),
        "sizes": {name: asdict(sizes) for name, sizes in zip(("teacher", "student"), made.sizes, strict=True)},
        "serving_note": serving_note(decoder_config(made.model.config)),
    }
    if made.kept is not None and made.importance is not None and made.losses is not None:
        found = made.importance
        note["calibration"] = made.rows
        note["loss"] = dict(zip(("teacher", "student"), made.losses, strict=True))
        note["kept"] = {name: plain(value) for name, value in vars(made.kept).items()}
        names = ("layers", "neurons", "heads", "channels")
        note["importance"] = {name: plain(getattr(found, name)) for name in names}
        note["truncated"] = {name: asdict(each) for name, each in made.truncated.items()}
    return note


def plain(value: Any) -> Any:
    """Tensors as lists, floats to six digits, for JSON."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


def teacher_files(config: StudentConfig) -> list[Path]:
    """The teacher's configuration and the weight files beside it, in the folder or the hub's cache."""
    from transformers.utils import cached_file

    path = Path(cached_file(config.teacher, "config.json", revision=config.revision))
    return [path, *sorted(path.parent.glob("*.safetensors"))]


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def table(config: StudentConfig, made: Made, note: Mapping[str, Any]) -> str:
    """Before and after, for the terminal."""
    size = [f"{sum(note['files'][who].values()) / 2**20:,.2f} MiB" for who in ("teacher", "student")]
    lines = [("parameters", *(f"{count:,}" for count in made.parameters)), ("weight files", *size)]
    for name in asdict(made.sizes[0]):
        lines.append((name, *(f"{getattr(sizes, name):,}" for sizes in made.sizes)))
    if made.losses is not None and made.rows is not None:
        lines += [
            ("loss, nats a token", *(f"{loss:.4f}" for loss in made.losses)),
            ("perplexity", *(f"{math.exp(min(loss, 700)):,.4g}" for loss in made.losses)),
        ]
    width = max(len(cell) for line in lines for cell in line[1:])
    told = [f"{config.out}: a student of {config.teacher}", f"  {'':<20}{'teacher':>{width}}  {'student':>{width}}"]
    told += [f"  {name:<20}{before:>{width}}  {after:>{width}}" for name, before, after in lines]
    if made.rows is not None:
        told.append(
            f"  measured on {made.rows['rows']:,} rows of {made.rows['source']}, {made.rows['tokens']:,} tokens"
        )
    if made.kept is not None and made.importance is not None:
        told += ["  layer  influence"]
        for place, influence in enumerate(made.importance.layers.tolist()):
            told.append(f"  {place:>5}  {influence:>9.4f}  {'kept' if place in made.kept.layers else 'dropped'}")
    if made.truncated:
        told += truncation_lines(list(made.truncated.items()))
    if note["serving_note"]:
        told.append(f"  note: {note['serving_note']}")
    return "\n".join(told)


def truncation_lines(truncated: Sequence[tuple[str, Truncated]]) -> list[str]:
    """What rank did, and what it would save in a model that held factors."""
    name, worst = min(truncated, key=lambda each: each[1].energy)
    mean = sum(each.energy for _, each in truncated) / len(truncated)
    whole, factored = sum(each.whole for _, each in truncated), sum(each.factored for _, each in truncated)
    return [
        f"  rank: {len(truncated)} linear layers; of their outputs' energy {100 * mean:.2f} % stays on average,",
        f"  least in {name} (rank {worst.rank}): {100 * worst.energy:.2f} %",
        f"  as factors they would hold {factored:,} numbers; the file holds their products, {whole:,}",
    ]


def say(text: str) -> None:
    print(text, file=sys.stderr)
