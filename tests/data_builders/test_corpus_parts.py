"""The pieces of the corpus builder against plain references: copies, shares, perplexity, rules, settings."""

from __future__ import annotations

import itertools
import math
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("datatrove", reason="the extra `corpus` is not installed")

from datatrove.data import Document

from data_builders._corpus.dedup import MinhashCluster, draw, found_probability, later_ones, minhash_config, thresholds
from data_builders._corpus.perplexity import CharacterModel, load_scorer
from data_builders._corpus.pipeline import check_rules, rule_filters
from data_builders._corpus.rules import HarmfulRule, LanguageRule
from data_builders.corpus import CorpusOptions, main
from mmreason.types import ConfigError


def options(**settings: Any) -> CorpusOptions:
    return CorpusOptions(out=Path("out"), source=["x.txt"], **settings)


@settings(deadline=None)  # the first call imports
@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
def test_near_prints_are_those_of_a_plain_comparison(base: list[int], data: st.DataObject) -> None:
    """Prints with a few bits flipped; groups by following all pairs, of each group the first stays."""
    prints = list(base)
    for one in base:
        flips = data.draw(st.lists(st.integers(0, 63), max_size=6))
        prints.append(one ^ sum(1 << bit for bit in set(flips)))
    data.draw(st.randoms()).shuffle(prints)
    group = list(range(len(prints)))
    for i, j in itertools.combinations(range(len(prints)), 2):
        if (prints[i] ^ prints[j]).bit_count() <= 3:
            old, new = group[j], group[i]
            group = [new if one == old else one for one in group]
    expected = [i for i, one in enumerate(group) if group.index(one) != i]
    assert later_ones(np.array(prints, dtype=np.uint64), 3).tolist() == expected


def test_of_minhash_copies_the_first_stays(tmp_path: Path) -> None:
    """Clusters of random pairs are datatrove's; of each the document of the earliest task stays."""
    from datatrove.pipeline.dedup import MinhashDedupCluster

    rng = random.Random(0)
    pairs = [((1, 0), (1, 1)), ((1, 1), (2, 4)), ((0, 5), (1, 0))]  # datatrove keeps (1, 0)
    pairs += [((3, one), (rng.choice((3, 4)), one + rng.randrange(1, 9))) for one in range(0, 300, 5)]
    (tmp_path / "in").mkdir()
    for bucket in range(2):
        held = b"".join(struct.pack("<4I", *one, *two) for one, two in pairs[bucket::2])
        (tmp_path / "in" / f"{bucket:05d}_00.dups").write_bytes(held)

    def removed(kind: type[Any], name: str) -> list[tuple[int, int]]:
        kind(str(tmp_path / "in"), str(tmp_path / name), config=minhash_config(5, 2, 8, 0)).run()
        files = sorted((tmp_path / name).glob("*.remove"))
        return [(int(file.stem), doc) for file in files for (doc,) in struct.iter_unpack("<I", file.read_bytes())]

    ours, theirs = removed(MinhashCluster, "ours"), removed(MinhashDedupCluster, "theirs")
    assert ours == sorted(ours) and len(ours) == len(theirs) and (1, 0) in ours and (0, 5) in theirs
    before = {place: place for pair in pairs for place in pair}
    for _ in pairs:  # each takes the least of its neighbors', until nothing changes
        for one, two in pairs:
            before[one] = before[two] = min(before[one], before[two])
    assert ours == sorted(place for place, first in before.items() if place != first)


