"""The pretraining step: exact losses for models of every kind, packed = unpacked, router losses, resumable data."""

from __future__ import annotations

import copy
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmreason.data.documents import BinSequence, Cursor, StoredDocuments
from mmreason.data.objectives import objective_tokens
from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.pretrain import BinBatches, PretrainTrainer, hf_config
from mmreason.trainers.pretrain_arguments import FreshModelArguments, PretrainOptions
from mmreason.trainers.pretrain_data import objective_of, steps_of
from mmreason.trainers.pretrain_models import model_of_run
from mmreason.types import ConfigError

MOE = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def documents(seed: int = 0) -> StoredDocuments:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 90, size=60)
    ends = np.cumsum(sizes)
    ids = rng.integers(0, 250, size=int(ends[-1])).astype(np.uint32)
    return StoredDocuments(ids, np.stack([ends - sizes, ends], axis=1), seed)


class Run:
    """A trainer of an objective over random documents, and what it was made of."""

    def __init__(
        self, folder: Path, objective: str = "clm", fresh: FreshModelArguments | None = None, **given: Any
    ) -> None:
        settings: dict[str, Any] = {
            "objective": objective, "output_dir": str(folder), "max_length": 64, "packing_window": 8, "use_cpu": True,
            "bf16": False, "optim": "sgd", "weight_decay": 0.0, "learning_rate": 0.1, "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4, "gradient_checkpointing": False, "max_steps": 2, "max_grad_norm": 0.0,
        }  # fmt: skip
        self.options = PretrainOptions(**(settings | given))
        fresh = fresh or FreshModelArguments(tiny_size="xs")
        self.options.check(ModelArguments(), fresh, _corpus())
        self.tokenizer = tiny_tokenizer()
        tokens = objective_tokens(self.tokenizer, objective, self.options.infill_format)
        decoder = fresh.model_type not in (None, "t5", "bert")
        both = objective in ("span", "ul2") and not decoder
        self.objective = objective_of(self.options, self.tokenizer, tokens, both)
        self.model = model_of_run(ModelArguments(), fresh, self.options, self.tokenizer, both, lambda _: None)
        packing = self.options.packing
        self.sequence = BinSequence(
            documents(), self.objective, self.options.max_length, pack=packing, window=8, seed=self.options.seed
        )
        size, pad = self.options.per_device_train_batch_size, self.tokenizer.pad_token_id
        packed = packing and self.objective.layout == "packed"
        source = BinBatches(self.sequence, size, pad, packed=packed)
        self.start = copy.deepcopy(self.model)
        config = hf_config(self.options)
        self.trainer = PretrainTrainer(self.model, self.options, config, source, self.objective.layout, self.tokenizer)

    def gradients(self, steps: int = 1) -> dict[str, torch.Tensor]:
        """What SGD of rate 0.1 did to the weights, over the rate."""
        self.trainer.args.max_steps = steps
        assert self.trainer.fit()
        before = dict(self.start.named_parameters())
        return {n: (before[n] - p).detach() / 0.1 for n, p in self.model.named_parameters()}

    def bins(self, count: int) -> list[Any]:
        return [one for _, one in islice(self.sequence.bins(), count)]


def _corpus() -> Any:
    from mmreason.trainers.pretrain_arguments import CorpusArguments

    return CorpusArguments(dataset_name="none")


def literal_loss(run: Run, bins: list[Any]) -> tuple[torch.Tensor, Any]:
    """(mean over all targets, the untrained model in float64), row by row: no packing, no padding."""
    model = copy.deepcopy(run.start).double().eval()
    model.config._attn_implementation = "eager" if run.objective.layout != "prefix" else "sdpa"
    total, targets = torch.zeros((), dtype=torch.float64), 0
    for piece in (piece for one in bins for piece in one):
        ids, labels = torch.tensor(piece.ids)[None], torch.tensor(piece.labels)[None]
        if run.objective.layout == "seq2seq":
            logits = model(input_ids=ids, decoder_input_ids=F.pad(labels, (1, -1), value=256)).logits[0]
            wanted = labels[0]
        elif run.objective.layout == "masked":
            logits, wanted = model(input_ids=ids).logits[0], labels[0]
        else:
            mask = None
            if piece.prefix:
                T = ids.shape[1]
                mask = torch.ones(T, T).tril().bool()
                mask[:, : piece.prefix] = True
                mask = mask[None, None]
            logits, wanted = model(input_ids=ids, attention_mask=mask).logits[0, :-1], labels[0, 1:]
        keep = wanted >= 0
        total = total - logits[keep].log_softmax(-1).gather(-1, wanted[keep, None]).sum()
        targets += int(keep.sum())
    return total / targets, model


