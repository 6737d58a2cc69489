"""Causal language models of `transformers`, of families that Luban has none of its own for: the same logits, texts and scores."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_cases import END, VOCABULARY, decode, spec

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import DataError, LubanError, RecipeError
from luban.generation.engine import Generated, generate
from luban.generation.int8 import to_int8
from luban.generation.options import Generation
from luban.generation.reader import Reader
from luban.generation.score import score
from luban.models._decoding import language_model_of
from luban.models._foreign import ForeignEncoder
from luban.models.huggingface import HuggingFace
from luban.recipe import Section

transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0}  # fmt: skip
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": {**SIZES, "intermediate_size": 48},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "init_std": 0.3, "num_attention_heads": 4},
    "phi": {**SIZES, "intermediate_size": 48},
    # Logits have a cap, and half of the layers look back over five tokens only.
    "gemma2": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "falcon": {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
    "cohere": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "logit_scale": 0.3},
    # No positions can be told to it.
    "bloom": {"n_layer": 2, "n_head": 4},
    # No keys and values, but a state.
    "mamba": {"num_hidden_layers": 2, "state_size": 4, "expand": 2, "conv_kernel": 3},
}  # fmt: skip
CACHED = [kind for kind in CONFIGS if kind not in ("bloom", "mamba")]


def theirs(kind: str) -> Any:
    """A model of `transformers` with tiny random weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **COMMON, **CONFIGS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model of `transformers`, and a network of Luban's that was started from its directory."""
    made: dict[str, tuple[Any, torch.nn.Module]] = {}

    def of(kind: str) -> tuple[Any, torch.nn.Module]:
        if kind not in made:
            path = Path(tmp_path_factory.mktemp(kind))
            with torch.inference_mode(False):  # which test asks first is chance
                model = theirs(kind)
                model.save_pretrained(path)
                family = Section("models").parse(
                    {"type": "huggingface", "task": "causal_lm", "from": str(path)}
                )
                assert isinstance(family, HuggingFace)
                module = family.build(spec())
                assert family.load_pretrained(module) == []
            made[kind] = (model, module.eval())
        return made[kind]

    return of


def ran(module: torch.nn.Module, prompts: list[list[int]], **how: Any) -> list[Generated]:
    return generate(module, prompts, Generation(**{"max_tokens": 16, **how}), end={END}, decode=decode)