def test_probability_of_minhash_is_that_of_a_simulation() -> None:
    """Bands of random hash equalities, each true with the pair's similarity."""
    rng = np.random.default_rng(0)
    for similarity in (0.6, 0.8):
        found = (rng.random((20_000, 14, 8)) < similarity).all(axis=2).any(axis=1).mean()
        assert found == pytest.approx(found_probability(similarity, 14, 8), abs=0.012)
    assert found_probability(0.95, 14, 8) > 0.9999997


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 5), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 200), max_size=3),
)
def test_shares_of_domains(sizes: dict[str, list[int]], weights: dict[str, float], caps: dict[str, int]) -> None:
    """No domain is above its cap or its share of the scarcest, and none is short by more than one document."""
    held = {name: [(draw(f"{name}{i}", 0), size) for i, size in enumerate(all_)] for name, all_ in sizes.items()}
    if not weights.keys() <= sizes.keys():
        with pytest.raises(ConfigError, match=f"no document that is left.*There are: {', '.join(sorted(sizes))}$"):
            thresholds(held, weights, caps)
        return
    last = thresholds(held, weights, caps)
    total = min((sum(sizes.get(name, [0])) / weight for name, weight in weights.items()), default=math.inf)
    for name, drawn in held.items():
        target = min(weights[name] * total if name in weights else math.inf, caps.get(name, math.inf))
        kept = [size for number, size in drawn if name not in last or number <= last[name]]
        assert sum(kept) <= target * (1 + 1e-6)
        assert len(kept) == len(drawn) or sum(kept) + max(size for _, size in drawn) > target * (1 - 1e-6)


def test_character_model_is_a_distribution_and_knows_its_language() -> None:
    text = "the cat sat on the mat and the dog sat on the log. " * 20
    model = CharacterModel(text, order=3)
    seen = sorted(set(" ".join(text.split())))

    def p(given_text: str, char: str) -> float:
        before, after = (model._perplexity(one) ** -len(one) for one in (given_text, given_text + char))
        return after / before

    for history in ("the", "zz", "t"):
        assert sum(p(history, char) for char in [*seen, "\N{SNOWMAN}"]) == pytest.approx(1, abs=1e-9)
    good, bad = model.perplexities(["the dog sat on the mat", "xqz jjk vvw qqp"])
    assert good < 3 < bad
    assert model.perplexities([" "]) == [math.inf]


