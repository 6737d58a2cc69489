"""All augmentations keep one contract; then what each promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from luban import registry
from luban.data.augment import _color
from luban.data.augment._base import Augmenter
from luban.data.augment._images import Pixels, boxes, inside
from luban.data.augment._text import is_cjk
from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import RecipeError

OPTIONS: dict[str, dict[str, Any]] = {
    "rotate": {},
    "flip": {},
    "shift": {},
    "crop": {},
    "color": {},
    "randaugment": {},
    "erase": {"probability": 1.0},
    "mixup": {"columns": ["photo", "age"]},
    "cutmix": {"columns": ["photo"]},
    "noise": {},
    "char_noise": {},
    "word_noise": {},
}
TEXT = ["char_noise", "word_noise"]
IMAGES = ["rotate", "flip", "shift", "crop", "color", "randaugment", "erase"]
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)

SPEC = Spec(
    {
        "photo.pixels": Field("photo", "image", "input", "uint8", (12, 16, 3), mean=MEAN, std=STD),
        "age.value": Field("age", "number", "input", "float32"),
        "age.missing": Field("age", "number", "input", "float32"),
        "review.ids": Field("review", "text", "input", "int32", None, size=100),
        "sound.values": Field("sound", "audio", "input", "float32", None),
        "label.id": Field("label", "category", "target", "int32", size=2),
    }
)


def make(name: str, **options: Any) -> Augmenter:
    augmenter: Augmenter = registry.lookup("augment", name).model_validate(options)
    return augmenter


def normalised(stored: Tensor) -> Tensor:
    images = (stored - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def example(n: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(9)
    return {
        "photo.pixels": normalised(torch.randint(0, 256, (n, 3, 12, 16), generator=generator).float()),
        "age.value": torch.randn(n, generator=generator),
        "age.missing": torch.zeros(n),
        "review.ids": Ragged(torch.arange(2 * n) % 100, torch.arange(0, 2 * n + 1, 2)),
        "sound.values": Ragged(torch.randn(3 * n, generator=generator), torch.arange(0, 3 * n + 1, 3)),
        "label.id": torch.arange(n) % 2,
    }


def flat(value: Tensor | Ragged) -> Tensor:
    return value.values if isinstance(value, Ragged) else value


def apply(augmenter: Augmenter, batch: Batch, seed: int = 0, spec: Spec = SPEC) -> Batch:
    return augmenter.batch(batch, spec, torch.Generator().manual_seed(seed))


def photos(name: str, images: Tensor, seed: int = 0, **options: Any) -> Tensor:
    """Apply an augmentation to images whose values are stored as they are."""
    shape = (*images.shape[2:], images.shape[1])
    spec = Spec({"p.pixels": Field("p", "image", "input", "float32", shape)})
    return flat(apply(make(name, **options), {"p.pixels": images}, seed, spec)["p.pixels"])


def test_every_type_is_tested() -> None:
    assert set(OPTIONS) == set(registry.names("augment"))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in TEXT])
def test_contract(name: str) -> None:
    batch, before = example(), example()
    augmenter = make(name, **OPTIONS[name])
    first, same, other = (apply(augmenter, batch, seed) for seed in (1, 1, 2))
    changed = [key for key in before if not torch.equal(flat(first[key]), flat(before[key]))]
    assert changed, "something is changed"
    assert "label.id" not in changed
    for key, value in before.items():
        assert torch.equal(flat(batch[key]), flat(value)), "the received batch stays as it is"
        assert flat(first[key]).shape == flat(value).shape
        assert flat(first[key]).dtype == flat(value).dtype
        assert flat(first[key]).isfinite().all()
        assert torch.equal(flat(first[key]), flat(same[key])), "one seed, one result"
    assert any(not torch.equal(flat(first[key]), flat(other[key])) for key in changed), (
        "another seed, another result"
    )
    assert flat(first["photo.pixels"]).is_contiguous(memory_format=torch.channels_last)
    dumped = {key: value for key, value in augmenter.model_dump().items() if key != "type"}
    assert make(name, **dumped).model_dump() == augmenter.model_dump()
    assert augmenter.level == "batch"


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (2, 3, 7, 9), (1, 4, 1, 1), (1, 3, 2, 5)])
def test_images_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    for seed in range(5):
        result = photos(name, images, seed, **{k: v for k, v in OPTIONS[name].items() if k != "columns"})
        assert result.shape == shape
        assert result.min() >= -1e-5
        assert result.max() <= 1 + 1e-5, "light stays between black and white"


@pytest.mark.parametrize("name", IMAGES)
def test_black_stays_black(name: str) -> None:
    black = normalised(torch.zeros(16, 3, 12, 16))
    result = flat(apply(make(name, **OPTIONS[name]), {**example(16), "photo.pixels": black})["photo.pixels"])
    assert result == pytest.approx(black, abs=1e-5)


@pytest.mark.parametrize("name", [*IMAGES, "cutmix"])
def test_images_are_needed(name: str) -> None:
    tabular = Spec({"age.value": SPEC.fields["age.value"]})
    options = {k: v for k, v in OPTIONS[name].items() if k != "columns"}
    with pytest.raises(RecipeError, match=r"no input is an image|cannot mix input 'age', which is number"):
        apply(make(name, **options), {"age.value": torch.zeros(4)}, spec=tabular)
    with pytest.raises(RecipeError, match=r"column 'age' is number|cannot mix input 'age'"):
        apply(make(name, **{**options, "columns": ["age"]}), example())
    with pytest.raises(RecipeError, match=r"'photos' is no input; inputs are photo, .*did you mean 'photo'"):
        apply(make(name, **{**options, "columns": ["photos"]}), example())


# --- images ---


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 9, 9)])
def test_rotating(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    for quarter in range(-2, 3):
        turned = photos("rotate", images, degrees=[90.0 * quarter, 90.0 * quarter])
        assert turned == pytest.approx(images.rot90(quarter, (2, 3)), abs=1e-4)


def test_half_a_turn_of_an_oblong() -> None:
    images = torch.rand(2, 1, 6, 10)
    assert photos("rotate", images, degrees=[180.0, 180.0]) == pytest.approx(images.flip(2, 3), abs=1e-4)


def test_a_turn_keeps_shapes_of_an_oblong() -> None:
    """A disc stays a disc: an angle is meant in pixels, not in shares of height and width."""
    y, x = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(40) - 19.5, indexing="ij")
    disc = (x**2 + y**2 < 49).float()[None, None]
    assert (photos("rotate", disc, degrees=[33.0, 33.0]) - disc).abs().mean() < 0.03


def test_what_comes_in_is_black() -> None:
    white = normalised(torch.full((4, 3, 12, 16), 255.0))
    turned = flat(
        apply(make("rotate", degrees=[45.0, 45.0]), {**example(4), "photo.pixels": white})["photo.pixels"]
    )
    assert turned[:, :, 0, 0] == pytest.approx(normalised(torch.zeros(4, 3, 1, 1))[:, :, 0, 0], abs=1e-5)


@pytest.mark.parametrize(("direction", "dims"), [("horizontal", (3,)), ("vertical", (2,)), ("both", (2, 3))])
def test_flipping(direction: str, dims: tuple[int, ...]) -> None:
    images = torch.rand(3, 2, 5, 6)
    once = photos("flip", images, direction=direction, probability=1.0)
    assert torch.equal(once, images.flip(dims))
    assert torch.equal(photos("flip", once, direction=direction, probability=1.0), images)
    assert torch.equal(photos("flip", images, direction=direction, probability=0.0), images)


def test_half_of_the_images_are_flipped() -> None:
    images = torch.arange(2.0).expand(1000, 1, 1, 2)
    assert 400 < int((photos("flip", images)[:, 0, 0, 0] == 1).sum()) < 600


@given(st.integers(0, 1000), st.floats(0, 0.9))
@settings(deadline=None, max_examples=40)
def test_shifting_moves_whole_pixels(seed: int, share: float) -> None:
    images = torch.rand(4, 2, 6, 9) + 0.1
    shifted = photos("shift", images, seed, share=share)
    for before, after in zip(images, shifted, strict=True):
        candidates = []
        for down in range(-round(share * 6), round(share * 6) + 1):
            for right in range(-round(share * 9), round(share * 9) + 1):
                expected = torch.zeros(2, 6, 9)
                expected[:, max(0, down) : 6 + min(0, down), max(0, right) : 9 + min(0, right)] = before[
                    :, max(0, -down) : 6 - max(0, down), max(0, -right) : 9 - max(0, right)
                ]
                candidates.append(torch.equal(after, expected))
        assert any(candidates)


def test_cropping_a_padded_image() -> None:
    images = torch.rand(64, 1, 8, 8) + 0.1
    black = (photos("crop", images, padding=2) == 0).sum((1, 2, 3))
    assert black.max() <= 64 - 36
    assert len(black.unique()) > 3


def test_cropping_to_scale() -> None:
    images = torch.rand(8, 3, 16, 16)
    assert photos("crop", images, scale=[1.0, 1.0], ratio=[1.0, 1.0]) == pytest.approx(images, abs=1e-5)
    ramp = torch.linspace(0, 1, 32).expand(200, 1, 32, 32).contiguous()
    cut = photos("crop", ramp, scale=[0.25, 0.25], ratio=[1.0, 1.0])
    spans = cut[:, 0, 0, -1] - cut[:, 0, 0, 0]
    assert spans == pytest.approx(torch.full((200,), 0.5), abs=0.05), (
        "half of the width of a quarter of the area"
    )
    assert cut.min() > -1e-6
    assert cut[:, 0, 0, 0].max() > 0.4


def test_boxes_have_the_area_that_was_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, size = boxes(500, (0.1, 0.3), (0.5, 2.0), torch.empty(0), generator)
    assert ((corner >= 0) & (corner + size <= 1 + 1e-6)).all()
    area = inside(corner, size, 200, 200).float().mean((1, 2, 3))
    assert ((area > 0.09) & (area < 0.31)).all()
    assert area == pytest.approx(size.prod(1), abs=0.02)


def test_erasing() -> None:
    images = torch.rand(300, 3, 20, 20) + 0.1
    erased = photos("erase", images, probability=0.5, scale=[0.2, 0.2], ratio=[1.0, 1.0])
    hole = (erased == 0).float().mean((1, 2, 3))
    assert 110 < int((hole > 0).sum()) < 190
    assert hole[hole > 0] == pytest.approx(torch.full_like(hole[hole > 0], 0.2), abs=0.06)
    assert torch.equal(erased[erased != 0], images[erased != 0])
    noisy = photos("erase", images, probability=1.0, fill="noise")
    assert (noisy != images).any((1, 2, 3)).all()
    assert noisy.min() < -1, "noise is not cut off"


def test_color_operations_follow_pillow() -> None:
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    stored = torch.randint(0, 256, (1, 3, 17, 13), generator=torch.Generator().manual_seed(0)) // 2 + 30
    picture = Image.fromarray(stored[0].permute(1, 2, 0).to(torch.uint8).numpy())
    light = stored.float() / 255
    factor = torch.tensor([1.5])
    cases = {
        "brightness": (_color.brightness(light, factor), ImageEnhance.Brightness(picture).enhance(1.5)),
        "contrast": (_color.contrast(light, factor), ImageEnhance.Contrast(picture).enhance(1.5)),
        "saturation": (_color.saturation(light, factor), ImageEnhance.Color(picture).enhance(1.5)),
        "sharpness": (_color.sharpness(light, factor), ImageEnhance.Sharpness(picture).enhance(1.5)),
        "smooth": (_color.sharpness(light, factor * 0), picture.filter(ImageFilter.SMOOTH)),
        "posterize": (_color.posterize(light, torch.tensor([3.0])), ImageOps.posterize(picture, 3)),
        "solarize": (_color.solarize(light, torch.tensor([100 / 255])), ImageOps.solarize(picture, 100)),
        "autocontrast": (_color.autocontrast(light), ImageOps.autocontrast(picture)),
        "equalize": (_color.equalize(light), ImageOps.equalize(picture)),
    }
    for name, (ours, theirs) in cases.items():
        expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).float()[None]
        assert ours * 255 == pytest.approx(expected, abs=1.6), name  # Pillow rounds at every step


def test_color_undoes_the_normalisation() -> None:
    stored = torch.randint(20, 180, (16, 3, 12, 16)).float()  # no factor up to 1.3 cuts it off at white
    batch = {**example(16), "photo.pixels": normalised(stored)}
    result = flat(apply(make("color", brightness=0.3, contrast=0.0, saturation=0.0), batch)["photo.pixels"])
    factors = (Pixels(MEAN, STD, 255.0).to_light(result) * 255 / stored).flatten(1)
    assert factors == pytest.approx(factors[:, :1].expand_as(factors), abs=1e-4), (
        "one factor for the whole image"
    )
    assert 0.7 <= factors.min() < 0.9 < 1.1 < factors.max() <= 1.3 + 1e-4


def test_randaugment_of_no_magnitude_moves_nothing() -> None:
    images = torch.rand(64, 1, 8, 8)
    result = photos("randaugment", images, n=1, magnitude=0.0)
    same = (result - images).abs().amax((1, 2, 3)) < 0.01
    assert same.sum() > 32, "all but autocontrast and equalize stay"
    strong = photos("randaugment", images, n=2, magnitude=30.0)
    assert ((strong - images).abs().amax((1, 2, 3)) > 0.01).sum() > 50


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rotate", {"degrees": [5.0, -5.0]}, "is empty; the smaller angle comes first"),
        ("crop", {"padding": 2, "scale": [0.5, 1.0]}, "two ways to cut"),
        ("crop", {"ratio": [1.0, 1.0]}, "ratio without scale has no effect"),
        ("crop", {"scale": [0.5, 2.0]}, "is no range of shares"),
        ("crop", {"scale": [0.5, 1.0], "ratio": [2.0, 1.0]}, "is no range"),
        ("erase", {"scale": [0.5, 0.1]}, "is no range of shares"),
        ("erase", {"ratio": [0.0, 1.0]}, "is no range"),
        ("color", {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}, "nothing would change"),
        ("word_noise", {"drop": 0.0, "swap": 0.0}, "nothing would change"),
    ],
)
def test_options_that_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(name, **options)


def test_whole_numbers_are_numbers() -> None:
    torch.testing.assert_close(
        photos("rotate", torch.eye(8)[None, None], degrees=0), torch.eye(8)[None, None], rtol=0, atol=1e-5
    )


# --- mixing ---


def test_mixup_is_a_weighted_mean() -> None:
    batch = example(64)
    mixed = apply(make("mixup", alpha=1.0, columns=["photo", "age"]), batch)
    partner, share = flat(mixed["mix.partner"]), flat(mixed["mix.share"])
    assert partner.dtype == torch.int64
    assert sorted(partner.tolist()) == list(range(64))
    assert share.dtype == torch.float32
    assert ((share >= 0) & (share <= 1)).all()
    for name in ("photo.pixels", "age.value"):
        value = flat(batch[name])
        weight = share.view(-1, *[1] * (value.dim() - 1))
        assert flat(mixed[name]) == pytest.approx(weight * value + (1 - weight) * value[partner], abs=1e-5)
    assert torch.equal(flat(mixed["review.ids"]), flat(batch["review.ids"])), (
        "columns that are not named stay"
    )


def test_alpha_says_how_far_from_the_middle() -> None:
    shares = {
        a: flat(apply(make("mixup", alpha=a, columns=["age"]), example(4000))["mix.share"])
        for a in (0.1, 1.0, 9.0)
    }
    for alpha, share in shares.items():
        assert share.mean() == pytest.approx(0.5, abs=0.03)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixing_refuses_what_it_cannot_mix() -> None:
    with pytest.raises(RecipeError, match="cannot mix input 'review', which is text; name the columns"):
        apply(make("mixup"), example())
    two = Spec({f"{c}.pixels": Field(c, "image", "input", "float32", (4, 4, 1)) for c in "ab"})
    with pytest.raises(RecipeError, match="one column of images"):
        apply(make("cutmix"), {f"{c}.pixels": torch.zeros(2, 1, 4, 4) for c in "ab"}, spec=two)


def test_cutmix_shares_are_areas() -> None:
    batch = example(200)
    marked = (
        torch.arange(200.0)
        .view(-1, 1, 1, 1)
        .expand(200, 3, 12, 16)
        .contiguous(memory_format=torch.channels_last)
    )
    mixed = apply(make("cutmix", columns=["photo"]), {**batch, "photo.pixels": marked})
    partner, share = flat(mixed["mix.partner"]), flat(mixed["mix.share"])
    images = flat(mixed["photo.pixels"])
    own = (images == marked).float().mean((1, 2, 3))
    others = (images == marked[partner]).float().mean((1, 2, 3))
    differs = partner != torch.arange(200)
    assert share[differs] == pytest.approx(own[differs], abs=1e-6)
    assert others[differs] == pytest.approx(1 - own[differs], abs=1e-6)
    assert share.min() < 0.3
    assert share.max() > 0.9


def test_two_mixers_take_turns() -> None:
    kinds = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        batch = make("cutmix", columns=["photo"], probability=0.5).batch(example(8), SPEC, generator)
        was_cut = "mix.share" in batch
        after = make("mixup", columns=["photo"]).batch(batch, SPEC, generator)
        assert "mix.share" in after
        assert (after is batch) == was_cut
        kinds.add(was_cut)
    assert kinds == {True, False}


def test_noise() -> None:
    batch = example(5000)
    noisy = apply(make("noise", std=0.3), batch)
    assert set(noisy) == set(batch)
    assert torch.equal(flat(noisy["photo.pixels"]), flat(batch["photo.pixels"])), "images only if named"
    assert torch.equal(flat(noisy["age.missing"]), flat(batch["age.missing"]))
    for name in ("age.value", "sound.values"):
        difference = flat(noisy[name]) - flat(batch[name])
        assert difference.std() == pytest.approx(0.3, rel=0.05)
        assert difference.mean() == pytest.approx(0, abs=0.02)
    named = apply(make("noise", columns=["photo"]), batch)
    assert not torch.equal(flat(named["photo.pixels"]), flat(batch["photo.pixels"]))
    with pytest.raises(RecipeError, match="changes real numbers, but no input"):
        apply(make("noise", columns=["review"]), batch)


# --- text ---


@pytest.mark.parametrize("name", TEXT)
@given(values=st.lists(st.text(max_size=40), max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_text_contract(name: str, values: list[str], seed: int) -> None:
    augmenter = make(name)
    assert augmenter.level == "text"
    first, same = (augmenter.text(values, np.random.default_rng(seed)) for _ in range(2))
    assert first == same
    assert len(first) == len(values)
    for before, after in zip(values, first, strict=True):
        assert bool(before.strip()) == bool(after.strip()), "a text with letters keeps some"


@pytest.mark.parametrize("name", TEXT)
def test_another_seed_another_text(name: str) -> None:
    texts = ["the quick brown fox jumps over the lazy dog " * 5, "班门弄斧，说的是在鲁班门前舞弄斧子" * 5]
    first, second = (make(name).text(texts, np.random.default_rng(seed)) for seed in (0, 1))
    assert all(a != b != c for a, b, c in zip(first, texts, second, strict=True))
    assert first != second


@given(text=st.text("abcdefg hij 鲁班工坊", min_size=1, max_size=60), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=100)
def test_char_noise_operations(text: str, seed: int) -> None:
    def noisy(*operations: str) -> str:
        return make("char_noise", share=0.5, operations=list(operations)).text(
            [text], np.random.default_rng(seed)
        )[0]

    assert sorted(noisy("swap")) == sorted(text)
    assert len(noisy("drop")) <= len(text)
    assert noisy("duplicate").count(" ") == text.count(" ")
    assert [c for c in noisy("duplicate", "similar") if is_cjk(c)] == [c for c in text if is_cjk(c)]
    assert len(noisy("similar")) == len(text)
    for operation in ("swap", "drop", "duplicate", "similar"):
        assert [i for i, c in enumerate(noisy(operation).split(" "))] == [
            i for i, c in enumerate(text.split(" "))
        ]


def test_char_noise_changes_the_share_that_was_asked_for() -> None:
    text = "abcdefghij" * 1000
    dropped = make("char_noise", share=0.1, operations=["drop"]).text([text], np.random.default_rng(0))[0]
    assert 0.08 < 1 - len(dropped) / len(text) < 0.12
    near = make("char_noise", share=1.0, operations=["similar"]).text(["Ss"], np.random.default_rng(0))[0]
    assert near[0] in "ADWEZX"
    assert near[1] in "adwezx"


@given(
    words=st.lists(st.sampled_from(["to", "be", "or", "not", "鲁", "班"]), min_size=1, max_size=20),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_words_are_swapped_or_dropped_whole(words: list[str], seed: int) -> None:
    text = " ".join(words)
    swapped = make("word_noise", drop=0.0, swap=0.5).text([text], np.random.default_rng(seed))[0]
    assert sorted(swapped.split()) == sorted(words)
    assert len(swapped) == len(text)
    dropped = make("word_noise", drop=0.5, swap=0.0).text([text], np.random.default_rng(seed))[0].split()
    rest = iter(words)
    assert all(word in rest for word in dropped), "what stays keeps its order"
    assert dropped


def test_chinese_characters_count_as_words() -> None:
    after = make("word_noise", drop=0.3, swap=0.0).text(["班门弄斧的故事"], np.random.default_rng(3))[0]
    assert 0 < len(after) < 7
