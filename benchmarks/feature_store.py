"""What does the feature store save an alignment, and what does reading it cost? Against features that lie in memory.

    python benchmarks/feature_store.py

Only the projector of a composed model learns (a random timm ViT-S/16 at 224 pixels before a tiny decoder), from
rendered shapes that lie as PNG files in a dataset. Every epoch starts from the same weights and sees the same batches,
so all ways must give the same losses, bit for bit; a row of benchmarks/results/feature_store.csv for each way:

    no store            PNG → pixels → tower, each time
    first epoch         the same, and what is new is stored
    second epoch        from the store, in the process that filled it
    new process         from the store, with images opened once more to find what they are stored under
    features in memory  the bound: nothing is read at all

The files of the store are in the page cache, as they are for any store that is smaller than memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, Row, provenance, read_rows, save_rows

NO_STORE, FIRST, SECOND, NEW, MEMORY = WAYS = (
    "no store", "first epoch", "second epoch", "new process", "features in memory"
)  # fmt: skip
BOUND = 0.9
"""Speed of the second epoch, relative to features in memory: what is claimed."""


class Epoch(NamedTuple):
    """seconds: of all; inputs: of getting the model's inputs, the tower's work included where that is done before the
    forward. losses: of each step."""

    seconds: float
    inputs: float
    losses: list[float]


class Alignment:
    """A composed model, its rows, and epochs over them in which the projector learns.

    Args: tower: vision settings of `from_parts`. decoder: a key of TINY_SIZES.
    """

    def __init__(self, folder: Path, images: int, batch: int, tower: dict[str, Any], decoder: str, seed: int) -> None:
        import torch

        from data_builders.shapes import generate
        from mmreason.data.schema import RL_COLUMNS, to_dataset
        from mmreason.data.visual import render_visual_prompt
        from mmreason.models.compose import from_parts
        from mmreason.models.tiny import save_tiny

        path = save_tiny(folder / "decoder", decoder, seed=seed)
        self.model, self.processor = from_parts(tower, {"kind": "avg_pool", "factor": 2}, path, seed=seed)
        self.model.requires_grad_(False)
        self.model.projector.requires_grad_(True)
        self.batch, self.images = batch, images
        rows = generate(images, seed, image_size=int(tower.get("image_size", 224)), level=2, tasks=["count"])
        self.dataset = to_dataset(rows, (*RL_COLUMNS, "images"))
        self.prompt_ids = [render_visual_prompt(row["prompt"], row["images"], self.processor).ids for row in rows]
        tokenizer = self.processor.tokenizer
        texts = [_text(row["completion"]) for row in rows]
        self.completions = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.start = {name: value.clone() for name, value in self.model.projector.state_dict().items()}
        self.order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()

    def visuals(self) -> Any:
        """The rows' pictures as a new process has them, none of them kept."""
        from mmreason.data.visual import Visuals

        return Visuals(self.dataset, self.prompt_ids, self.processor, cache_bytes=0)

    def epoch(self, visual: Callable[[int], Any]) -> Epoch:
        """One pass over all rows. Args: visual: row → VisualPrompt."""
        import torch

        self.model.projector.load_state_dict(self.start)
        self.model.train()
        optimizer = torch.optim.AdamW(self.model.projector.parameters(), lr=1e-3)
        losses, inputs = [], 0.0
        started = time.perf_counter()
        for first in range(0, self.images, self.batch):
            picked = self.order[first : first + self.batch]
            asked = time.perf_counter()
            visuals = [visual(row) for row in picked]
            inputs += time.perf_counter() - asked
            loss = self._loss(visuals, [self.completions[row] for row in picked])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return Epoch(time.perf_counter() - started, inputs, losses)

    def _loss(self, visuals: Sequence[Any], completions: Sequence[list[int]]) -> Any:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from mmreason.data.visual import collate_visual
        from mmreason.types import IGNORE_INDEX

        pairs = list(zip(visuals, completions, strict=True))
        ids = pad_sequence([torch.tensor(visual.ids + ids) for visual, ids in pairs], batch_first=True)
        labels = [torch.tensor([IGNORE_INDEX] * len(visual.ids) + ids) for visual, ids in pairs]
        padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        return self.model(input_ids=ids, labels=padded, **collate_visual(visuals, ids.shape[1])).loss


def _text(completion: Any) -> str:
    """What the model learns to say: the steps, then the answer."""
    return f"{completion[0]['reasoning_content']}\n{completion[0]['content']}"


