"""DPO: the loss and its gradient by hand, a reference that stays where the model began, and an artefact that answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from luban.data.batch import Batch
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives.dpo import DPO
from luban.predict import load
from luban.recipe import load as load_recipe
from luban.training.checkpoint import Checkpoints
from luban.training.plan import Plan, make_plan
from luban.training.step import GradientStep, compute_losses, count_losses
from luban.verbs.evaluate import evaluate
from luban.verbs.train import train

ANIMALS = ["cat", "dog", "cow", "duck", "hen", "pig"]


def write(folder: Path, rows: list[dict[str, Any]], name: str) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was tuned for a while to answer yes or no at random, and pairs in which yes is preferred."""
    folder = tmp_path_factory.mktemp("dpo")
    said = [
        {"instruction": f"is the {a} good {i}?", "input": "", "output": ["yes it is", "no"][(i + j) % 2]}
        for i in range(20)
        for j, a in enumerate(ANIMALS)
    ]
    path = write(folder, said, "said.jsonl")
    recipe = {
        "data": {"train": {"type": "conversations", "path": path}, "inputs": {"messages": {"type": "chat", "vocabulary": 300}}},
        "model": {"type": "llama", "layers": 2, "hidden_size": 32, "heads": 2, "kv_heads": 1, "size": "tiny"}, "objective": "causal_lm",
        "train": {"steps": 40, "batch_size": 16, "optimizer": {"type": "adamw", "learning_rate": 0.005}, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    train(recipe, output=folder / "model")
    pairs = [
        {"prompt": f"is the {a} good {i}?", "chosen": "yes it is", "rejected": "no", "animal": a}
        for i in range(20)
        for a in ANIMALS
    ]
    write(folder, pairs, "pairs.jsonl")
    return folder


def recipe(folder: Path, **more: Any) -> dict[str, Any]:
    result = {
        "data": {"train": {"type": "conversations", "path": str(folder / "pairs.jsonl")}, "inputs": {"rejected": "chat", "chosen": "chat"}, "groups": ["animal"]},
        "model": {"type": "llama", "from": str(folder / "model")}, "objective": "dpo",
        "train": {"steps": 8, "batch_size": 8, "optimizer": {"type": "adamw", "learning_rate": 0.002}, "device": "cpu", "precision": "fp32", "threads": 1},
    }  # fmt: skip
    return {**result, **more}


def planned(options: dict[str, Any]) -> Plan:
    return make_plan(load_recipe(options))


def objective_of(plan: Plan) -> DPO:
    (objective,) = plan.step.objectives
    assert isinstance(objective, DPO)
    return objective


def moved(plan: Plan) -> Plan:
    """The model, away from its reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in plan.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return plan


# --- by hand ----------------------------------------------------------------------------------------------


def log_probability(model: Any, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Of the marked tokens of one conversation, alone in its batch."""
    logits = model({"chosen.ids": Ragged.from_rows([ids])})["chosen.tokens"].logits()
    each = logits[:-1].log_softmax(1).gather(1, ids[1:, None]).squeeze(1)
    return (each * answer[1:]).sum()


def rows_of(plan: Plan) -> list[tuple[torch.Tensor, ...]]:
    encoded = plan.prepared.store("train").take(torch.arange(6).numpy())
    columns = []
    for name in ("chosen.ids", "chosen.answer", "rejected.ids", "rejected.answer"):
        flat: Any = encoded[name]
        columns.append(Ragged(torch.from_numpy(flat.values).long(), torch.from_numpy(flat.offsets)).unbind())
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.7}, {"label_smoothing": 0.2}, {"variant": "ipo", "beta": 0.3}],
    ids=["plain", "beta", "smoothed", "ipo"],
)
def test_loss_and_gradient_are_those_by_hand(options: dict[str, Any], started: Path) -> None:
    plan = planned(recipe(started, objective={"type": "dpo", **options}))
    reference = planned(recipe(started)).model.eval()
    moved(plan)
    beta = options.get("beta", 0.1)
    losses = []
    for chosen, chosen_answer, rejected, rejected_answer in rows_of(plan):
        now = [
            log_probability(plan.model, *one)
            for one in ((chosen, chosen_answer), (rejected, rejected_answer))
        ]
        with torch.no_grad():
            then = [
                log_probability(reference, *one)
                for one in ((chosen, chosen_answer), (rejected, rejected_answer))
            ]
        # As in TRL: the difference of the two log-ratios.
        h = (now[0] - now[1]) - (then[0] - then[1])
        if options.get("variant") == "ipo":
            losses.append((h - 1 / (2 * beta)) ** 2)
        else:
            eps = options.get("label_smoothing", 0.0)
            losses.append(-F.logsigmoid(beta * h) * (1 - eps) - F.logsigmoid(-beta * h) * eps)
    expected = torch.stack(losses).sum()
    wanted = torch.autograd.grad(expected, [*plan.model.parameters()], allow_unused=True)
    batch = plan.loader.load(torch.arange(6).numpy(), (0, 0))
    part = compute_losses(plan.step.objectives, plan.model, batch)["dpo"]
    torch.testing.assert_close(part.total, expected, rtol=1e-4, atol=1e-5)
    assert float(part.count) == 6
    found = torch.autograd.grad(part.total, [*plan.model.parameters()], allow_unused=True)
    for (name, _), ours, theirs in zip(plan.model.named_parameters(), found, wanted, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_at_first_nothing_is_preferred(started: Path) -> None:
    plan = planned(recipe(started))
    figures = GradientStep(
        plan.model, plan.step.objectives, torch.optim.SGD(plan.model.parameters(), lr=0.1)
    )([next(plan.loader.batches(0))])
    assert float(figures["dpo"]) == pytest.approx(math.log(2), abs=1e-5)
    assert float(figures["loss"]) == float(figures["dpo"]), "figures have no weight in the loss"
    assert float(figures["dpo.margin"]) == pytest.approx(0, abs=1e-5)


def test_turns_that_both_share_cancel_out(started: Path) -> None:
    plan = moved(planned(recipe(started)))
    chat: Any = plan.prepared.pipeline.inputs["chosen"]
    ask, yes, no = ({"role": role, "content": text} for role, text in (("user", "is the cat good 3?"), ("assistant", "yes it is"), ("assistant", "no")))  # fmt: skip

    def loss(first: list[dict[str, str]], answers_before: bool) -> float:
        batch: Batch = {}
        for column, last in (("chosen", yes), ("rejected", no)):
            encoded = chat.encode_texts([json.dumps([*first, ask, last])])
            for name in ("ids", "answer"):
                values = torch.from_numpy(encoded[name].values.copy()).long()
                if name == "answer" and not answers_before:
                    values[: len(chat.prompt_of([*first, ask]))] = 0
                batch[f"{column}.{name}"] = Ragged.from_rows([values])
        batch = objective_of(plan).collate(batch, torch.Generator())
        return float(objective_of(plan).forward(plan.model.eval(), batch)["dpo"].total.detach())

    earlier = [ask, no]
    assert loss(earlier, True) == pytest.approx(loss(earlier, False), abs=1e-5)
    assert loss(earlier, True) != pytest.approx(loss([], True), abs=1e-5)


def test_accumulation_is_exact(started: Path) -> None:
    plan = moved(planned(recipe(started)))
    rows = torch.arange(9).numpy()
    seen = []
    for parts in ([rows], [rows[:2], rows[2:]]):
        totals: dict[str, torch.Tensor] = {}
        counts: dict[str, float] = {}
        for part in parts:
            batch = plan.loader.load(part, (0, 0))
            losses = compute_losses(plan.step.objectives, plan.model, batch)
            assert {n: float(c) for n, c in count_losses(plan.step.objectives, batch).items()} == {n: float(one.count) for n, one in losses.items()}  # fmt: skip
            for name, one in losses.items():
                totals[name] = totals.get(name, torch.zeros(())) + one.total.detach()
                counts[name] = counts.get(name, 0) + float(one.count)
        seen.append({name: float(total) / counts[name] for name, total in totals.items()})
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)
    assert set(seen[0]) == {"dpo", "dpo.accuracy", "dpo.margin"}