def greedy(model: Any, prompt: list[int], tokens: int = 16, **how: Any) -> list[int]:
    """What `transformers` writes behind one prompt."""
    ids = torch.tensor([prompt])
    options = transformers.GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=END, pad_token_id=0, **how)  # fmt: skip
    with torch.no_grad():
        found: list[int] = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=options
        )[0, len(prompt) :].tolist()
    return found[: found.index(END)] if END in found else found


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_transformers(kind: str, pair: Any, prompts: list[list[int]]) -> None:
    model, module = pair(kind)
    flat = Ragged.from_rows([torch.tensor(prompt) for prompt in prompts])
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([prompt])).logits[0] for prompt in prompts]
        outputs = module({"text.ids": flat})
        torch.testing.assert_close(outputs["text.tokens"].logits(), torch.cat(expected), rtol=1e-5, atol=1e-5)
        places = torch.tensor([0, 3, 7, 12])
        some = module({"text.ids": flat, "text.read": places})["text.tokens"]
    torch.testing.assert_close(some.logits(), torch.cat(expected)[places], rtol=1e-5, atol=1e-5)
    labels = torch.tensor([4, 5, 6, 7])
    wanted = torch.nn.functional.cross_entropy(torch.cat(expected)[places], labels, reduction="none")
    torch.testing.assert_close(some.losses(labels), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some.total(labels), wanted.sum(), rtol=1e-5, atol=1e-5)
    assert outputs["states"].values.shape[0] == len(flat.values)


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_texts_are_those_of_transformers(kind: str, pair: Any, prompts: list[list[int]]) -> None:
    model, module = pair(kind)
    assert [one.ids for one in ran(module, prompts)] == [greedy(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("kind", CONFIGS)
def test_beams_are_those_of_transformers(kind: str, pair: Any, prompts: list[list[int]]) -> None:
    model, module = pair(kind)
    if kind == "mamba":
        pytest.skip("transformers itself searches over no state")
    expected = [greedy(model, prompt, num_beams=3, early_stopping=False) for prompt in prompts]
    assert [one.ids for one in ran(module, prompts, beams=3)] == expected


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma2", "bloom", "mamba"])
def test_a_row_does_not_depend_on_those_beside_it(kind: str, pair: Any, prompts: list[list[int]]) -> None:
    _, module = pair(kind)
    how = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    together = ran(module, prompts, **how)
    options = Generation(max_tokens=16, **how)
    for number, prompt in enumerate(prompts):
        (alone,) = generate(module, [prompt], options, end={END}, decode=decode, numbers=[number])
        assert together[number].ids == alone.ids
        assert together[number].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_stop_strings_and_penalties(pair: Any, prompts: list[list[int]]) -> None:
    _, module = pair("phi")
    plain = ran(module, prompts)
    stop = next(one.text[4:6] for one in plain if len(one.text) > 6)
    stopped = ran(module, prompts, stop=[stop])
    for one, other in zip(plain, stopped, strict=True):
        assert other.text == one.text.split(stop)[0]
    assert "stop" in {one.finish_reason for one in stopped}
    penalised = ran(module, prompts, repetition_penalty=1.5)
    expected = [greedy(pair("phi")[0], prompt, repetition_penalty=1.5) for prompt in prompts]
    assert [one.ids for one in penalised] == expected


def test_texts_follow_a_constraint(pair: Any) -> None:
    pytest.importorskip("llguidance")
    from tokenizers import Tokenizer, decoders, models

    _, module = pair("gpt_neox")
    vocabulary = {"<pad>": 0, "<end>": 1, **{chr(ord("A") + i): i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    tokenizer.decoder = decoders.ByteLevel()
    for beams in (1, 2):
        (found,) = generate(
            module,
            [[7, 8]],
            Generation(max_tokens=8, regex="(CUT|DOG|EEL)S?", beams=beams),
            end={END},
            decode=lambda ids: tokenizer.decode(list(ids)),
            tokenizer=tokenizer,
        )
        assert found.text.rstrip("S") in ("CUT", "DOG", "EEL")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("alike", [False, True])
def test_candidates_are_scored_as_they_are_alone(
    kind: str, alike: bool, pair: Any, prompts: list[list[int]]
) -> None:
    model, module = pair(kind)
    prompts = [[9, 8, 7, *prompt] for prompt in prompts]  # which have something in common
    candidates = [[5, 6], [7, 9], [8, 8]] if alike else [[5], [6, 7, 8], [9, 4]]
    expected = torch.empty(len(prompts), len(candidates))
    for i, prompt in enumerate(prompts):
        for j, candidate in enumerate(candidates):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *candidate]])).logits[0]
            logprobs = logits.log_softmax(1)[len(prompt) - 1 : -1]
            expected[i, j] = logprobs.gather(1, torch.tensor(candidate)[:, None]).sum()
    torch.testing.assert_close(score(module, prompts, candidates), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CACHED)
@torch.inference_mode()
def test_a_step_reads_one_token_a_row(kind: str, pair: Any, prompts: list[list[int]]) -> None:
    model, module = pair(kind)
    read: list[int] = []
    hook = language_model_of(module).model.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, args, options: read.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    reader = Reader(module, len(prompts), 32)
    reader.read(prompts)
    reader.keep([0, 2, 2])
    other = reader.fork([1])
    logits = reader.read_one(torch.tensor([4, 5, 6]))
    alone = other.read_one(torch.tensor([5]))
    hook.remove()
    assert read == [max(map(len, prompts)), 1, 1]
    torch.testing.assert_close(alone[0], logits[1], rtol=1e-4, atol=1e-5)
    for row, (prompt, token) in enumerate([(0, 4), (2, 5), (2, 6)]):
        expected = model(input_ids=torch.tensor([[*prompts[prompt], token]])).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_transformers(pair: Any, prompts: list[list[int]]) -> None:
    model, module = pair("gemma2")  # whose table is tied
    model, module = copy.deepcopy(model), copy.deepcopy(module)
    flat = Ragged.from_rows([torch.tensor(prompt) for prompt in prompts])
    places = torch.arange(len(flat.values) - 1)
    labels = flat.values[1:]
    module({"text.ids": flat, "text.read": places})["text.tokens"].total(labels).backward()
    logits = torch.cat([model(input_ids=torch.tensor([prompt])).logits[0] for prompt in prompts])
    torch.nn.functional.cross_entropy(logits[:-1], labels, reduction="sum").backward()
    own = dict(language_model_of(module).model.named_parameters())  # type: ignore[union-attr]
    assert own.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_tied_table_is_saved_under_one_name(pair: Any) -> None:
    _, module = pair("gemma2")
    saved = module.state_dict()
    assert not any("lm_head" in name for name in saved)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(saved)
    encoder = language_model_of(other)
    head = encoder.head()  # type: ignore[attr-defined]
    assert head.weight is encoder.model.get_input_embeddings().weight  # type: ignore[union-attr,operator]
    assert bool(head.weight.any())


