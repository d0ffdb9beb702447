"""Both sides of the GPU figures: a model with random weights, what it is asked, and who answers.

Titles and prompts are random token ids. All titles are of one length, since random weights prefer
short ones and searches would end early. Behind its first token a title has 1.4 choices on average
(MovieLens titles: 1.0), so that no more is forced than in real catalogs. The model's last norm is
scaled so that choices are about as sharp as a trained model's. Knows no clock.
"""

import platform
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
import transformers
from gpu_plans import Plan, Size
from transformers import AutoModelForCausalLM, LlamaConfig

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.best_first import best_first
from llmrec.decoding.fixed_steps import FixedSteps
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.attention import with_tree_attention
from llmrec.model.softmax import FullSoftmax
from llmrec.text.tree import FlatTree, Segment, TokenTree
from llmrec.text.trie import TitleTrie

PEAK = 790e12  # FLOP/s in bf16 of an H100 or H200, as measured in large products
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes/s, by what a device's name holds
NOTHING = np.zeros(0, np.int32)
SHARP = 3.0  # standard deviation of the logits
SEED = 0

Answers = list[tuple[list[int | None], list[float]]]  # each user's items, best first, and scores


class Bench:
    """One model and what it is asked."""

    def __init__(self, plan: Plan, size: Size) -> None:
        self.plan, self.size = plan, size
        rng = np.random.default_rng(SEED)
        self.titles = titles(plan.items, plan.title, size.vocabulary, rng)
        low, high = plan.prompt - plan.spread, plan.prompt + plan.spread + 1
        self.prompts = [
            rng.integers(0, size.vocabulary - 1, n).astype(np.int32)
            for n in rng.integers(low, high, max(plan.users, size.pairs))
        ]
        self.trie, self.nested = TitleTrie.from_sequences(self.titles), nested(self.titles)
        self.item_of = {tuple(title.tolist()): i for i, title in enumerate(self.titles)}
        self.length = float(np.mean([len(p) for p in self.prompts[: plan.users]]))
        self.peer_rates: dict[int, float] = {}  # of `generate` over the allowed tokens, by beams

    @cached_property
    def model(self):
        """The model as llmrec loads one, in evaluation mode; made on its device."""
        torch.manual_seed(SEED)
        s = self.size
        config = LlamaConfig(
            hidden_size=s.hidden,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            intermediate_size=s.intermediate,
            vocab_size=s.vocabulary,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=s.vocabulary - 1,
        )
        # Searches may ask for it first, and what is made in their mode could not be trained.
        with torch.inference_mode(False), torch.device(self.plan.device):
            model = with_tree_attention(
                AutoModelForCausalLM.from_config(
                    config, dtype=self.plan.dtype, attn_implementation="sdpa"
                )
            )
        with torch.inference_mode(False), torch.no_grad():
            model.model.norm.weight.fill_(SHARP / (config.initializer_range * s.hidden**0.5))
        return model.eval()

    @cached_property
    def weights(self) -> tuple[int, int]:
        """How many the body and the head have; the head is the embedding too."""
        head = self.size.hidden * self.size.vocabulary
        return sum(p.numel() for p in self.model.parameters()) - head, head

    def provenance(self) -> dict:
        """What every figure ran on."""
        cuda = self.plan.device == "cuda"
        return {
            "items": len(self.titles),
            "model": f"{self.size.name} shapes, random weights",
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "dtype": str(self.plan.dtype).removeprefix("torch."),
            "seed": SEED,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        }


