"""Instruction tuning: the loss is on answers alone, and a tuned model answers in its template and stops."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from luban.artefact import Artefact
from luban.data.processors.chat import Chat
from luban.data.ragged import Ragged
from luban.errors import DataError, RecipeError
from luban.predict import load
from luban.recipe import load as load_recipe
from luban.training.plan import Plan, make_plan
from luban.training.step import GradientStep, compute_losses, count_losses
from luban.verbs.evaluate import evaluate
from luban.verbs.export import export
from luban.verbs.train import train

SAYS = {"cat": "meow meow", "dog": "woof", "cow": "moo, moo!", "鸭子": "嘎嘎"}
MODEL = {"type": "llama", "layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "size": "tiny"}


def chats(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in ShareGPT's layout, of one or two questions each."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        turns = []
        for asked in ("what says the {}?", "and the {}?")[: 1 + i % 2]:
            animal = draw.choice(list(SAYS))
            turns += [
                {"from": "human", "value": asked.format(animal) + f" ({i})"},
                {"from": "gpt", "value": SAYS[animal]},
            ]
        rows.append({"lang": "en", "conversations": turns})
    return rows


def write(folder: Path, rows: list[dict[str, Any]], name: str = "chats.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def recipe(path: str, **train_options: Any) -> dict[str, Any]:
    return {
        "data": {"train": {"type": "conversations", "path": path}, "inputs": {"messages": {"type": "chat", "vocabulary": 320}}, "groups": ["lang"]},
        "model": MODEL, "objective": "causal_lm",
        "train": {"steps": 1, "batch_size": 16, "device": "cpu", "precision": "fp32", "threads": 1, **train_options},
    }  # fmt: skip


def planned(options: dict[str, Any]) -> Plan:
    return make_plan(load_recipe(options))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that was tuned on animals and what they say."""
    folder = tmp_path_factory.mktemp("chat")
    path = write(folder, chats(160))
    optimizer = {"type": "adamw", "learning_rate": 0.004}
    train(recipe(path, steps=140, optimizer=optimizer), output=folder / "model")
    return folder


# --- what is learnt ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(recipe(write(tmp_path_factory.mktemp("plan"), chats(40))))


def test_labels_are_the_tokens_of_answers_and_of_their_ends(plan: Plan) -> None:
    chat = plan.prepared.pipeline.inputs["messages"]
    assert isinstance(chat, Chat)
    end = next(iter(chat.end_ids))
    for batch in plan.loader.batches(0):
        ids, labels, read = (batch[f"messages.{name}"] for name in ("ids", "labels", "read"))
        assert isinstance(ids, Ragged)
        assert isinstance(labels, torch.Tensor)
        assert isinstance(read, torch.Tensor)
        assert "messages.answer" not in batch
        assert torch.equal(ids.values[read + 1], labels)
        assert torch.equal(ids.rows[read + 1], ids.rows[read])
        said = chat.decode_ids(labels.tolist(), skip_special=False).split("<|im_end|>")
        assert said.pop() == ""
        assert set(said) <= set(SAYS.values())
        assert len(said) == int((labels == end).sum()), "each answer ends"


def test_the_loss_is_that_of_masked_labels_and_the_prompt_has_none(plan: Plan) -> None:
    batch = next(plan.loader.batches(0))
    ids, labels, read = (batch[f"messages.{name}"] for name in ("ids", "labels", "read"))
    whole: Any = plan.model.eval()({"messages.ids": ids})["messages.tokens"].logits()
    masked = torch.full((len(whole),), -100)
    masked[read] = labels  # type: ignore[index,assignment]
    expected = torch.nn.functional.cross_entropy(whole, masked, reduction="sum", ignore_index=-100)
    (part,) = compute_losses(plan.step.objectives, plan.model, batch).values()
    torch.testing.assert_close(part.total, expected)
    assert float(part.count) == len(labels) < len(ids) * 100
    assert {name: float(n) for name, n in count_losses(plan.step.objectives, batch).items()} == {
        "messages": len(labels)
    }