def test_a_head_that_came_apart_from_its_table_stays_apart(pair: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(pair("gemma2")[0])
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path)
    family = Section("models").parse({"type": "huggingface", "task": "causal_lm", "from": str(tmp_path)})
    assert isinstance(family, HuggingFace)
    module = family.build(spec())
    assert family.load_pretrained(module) == []
    again = family.portable().build(spec())
    again.load_state_dict(module.state_dict())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
        for one in (module, again):
            found = one.eval()({"text.ids": Ragged(ids[0], torch.tensor([0, 3]))})["text.tokens"].logits()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_more_tokens_than_there_are_positions(pair: Any) -> None:
    _, module = pair("opt")
    found = generate(module, [[7, 8, 9] * 20], Generation(max_tokens=50), end=set(), decode=decode)
    assert [len(one.ids) for one in found] == [64 - 60 + 1]
    with pytest.raises(DataError, match="have 65 tokens, and the model takes 64: shorten the prompt"):
        ran(module, [[5] * 65])


def test_int8_weights_are_refused(pair: Any) -> None:
    with pytest.raises(RecipeError, match=r"'huggingface \(phi\)' has others; take the stored weights"):
        to_int8(pair("phi")[1])


# --- all that transformers has ------------------------------------------------------------------------------

TINY = {
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "emb_dim": 16, "embedding_size": 16, "word_embed_proj_dim": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "head_dim": 8, "d_kv": 8, "intermediate_size": 24, "d_ff": 24, "ffn_dim": 24, "hidden_dim": 24,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "channel_shrink_ratio": 2, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "max_position_embeddings": 16, "n_positions": 16,
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": END,
}  # fmt: skip
SLOW = {"falcon_h1", "kimi_linear", "nemotron_h"}  # whose states transformers computes in Python loops
MOST = 2_000_000  # parameters: others have a part that no option makes small
REFUSED = {
    # Each for a reason of its own, as its sentence says.
    "masked_lm": {"mobilebert": "makes its logits otherwise than by its output layer", "mbart": "has an encoder and a decoder", "xmod": "language unknown"},
    "causal_lm": {"bert": "looks both ways", "cpmant": "looks both ways", "prophetnet": "makes its logits otherwise", "roberta": "looks both ways"},
    "encoder": {"fsmt": "transformers cannot make 'fsmt'", "vilt": "pixel_values"},
}  # fmt: skip
RUN = {
    "masked_lm": {"camembert", "convbert", "fnet", "ibert", "mpnet", "nystromformer", "squeezebert", "xlm", "yoso"},
    "causal_lm": {"bart", "bloom", "jamba", "mamba", "minimax", "mixtral", "opt", "recurrent_gemma", "rwkv", "xglm"},
    "encoder": {"albert", "esm", "layoutlm", "mobilebert", "squeezebert", "t5", "yoso"},
}  # fmt: skip


def kinds(task: str) -> list[str]:
    """The architectures of a task; as encoders, those that are no causal language models as well."""
    tables = {"causal_lm": "MODEL_FOR_CAUSAL_LM", "masked_lm": "MODEL_FOR_MASKED_LM", "encoder": "MODEL"}
    found = {one.model_type for one in getattr(transformers, f"{tables[task]}_MAPPING")}
    if task == "encoder":
        found -= set(kinds("causal_lm"))
    return sorted(found - SLOW)


def tiny(kind: str) -> dict[str, Any] | None:
    """A configuration of an architecture that reads tokens, as small as it lets itself be made."""
    plain = transformers.AutoConfig.for_model(kind)
    known, renamed = plain.to_dict(), getattr(plain, "attribute_map", {})
    if "vocab_size" not in {*known, *renamed}:
        return None
    options: dict[str, Any] = {key: value for key, value in TINY.items() if key in known or key in renamed}
    options = {key: value for key, value in options.items() if renamed.get(key, key) == key or renamed[key] not in options}  # fmt: skip
    if isinstance(known.get("layer_types"), list):
        options["layer_types"] = [known["layer_types"][0], known["layer_types"][-1]]
    config = transformers.AutoConfig.for_model(kind, **options)
    with torch.device("meta"):
        parameters = sum(one.numel() for one in transformers.AutoModel.from_config(config).parameters())
    return {"model_type": kind, **options} if parameters < MOST else None


