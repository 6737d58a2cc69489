"""Encoders with a decoder of `transformers`: the same logits, losses, gradients, texts and beams, whatever lies beside a row."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_cases import END, VOCABULARY, decode
from test_foreign import TINY, assert_near, tiny

from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import DataError, LubanError, RecipeError
from luban.generation.engine import Generated, generate
from luban.generation.options import Generation
from luban.generation.reader import Reader
from luban.models._decoding import pair_of
from luban.models._foreign_pair import ForeignPair, lengths_of
from luban.models.huggingface import HuggingFace
from luban.recipe import Section

transformers = pytest.importorskip("transformers")

FIELDS = {
    "en.ids": Field("en", "text", "input", "int64", None, size=VOCABULARY),
    "zh.ids": Field("zh", "text", "target", "int64", None, size=VOCABULARY),
}
SOURCES = [[5, 6, 7, 8, END], [9, END], [10, 11, 12, 13, 14, 15, END]]
TARGETS = [[4, 5, END], [6, 7, 8, 9, 10, END], [11, END]]
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, "init_std": 0.3,
}  # fmt: skip
SIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
GEMMA = {
    **SIDE,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "query_pre_attn_scalar": 8,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {**T5, "initializer_factor": 2.0},
    # Not gated and gated, states scaled before the head and not.
    "t5 1.1": {**T5, "initializer_factor": 2.0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1},
    "umt5": {**T5, "initializer_factor": 2.0},
    "bart": {**BART, "decoder_start_token_id": END, "forced_eos_token_id": END},
    "pegasus": {**BART, "decoder_start_token_id": 0, "scale_embedding": True},
    "m2m_100": {**BART, "decoder_start_token_id": END, "forced_bos_token_id": 9},
    "blenderbot": {**BART, "decoder_start_token_id": 2},
    "led": {**BART, "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 24, "attention_window": [4, 4], "decoder_start_token_id": END},
    "t5gemma": {"encoder": GEMMA, "decoder": GEMMA, "decoder_start_token_id": 2, "initializer_range": 0.3},
    "encoder-decoder": {
        "encoder": {"model_type": "bert", **SIDE}, "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True, **SIDE},
        "decoder_start_token_id": 2,
    },
}  # fmt: skip


def theirs(kind: str) -> Any:
    """A model of `transformers` with tiny random weights, which ends some texts."""
    torch.manual_seed(0)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": END}
    config = transformers.AutoConfig.for_model(kind.split()[0], **ids, **CONFIGS[kind])
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if kind == "t5 1.1":  # whose head came with weights of its own
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    for key in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        if key in CONFIGS[kind]:
            setattr(model.generation_config, key, CONFIGS[kind][key])
    return model.eval()


def family_of(**options: Any) -> HuggingFace:
    family = Section("models").parse({"type": "huggingface", "task": "seq2seq", **options})
    assert isinstance(family, HuggingFace)
    return family


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model of `transformers`, and a network of Luban's that was started from its directory."""
    made: dict[str, tuple[Any, torch.nn.Module]] = {}

    def of(kind: str) -> tuple[Any, torch.nn.Module]:
        if kind not in made:
            path = Path(tmp_path_factory.mktemp("theirs"))
            model = theirs(kind)
            model.save_pretrained(path)
            family = family_of(**{"from": str(path)})
            module = family.build(Spec(FIELDS))
            assert family.load_pretrained(module) == []
            made[kind] = (model, module.eval())
        return made[kind]

    return of


def batch_of(sources: list[list[int]], targets: list[list[int]] | None = None) -> Batch:
    def flat(rows: list[list[int]]) -> Ragged:
        return Ragged.from_rows([torch.tensor(row, dtype=torch.int64) for row in rows])

    return {"en.ids": flat(sources), **({} if targets is None else {"zh.ids": flat(targets)})}


def read_by_theirs(model: Any, start: int, source: list[int], target: list[int], **more: Any) -> torch.Tensor:
    """The logits of one pair alone, (T, V)."""
    given = torch.tensor([[start, *target[:-1]]])
    # T5Gemma would take a start token that fills for padding.
    logits: torch.Tensor = model(
        input_ids=torch.tensor([source]), decoder_input_ids=given, decoder_attention_mask=torch.ones_like(given), **more
    ).logits[0]  # fmt: skip
    return logits


