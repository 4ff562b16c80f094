"""Stored features of a frozen tower: what the tower itself gives, bit for bit, for this picture and this tower only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmreason.data.images import image_digest
from mmreason.data.schema import RL_COLUMNS, to_dataset
from mmreason.data.visual import Visuals, collate_visual, render_visual_prompt
from mmreason.models.features import FeatureStore, TowerFeatures, weights_digest
from mmreason.types import ConfigError
from tests.models.parts import HF_SIGLIP, OPEN_CLIP_VIT, TIMM_VIT, compose, save_decoder
from tests.pictures import ask, cell, picture

TOWERS: dict[str, Any] = {
    "timm": TIMM_VIT,
    "open_clip": OPEN_CLIP_VIT,
    "fused, tiled": {"towers": [TIMM_VIT, HF_SIGLIP], "max_tiles": 4},
}
PICTURES = [picture(40, 40, 0), picture(90, 30, 1), picture(64, 64, 2), picture(30, 100, 3), picture(33, 33, 4)]
DIGESTS = [image_digest(each) for each in PICTURES]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def composed(decoder: str) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def get(kind: str = "timm") -> Any:
        """(model, processor) that a test may change."""
        if kind not in made:
            made[kind] = compose(TOWERS[kind], None, decoder)
            made[kind][0].vision_tower.requires_grad_(False)
        return copy.deepcopy(made[kind])

    return get


@contextmanager
def encoded_views(model: Any) -> Iterator[list[int]]:
    """How many views went through the tower, call by call."""
    calls: list[int] = []
    handle = model.vision_tower.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    yield calls
    handle.remove()


def process(processor: Any, pictures: list[Any]) -> dict[str, Tensor]:
    return dict(processor.image_processor(pictures))


@pytest.mark.parametrize("kind", TOWERS)
def test_stored_is_what_the_tower_gives(kind: str, composed: Any, tmp_path: Path) -> None:
    model, processor = composed(kind)
    store = FeatureStore(tmp_path / "new" / "store")
    features = store.open(model, processor)
    assert features.inputs(DIGESTS[:2]) is None
    batches = [[0, 1], [1, 2, 2, 0], [4, 3, 1]]
    for batch in batches:
        processed = process(processor, [PICTURES[i] for i in batch])
        want = model.encode(processed["pixel_values"])
        got = features.inputs([DIGESTS[i] for i in batch], processed)
        assert got is not None and got.keys() == {"image_features", "num_tiles"}
        assert torch.equal(got["image_features"], want) and torch.equal(got["num_tiles"], processed["num_tiles"])
    features.close()
    for again in (features, FeatureStore(tmp_path / "new" / "store").open(model, processor)):
        with encoded_views(model) as calls:
            for batch in batches:
                processed = process(processor, [PICTURES[i] for i in batch])
                got = again.inputs([DIGESTS[i] for i in batch])
                assert not calls
        assert got is not None
        want = model.encode(processed["pixel_values"])
        assert torch.equal(got["image_features"], want) and torch.equal(got["num_tiles"], processed["num_tiles"])
        again.close()


def test_only_what_is_missing_is_encoded_in_one_batch(composed: Any, tmp_path: Path) -> None:
    model, processor = composed("fused, tiled")
    features = FeatureStore(tmp_path).open(model, processor)
    one = process(processor, PICTURES)
    views = one["num_tiles"].tolist()
    assert len(set(views)) > 1
    with encoded_views(model) as calls:
        features.features(DIGESTS[1:2], one["pixel_values"].split(views)[1], one["num_tiles"][1:2])
        features.features(DIGESTS, one["pixel_values"], one["num_tiles"])
        features.features(DIGESTS, one["pixel_values"], one["num_tiles"])
    assert calls == [views[1], sum(views) - views[1]]
    with pytest.raises(ValueError, match="5 digests, 5 pictures"):
        features.features(DIGESTS, one["pixel_values"][1:], one["num_tiles"])
    features.close()


def double(model: Any, processor: Any) -> None:
    model.to(torch.float64)


def other_weights(model: Any, processor: Any) -> None:
    with torch.no_grad():
        next(reversed(list(model.vision_tower.parameters()))).mul_(1.001)


def replaced_weight(model: Any, processor: Any) -> None:
    norm = model.vision_tower.towers[0].encoder.norm
    norm.weight = nn.Parameter(norm.weight * 1.001, requires_grad=False)


def replaced_part(model: Any, processor: Any) -> None:
    model.vision_tower.towers[0].encoder.norm = nn.Identity()


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    "dtype": double,
    "weights": other_weights,
    "a weight": replaced_weight,
    "a part": replaced_part,
    "mean": lambda _, processor: setattr(processor.image_processor, "image_mean", [0.4, 0.5, 0.5]),
    "resize": lambda _, processor: setattr(processor.image_processor, "resize", "pad"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_tower_has_features_of_its_own(name: str, composed: Any, tmp_path: Path) -> None:
    """Noticed under way where the tower changes; and what was stored before is still there for the old one."""
    model, processor = composed()
    old = copy.deepcopy((model, processor))
    features = FeatureStore(tmp_path).open(model, processor)
    before = features.inputs(DIGESTS, process(processor, PICTURES))
    assert before is not None
    CHANGES[name](model, processor)
    if name in ("mean", "resize"):
        features.close()
        features = FeatureStore(tmp_path).open(model, processor)
    assert features.inputs(DIGESTS) is None
    after = features.inputs(DIGESTS, process(processor, PICTURES))
    assert after is not None
    assert torch.equal(after["image_features"], model.encode(process(processor, PICTURES)["pixel_values"]))
    features.close()
    found = FeatureStore(tmp_path).open(*old).inputs(DIGESTS)
    assert found is not None and torch.equal(found["image_features"], before["image_features"])


@pytest.mark.parametrize("kind", TOWERS)
def test_a_checkpoint_has_its_models_features(kind: str, composed: Any, tmp_path: Path) -> None:
    """Stored in one stage, read in the next, whose model comes from a folder and has learned something else."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = composed(kind)
    features = FeatureStore(tmp_path / "store").open(model, processor)
    stored = features.inputs(DIGESTS, process(processor, PICTURES))
    features.close()
    model.language_model.get_input_embeddings().weight.data += 1
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    model.vision_tower.requires_grad_(False)
    found = FeatureStore(tmp_path / "store").open(model, AutoProcessor.from_pretrained(tmp_path / "saved"))
    got = found.inputs(DIGESTS)
    assert got is not None and stored is not None and torch.equal(got["image_features"], stored["image_features"])