# --- the reference ----------------------------------------------------------------------------------------


def test_the_reference_is_read_without_dropout_and_leaves_the_model_as_it_was(started: Path) -> None:
    plan = planned(
        recipe(started, model={"type": "llama", "from": str(started / "model"), "layer_dropout": 0.4})
    )
    batch = next(plan.loader.batches(0))
    objective = objective_of(plan)
    joined = objective._joined(batch)
    plan.model.train()
    before = {name: value.clone() for name, value in plan.model.state_dict().items()}
    first, second = objective._of_reference(joined, batch), objective._of_reference(joined, batch)
    assert torch.equal(first, second)
    assert all(part.training for part in plan.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in plan.model.state_dict().items())
    moved(plan)
    assert torch.equal(objective._of_reference(joined, batch), first), "it stays where the model began"


@pytest.mark.parametrize("dora", [False, True])
def test_with_lora_only_the_adapters_are_kept_twice(dora: bool, started: Path) -> None:
    options = recipe(started, adapt=[{"type": "lora", "rank": 2, "dora": dora}])
    plan = planned(options)
    objective = objective_of(plan)
    kept = sum(value.numel() for value in objective._reference.values())
    assert kept < 0.3 * sum(p.numel() for p in plan.model.parameters())
    batch = next(plan.loader.batches(0))
    joined = objective._joined(batch)
    moved(plan)
    plain = planned(recipe(started))
    expected = objective_of(plain)._of_reference(joined, batch)
    torch.testing.assert_close(objective._of_reference(joined, batch), expected)


