"""Conversations in every layout become the same rows; what is none is counted and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.data._messages import UnreadableError, dump, read
from luban.data.sources import open_source
from luban.data.sources.conversations import Conversations
from luban.errors import DataError, RecipeError

SUM = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "chats.jsonl") -> str:
    path = folder / name
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(source: Conversations) -> list[dict[str, Any]]:
    return [row for chunk in source.scan() for row in chunk.to_dicts()]


def chats_of(source: Conversations, column: str = "messages") -> list[Any]:
    return [row[column] and json.loads(row[column]) for row in rows_of(source)]


LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {"messages": SUM},
    "sharegpt": {"conversations": [{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}]},
    "alpaca": {"instruction": "1 + 1", "input": "", "output": "2"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_every_layout_gives_the_same_rows(layout: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path, [{"id": "a", **LAYOUTS[layout]}, {"id": "b", **LAYOUTS[layout]}], name)
    for form in ("auto", layout):
        source = Conversations.model_validate({"path": path, "format": form})
        assert source.columns() == ["messages", "id"]
        assert rows_of(source) == [{"messages": dump(SUM), "id": id_} for id_ in "ab"]
        assert any(f"is read as {layout}" in note for note in source.notes())


def test_a_recipe_names_it() -> None:
    source = open_source({"type": "conversations", "path": "x.jsonl"})
    assert isinstance(source, Conversations)
    with pytest.raises(RecipeError, match="alpaca"):
        open_source({"type": "conversations", "path": "x.jsonl", "format": "alpac"})


def test_other_columns_are_kept_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, [{"n": 3, "tags": ["a", "b"], **LAYOUTS["messages"]}], "a.parquet")
    (chunk,) = Conversations(path=path).scan()
    assert chunk.to_dicts() == [{"messages": dump(SUM), "n": 3, "tags": ["a", "b"]}]
    assert Conversations(path=path, keys=["n"]).columns() == ["messages", "n"]
    with pytest.raises(DataError, match="no column 'm'"):
        Conversations(path=path, keys=["m"]).columns()


def test_keys_that_are_met_late_are_read_if_they_are_listed(tmp_path: Path) -> None:
    rows = [dict(LAYOUTS["sharegpt"]) for _ in range(1001)] + [{**LAYOUTS["sharegpt"], "system": "Be brief."}]
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match="'keys: "):
        rows_of(Conversations(path=path))
    *_, last = chats_of(Conversations(path=path, keys=[]))
    assert last == [{"role": "system", "content": "Be brief."}, *SUM]


def test_alpaca_with_input_system_and_history(tmp_path: Path) -> None:
    row = {
        "instruction": "Add.",
        "input": "1 + 1",
        "output": "2",
        "system": "Count.",
        "history": [["Hi", "Hello"]],
    }
    (chat,) = chats_of(Conversations(path=write(tmp_path, [row])))
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in chat] == ["Count.", "Hi", "Hello", "Add.\n1 + 1", "2"]


def test_names_of_columns_that_differ(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "1 + 1", "answer": "2"}])
    with pytest.raises(DataError, match="say by 'names'"):
        Conversations(path=path).columns()
    assert chats_of(Conversations(path=path, names={"instruction": "question", "output": "answer"})) == [SUM]
    with pytest.raises(DataError, match="no column 'antwort'"):
        Conversations(path=path, names={"instruction": "antwort"}).columns()
    with pytest.raises(DataError, match=r"'outptu' is no column of any layout.*did you mean 'output'"):
        Conversations(path=path, names={"outptu": "answer"}).columns()
    with pytest.raises(DataError, match="which format sharegpt needs"):
        Conversations(path=path, format="sharegpt").columns()


def test_what_is_no_conversation_is_counted_and_said(tmp_path: Path) -> None:
    bad: list[Any] = [
        [{"role": "usr", "content": "x"}, SUM[1]], [SUM[0]], [SUM[0], {"role": "assistant", "content": " "}], [{"role": "user", "content": ""}, SUM[1]],
        "words", [SUM[0], {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], [{"role": "user", "content": [{"type": "image_url"}]}, SUM[1]], [], None,
    ]  # fmt: skip
    source = Conversations(path=write(tmp_path, [{"messages": one} for one in [SUM, *bad, SUM]]))
    chats = chats_of(source)
    assert [chat is not None for chat in chats] == [True, *[False] * len(bad), True]
    said = "\n".join(source.notes())
    for reason in (
        "a role 'usr'",
        "no answer",
        "an answer without text",
        "a message without text",
        "a call of tools",
        "that is no text",
    ):
        assert reason in said, said  # fmt: skip
    assert "the first is row 2" in said
    rows_of(source)
    assert "\n".join(source.notes()) == said, "a second reading is counted anew"


def test_nothing_but_rubbish_refuses(tmp_path: Path) -> None:
    path = write(tmp_path, [{"messages": [{"role": "narrator", "content": "x"}]}] * 3)
    with pytest.raises(DataError, match=r"none of the 3 rows .* a role 'narrator' \(3\)"):
        rows_of(Conversations(path=path))


def test_keys_of_messages_that_are_left_out_are_said(tmp_path: Path) -> None:
    source = Conversations(path=write(tmp_path, [{"messages": [{**SUM[0], "name": "Ann"}, SUM[1]]}]))
    assert chats_of(source) == [SUM]
    assert any("keys besides role and content" in note and "name" in note for note in source.notes())


def test_contents_in_parts_and_empty_system_messages(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1"}]
    chat = [
        {"role": "system", "content": ""},
        {"role": "developer", "content": "Count."},
        {"role": "user", "content": parts},
        SUM[1],
    ]
    assert chats_of(Conversations(path=write(tmp_path, [{"messages": chat}]))) == [
        [{"role": "system", "content": "Count."}, *SUM]
    ]  # fmt: skip


PAIRS: dict[str, dict[str, Any]] = {
    "strings": {"prompt": "1 + 1", "chosen": "2", "rejected": "3"},
    "conversations": {"chosen": SUM, "rejected": [SUM[0], {"role": "assistant", "content": "3"}]},
    "conversations and prompt": {"prompt": "1 + 1", "chosen": SUM, "rejected": [SUM[0], {"role": "assistant", "content": "3"}]},
    "completions": {"prompt": [SUM[0]], "chosen": [SUM[1]], "rejected": [{"role": "assistant", "content": "3"}]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "1 + 1"}], "chosen": {"from": "gpt", "value": "2"}, "rejected": {"from": "gpt", "value": "3"},
    },
    "alpaca": {"instruction": "1 + 1", "input": "", "chosen": "2", "rejected": "3"},
}  # fmt: skip


@pytest.mark.parametrize("layout", PAIRS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_preferences(layout: str, name: str, tmp_path: Path) -> None:
    source = Conversations(path=write(tmp_path, [{**PAIRS[layout], "score": 5}], name))
    assert source.columns() == ["chosen", "rejected", "score"]
    assert chats_of(source, "chosen") == [SUM]
    assert chats_of(source, "rejected") == [[SUM[0], {"role": "assistant", "content": "3"}]]
    assert any("pairs of answers (chosen, rejected)" in note for note in source.notes())


def test_pairs_that_say_nothing_are_counted(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]
    rows = [
        PAIRS["strings"], {"prompt": "x", "chosen": "2", "rejected": "2"}, {"prompt": None, "chosen": "2", "rejected": "3"},
        {"prompt": None, "chosen": json.dumps(SUM), "rejected": json.dumps(other)}, {"prompt": "x", "chosen": "", "rejected": "3"},
    ]  # fmt: skip
    source = Conversations(path=write(tmp_path, rows))
    assert [row["chosen"] is None for row in rows_of(source)] == [False, True, True, True, True]
    assert all((row["chosen"] is None) == (row["rejected"] is None) for row in rows_of(source))
    said = "\n".join(source.notes())
    for reason in (
        "two answers that are equal",
        "an answer without a prompt",
        "different prompts",
        "an answer without text",
    ):
        assert reason in said, said


def test_a_column_of_the_same_name_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, [{**LAYOUTS["alpaca"], "messages": "mine"}])
    with pytest.raises(DataError, match="leave it out by 'keys'"):
        Conversations(path=path, format="alpaca").columns()
    assert chats_of(Conversations(path=path, format="alpaca", keys=[])) == [SUM]


def test_the_fingerprint_follows_contents_and_options(tmp_path: Path) -> None:
    path = write(tmp_path, [LAYOUTS["messages"]])
    first = Conversations(path=path).fingerprint()
    assert Conversations(path=path).fingerprint() == first
    assert Conversations(path=path, keys=[]).fingerprint() != first
    write(tmp_path, [LAYOUTS["messages"]] * 2)
    assert Conversations(path=path).fingerprint() != first


CONTENT = st.text(st.characters(exclude_categories=[]), min_size=1).filter(lambda text: bool(text.strip()))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), CONTENT), min_size=1))
def test_what_is_written_is_read_back(turns: list[tuple[str, str]]) -> None:
    messages = read([{"role": role, "content": content} for role, content in turns], answered=False)
    assert read(dump(messages), answered=False) == messages
    dump(messages).encode()  # no half of a UTF-16 pair is left
    other = [{"from": message["role"], "value": message["content"]} for message in messages]
    assert read(other, answered=False) == messages


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "x"]), inner)
    ),
)


@given(JSON | st.text())
def test_anything_is_read_or_refused_in_a_few_words(value: Any) -> None:
    for cell in (value, json.dumps(value)):
        try:
            messages = read(cell)
        except UnreadableError as error:
            said = str(error)
        else:
            said = "read"
            assert all(one.keys() == {"role", "content"} and one["content"].strip() for one in messages)
        assert 0 < len(said) < 80