def close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], bound: float) -> None:
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in want.values()))
    apart = math.sqrt(sum(float((got[n].double() - g.double()).square().sum()) for n, g in want.items()))
    assert norm > 0 and apart / norm <= bound, (apart, norm)


CASES: list[tuple[str, FreshModelArguments, dict[str, Any]]] = [
    ("clm", FreshModelArguments(tiny_size="xs"), {}),
    ("clm", FreshModelArguments(tiny_size="xs"), {"packing": False}),
    ("mlm", FreshModelArguments(tiny_size="xs"), {}),
    ("mlm", FreshModelArguments(tiny_size="xs"), {"whole_word_mask": True}),
    ("span", FreshModelArguments(tiny_size="xs"), {}),
    ("ul2", FreshModelArguments(tiny_size="xs"), {}),
    ("infill", FreshModelArguments(tiny_size="xs"), {}),
    ("infill", FreshModelArguments(tiny_size="xs"), {"infill_format": "glm"}),
]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
CASES += [
    ("span", FreshModelArguments(model_type="llama", config_overrides=SMALL), {}),
    ("ul2", FreshModelArguments(model_type="llama", config_overrides=SMALL), {"bidirectional_prefix": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1].model_type}-{'-'.join(map(str, c[2].values()))}")
@pytest.mark.parametrize("split", [(4, 1), (1, 4)], ids=["4x1", "1x4"])
def test_step_is_that_of_the_literal_loss(
    case: tuple[str, FreshModelArguments, dict[str, Any]], split: tuple[int, int], tmp_path: Path
) -> None:
    """Whatever the objective, the kind of model, packing and accumulation: the loss is the mean over targets."""
    name, fresh, given = case
    size, accumulation = split
    run = Run(
        tmp_path, name, fresh, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **given
    )
    loss, model = literal_loss(run, run.bins(4))
    loss.backward()
    close(run.gradients(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, 2e-5)
    assert run.trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=2e-6)


def test_packed_is_unpacked(tmp_path: Path) -> None:
    """The same documents in one sequence and padded one by one: log-probabilities within 1e-6."""
    run = Run(tmp_path)
    (batch, _) = next(run.trainer.source.batches(Cursor().to_json(), 0, 1))
    assert batch["input_ids"].shape[0] == 1 and (batch["position_ids"] == 0).sum() > 4
    with torch.no_grad():
        packed = run.model(batch["input_ids"], position_ids=batch["position_ids"]).logits[0].log_softmax(-1)
        alone = [
            run.start(torch.tensor(piece.ids)[None]).logits[0].log_softmax(-1) for one in run.bins(4) for piece in one
        ]
    assert (packed - torch.cat(alone)).abs().max() <= 1e-6


def test_held_out_perplexity_is_exact(tmp_path: Path) -> None:
    for name, given in (("clm", {}), ("mlm", {}), ("span", {})):
        run = Run(tmp_path / name, name, per_device_eval_batch_size=3, **given)
        bins = run.bins(7)
        found = run.trainer.held_out(bins)
        want = literal_loss(run, bins)[0].item()
        assert found["loss"] == pytest.approx(want, rel=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(want), rel=1e-5)


# ---- mixtures of experts


def moe(folder: Path, **given: Any) -> Run:
    return Run(folder, "clm", FreshModelArguments(model_type="qwen3_moe", config_overrides=MOE), **given)


def test_router_loss_is_in_the_loss(tmp_path: Path) -> None:
    """transformers leaves it out unless the configuration asks for the router's logits, and adds it once too often for
    each micro-batch of a step."""
    with_loss, without = moe(tmp_path / "a", router_aux_loss_coef=0.5), moe(tmp_path / "b", router_aux_loss_coef=0.0)
    got, plain = with_loss.gradients(), without.gradients()
    router = [name for name in got if "mlp.gate" in name]
    assert router
    assert max(float((got[n] - plain[n]).norm() / plain[n].norm()) for n in router) > 0.05

    model = copy.deepcopy(with_loss.start)
    batch, _ = next(with_loss.trainer.source.batches(Cursor().to_json(), 0, 1))
    out = model(batch["input_ids"], position_ids=batch["position_ids"], labels=batch["labels"], use_cache=False)
    (out.loss).backward()  # one micro-batch: transformers' own loss, router loss and all
    close(got, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, 2e-5)


def test_router_loss_is_averaged_over_micro_batches(tmp_path: Path) -> None:
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "router_aux_loss_coef": 0.5}
    run = moe(tmp_path, **given)
    model = copy.deepcopy(run.start)
    source = run.trainer.source.batches(Cursor().to_json(), 0, 1)
    batches = [next(source)[0] for _ in range(2)]
    targets = sum(int((b["labels"][:, 1:] >= 0).sum()) for b in batches)
    for batch in batches:
        out = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        nll = F.cross_entropy(out.logits[0, :-1], batch["labels"][0, 1:], reduction="sum")
        (nll / targets + 0.5 * out.aux_loss / 2).backward()
    close(run.gradients(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, 2e-5)
    assert run.trainer.router_weight == 0.5


def test_router_coefficient_of_a_plain_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no mixture of experts"):
        Run(tmp_path, router_aux_loss_coef=0.1)


# ---- data


def test_processes_share_the_sequence(tmp_path: Path) -> None:
    """One process with micro-batches of 4, or four with 1: the same bins in each round, and the same place behind."""
    run = Run(tmp_path)
    whole = BinBatches(run.sequence, 4, 0, packed=True).batches(Cursor().to_json(), 0, 1)
    parts = [BinBatches(run.sequence, 1, 0, packed=True).batches(Cursor().to_json(), rank, 4) for rank in range(4)]
    for _ in range(5):
        batch, place = next(whole)
        found = [next(part) for part in parts]
        assert torch.cat([b["input_ids"] for b, _ in found], 1).equal(batch["input_ids"])
        assert all(other == place for _, other in found)


def test_steps_of_epochs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    count = sum(1 for _ in run.sequence.bins(epochs=1))
    for epochs, processes in ((1.0, 1), (2.0, 2), (0.5, 1)):
        run.options.max_steps, run.options.num_train_epochs = -1, epochs
        found = steps_of(run.options, run.sequence, processes)
        assert abs(found - epochs * count / (4 * processes)) <= 1.5
    run.options.max_steps = 7
    assert steps_of(run.options, run.sequence, 1) == 7


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fresh": FreshModelArguments(model_type="qwen4")}, "Did you mean 'qwen"),
        (
            {"fresh": FreshModelArguments(model_type="llama", config_overrides={"hiden_size": 8})},
            "Did you mean 'hidden_size'",
        ),
        ({"fresh": FreshModelArguments(model_type="t5"), "objective": "mlm"}, "can't learn by objective mlm"),
        ({"objective": "infill", "infill_format": "glm", "bidirectional_prefix": False, "max_length": 8}, "too short"),
        ({"mask_replace_prob": 0.95}, "add up to more than 1"),
        ({"ul2_weights": {"Q": 1.0}}, "ul2_weights"),
        ({"max_completion_length": 3}, "has no meaning"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Run(tmp_path, **given)


def test_rows_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    small = FreshModelArguments(model_type="llama", config_overrides=SMALL | {"max_position_embeddings": 32})
    with pytest.raises(ConfigError, match=r"positions for 32 tokens.*rope_type: yarn, factor: 2"):
        Run(tmp_path, fresh=small)
    small.rope_scaling = {"rope_type": "yarn", "factor": 2.0}
    assert Run(tmp_path, fresh=small).model.config.max_position_embeddings == 64