def test_other_pictures_have_features_of_their_own(composed: Any, tmp_path: Path) -> None:
    """An augmented picture is another picture: right, if of no use."""
    model, processor = composed()
    features = FeatureStore(tmp_path).open(model, processor)
    features.inputs(DIGESTS[:1], process(processor, PICTURES[:1]))
    from PIL import ImageOps

    flipped = ImageOps.mirror(PICTURES[0])
    assert features.inputs([image_digest(flipped)]) is None
    got = features.inputs([image_digest(flipped)], process(processor, [flipped]))
    assert got is not None
    assert torch.equal(got["image_features"], model.encode(process(processor, [flipped])["pixel_values"]))
    features.close()


def test_autocast_and_smaller_dtypes(composed: Any, tmp_path: Path) -> None:
    model, processor = composed()
    processed = process(processor, PICTURES)
    exact = model.encode(processed["pixel_values"])
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.encode(processed["pixel_values"])
    assert not torch.equal(exact, rough.float())
    store = FeatureStore(tmp_path)
    under_autocast = store.open(model, processor, autocast=torch.bfloat16)
    small = store.open(model, processor, dtype=torch.bfloat16)
    for features, want in ((under_autocast, rough), (small, exact.bfloat16())):
        first = features.inputs(DIGESTS, processed)
        features.close()
        second = features.inputs(DIGESTS)
        assert first is not None and second is not None
        for got in (first["image_features"], second["image_features"]):
            assert got.dtype == want.dtype and torch.equal(got, want)
        features.close()
    by_size = sorted(path.stat().st_size for path in tmp_path.glob("*/*.safetensors"))
    assert len(by_size) == 2 and by_size[0] < 0.6 * exact.nbytes < by_size[1]


# ---- refusals


def with_dropout(model: Any) -> None:
    model.vision_tower.towers[0].encoder.blocks[0].drop_path1 = nn.Dropout(0.1)
    model.vision_tower.towers[0].train()