@pytest.mark.parametrize("adapt", [[], [{"type": "lora", "rank": 2}]], ids=["whole", "lora"])
def test_a_run_that_goes_on_has_the_reference_of_its_beginning(
    adapt: list[Any], started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recipe(started, adapt=adapt)
    options["train"]["checkpoint_steps"] = 3
    train(options, output=tmp_path / "undisturbed")
    save = Checkpoints.save

    def killed(self: Checkpoints, step: int, *arguments: Any, **more: Any) -> bool:
        done = save(self, step, *arguments, **more)
        if step == 3:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(options, output=tmp_path / "killed")
    saved: list[int] = []

    def noted(self: Checkpoints, step: int, *arguments: Any, **more: Any) -> bool:
        saved.append(step)
        return save(self, step, *arguments, **more)

    monkeypatch.setattr(Checkpoints, "save", noted)
    train(options, output=tmp_path / "killed")
    assert saved == [6, 8], "it went on"
    one, other = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        for name in ("undisturbed", "killed")
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- the artefact -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def preferred(started: Path) -> Path:
    options = recipe(started)
    options["train"] |= {"steps": 40, "evaluate_every": 20, "metric": "dpo.accuracy"}
    train(options, output=started / "preferred")
    return started / "preferred"


def test_what_is_preferred_is_said(preferred: Path) -> None:
    history = json.loads((preferred / "metrics.json").read_text())["history"]
    assert history[-1]["dpo.accuracy"] > 0.95
    assert history[-1]["dpo.margin"] > 0.5
    assert history[-1]["dpo.loss"] < history[0]["dpo.loss"] < math.log(2)
    predictor = load(preferred)
    assert list(predictor.pipeline.inputs) == ["chosen"], "the model reads one conversation, not a pair"
    predictions = predictor.predict([{"chosen": f"is the {animal} good 5?"} for animal in ANIMALS])
    # The first word goes astray in some runs: DPO makes what is preferred more probable than the other, not probable.
    assert all(one["completion"].endswith(" it is") for one in predictions)
    assert {one["completion.finish_reason"] for one in predictions} == {"end"}


def test_rows_are_known_again_by_both_answers(preferred: Path, tmp_path: Path) -> None:
    """The split of a row was decided by both columns, and `evaluate --split` must find the same rows."""
    lineage = json.loads((preferred / "lineage.json").read_text())
    (tmp_path / "rows.jsonl").write_text((preferred.parent / "pairs.jsonl").read_text())
    from luban.data.sources.conversations import Conversations

    frame = next(Conversations(path=str(tmp_path / "rows.jsonl")).scan())
    frame.write_parquet(tmp_path / "rows.parquet")
    for split in ("validation", "test"):
        found = evaluate(preferred, str(tmp_path / "rows.parquet"), split=split, resamples=0)
        assert found["rows"] == lineage["rows"][split] > 0
        if split == "test":
            measured = json.loads((preferred / "metrics.json").read_text())["metrics"]["chosen.loss"]["value"]
            assert found["metrics"]["chosen.loss"]["value"] == pytest.approx(measured, rel=1e-5)


# --- what is refused --------------------------------------------------------------------------------------


def test_what_cannot_be_compared_refuses(started: Path) -> None:
    options = recipe(started)
    options["data"]["inputs"] = {"chosen": "chat"}
    with pytest.raises(RecipeError, match="there is no input 'rejected'"):
        planned(options)
    options["data"]["inputs"] = {"chosen": "chat", "rejected": "text"}
    with pytest.raises(RecipeError, match="'rejected' is text"):
        planned(options)
    options["data"]["inputs"] = {"chosen": "chat", "rejected": {"type": "chat", "max_length": 30}}
    with pytest.raises(RecipeError, match=r"their 'max_length' differ \(30 and 512\)"):
        planned(options)
    options = recipe(started, model={"type": "llama", "size": "tiny"})
    with pytest.raises(RecipeError, match="dpo starts from a model that was trained"):
        planned(options)
    for wrong in ({"variant": "ipo", "label_smoothing": 0.1}, {"chosen": "a", "rejected": "a"}):
        with pytest.raises(ValueError, match=r"belongs to variant sigmoid|are both 'a'"):
            DPO.model_validate(wrong)
