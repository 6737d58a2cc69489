"""Each family against an independent computation of what it promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_cases import ROWS, case, image, table, tensor, text
from torch import Tensor, nn

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import DataError, RecipeError
from luban.models._attention import attend, plan
from luban.models._convolution import Convolutions
from luban.models._core import Rope, rotate, sinusoids
from luban.models._encoders import Numbers, channels_last
from luban.models._network import Network, column_of, module_key
from luban.models.fasttext import FastText
from luban.recipe import Section

LABEL = {"label.index": Field("label", "category", "target", "int32", size=10, output="logits", width=10)}
DIGIT = {"digit.pixels": Field("digit", "image", "input", "uint8", (28, 28, 1), mean=(0.0,), std=(255.0,))}
PHOTO = {"photo.pixels": Field("photo", "image", "input", "uint8", (32, 32, 3), mean=(0.0,), std=(255.0,))}


def build(options: dict[str, Any], fields: dict[str, Field]) -> Network:
    torch.manual_seed(0)
    network = Section("models").parse(options).build(Spec(fields))  # type: ignore[attr-defined]
    assert isinstance(network, Network)
    return network.eval()


def weights(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def copy(source: nn.Module, into: nn.Module) -> None:
    for ours, theirs in zip(into.parameters(), source.parameters(), strict=True):
        ours.data.copy_(theirs.data)


# --- well-known networks, exactly ---------------------------------------------------------------------------------------


def flatten_hwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1)


class FlattenHWC(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return flatten_hwc(x)


@pytest.mark.parametrize(
    ("options", "fields", "reference"),
    [
        (
            {"type": "mlp", "hidden": [100]},
            DIGIT,
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)),
        ),
        (
            {"type": "mlp", "hidden": [128, 64]},
            DIGIT,
            lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
            ),
        ),
        (
            {"type": "cnn", "channels": [32, 64, 64], "pool": [2, 2, 0], "hidden": [64]},
            DIGIT,
            lambda: nn.Sequential(
                nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(64, 64, 3), nn.ReLU(), FlattenHWC(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
            ),
        ),
        (
            {"type": "cnn", "channels": [16], "kernel": 5, "hidden": [120, 84]},
            PHOTO,
            lambda: nn.Sequential(
                nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2), FlattenHWC(), nn.Linear(16 * 14 * 14, 120), nn.ReLU(),
                nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
            ),
        ),
    ],
    ids=["784-100-10", "784-128-64-10", "the Keras article's CNN", "simple_cnn"],
)  # fmt: skip
def test_a_known_network_is_expressed_exactly(
    options: dict[str, Any], fields: dict[str, Field], reference: Any
) -> None:
    network = build({"dropout": 0.0, **options}, fields | LABEL)
    torch.manual_seed(1)
    plain = reference()
    assert weights(network) == weights(plain)
    copy(plain, network)
    (name, field), *_ = fields.items()
    height, width, channels = field.shape or ()
    pixels = torch.rand(4, height, width, channels).permute(0, 3, 1, 2)
    expected = plain(pixels.contiguous())
    outputs = tensor(network({name: pixels})["label.logits"])
    assert torch.allclose(outputs, expected, atol=1e-5)
    expected.square().sum().backward()
    outputs.square().sum().backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_a_table_of_ten_features_through_two_layers_with_dropout() -> None:
    fields = {f"x{i}.value": Field(f"x{i}", "number", "input", "float32") for i in range(10)}
    target = {"y.value": Field("y", "binary", "target", "float32", output="logits", width=1)}
    network = build({"type": "mlp", "hidden": [64, 32], "dropout": 0.5, "numbers": "plain"}, fields | target)
    assert weights(network) == [(64, 10), (64,), (32, 64), (32,), (1, 32), (1,)]
    assert [m.p for m in network.modules() if type(m).__name__ == "Dropout"] == [0.5, 0.5]


def test_an_image_read_row_by_row_is_a_plain_rnn() -> None:
    network = build({"type": "rnn", "cell": "rnn", "hidden_size": 128, "dropout": 0.0}, DIGIT | LABEL)
    plain, head = nn.RNN(28, 128, batch_first=True), nn.Linear(128, 10)
    copy(nn.ModuleList([plain, head]), network)
    pixels = torch.rand(5, 28, 28, 1).permute(0, 3, 1, 2)
    _, last = plain(pixels[:, 0])
    assert torch.allclose(tensor(network({"digit.pixels": pixels})["label.logits"]), head(last[0]), atol=1e-5)


# --- convolutions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "leaky_relu", "softplus"])
def test_pooling_before_the_activation_changes_neither_values_nor_gradients(activation: Any) -> None:
    torch.manual_seed(0)
    stack = Convolutions((12, 12, 2), [4, 5], pools=[2, 2], activation=activation, norm="batch")
    pixels = torch.randn(3, 2, 12, 12)
    twin = nn.Sequential(*(nn.Sequential(layer[0], layer[1], layer[3], layer[2]) for layer in stack.layers))  # type: ignore[index]
    assert isinstance(twin[0][3], nn.MaxPool2d)  # type: ignore[index]
    results = []
    for module in (stack.layers, twin):
        stack.zero_grad()
        out = module(pixels)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, *(p.grad.clone() for p in stack.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("pool", [0, 2])
def test_the_computed_size_is_the_size(kernel: int, stride: int, padding: Any, pool: int) -> None:
    stack = Convolutions(
        (17, 23, 1), [2], kernels=[kernel], strides=[stride], paddings=[padding], pools=[pool]
    )
    assert stack(torch.zeros(2, 1, 17, 23)).shape == (2, stack.width)


def test_channels_last_says_so_in_its_strides_for_one_channel_too() -> None:
    for pixels in (torch.rand(2, 1, 4, 5), torch.rand(2, 3, 4, 5)):
        result = channels_last(pixels)
        assert torch.equal(result, pixels)
        assert nn.Conv2d(pixels.shape[1], 6, 3)(result).is_contiguous(memory_format=torch.channels_last)


def test_an_image_too_small_for_the_layers_is_refused_with_its_size() -> None:
    with pytest.raises(
        RecipeError, match=r"convolution 3 of 3 .* leaves nothing of a map of 5×5; the image is 28×28"
    ):
        build({"type": "cnn", "channels": [4, 4, 4], "pool": [2, 2, 4]}, DIGIT | LABEL)


# --- texts --------------------------------------------------------------------------------------------------------------


def test_textcnn_equals_the_convolution_of_each_text_alone() -> None:
    spec, batch = case(text())
    network = build({"type": "textcnn", "size": "tiny", "widths": [1, 2, 3, 6]}, spec.fields)
    encoder: Any = network.encoders["@评论 文本"]
    ids = batch["评论 文本.ids"]
    assert isinstance(ids, Ragged)
    expected = []
    for row in ids.unbind():
        vectors = encoder.embedding(row).t()[None]  # (1, D, L)
        found = []
        for width, filters in zip(encoder.widths, encoder.filters, strict=True):
            padded = F.pad(vectors, ((width - 1) // 2, width // 2))  # 'same'
            scores = F.conv1d(padded, filters.weight[:, :, 0], filters.bias) if len(row) else None
            found.append(torch.zeros(len(filters.bias)) if scores is None else scores[0].amax(1).relu())
        expected.append(torch.cat(found))
    assert torch.allclose(encoder(batch)[0], torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnn_equals_each_text_alone(cell: str, bidirectional: bool) -> None:
    spec, batch = case(text())
    options = {"type": "rnn", "size": "tiny", "cell": cell, "bidirectional": bidirectional, "layers": 2}
    network = build(options, spec.fields)
    encoder: Any = network.encoders["@评论 文本"]
    ids = batch["评论 文本.ids"]
    assert isinstance(ids, Ragged)
    outputs = network(batch)
    states = outputs["states"]
    assert isinstance(states, Ragged)
    width = 32
    for i, row in enumerate(ids.unbind()):
        if not len(row):
            assert not tensor(outputs["features"])[i].any()
            continue
        x = encoder.embedding(row)[None]
        for layer in encoder.layers:
            x, _ = layer(x)
        assert torch.allclose(states[i], x[0], atol=1e-5)
        last = torch.cat([x[0, -1, :width], x[0, 0, width:]])  # a backward reader ends at the first token
        assert torch.allclose(tensor(outputs["features"])[i], last, atol=1e-5)


def test_fasttext_counts_each_ngram_of_each_text() -> None:
    spec, batch = case(text(size=30))
    network = build({"type": "fasttext", "size": "tiny", "ngrams": 3, "buckets": 1000}, spec.fields)
    encoder: Any = network.encoders["@评论 文本"]
    ids = batch["评论 文本.ids"]
    assert isinstance(ids, Ragged)
    indices = encoder.indices(ids)
    none = 30 + 1000
    for row, of in zip(ids.unbind(), ids.like(indices).unbind(), strict=True):
        assert torch.equal(of[:, 0], row)
        for n in (2, 3):
            grams = [tuple(row[i : i + n].tolist()) for i in range(len(row))]
            whole = [len(gram) == n for gram in grams]
            assert [index != none for index in of[:, n - 1].tolist()] == whole
    # Equal n-grams share a row wherever they stand, and the mean is over those there are.
    twice = Ragged.from_rows([torch.tensor([5, 6, 7, 5, 6, 7])])
    again = encoder.indices(twice)
    assert torch.equal(again[0], again[3])
    table_ = encoder.embedding.weight
    present = indices[ids.rows == 0].flatten()
    expected = table_[present[present != none]].mean(0)
    assert torch.allclose(encoder(batch)[0][0], expected, atol=1e-6)


def test_fasttext_hashes_do_not_change_between_versions() -> None:
    encoder: Any = FastText(ngrams=3, buckets=1000).encoder(
        "t", Field("t", "text", "input", "int32", None, size=50)
    )
    indices = encoder.indices(Ragged.from_rows([torch.tensor([1, 2, 3, 4]), torch.tensor([49, 0])]))
    # A trained table is worth nothing under another hash: these numbers are a format.
    assert indices.tolist() == [
        [1, 56, 217],
        [2, 60, 728],
        [3, 64, 1050],
        [4, 1050, 1050],
        [49, 198, 1050],
        [0, 1050, 1050],
    ]


# --- attention ----------------------------------------------------------------------------------------------------------


def reference_attention(q: Tensor, k: Tensor, v: Tensor, rows: Ragged) -> Tensor:
    parts = []
    for i in range(len(rows)):
        a, b = int(rows.offsets[i]), int(rows.offsets[i + 1])
        scores = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) / q.shape[2] ** 0.5
        parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(2), v[a:b]).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "lengths",
    [
        [3, 3, 3, 3],
        [5],
        [1, 0, 9, 9, 9, 9, 8, 7, 2, 2, 0],
        [16, 15, 14, 13, 12, 1],
        list(range(12)),
        [4, 4, 4, 4, 3, 3, 3],
    ],
    ids=str,
)
@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize("slack", [0, 2])
def test_attention_equals_each_row_alone_gradients_included(
    lengths: list[int], one_call: bool, slack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luban.models._attention.SLACK", slack)  # so that short rows make several calls, too
    if one_call:  # what a GPU does
        monkeypatch.setattr("luban.models._attention._groups", lambda lengths, one: [lengths])
    torch.manual_seed(0)
    rows = Ragged.from_rows([torch.zeros(n, dtype=torch.int64) for n in lengths])
    total = sum(lengths)
    qkv = torch.randn(3, total, 2, 8, requires_grad=True)
    how = plan(rows)
    sorted_ = qkv[:, how.order]
    out = attend(sorted_[0], sorted_[1], sorted_[2], how)[how.back]
    expected = reference_attention(qkv[0], qkv[1], qkv[2], rows)
    assert torch.allclose(out, expected, atol=1e-6)
    direction = torch.randn(total, 16)
    ours, theirs = (torch.autograd.grad((x * direction).sum(), qkv)[0] for x in (out, expected))
    assert torch.allclose(ours, theirs, atol=1e-5)
    # The path with dropout of attention weights is another one; its limit is the same.
    assert torch.allclose(
        attend(sorted_[0], sorted_[1], sorted_[2], how, 1e-9)[how.back], expected, atol=1e-5
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_transformer_equals_torch_on_padded_rows(norm: str) -> None:
    spec, batch = case(text())
    options = {"type": "transformer", "size": "tiny", "norm": norm, "positions": "sinusoidal", "pool": "mean"}
    network = build(options, spec.fields)
    encoder: Any = network.encoders["@评论 文本"]
    layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=norm == "pre")
    reference = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    core = encoder.core
    for ours, theirs in zip(core.layers, reference.layers, strict=True):
        for name, module in {
            "norm1": ours.attention_norm, "norm2": ours.feed_norm, "linear1": ours.feed.up,
            "linear2": ours.feed.down, "self_attn.out_proj": ours.attention.out,
        }.items():  # fmt: skip
            theirs.get_submodule(name).load_state_dict(module.state_dict())
        three = (ours.attention.q, ours.attention.k, ours.attention.v)
        theirs.self_attn.in_proj_weight.data.copy_(torch.cat([part.weight.data for part in three]))
        theirs.self_attn.in_proj_bias.data.copy_(torch.cat([part.bias.data for part in three]))
    ids = batch["评论 文本.ids"]
    assert isinstance(ids, Ragged)
    kept = Ragged.from_rows(
        [row for row in ids.unbind() if len(row)]
    )  # torch gives NaN for a row without a token
    padded, mask = kept.padded()
    x = core.embedding.tokens(padded) + sinusoids(torch.arange(padded.shape[1]), 64)
    x = x if core.embedding.norm is None else core.embedding.norm(x)
    x = reference(x, src_key_padding_mask=~mask)
    x = x if core.norm is None else core.norm(x)
    expected = (x * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    features, _ = encoder({"评论 文本.ids": kept})
    assert torch.allclose(features, expected, atol=1e-5)
    (ours_,) = torch.autograd.grad(
        features.square().sum(), core.layers[0].attention.q.weight, retain_graph=True
    )
    theirs_ = torch.autograd.grad(expected.square().sum(), reference.layers[0].self_attn.in_proj_weight)[0]
    assert torch.allclose(ours_, theirs_[:64], atol=1e-5)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def turned(x: Tensor, place: int) -> Tensor:
        angles = place * Rope().frequencies(8, "cpu")
        return rotate(x, angles.cos()[None, None], angles.sin()[None, None])

    scores = [float((turned(q, i) * turned(k, i + 3)).sum()) for i in (0, 5, 100)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)


def test_a_row_beyond_the_learned_positions_is_a_sentence_not_a_crash() -> None:
    spec, batch = case(text())
    options = {"type": "transformer", "size": "tiny", "positions": "learned", "max_positions": 6}
    with pytest.raises(DataError, match="has 7 tokens, and the model has vectors for 6 positions"):
        build(options, spec.fields)(batch)


def test_patches_are_squares_of_the_image() -> None:
    network = build({"type": "transformer", "size": "tiny", "patch": 14}, DIGIT | LABEL)
    encoder: Any = network.encoders["@digit"]
    seen = []
    encoder.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pixels = torch.arange(28 * 28.0).view(1, 1, 28, 28)
    network({"digit.pixels": pixels})
    assert torch.equal(seen[0][1], pixels[0, 0, :14, 14:].flatten())
    with pytest.raises(RecipeError, match="patches may be 1, 2, 4, 7, 14, 28"):
        build({"type": "transformer", "patch": 5}, DIGIT | LABEL)


def test_rows_of_like_lengths_share_a_call_and_equal_ones_need_no_mask() -> None:
    how = plan(Ragged.from_rows([torch.zeros(n) for n in (80, 200, 0, 160, 190, 80)]))
    assert [(group.rows, group.longest, group.mask is None) for group in how.groups] == [
        (3, 200, False),
        (2, 80, True),
    ]


# --- composition --------------------------------------------------------------------------------------------------------


def test_keys_of_modules_hold_any_column_name() -> None:
    for column in ("价格", "a.b", "values", "100%2E", "", "a b/c", "@"):
        assert column_of(module_key(column)) == column
        nn.ModuleDict()[module_key(column)] = nn.Identity()


def test_a_thousand_number_columns_are_one_encoder() -> None:
    fields = {f"x{i}.value": Field(f"x{i}", "number", "input", "float32") for i in range(1000)}
    network = build({"type": "mlp", "hidden": [8], "numbers": "plain"}, fields | LABEL)
    assert list(network.encoders) == ["numbers"]


def test_periodic_numbers_leave_flags_and_the_plain_value() -> None:
    encoder = Numbers(["a.value", "a.missing"], ["a.value"])
    batch: Any = {"a.value": torch.randn(4), "a.missing": torch.tensor([0.0, 1, 0, 0])}
    features, _ = encoder(batch)
    assert features.shape == (4, encoder.width) == (4, 2 + Numbers.SIZE)
    assert torch.equal(features[:, 0], batch["a.value"])
    assert torch.equal(features[:, 1], batch["a.missing"])


def test_a_column_may_have_a_family_of_its_own() -> None:
    spec, batch = case(table(), text(), image())
    options = {
        "type": "mlp",
        "size": "tiny",
        "encoders": {"照片": {"type": "cnn", "size": "tiny", "hidden": [9]}},
    }
    network = build(options, spec.fields)
    features = [encoder(batch)[0].shape[1] for encoder in network.encoders.values()]
    assert 9 in features
    assert tensor(network(batch)["标签.logits"]).shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"type": "mlp", "encoders": {"照片儿": "cnn"}},
            r"names '照片儿', which is no input.*did you mean '照片'",
        ),
        (
            {"type": "mlp", "encoders": {"照片": "textcnn"}},
            "made for texts, and '照片' is a image; for images take",
        ),
        (
            {"type": "textcnn"},
            r"'textcnn' is made for texts, and the inputs left to it are '照片' \(image\); for images take type 'cnn'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(options: dict[str, Any], message: str) -> None:
    spec, _ = case(image())
    with pytest.raises(RecipeError, match=message):
        build(options, spec.fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "cnn", "channels": [4, 8], "kernel": [3]}, "kernel has 1 values for 2 layers"),
        ({"type": "mlp", "hidden": [4], "dropout": [0.1, 0.2]}, "dropout has 2 values for 1 layers"),
        ({"type": "mlp", "init": "zeros", "init_scale": 2.0}, "init_scale does nothing"),
        ({"type": "rnn", "cell": "gru", "nonlinearity": "relu"}, "nonlinearity belongs to cell 'rnn'"),
        ({"type": "rnn", "recurrent_dropout": 0.5}, "recurrent_dropout acts between layers"),
        ({"type": "transformer", "hidden_size": 10, "heads": 3}, "no multiple of heads"),
        ({"type": "transformer", "max_positions": 9}, "max_positions belongs to positions 'learned'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Section("models").parse(options)


def test_states_are_named_by_column_and_plainly_where_there_is_one() -> None:
    spec, batch = case(text())
    outputs = build({"type": "textcnn", "size": "tiny"}, spec.fields)(batch)
    assert outputs["states"] is outputs["评论 文本.states"]
    spec, batch = case(text("标题"), text("正文"))
    outputs = build({"type": "textcnn", "size": "tiny"}, spec.fields)(batch)
    assert {"标题.states", "正文.states"} <= outputs.keys()
    assert "states" not in outputs


@pytest.mark.parametrize("value", [0.0, -1e-5, float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("family", "key"),
    [
        *((name, "eps") for name in ("bert", "gpt2", "llama", "qwen2", "qwen3", "smollm", "seq2seq")),
        ("llama", "rope_theta"),
        ("qwen3", "rope_theta"),
        ("smollm", "rope_theta"),
    ],
)
def test_what_is_divided_by_is_more_than_nothing(family: str, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        Section("models").parse({"type": family, "size": "tiny", key: value})