@pytest.mark.slow
def test_neural_perplexity_is_the_models_own_loss(tiny_checkpoint: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["What is 2 + 3?", "Ann has 4 pens and buys 3 more."]
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    for text, value in zip(texts, load_scorer(tiny_checkpoint).perplexities(texts), strict=True):
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = torch.tensor([[*start, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            assert value == pytest.approx(float(model(input_ids=ids, labels=ids).loss.exp()), rel=1e-4)


def test_languages_are_told_offline() -> None:
    rule = LanguageRule(["en", "zh"], 0.65, None)  # type: ignore[arg-type]
    texts = {
        "en": "The weather was mild and the children played in the garden until the evening came.",
        "zh": "天气很温和，孩子们在花园里一直玩到傍晚，然后大家一起回家吃饭。",
        "fr": "Le temps était doux et les enfants ont joué dans le jardin jusqu'à la tombée de la nuit.",
    }
    docs = {language: Document(text, language) for language, text in texts.items()}
    results = {language: rule.filter(doc) for language, doc in docs.items()}
    assert {language: result[0] for language, result in results.items()} == {"en": True, "zh": True, "fr": False}  # type: ignore[index]
    assert results["fr"] == (False, "language")
    assert all(doc.metadata["language"] == language for language, doc in docs.items())


def test_harmful_words_of_the_package_and_of_a_file(tmp_path: Path) -> None:
    text = "He sold cocaine and heroin, and wrote ransomware."
    assert HarmfulRule(None, 3, None).filter(Document(text, "a")) == (False, "harmful_other_crime")  # type: ignore[arg-type]
    assert HarmfulRule(None, 4, None).filter(Document(text, "a")) is True  # type: ignore[arg-type]
    own = tmp_path / "words.txt"
    own.write_text("# mine\npurple cow\nsold*\n", encoding="utf-8")
    assert HarmfulRule(str(own), 1, None).filter(Document(text, "a")) == (False, "harmful_words")  # type: ignore[arg-type]
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="empty; put a word"):
        HarmfulRule(str(empty), 1, None).filter(Document(text, "a"))  # type: ignore[arg-type]


def test_rules_are_datatroves_with_the_users_settings() -> None:
    from datatrove.pipeline.filters import GopherQualityFilter

    words = " ".join(random.Random(0).choices(["the", "and", "house", "of", "river", "stone", "with"], k=40))
    doc = Document(words, "a", metadata={"language": "en"})
    assert GopherQualityFilter(language="en").filter(doc) == (False, "gopher_short_doc")
    (rule,) = rule_filters(options(rules=["gopher"]), lambda _: None)
    assert rule.filter(doc) == (False, "gopher_short_doc")
    (rule,) = rule_filters(options(rules=["gopher"], rule_options={"gopher": {"min_doc_words": 10}}), lambda _: None)
    assert rule.filter(doc) is True
    both = options(
        rules=["gopher"],
        languages=["en", "de"],
        rule_options={"gopher": {"min_doc_words": 10, "de": {"min_doc_words": 99}}},
    )
    (rule,) = rule_filters(both, lambda _: None)
    assert rule.filter(doc) is True
    doc.metadata["language"] = "de"
    assert rule.filter(doc) == (False, "gopher_short_doc")
    doc.metadata["language"] = "fr"
    assert rule.filter(doc) is True


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rules": ["gofer"]}, "no rule 'gofer'.*Did you mean 'gopher'"),
        ({"rule_options": {"goper": {}}}, "no rule 'goper'"),
        ({"rule_options": {"gopher": {"min_doc_word": 1}}}, "rule_options.gopher.min_doc_word.*min_doc_words"),
        ({"rule_options": {"c4": {"de": {}}}}, "rule_options.c4.de: no language of --languages"),
    ],
)
def test_wrong_rules_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        given = options(**settings)
        check_rules(given)
        rule_filters(given, lambda _: None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--source nowhere.txt", "nowhere.txt: no such file"),
        ("--source {txt} {txt}", "two sources are called 'a'"),
        ("--source a={txt} b={txt}", "belongs to both 'a' and 'b'"),
        ("--source {md}", "can't read this kind of file"),
        ("--source {bad}", "1 documents in 1 files can't be used.*bad.txt:1.*not UTF-8"),
        ("--source {txt} --languages qq", "--languages qq"),
        ("--source {txt} --tokenizer {md}", "--tokenizer .*can't be loaded"),
        ("--source {txt} --store_tokens", "needs --tokenizer"),
        ("--source {txt} --perplexity_model {md}", "expected the folder of a causal"),
        ("--source {txt} --perplexity_high 300", "need --perplexity_model"),
        ("--source {txt} --harmful_words {md}x", "no word list"),
        ("--source {txt} --domain_weights.web 1", "no source 'web'"),
        ("--source {txt} --executor slurm", "needs --slurm.time"),
        ("--source {txt} --executor slurm --slurm.tim 1", "--slurm.tim: no such setting.*'time'"),
        ("--source {txt} --decontaminate {md}y", "can't be read"),
        ("--source {txt} --teacher.model x --teacher.base_url y", "asks no teacher"),
        ("--source {txt} --limit 0", "limit must be at least 1"),
    ],
)
def test_wrong_settings_end_before_anything_is_read(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    (tmp_path / "a.txt").write_text("Some text.", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "notes.md").touch()
    places = {"txt": tmp_path / "a.txt", "md": tmp_path / "notes.md", "bad": tmp_path / "bad.txt"}
    given_words = [word.format(**places) for word in words.split()]
    if "--decontaminate" not in given_words:
        given_words += ["--decontaminate", "[]"]
    out = tmp_path / "out"
    assert main([*given_words, "--out", str(out), "--workers", "1"]) == 2
    assert re.search(said, capsys.readouterr().err, re.S)
    assert not (out / "manifest.json").exists() and not list(out.glob("*.parquet"))