def test_accumulation_is_exact_though_answers_are_of_any_length(plan: Plan) -> None:
    def gradients(batches: list[Any]) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        step = GradientStep(
            plan.model.train(),
            plan.step.objectives,
            torch.optim.SGD(plan.model.parameters(), lr=0.0),
            clip=1e9,
        )
        step.optimizer.step = lambda: seen.update({n: p.grad.clone() for n, p in plan.model.named_parameters() if p.grad is not None})  # type: ignore[method-assign,assignment,misc]  # fmt: skip
        figures = step(batches)
        return seen | {"loss": figures["loss"]}

    rows = torch.arange(12).numpy()
    whole = gradients([plan.loader.load(rows, (0, 0))])
    parts = gradients([plan.loader.load(part, (0, 0)) for part in (rows[:1], rows[1:8], rows[8:])])
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_batches_are_measured_by_tokens_alone(tmp_path: Path) -> None:
    options = recipe(write(tmp_path, chats(40)), batch_size=None, batch_tokens=120)
    for batch in planned(options).loader.batches(0):
        assert 60 < len(batch["messages.ids"].values) <= 120 or len(batch["messages.ids"]) == 1  # type: ignore[union-attr]


def test_a_conversation_is_never_cut_into_windows(tmp_path: Path) -> None:
    long = [
        [{"from": "human", "value": f"{i} a b c " * 60}, {"from": "gpt", "value": "d " * 60}]
        for i in range(20)
    ]
    options = recipe(write(tmp_path, [{"conversations": turns} for turns in long]))
    options["data"].pop("groups")
    plan = planned(options)
    assert len(plan.loader.store) == plan.prepared.rows["train"]


# --- what is refused --------------------------------------------------------------------------------------


def test_training_on_nothing_is_impossible(tmp_path: Path) -> None:
    path = write(tmp_path, chats(40))
    options = recipe(path)
    options["objective"] = {"type": "causal_lm", "length": 9}
    with pytest.raises(DataError, match="left out because of answers that all lie behind max_length"):
        planned(options)
    rows = [*chats(40), {"lang": "en", "conversations": [{"from": "human", "value": "?"}]}]
    options = recipe(write(tmp_path, rows))
    with pytest.raises(DataError, match=r"more than data.max_invalid=0.01 allows"):
        planned(options)
    options["data"]["max_invalid"] = 0.1
    report = planned(options).prepared.report
    assert report["counts"]["messages: unreadable"] == 1
    assert any("no answer" in note for note in report["notes"]["train"])


def test_length_is_the_longest_conversation(tmp_path: Path) -> None:
    options = recipe(write(tmp_path, chats(40)))
    options["objective"] = {"type": "causal_lm", "length": 40}
    plan = planned(options)
    assert plan.prepared.report["counts"]["messages: conversations cut to max_length"] > 0
    assert max(len(row) for batch in plan.loader.batches(0) for row in batch["messages.ids"].unbind()) == 40  # type: ignore[union-attr]
    again = planned(plan.recipe.model_dump())
    assert again.recipe.objective == plan.recipe.objective
    options["data"]["inputs"]["messages"]["max_length"] = 50
    with pytest.raises(RecipeError, match="length is 40, and max_length of 'messages' is 50"):
        planned(options)


def test_a_masked_model_reads_no_conversations(tmp_path: Path) -> None:
    options = recipe(write(tmp_path, chats(40))) | {
        "model": {"type": "bert", "size": "tiny"},
        "objective": "masked_lm",
    }
    with pytest.raises(RecipeError, match="'messages' holds conversations; take causal_lm or dpo"):
        planned(options)


# --- a tuned model ----------------------------------------------------------------------------------------