def with_batch_statistics(model: Any) -> None:
    model.vision_tower.towers[0].encoder.norm_pre = nn.BatchNorm1d(17).requires_grad_(False)
    model.vision_tower.towers[0].train()


def with_attention_dropout(model: Any) -> None:
    """transformers' attention keeps the probability as a number."""
    attention = model.vision_tower.towers[0].encoder.blocks[0].attn
    attention.attention_dropout = 0.1
    attention.train()


def with_adapter(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(target_modules=r".*vision_tower.*qkv|.*q_proj"))
    return wrapped.requires_grad_(False)


def spread_over_processes(model: Any) -> None:
    next(model.vision_tower.parameters()).ds_id = 0  # DeepSpeed's mark of a weight that ZeRO-3 has cut up


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "trained": (lambda model: model.vision_tower.requires_grad_(True) and None, r"is trained .*freeze_modules"),
    "dropout": (with_dropout, r"training mode with dropout \(towers.0.encoder.blocks.0.drop_path1: Dropout\)"),
    "attention dropout": (with_attention_dropout, "training mode with dropout .*attn"),
    "batch statistics": (with_batch_statistics, "training mode with batch statistics"),
    "adapter": (with_adapter, "with an adapter .*lora_target_modules"),
    "spread": (spread_over_processes, "spread over them"),
    "no composed model": (lambda model: model.language_model, "needs a composed model .* Qwen2ForCausalLM isn't"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_towers_whose_features_change_are_refused(name: str, composed: Any, tmp_path: Path) -> None:
    model, processor = composed()
    change, text = REFUSED[name]
    features = FeatureStore(tmp_path).open(model, processor)
    changed = change(model)
    with pytest.raises(ConfigError, match=text):
        FeatureStore(tmp_path).open(changed or model, processor)
    if name in ("trained", "dropout", "batch statistics", "adapter"):  # under way, too
        with pytest.raises(ConfigError, match=text):
            features.inputs(DIGESTS)


def test_a_tower_in_eval_mode_may_have_dropout(composed: Any, tmp_path: Path) -> None:
    model, processor = composed()
    with_dropout(model)
    model.eval()
    features = FeatureStore(tmp_path).open(model, processor)
    model.train()  # leaves a frozen tower as it is
    assert features.inputs(DIGESTS) is None
    model.vision_tower.towers[0].train()
    with pytest.raises(ConfigError, match="training mode with dropout"):
        features.inputs(DIGESTS)


def test_an_adapter_on_the_decoder_is_none_of_its_business(composed: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, processor = composed()
    features = FeatureStore(tmp_path).open(model, processor)
    features.inputs(DIGESTS, process(processor, PICTURES))
    features.close()
    wrapped = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj"))
    assert FeatureStore(tmp_path).open(torch.nn.DataParallel(wrapped), processor).inputs(DIGESTS) is not None


def test_buffers_that_are_written_anew(decoder: str, tmp_path: Path) -> None:
    """As DDP does in each step: nothing has changed, so no small shard is written and nothing forgotten."""
    model, processor = compose(HF_SIGLIP, None, decoder)
    model.vision_tower.requires_grad_(False)
    features = FeatureStore(tmp_path).open(model, processor)
    buffers = list(model.vision_tower.buffers())
    assert buffers
    for i in range(len(PICTURES)):
        features.inputs(DIGESTS[i : i + 1], process(processor, PICTURES[i : i + 1]))
        for buffer in buffers:
            buffer.copy_(buffer.clone())
    assert features.inputs(DIGESTS) is not None and not list(tmp_path.glob("*/*.safetensors"))
    features.close()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name a folder that can be made"):
        FeatureStore(tmp_path / "file" / "store")
    with pytest.raises(ConfigError, match="max_gib=0 must be above 0"):
        FeatureStore(tmp_path, 0)


def test_weights_digest(composed: Any) -> None:
    """Of all numbers, names and dtypes; of the same module again without reading it, until something changes."""
    model, _ = composed()
    tower = model.vision_tower
    first = weights_digest(tower)
    assert weights_digest(copy.deepcopy(tower)) == first == weights_digest(tower)
    parameter = list(tower.parameters())[3]
    with torch.no_grad():
        kept = parameter.clone()
        parameter.view(-1)[-1] += 1e-3
        changed = weights_digest(tower)
        parameter.copy_(kept)
    assert changed != first == weights_digest(tower)
    parameter.data.view(-1)[-1] += 1  # not counted by torch: shows that the numbers are not read each time
    assert weights_digest(tower) == first
    with torch.no_grad():
        list(tower.parameters())[4].mul_(1)  # nor those of others
    assert weights_digest(tower) == first
    tower.register_buffer("more", torch.zeros(1), persistent=False)
    assert weights_digest(tower) != first


# ---- where pictures are used


def rows(count: int = 6) -> Any:
    made = [
        {
            "prompt": ask(f"What is {i}?", 1 + i % 2),
            "images": [cell(picture(30 + 9 * i, 50, 10 * i + j)) for j in range(1 + i % 2)],
            "answer": str(i), "id": f"p{i}", "source": "test", "meta": {},
        }
        for i in range(count)
    ]  # fmt: skip
    return to_dataset(made, (*RL_COLUMNS, "images"))  # type: ignore[arg-type]


def visuals_for(dataset: Any, processor: Any, **options: Any) -> Visuals:
    ids = [render_visual_prompt(row["prompt"], row["images"], processor).ids for row in dataset]
    return Visuals(dataset, ids, processor, **options)


@pytest.mark.parametrize("keep_images", [False, True])
def test_pixels_are_not_made_again(
    keep_images: bool, composed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored needs no work of the processor, and its picture only once in a process, unless an engine does."""
    model, processor = composed("fused, tiled")
    dataset = rows()
    plain = visuals_for(dataset, processor)
    wanted = [plain[i] for i in range(len(dataset))]
    preprocess, calls = type(processor.image_processor).preprocess, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return preprocess(self, *args, **kwargs)

    monkeypatch.setattr(type(processor.image_processor), "preprocess", counted)
    for process_number in range(2):
        visuals = Visuals(dataset, plain.prompt_ids, processor, cache_bytes=0)
        features = FeatureStore(tmp_path).open(model, processor)
        visuals.use_features(features, keep_images=keep_images)
        for epoch in range(2):
            calls.clear()
            for i, want in enumerate(wanted):
                got = visuals[i]
                assert got is not None and want is not None and got.ids == want.ids
                assert got.engine_ids == (want.engine_ids if keep_images else [])
                pictures = [image.tobytes() for image in got.images]
                assert pictures == ([image.tobytes() for image in want.images] if keep_images else [])
                assert torch.equal(got.inputs["image_features"], model.encode(want.inputs["pixel_values"]))
                assert torch.equal(got.inputs["num_tiles"], want.inputs["num_tiles"])
            assert len(calls) == (len(dataset) if process_number == epoch == 0 else 0)
        if not keep_images:
            visuals.dataset = None  # is not read any more
            assert all(visuals[i] is not None for i in range(len(dataset)))
        features.close()


def align(model: Any, visuals: Visuals, epochs: int) -> list[float]:
    """A small alignment: only the projector learns. Losses of all steps."""
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=1e-2)
    losses = []
    for epoch in range(epochs):
        for start in range(0, len(visuals.prompt_ids), 3):
            seen = [visuals[(i * 5 + epoch) % len(visuals.prompt_ids)] for i in range(start, start + 3)]
            ids = nn.utils.rnn.pad_sequence([torch.tensor(each.ids) for each in seen if each is not None], True)
            loss = model(input_ids=ids, labels=ids, **collate_visual(seen, ids.shape[1])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", TOWERS)
def test_alignment_has_the_same_losses(kind: str, composed: Any, tmp_path: Path) -> None:
    """Bit for bit: without a store, while it is filled, from what is stored, and with a full one."""
    without = align(composed(kind)[0], visuals_for(rows(), composed(kind)[1], cache_bytes=0), 4)
    assert len(set(without)) == len(without) == 8 and without[-1] < without[0]
    for gib in (1.0, 1.0, 30_000 / 2**30):
        model, processor = composed(kind)
        visuals = visuals_for(rows(), processor, cache_bytes=0)
        features: TowerFeatures = FeatureStore(tmp_path / str(gib), gib).open(model, processor)
        visuals.use_features(features, keep_images=False)
        assert align(model, visuals, 4) == without
        features.close()
