"""The search tool against a brute-force BM25, in several languages, and with files that can't be read."""

from __future__ import annotations

import json
import logging
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.tools.corpus import PASSAGE_WORDS, Passage, content_key, read_corpus, words
from mmreason.tools.search import SearchTool
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall
from mmreason.types import ConfigError, DataError


def brute_force(texts: list[str], query: str, k: int, k1: float = 1.5, b: float = 0.75) -> list[tuple[str, float]]:
    """BM25 word by word and passage by passage, in float64: (id, score) of the k best above 0, ties in corpus order."""
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    found = []
    for number, document in enumerate(documents, 1):
        counts = Counter(document)
        score = 0.0
        for word in words(query):
            n = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            f = counts[word]
            if f == 0:
                continue
            score += idf * f / (f + k1 * (1 - b + b * len(document) / mean))
        if round(score, 6) > 0:
            found.append((str(number), round(score, 6)))
    return sorted(found, key=lambda pair: (-pair[1], int(pair[0])))[:k]


def hits(tool: SearchTool, query: str, k: int) -> list[tuple[str, float]]:
    return [(hit.passage.id, hit.score) for hit in tool.search(query, k)]


VOCABULARY = ["red", "Green", "blue", "the", "北京大学", "東京", "ไทย", "école", "हिन्दी", "42", "x"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=8), min_size=1, max_size=12),
    st.lists(st.sampled_from([*VOCABULARY, "absent"]), min_size=1, max_size=5),
    st.integers(1, 14),
    st.sampled_from([(1.5, 0.75), (0.9, 0.4), (0.0, 0.0), (2.0, 1.0)]),
)
def test_equals_brute_force(rows: list[list[str]], query: list[str], k: int, params: tuple[float, float]) -> None:
    texts = [" ".join(row) for row in rows]
    tool = SearchTool(texts, k1=params[0], b=params[1])
    expected = brute_force(texts, " ".join(query), k, *params)
    found = hits(tool, " ".join(query), k)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-6)


def test_equals_brute_force_on_real_text(shared_data: Path) -> None:
    tool = SearchTool(shared_data / "text" / "gutenberg_alice.txt")
    texts = [passage.text for passage in tool.passages]
    rng = random.Random(0)
    for _ in range(15):
        query = " ".join(rng.sample(rng.choice(texts).split(), 4))
        expected = brute_force(texts, query, 10)
        found = tool.search(query, 10)
        assert [hit.passage for hit in found] == [tool.passages[int(number) - 1] for number, _ in expected], query
        assert [hit.score for hit in found] == pytest.approx([score for _, score in expected], abs=2e-6)