def titles(count: int, length: int, vocabulary: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` different titles of `length` tokens, the end token (the highest id) last.

    The first three tokens are drawn like words, by 1 / rank; a fifth of the titles are sequels that
    differ from an earlier one in the last tokens only.
    """
    words = min(2000, vocabulary // 2)
    frequency = 1 / np.arange(1, words + 1)
    frequency /= frequency.sum()
    found: list[tuple[int, ...]] = []
    known = set()
    while len(found) < count:
        ids = rng.integers(0, vocabulary - 1, length)
        ids[:3] = rng.choice(words, 3, p=frequency)
        if found and rng.random() < 0.2:
            ids[: length - 3] = found[int(rng.integers(len(found)))][: length - 3]
        ids[-1] = vocabulary - 1
        title = tuple(ids.tolist())
        if title not in known:
            known.add(title)
            found.append(title)
    return [np.array(title, np.int32) for title in found]


def nested(sequences: Sequence[np.ndarray]) -> dict:
    """The trie as dicts of dicts, as recommender papers keep it."""
    root: dict = {}
    for sequence in sequences:
        node = root
        for token in sequence.tolist():
            node = node.setdefault(token, {})
    return root


def generated(
    bench: Bench, prompts: Sequence, beams: int, renormalise: bool, scored: bool = False
) -> Answers:
    """What `generate` answers to left-padded prompts; scores are 0 unless `scored`."""
    width, end, trie = max(map(len, prompts)), bench.size.vocabulary - 1, bench.nested
    ids = np.full((len(prompts), width), end, np.int64)
    seen = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], seen[row, width - len(prompt) :] = prompt, 1

    def allowed(_, so_far):
        node = trie
        for token in so_far[width:].tolist():
            node = node.get(token, {})
        return list(node) or [end]

    on = bench.plan.device
    with torch.inference_mode():
        out = bench.model.generate(
            torch.from_numpy(ids).to(on),
            attention_mask=torch.from_numpy(seen).to(on),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=0.0,
            max_new_tokens=bench.plan.title,
            pad_token_id=end,
            eos_token_id=end,
            use_cache=True,
            prefix_allowed_tokens_fn=allowed,
            renormalize_logits=renormalise,
            return_dict_in_generate=True,
            output_scores=scored,
        )
    items = [bench.item_of.get(tuple(row)) for row in out.sequences[:, width:].tolist()]
    scores = out.sequences_scores.tolist() if scored else [0.0] * len(items)
    return [(items[i : i + beams], scores[i : i + beams]) for i in range(0, len(items), beams)]


def searched(
    bench: Bench, prompts: Sequence, search: Callable, steps: FixedSteps | None = None
) -> Answers:
    """What llmrec answers; `search` is `by_beams` or `by_best_first`."""
    shared = SharedPrompt(bench.model, prompts, steps=steps)
    found = search(shared, OpenItems(bench.trie, [NOTHING] * len(prompts)))
    return [(ranking.positions.tolist(), ranking.scores.tolist()) for ranking in found]


def graphed(bench: Bench, search: Callable) -> Callable[[Sequence], Answers]:
    """`searched` with graphs of its own, to be asked with prompts; off CUDA without capture."""
    return partial(searched, bench, search=search, steps=FixedSteps(bench.model))


def by_beams(beams: int, renormalise: bool) -> Callable:
    """Beam search, to be asked with prompts and open items."""
    return partial(beam_search, beams=beams, top_k=beams, scoring=Scoring(renormalise))


def by_best_first(top_k: int, renormalise: bool) -> Callable:
    """Best-first search likewise. Reading wide costs a GPU less than one more pass."""

    def search(prompts, open_items):
        return best_first(
            prompts, open_items, top_k=top_k, scoring=Scoring(renormalise), expand=max(10, top_k)
        ).rankings

    return search


class _Counting(SharedPrompt):
    """Notes how many rows of logits are taken in each pass behind the prompts."""

    def __init__(self, *arguments) -> None:
        self.rows: list[int] = []
        super().__init__(*arguments)

    def read(self, *arguments, **named):
        logits = super().read(*arguments, **named)
        self.rows.append(len(logits))
        return logits


def read_behind(bench: Bench, prompts: Sequence, search: Callable) -> tuple[int, float]:
    """Passes of the model behind the prompts, and rows of logits a user that were taken in them."""
    shared = _Counting(bench.model, prompts)
    search(shared, OpenItems(bench.trie, [NOTHING] * len(prompts)))
    return len(shared.rows), sum(shared.rows) / len(prompts)


def batched(prompts: Sequence, size: int, run: Callable[[Sequence], Answers]) -> Answers:
    """What `run` answers, asked with `size` prompts at a time."""
    return [a for i in range(0, len(prompts), size) for a in run(prompts[i : i + size])]


def tuned(bench: Bench):
    """The model with LoRA put on it, whose second matrices are not zero: all gradients live."""
    from llmrec.model.loading import Lora, with_new_lora  # here, as no search needs peft

    lora = Lora(r=8, dropout=0.0, target_modules="all-linear")
    model = with_new_lora(bench.model, lora, SEED)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.train()


class PairStep:
    """Forward and backward over SOFT's pairs, as one tree each and as two padded passes."""

    def __init__(self, bench: Bench, model) -> None:
        self.model, self.plan = model, bench.plan
        self.prompts = bench.prompts[: bench.size.pairs]
        self.softmax, self.titles = FullSoftmax(), bench.titles
        rng = np.random.default_rng(SEED)
        self.drawn = [rng.choice(len(bench.titles), 2, replace=False) for _ in self.prompts]
        self.paths = [
            [
                np.concatenate([prompt, bench.titles[pair[kind]]])
                for prompt, pair in zip(self.prompts, self.drawn, strict=True)
            ]
            for kind in (0, 1)
        ]

    def rows(self) -> list[FlatTree]:
        """A tree for each pair: the prompt, and behind it the real title and the own one."""
        answers = self.titles
        return [
            TokenTree(
                (
                    Segment(prompt),
                    Segment(answers[real], 0, int(real)),
                    Segment(answers[own], 0, int(own), kind=1),
                )
            ).flatten()
            for prompt, (real, own) in zip(self.prompts, self.drawn, strict=True)
        ]

    def one_pass(self) -> float:
        """The loss of the trees, after their gradients."""
        self.model.zero_grad()
        prepared = self.softmax.prepare(self.rows())
        batch = {name: value.to(self.plan.device) for name, value in prepared.items()}
        with self._precision():
            loss = -self.softmax.branch_log_probabilities(self.model, batch).mean()
        loss.backward()
        return float(loss.detach())

    def two_passes(self) -> float:
        """The loss over prompts with real titles, then with own ones; the sum, after gradients."""
        self.model.zero_grad()
        total = 0.0
        for some in self.paths:
            ids = np.zeros((len(some), max(map(len, some))), np.int64)
            seen, labels = np.zeros_like(ids), np.full_like(ids, -100)
            for row, (prompt, path) in enumerate(zip(self.prompts, some, strict=True)):
                ids[row, : len(path)], seen[row, : len(path)] = path, 1
                labels[row, len(prompt) : len(path)] = path[len(prompt) :]
            batch = {
                name: torch.from_numpy(array).to(self.plan.device)
                for name, array in (
                    ("input_ids", ids),
                    ("attention_mask", seen),
                    ("labels", labels),
                )
            }
            with self._precision():
                loss = self.model(**batch, use_cache=False, num_items_in_batch=2 * len(some)).loss
            loss.backward()
            total += float(loss.detach())
        return total

    def _precision(self):
        """As `Trainer` runs under `bf16: true`."""
        on = self.plan.dtype is torch.bfloat16
        return torch.autocast(self.plan.device, torch.bfloat16, enabled=on)


def alike(ours: Answers, theirs: Answers) -> bool:
    """Whether all lists are equal in items and order, and in scores within 1e-4."""
    return all(
        mine == peers and np.allclose(s, t, rtol=1e-5, atol=1e-4)
        for (mine, s), (peers, t) in zip(ours, theirs, strict=True)
    )


def best_of_all(bench: Bench, prompt: np.ndarray, top_k: int, renormalise: bool) -> tuple:
    """The best titles and their scores, from one plain reading of each title behind the prompt."""
    rows = np.stack([np.concatenate([prompt, title]) for title in bench.titles]).astype(np.int64)
    with torch.inference_mode():
        logits = bench.model(torch.from_numpy(rows).to(bench.plan.device), use_cache=False).logits
    logits = logits[:, len(prompt) - 1 : -1].double().cpu()
    scores = np.zeros(len(rows))
    for i, title in enumerate(bench.titles):
        node = bench.nested
        for step, token in enumerate(title.tolist()):
            row = logits[i, step]
            among = row[list(node)] if renormalise else row
            scores[i] += float(row[token] - torch.logsumexp(among, 0))
            node = node[token]
    best = np.argsort(-scores, kind="stable")[:top_k]
    return best.tolist(), scores[best].tolist()


def sharing(bench: Bench, beams: int) -> float:
    """What sharing the prompt can gain at most: B*P + B*(T-1) tokens against P + B*(T-1)."""
    behind = bench.plan.title - 1
    return beams * (bench.length + behind) / (bench.length + beams * behind)


def bandwidth(device: str) -> float:
    """Bytes per second of the device's memory; an H200's where it is of another make."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((rate for kind, rate in BANDWIDTHS.items() if kind in name), BANDWIDTHS["H200"])


def roofline(bench: Bench, read: float, batch: int = 0, passes: int = 0) -> float:
    """Users per second at most, where `read` tokens behind each prompt need logits.

    From arithmetic alone; for a `batch` of users and `passes` behind their prompts, the weights
    are read in each, and with them the keys and values of the prompts.
    """
    size, (body, head) = bench.size, bench.weights
    attention = 4 * size.layers * size.hidden  # FLOPs of a token for each token that it sees
    users, seen = max(batch, 1), bench.length + bench.plan.title / 2
    first = users * (bench.length * (2 * body + attention * bench.length / 2) + 2 * head)
    later = users * read * (2 * (body + head) + attention * seen)
    width = torch.finfo(bench.plan.dtype).bits // 8
    held = users * bench.length * 2 * size.layers * size.kv_heads * (size.hidden // size.heads)
    loads = [width * (body + head), width * passes * (body + head + held)] if batch else [0, 0]
    rate = bandwidth(bench.plan.device)
    seconds = max(first / PEAK, loads[0] / rate) + max(later / PEAK, loads[1] / rate)
    return users / seconds