def ran(module: torch.nn.Module, sources: list[list[int]], **how: Any) -> list[Generated]:
    encoder = pair_of(module)
    return generate(
        module,
        [[encoder.start]] * len(sources),
        Generation(**{"max_tokens": 12, **how}),
        end={END},
        decode=decode,
        sources=sources,
        numbers=how.pop("numbers", None),
    )


def written_by_theirs(model: Any, source: list[int], tokens: int = 12, **how: Any) -> list[int]:
    ids = torch.tensor([source])
    with torch.no_grad():
        found: list[int] = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, **how
        )[0, 1:].tolist()  # fmt: skip
    return found[: found.index(END)] if END in found else found


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_transformers(kind: str, pair: Any) -> None:
    model, module = pair(kind)
    start = pair_of(module).start
    outputs = module(batch_of(SOURCES, TARGETS))
    expected = [read_by_theirs(model, start, *one) for one in zip(SOURCES, TARGETS, strict=True)]
    assert_near(outputs["zh.tokens"].logits(), torch.cat(expected))
    # The text that is read may have padding before it or behind it there.
    longest = max(map(len, SOURCES))
    for left in (True, False):
        padded = [
            [0] * (longest - len(row)) + row if left else row + [0] * (longest - len(row)) for row in SOURCES
        ]
        for row, target, alone in zip(padded, TARGETS, expected, strict=True):
            if left and kind not in ("t5", "t5 1.1", "umt5"):
                continue  # whose positions are absolute, so that left padding is another text
            mask = (torch.tensor([row]) != 0).long()
            found = read_by_theirs(model, start, row, target, attention_mask=mask)
            assert_near(found, alone)
    encoder = model.get_encoder()
    for i, source in enumerate(SOURCES):
        states = encoder(input_ids=torch.tensor([source])).last_hidden_state[0]
        torch.testing.assert_close(outputs["states"][i], states, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(outputs["features"][i], states.mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "t5 1.1", "bart", "m2m_100"])
def test_losses_and_gradients_are_those_of_transformers(kind: str, pair: Any) -> None:
    model, module = (copy.deepcopy(one) for one in pair(kind))
    encoder = pair_of(module)
    assert isinstance(encoder, ForeignPair)
    batch = batch_of(SOURCES, TARGETS)
    labels = batch["zh.ids"]
    assert isinstance(labels, Ragged)
    total = module(batch)["zh.tokens"].total(labels.values)
    total.backward()
    sources, seen = Ragged.from_rows([torch.tensor(row) for row in SOURCES]).padded(0)
    wanted, known = labels.padded(-100)
    loss = model(input_ids=sources, attention_mask=seen.long(), labels=wanted).loss * known.sum()
    loss.backward()
    torch.testing.assert_close(total, loss, rtol=1e-5, atol=1e-5)
    own = dict(encoder.model.named_parameters())
    assert own.keys() == dict(model.named_parameters()).keys()
    largest = max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:  # sines
            assert not parameter.requires_grad
            continue
        difference = float((own[name].grad - parameter.grad).norm())
        assert difference <= 1e-5 * max(float(parameter.grad.norm()), 1e-2 * largest), name


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(kind: str, beams: int, pair: Any) -> None:
    model, module = pair(kind)
    more = {} if beams == 1 else {"num_beams": beams}
    expected = [written_by_theirs(model, source, **more) for source in SOURCES]
    assert [one.ids for one in ran(module, SOURCES, beams=beams)] == expected
    short = [written_by_theirs(model, source, tokens=3, **more) for source in SOURCES]
    assert [one.ids for one in ran(module, SOURCES, beams=beams, max_tokens=3)] == short