def test_ties_stand_in_corpus_order() -> None:
    texts = ["other words"] + ["same text"] * 40 + ["same words text"]
    assert [name for name, _ in hits(SearchTool(texts), "same text", 5)] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat's 3.5 cats_dogs", ["the", "cat", "s", "3", "5", "cats", "dogs"]),
        ("北京大学", ["北", "京", "大", "学", "北京", "京大", "大学"]),
        ("ＧＰＴ４ ﬁne STRASSE Straße", ["gpt4", "fine", "strasse", "strasse"]),
        ("use Python编程", ["use", "python", "编", "程", "编程"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("école E\u0301COLE", ["école", "école"]),
        ("한국어 검색", ["한국어", "검색"]),
        ("...!？ _", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_chinese_is_found_without_spaces() -> None:
    tool = SearchTool(["上海是一座城市。", "北京大学在北京。", "大海很大。"])
    assert tool.search("北京大学在哪里？")[0].passage.text == "北京大学在北京。"


def test_tool_text() -> None:
    tool = SearchTool([{"id": "a", "title": "Cats", "text": "x" * 50}, {"id": "b", "text": "dogs"}], max_chars=20)
    box = Toolbox([tool])
    assert box.run(ToolCall("search", {"query": "CATS"})).content.splitlines() == [
        "[1] id=a score=0.24",
        "Cats",
        "xxxxxxxxxxxxxxx [... 35 more characters]",
    ]
    assert box.run(ToolCall("search", {"query": "birds"})).content == "no passage has any of these words"
    assert box.run(ToolCall("search", {"query": "?!"})).content == "no passage has any of these words"


def test_corpora(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": 7, "text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert read_corpus(tmp_path / "rows.jsonl") == [Passage("7", "one"), Passage("2", "two")]
    (tmp_path / "named.jsonl").write_text('{"key": "k", "body": "one"}\n', encoding="utf-8")
    assert read_corpus(tmp_path / "named.jsonl", text="body", id="key") == [Passage("k", "one")]
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("\ufefffirst\r\n\r\nsecond\n \nthird", encoding="utf-8")
    (folder / "deep" / "a.txt").write_text("\n\n".join(["word " * (PASSAGE_WORDS - 50)] * 2), encoding="utf-8")
    found = read_corpus(folder)
    assert [passage.id for passage in found] == ["b.txt#1", "deep/a.txt#1", "deep/a.txt#2"]
    assert found[0].text == "first\n\nsecond\n\nthird"


def test_bad_corpora(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt:2: byte 11 of the file isn't UTF-8") as caught:
        SearchTool(tmp_path)
    assert caught.value.reason == "bad_encoding" and caught.value.path == str(tmp_path / "latin.txt")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:2: bad_encoding.*byte 14 of the line.*iconv"):
        SearchTool(tmp_path / "latin.jsonl")
    (tmp_path / "wide.jsonl").write_bytes('{"text": "a"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        SearchTool(tmp_path / "wide.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2"):
        SearchTool(tmp_path / "broken.jsonl")
    with pytest.raises(DataError, match="passage 2 has no text under 'text'; it has body"):
        SearchTool(["a", {"body": "b"}])
    with pytest.raises(DataError, match="passages 1 and 3 of the corpus have the id 'x'"):
        SearchTool([{"id": "x", "text": "a"}, {"text": "c"}, {"id": "x", "text": "b"}])
    with pytest.raises(DataError, match="passages 1 and 2 .*one without an id has its number"):
        SearchTool([{"id": 2, "text": "a"}, {"text": "b"}])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="index_dir .*file is a file"):
        SearchTool(["a"], index_dir=tmp_path / "file")
    with pytest.raises(DataError, match="no passage"):
        SearchTool([])
    with pytest.raises(DataError, match="no file or folder"):
        SearchTool(tmp_path / "none")
    with pytest.raises(ConfigError, match="k and max_chars"):
        SearchTool(["a"], k=0)


def test_a_corpus_without_a_word() -> None:
    assert [hit.passage.text for hit in SearchTool(["...", "a word", "!"]).search("word")] == ["a word"]
    with pytest.raises(DataError, match="no passage has a word"):
        SearchTool(["...", "!"])


def test_the_index_is_kept_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"passage {number} of {word}" for number, word in enumerate(["cats", "dogs", "birds"] * 5)]
    first = SearchTool(texts, index_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(SearchTool, "_build", lambda self: pytest.fail("built again"))
        loaded = SearchTool(texts, index_dir=tmp_path)
    assert hits(loaded, "dogs 4", 9) == hits(first, "dogs 4", 9) == hits(SearchTool(texts), "dogs 4", 9)
    SearchTool([*texts, "more"], index_dir=tmp_path)
    SearchTool(texts, index_dir=tmp_path, b=0.5)
    assert len(list(tmp_path.iterdir())) == 3 and folder.is_dir()


def test_a_damaged_index_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["cats", "dogs"]
    SearchTool(texts, index_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    next(folder.glob("data*")).write_bytes(b"junk")
    with caplog.at_level(logging.WARNING):
        again = SearchTool(texts, index_dir=tmp_path)
    assert "can't be loaded" in caplog.text
    assert hits(again, "dogs", 2) == hits(SearchTool(texts, index_dir=tmp_path), "dogs", 2) == [("2", 0.277259)]


def test_the_key_depends_on_ids_and_order() -> None:
    one, two = Passage("1", "a"), Passage("2", "b")
    keys = {content_key(x) for x in ([one, two], [two, one], [one], [Passage("1", "b"), Passage("2", "a")])}
    assert len(keys) == 4
    assert json.dumps(["1", "a"])  # the key's form: ids can't run into texts