def measure_once(alignment: Alignment, folder: Path) -> tuple[dict[str, Epoch], int]:
    """An epoch of each way, and bytes of the store."""
    from mmreason.models.features import FeatureStore

    done = {NO_STORE: alignment.epoch(alignment.visuals().__getitem__)}
    features = FeatureStore(folder).open(alignment.model, alignment.processor)
    visuals = alignment.visuals()
    visuals.use_features(features, keep_images=False)
    filled = alignment.epoch(visuals.__getitem__)
    started = time.perf_counter()
    features.close()  # what is new is written now at the latest
    done[FIRST] = filled._replace(seconds=filled.seconds + time.perf_counter() - started)
    done[SECOND] = alignment.epoch(visuals.__getitem__)

    again = alignment.visuals()
    again.use_features(FeatureStore(folder).open(alignment.model, alignment.processor), keep_images=False)
    done[NEW] = alignment.epoch(again.__getitem__)

    held = [again[row] for row in range(alignment.images)]
    done[MEMORY] = alignment.epoch(held.__getitem__)
    return done, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(alignment: Alignment, folder: Path, repeats: int) -> list[Row]:
    """A row for each way. Raises RuntimeError where losses differ."""
    from tqdm import tqdm

    epochs: dict[str, list[Epoch]] = {way: [] for way in WAYS}
    wanted: list[float] = []
    for number in tqdm(range(repeats), desc="feature store", leave=False):
        done, size = measure_once(alignment, folder / str(number))
        for way, epoch in done.items():
            wanted = wanted or epoch.losses
            if epoch.losses != wanted:
                raise RuntimeError(f"{way}: losses {epoch.losses} are not those without a store, {wanted}")
            epochs[way].append(epoch)
    # The machine may be shared: the least disturbed repeat.
    best = {way: min(epoch.seconds for epoch in measured) for way, measured in epochs.items()}
    inputs = {way: min(epoch.inputs for epoch in measured) for way, measured in epochs.items()}
    return [
        {
            "way": way,
            "images_per_s": round(alignment.images / best[way], 2),
            "over_memory": round(best[MEMORY] / best[way], 3),
            "over_no_store": round(best[NO_STORE] / best[way], 2),
            "inputs_ms_per_image": round(1000 * inputs[way] / alignment.images, 3),
            "images": alignment.images,
            "kib_per_image": round(size / alignment.images / 1024),
            "repeats": repeats,
            "first_loss": wanted[0],
            "last_loss": wanted[-1],
        }
        for way in WAYS
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Images a second, a bar for each way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_way = {row["way"]: row for row in rows}
    ways = [way for way in WAYS if way in by_way]
    rates = [float(by_way[way]["images_per_s"]) for way in ways]
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    colors = {NO_STORE: "tab:gray", MEMORY: "tab:gray"}
    bars = axes.barh(ways, rates, color=[colors.get(way, "tab:blue") for way in ways])
    labels = [f"{rate:.3g}   ({float(by_way[way]['over_memory']):.0%})" for way, rate in zip(ways, rates, strict=True)]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.axvline(BOUND * float(by_way[MEMORY]["images_per_s"]), color="black", ls="--", lw=1)
    axes.set(xlim=(0, 1.25 * max(rates)), xlabel="images a second (share of features in memory; dashed: 90 %)")
    axes.invert_yaxis()
    axes.set_title("Alignment with a frozen tower", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=48, help="(default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each way the best counts (default %(default)s)")
    parser.add_argument("--tower", default="vit_small_patch16_224", help="a timm model (default %(default)s)")
    parser.add_argument("--decoder", default="s", help="size of the tiny decoder (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    tower = {"source": "timm", "name": arguments.tower, "weights": "random"}
    with tempfile.TemporaryDirectory(prefix="feature_store_") as scratch:
        alignment = Alignment(
            Path(scratch), arguments.images, arguments.batch, tower, arguments.decoder, arguments.seed
        )
        rows = measure(alignment, Path(scratch) / "stores", arguments.repeats)
    for row in rows:
        print(
            f"{row['way']:<20} {row['images_per_s']:>8} images/s   {row['over_memory']:.2f} of features in memory   "
            f"{row['over_no_store']:>6} × no store   inputs {row['inputs_ms_per_image']} ms an image"
        )
    second = next(row for row in rows if row["way"] == SECOND)
    verdict = "as claimed" if second["over_memory"] >= BOUND else "LESS THAN CLAIMED"
    print(
        f"second epoch {second['over_memory']:.2f} of the speed with features in memory, {BOUND} is claimed: {verdict}"
    )
    if not arguments.no_save:
        path = RESULTS / "feature_store.csv"
        under = provenance(arguments.seed, ("torch", "timm", "transformers"))
        setup = {"tower": arguments.tower, "decoder": arguments.decoder, "batch": arguments.batch}
        save_rows(path, [{**row, **setup, **under} for row in rows], ("way", "tower", "decoder"))
        mine = [row for row in read_rows(path) if all(row[name] == str(value) for name, value in setup.items())]
        plot(mine, path.with_suffix(".png"))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