def test_texts_go_through_by_their_lengths_where_padding_would_be_seen(pair: Any) -> None:
    """No architecture of today's needs it as a pair, so one is told that it does."""
    _, module = pair("t5")
    sources, targets = [*SOURCES, [7, END]], [*TARGETS, [8, END]]
    with torch.no_grad():
        expected = module(batch_of(sources, targets))["zh.tokens"].logits()
    written = [[one.ids for one in ran(module, sources, beams=beams)] for beams in (1, 3)]
    apart = copy.deepcopy(module)
    encoder = pair_of(apart)
    assert isinstance(encoder, ForeignPair)
    encoder.masks_padding = False
    passes: list[tuple[int, ...]] = []
    encoder.model.register_forward_pre_hook(
        lambda _, args, options: passes.append(tuple(options["decoder_input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        assert_near(apart(batch_of(sources, targets))["zh.tokens"].logits(), expected)
    assert sorted(passes) == [(1, 2), (1, 2), (1, 3), (1, 6)]
    assert [[one.ids for one in ran(apart, sources, beams=beams)] for beams in (1, 3)] == written


def test_texts_begin_and_end_as_the_files_say(pair: Any) -> None:
    forced = {kind: pair_of(pair(kind)[1]) for kind in ("t5", "bart", "m2m_100")}
    assert [(one.start, one.forced_first, one.forced_last) for one in forced.values()] == [
        (0, None, None), (END, None, END), (END, 9, None),
    ]  # fmt: skip
    assert all(one.ids[0] == 9 for one in ran(pair("m2m_100")[1], SOURCES))


@pytest.mark.parametrize("kind", ["t5", "m2m_100"])
def test_a_row_does_not_depend_on_those_beside_it(kind: str, pair: Any) -> None:
    _, module = pair(kind)
    how = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    together = ran(module, SOURCES, **how)
    start = pair_of(module).start
    for number, source in enumerate(SOURCES):
        (alone,) = generate(
            module, [[start]], Generation(max_tokens=12, **how), end={END}, decode=decode, sources=[source], numbers=[number]
        )  # fmt: skip
        assert together[number].ids == alone.ids
        assert together[number].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@torch.inference_mode()
def test_the_encoder_runs_once_and_a_step_reads_one_token(pair: Any) -> None:
    model, module = pair("t5")
    encoder = pair_of(module)
    assert isinstance(encoder, ForeignPair)
    read: list[int] = []
    written: list[int] = []
    handles = [
        encoder.reader.register_forward_pre_hook(lambda *_: read.append(1)),
        encoder.model.register_forward_pre_hook(
            lambda _, args, options: written.append(options["decoder_input_ids"].shape[1]), with_kwargs=True
        ),
    ]
    reader = Reader(module, 3, 16, SOURCES)
    reader.read([[0, 4]] * 3)
    reader.keep([0, 0, 2])  # two beams of the first text; the second is finished
    reader.keep([1, 0, 2])  # which change places
    other = reader.fork([2])
    logits = reader.read_one(torch.tensor([5, 6, 7]))
    alone = other.read_one(torch.tensor([7]))
    uneven = Reader(module, 2, 16, SOURCES[:2]).read([[0, 4, 5], [0, 6]])
    for handle in handles:
        handle.remove()
    assert len(read) == 2
    assert written == [2, 1, 1, 3]
    torch.testing.assert_close(alone[0], logits[2], rtol=1e-5, atol=1e-5)
    for found, source, text in (
        (logits[0], 0, [4, 5]), (logits[1], 0, [4, 6]), (logits[2], 2, [4, 7]), (uneven[0], 0, [4, 5]), (uneven[1], 1, [6]),
    ):  # fmt: skip
        expected = read_by_theirs(model, 0, SOURCES[source], [*text, 9])[-1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tables_are_saved_as_often_as_they_differ(pair: Any, tmp_path: Path) -> None:
    tables = ("shared.weight", "embed_tokens.weight", "lm_head.weight")
    for kind, count in (("t5", 1), ("t5 1.1", 2), ("bart", 1)):
        model, module = pair(kind)
        saved = module.state_dict()
        assert sum(name.endswith(tables) for name in saved) == count
        other = family_of(
            config=model.config.to_dict() | CONFIGS[kind] | {"model_type": kind.split()[0]}
        ).build(Spec(FIELDS))
        other.load_state_dict(saved)
        batch = batch_of(SOURCES, TARGETS)
        with torch.no_grad():
            again, first = (one.eval()(batch)["zh.tokens"].logits() for one in (other, module))
        assert torch.equal(again, first)
        assert {name: id(p) for name, p in other.named_parameters()}.keys() == dict(
            module.named_parameters()
        ).keys()


def test_other_targets_are_read_off_the_encoder(pair: Any) -> None:
    label = {"label.index": Field("label", "category", "target", "int64", size=3, output="logits", width=3)}
    model, _ = pair("t5")
    module = family_of(config=model.config.to_dict()).build(Spec({**FIELDS, **label}))
    outputs = module(batch_of(SOURCES, TARGETS))
    assert outputs["label.logits"].shape == (3, 3)
    assert len(outputs["zh.tokens"]) == sum(map(len, TARGETS))
    assert "zh.tokens" not in module(batch_of(SOURCES))


# --- what is refused ----------------------------------------------------------------------------------------

SMALL = {"model_type": "t5", "vocab_size": VOCABULARY, **T5}
MARIAN = {"model_type": "marian", **BART, "vocab_size": VOCABULARY, "decoder_vocab_size": VOCABULARY + 5, "share_encoder_decoder_embeddings": False, "pad_token_id": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "fields", "sentence"),
    [
        ({"config": {"model_type": "gpt2"}}, FIELDS, "has no encoder-decoder language model of type 'gpt2'"),
        ({"config": {"model_type": "qwen2_audio"}}, FIELDS, "an architecture of type 'qwen2_audio' does not"),
        ({"config": MARIAN}, FIELDS, f"has {VOCABULARY} tokens to read and {VOCABULARY + 5} to write"),
        ({"config": SMALL | {"vocab_size": VOCABULARY - 1}}, FIELDS, "they do not belong together"),
        ({"config": SMALL, "start": VOCABULARY}, FIELDS, f"model.start is {VOCABULARY}, and 'zh' has {VOCABULARY} tokens"),
        ({"config": SMALL}, {"en.ids": FIELDS["en.ids"]}, "writes one text, and the targets are none"),
        ({"config": SMALL}, {"zh.ids": FIELDS["zh.ids"]}, "reads one text, and the inputs have 0"),
        ({"config": {**SMALL, "num_heads": 3, "model_type": "umt5", "d_kv": 5, "feed_forward_proj": "no"}}, FIELDS, "transformers cannot make 'umt5'"),
    ],
)  # fmt: skip
def test_what_makes_no_pair(options: dict[str, Any], fields: dict[str, Field], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        family_of(**options).build(Spec(fields))


def test_texts_that_are_too_long(pair: Any) -> None:
    _, module = pair("led")
    with pytest.raises(DataError, match=r"a text has 41 tokens, and the model takes 40: set max_length of the text in data.inputs"):  # fmt: skip
        module(batch_of([[5] * 41]))
    with pytest.raises(
        DataError, match="a text to be written has 25 tokens, and the model takes 24: set max_length"
    ):
        module(batch_of([[5]], [[5] * 25]))
    (found,) = generate(
        module, [[END]], Generation(max_tokens=50), end=set(), decode=decode, sources=[[5, 6]]
    )
    assert len(found.ids) == 24


LONG = {
    **BART,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
WINDOWS: dict[str, dict[str, Any]] = {
    "led": {**LONG, "attention_window": [4, 4], "max_encoder_position_embeddings": 80, "max_decoder_position_embeddings": 80},
    "longt5": {**T5, "vocab_size": VOCABULARY, "local_radius": 3, "encoder_attention_type": "transient-global", "global_block_size": 4},
    "pegasus_x": {**LONG, "block_size": 4, "num_global_tokens": 3},
    "bigbird_pegasus": {**LONG, "block_size": 4, "num_random_blocks": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", WINDOWS)
@torch.no_grad()
def test_windows_and_blocks_do_not_depend_on_the_rows_beside(kind: str) -> None:
    torch.manual_seed(0)
    module = family_of(config={"model_type": kind, **WINDOWS[kind]}).build(Spec(FIELDS)).eval()
    sources, targets = ([torch.randint(3, VOCABULARY, (n,)).tolist() for n in lengths] for lengths in ((41, 70, 13), (33, 50, 9)))  # fmt: skip
    together = module(batch_of(sources, targets))["zh.tokens"].logits().split([33, 50, 9])
    for source, target, found in zip(sources, targets, together, strict=True):
        assert_near(module(batch_of([source], [target]))["zh.tokens"].logits(), found)
    reader = Reader(module, 1, 64, sources[:1])
    steps = [
        reader.read([[pair_of(module).start]]),
        *(reader.read_one(torch.tensor([one])) for one in targets[0][:-1]),
    ]
    assert_near(torch.cat(steps), together[0])


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (
            {"model_type": "t5", "n_positions": 512},
            (None, None),
        ),  # which its positions, being relative, do not need
        ({"model_type": "led"}, (16384, 1024)),
        ({"model_type": "bart", "max_position_embeddings": 40}, (40, 40)),
        (
            {
                "model_type": "encoder-decoder",
                "encoder": {"model_type": "roberta", **SIDE, "max_position_embeddings": 34},
                "decoder": {"model_type": "bert", **SIDE, "max_position_embeddings": 20},
            },
            (32, 20),
        ),
    ],
)
def test_as_many_tokens_as_each_side_has_positions_for(
    config: dict[str, Any], lengths: tuple[int | None, int | None]
) -> None:
    assert lengths_of(config) == lengths


# --- all that transformers has ------------------------------------------------------------------------------

GEMMAS = {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
SEAMLESS = {
    "vocab_size": VOCABULARY, "t2u_vocab_size": VOCABULARY, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
COMPOSED: dict[str, dict[str, Any]] = {
    "encoder-decoder": {"pad_token_id": 0, **CONFIGS["encoder-decoder"]},
    "t5gemma": {"vocab_size": VOCABULARY, "pad_token_id": 0, **CONFIGS["t5gemma"]},
    "t5gemma2": {
        "encoder": {
            "text_config": GEMMAS, "vocab_size": VOCABULARY, "image_token_index": 3, "eoi_token_index": 4,
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28, "patch_size": 14},
        },
        "decoder": GEMMAS, "image_token_index": 3, "eoi_token_index": 4, "pad_token_id": 0, "decoder_start_token_id": 2,
    },
    "seamless_m4t": SEAMLESS, "seamless_m4t_v2": SEAMLESS,
}  # fmt: skip
"""Architectures whose configuration is made of several, of which `tiny` knows nothing."""
RUN = set(COMPOSED) | {"bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "switch_transformers", "t5", "umt5"}  # fmt: skip
REFUSED = {"fsmt": "names no table of the tokens that it reads", "prophetnet": "makes its logits otherwise"}


@torch.no_grad()
def test_any_architecture_writes_each_row_apart_or_is_refused() -> None:
    done: set[str] = set()
    refused: dict[str, str] = {}
    for config in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        kind = config.model_type
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their own code
            try:
                options = {"model_type": kind, **COMPOSED[kind]} if kind in COMPOSED else tiny(kind)
            except Exception:  # sizes that do not fit each other: nothing that a user could have either
                continue
            if options is None:
                continue
            torch.manual_seed(0)
            try:
                module = family_of(config=options).build(Spec(FIELDS)).eval()
            except LubanError as error:
                refused[kind] = str(error)
                continue
            try:
                assert_rows_apart(module)
            except Exception as error:
                raise AssertionError(f"{kind}: {error}") from error
            done.add(kind)
    assert done >= RUN, RUN - done
    for kind, sentence in REFUSED.items():
        assert sentence in refused[kind]
    assert all("\n" not in sentence for sentence in refused.values())


def assert_rows_apart(module: torch.nn.Module) -> None:
    """A pair alone gives what it gives beside others, be its text written at once or step by step."""
    sources, targets = [[9, 10], [5, 6, 7, 8], [], [3]], [[4, 5, 6, 7], [8, 9], [6], []]
    together = module(batch_of(sources, targets))
    logits = together["zh.tokens"].logits().split([len(row) for row in targets])
    for i in (0, 1, 2):
        alone = module(batch_of(sources[i : i + 1], targets[i : i + 1]))["zh.tokens"].logits()
        assert_near(logits[i], alone)
        assert alone.isfinite().all()
    assert not together["features"][2].any()
    assert len(module(batch_of([], []))["zh.tokens"]) == 0
    encoder = pair_of(module)
    reader = Reader(module, 2, 8, sources[:2])
    reader.read([[encoder.start]] * 2)
    reader.keep([1, 0, 0])
    reader.read_one(torch.tensor([8, 4, 4]))
    reader.keep([0, 2, 1])
    step = reader.read_one(torch.tensor([9, 5, 6]))
    rows = [(1, [8, 9, 3]), (0, [4, 5, 3]), (0, [4, 6, 3])]
    for found, (source, target) in zip(step, rows, strict=True):
        assert_near(found, module(batch_of([sources[source]], [target]))["zh.tokens"].logits()[-1])
    if encoder.limit is not None and encoder.limit <= TINY["max_position_embeddings"]:
        full = batch_of([[5] * encoder.limit], [[6] * encoder.limit])
        assert module(full)["zh.tokens"].logits().isfinite().all()