def flat_of(*rows: list[int]) -> dict[str, Any]:
    return {"text.ids": Ragged.from_rows([torch.tensor(row, dtype=torch.int64) for row in rows])}


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


def assert_rows_apart(module: torch.nn.Module, task: str) -> None:
    """A text alone gives what it gives beside others, be it read at once or step by step."""
    rows = [[9, 10], [5, 6, 7, 8], []]
    together = module(flat_of(*rows))
    alone = module(flat_of(rows[0]))
    assert_near(together["states"][0], alone["states"].values)
    assert not together["features"][2].any()
    if task != "encoder":
        logits = together["text.tokens"].logits()
        assert_near(logits[:2], alone["text.tokens"].logits())
        places = torch.tensor([5, 1])
        some = module({**flat_of(*rows), "text.read": places})["text.tokens"]
        assert_near(some.logits(), logits[places])
    none = Ragged(torch.empty(0, dtype=torch.int64), torch.tensor([0]))
    assert len(module({"text.ids": none})["features"]) == 0
    (encoder,) = [part for part in module.modules() if isinstance(part, ForeignEncoder)]
    if encoder.positions is not None:
        assert module(flat_of([5] * encoder.positions))["features"].isfinite().all()
    if task == "causal_lm":
        reader = Reader(module, 2, 8)
        reader.read(rows[:2])
        reader.keep([1, 0, 0])
        step = reader.read_one(torch.tensor([4, 5, 6]))
        whole = module(flat_of([5, 6, 7, 8, 4], [9, 10, 5], [9, 10, 6]))["text.tokens"].logits()
        assert_near(step, whole[[4, 7, 10]])


@pytest.mark.parametrize("task", ["masked_lm", "causal_lm", "encoder"])
@torch.no_grad()
def test_any_architecture_reads_each_row_apart_or_is_refused(task: str) -> None:
    ran: set[str] = set()
    refused: dict[str, str] = {}
    fields = {name: one for name, one in spec().fields.items() if task != "encoder" or one.role == "input"}
    for kind in kinds(task):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their own code
            try:
                config = tiny(kind)
            except Exception:  # sizes that do not fit each other: nothing that a user could have either
                continue
            if config is None:
                continue
            torch.manual_seed(0)
            try:
                family = Section("models").parse({"type": "huggingface", "task": task, "config": config})
                assert isinstance(family, HuggingFace)
                module = family.build(Spec(fields)).eval()
            except LubanError as error:
                refused[kind] = str(error)
                continue
            try:
                assert_rows_apart(module, task)
            except Exception as error:
                raise AssertionError(f"{task} {kind}: {error}") from error
            ran.add(kind)
    assert RUN[task] <= ran, RUN[task] - ran
    assert len(ran) >= {"masked_lm": 35, "causal_lm": 100, "encoder": 45}[task]
    for kind, sentence in REFUSED[task].items():
        assert sentence in refused[kind]
    assert all("\n" not in sentence for sentence in refused.values())


@pytest.mark.parametrize("size", [1, VOCABULARY])
def test_what_looks_both_ways_is_found_however_small_its_weights(size: int) -> None:
    config = {"model_type": "bert", **{key: TINY[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}}  # fmt: skip
    config |= {"vocab_size": size, "initializer_range": 1e-7, "pad_token_id": 0}
    fields = {
        "text.ids": Field("text", "text", "input", "int64", None, size=size),
        "text.labels": Field("text", "tokens", "target", "int64", None, size=size),
    }
    for decoder in (False, True):
        family = Section("models").parse({"type": "huggingface", "task": "causal_lm", "config": {**config, "is_decoder": decoder}})  # fmt: skip
        assert isinstance(family, HuggingFace)
        if decoder:
            family.build(Spec(fields))
            continue
        with pytest.raises(RecipeError, match="looks both ways, so it is no causal language model"):
            family.build(Spec(fields))


def test_what_is_asked_of_a_new_module_uses_no_random_number() -> None:
    family = Section("models").parse({"type": "huggingface", "task": "causal_lm", "config": tiny("opt")})
    assert isinstance(family, HuggingFace)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**(tiny("opt") or {})))
    expected = torch.rand(3)
    torch.manual_seed(0)
    module = family.build(spec())
    torch.testing.assert_close(torch.rand(3), expected)
    assert all(part.training for part in module.modules())
    assert all(one.grad is None and one.requires_grad for one in module.parameters())