def test_a_tuned_model_answers_in_its_template_and_stops(tuned: Path) -> None:
    predictor = load(tuned / "model")
    rows: list[dict[str, Any]] = []
    expected = []
    for animal, sound in SAYS.items():
        rows.append({"messages": json.dumps([{"role": "user", "content": f"what says the {animal}? (7)"}])})
        rows.append({"messages": f"what says the {animal}? (8)"})
        expected += [sound, sound]
    earlier = [
        {"role": "user", "content": "what says the cat? (3)"},
        {"role": "assistant", "content": "meow meow"},
    ]
    rows.append({"messages": json.dumps([*earlier, {"role": "user", "content": "and the dog? (3)"}])})
    predictions = predictor.predict(rows)
    assert [one["completion"] for one in predictions] == [*expected, SAYS["dog"]]
    assert {one["completion.finish_reason"] for one in predictions} == {"end"}


def test_rows_with_answers_are_asked_without_them(tuned: Path) -> None:
    given = [
        {"role": "user", "content": "what says the cow? (1)"},
        {"role": "assistant", "content": "I know not"},
    ]
    (one,) = load(tuned / "model").predict([{"messages": json.dumps(given)}])
    assert one["completion"] == SAYS["cow"]


def test_evaluation_counts_answers_only(tuned: Path) -> None:
    rows = chats(10, seed=5)
    rows.append({"lang": "en", "conversations": [{"from": "human", "value": "?"}]})
    messages = [
        {"lang": "en", "messages": [{"role": "user" if m["from"] == "human" else "assistant", "content": m["value"]} for m in row["conversations"]]}
        for row in rows
    ]  # fmt: skip
    found = evaluate(tuned / "model", write(tuned, messages, "test.jsonl"), resamples=0)
    other = evaluate(tuned / "model", write(tuned, rows, "sharegpt.jsonl"), resamples=0)
    assert other["metrics"] == found["metrics"], "the layout makes no difference"
    chat = load(tuned / "model").pipeline.inputs["messages"]
    assert isinstance(chat, Chat)
    answers = [m["content"] for row in messages for m in row["messages"] if m["role"] == "assistant"]
    tokens = sum(len(chat.trained.encode(answer, add_special_tokens=False).ids) + 1 for answer in answers)
    assert found["details"]["messages"] == {
        "tokens": tokens,
        "bytes": sum(len(answer.encode()) for answer in answers),
    }
    assert found["rows"] == 10
    assert found["skipped"] == {"messages: unreadable": 1}
    assert found["metrics"]["messages.loss"]["value"] < 0.1
    assert "lang" in found["slices"]


def test_tuning_goes_on_from_an_artefact_with_its_template_and_its_end(tuned: Path) -> None:
    options = recipe(str(tuned / "chats.jsonl"))
    options["model"] = {"type": "llama", "from": str(tuned / "model")}
    options["data"]["inputs"]["messages"] = "chat"
    plan = planned(options)
    chat, before = (
        pipeline.inputs["messages"]
        for pipeline in (plan.prepared.pipeline, Artefact.load(tuned / "model").pipeline)
    )
    assert isinstance(chat, Chat)
    assert isinstance(before, Chat)
    assert (chat.chat_template, chat.end_id, chat.end_ids) == (
        before.chat_template,
        before.end_id,
        before.end_ids,
    )
    (part,) = compute_losses(plan.step.objectives, plan.model.eval(), next(plan.loader.batches(0))).values()
    assert float(part.total.detach() / part.count) < 0.1, "its weights are those of the artefact"


def test_the_template_is_exported(tuned: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(tuned / "model", format="hf", output=tuned / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned / "hf")
    chat = load(tuned / "model").pipeline.inputs["messages"]
    assert isinstance(chat, Chat)
    asked = [{"role": "user", "content": "what says the cow? (1)"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == chat.prompt_of(asked)
    model = transformers.AutoModelForCausalLM.from_pretrained(tuned / "hf")
    written = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == SAYS["cow"] + "<|im_end|>", "and stops there"
