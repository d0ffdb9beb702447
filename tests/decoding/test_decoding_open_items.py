"""What is shut to everybody is as if it were closed to each user."""

import numpy as np

from llmrec.decoding.open_items import OpenItems
from llmrec.text.trie import TitleTrie


def test_what_is_shut_is_closed_to_every_user():
    rng = np.random.default_rng(3)
    for _ in range(40):
        size = int(rng.integers(1, 40))
        sequences = [[*rng.integers(1, 4, rng.integers(1, 5)), 0] for _ in range(size)]
        trie = TitleTrie.from_sequences(sequences)
        closed = [rng.integers(0, size, rng.integers(0, 6)) for _ in range(3)]
        shut = rng.integers(0, size, rng.integers(0, size + 1))
        asked = OpenItems(trie, closed, shut=shut)
        nodes = np.arange(len(trie.tokens))
        for user, own in enumerate(closed):
            barred = {*own.tolist(), *shut.tolist()}
            plain = OpenItems(trie, [np.array(sorted(barred), np.int64)])
            users = np.full(len(nodes), user)
            counts = asked.count(users, nodes).tolist()
            assert counts == plain.count(np.zeros_like(users), nodes).tolist()
            assert counts[0] == size - len(barred)
            items, owner = asked.items_at(users, nodes)
            for node in nodes:
                found = items[owner == node].tolist()
                assert found == [i for i in trie.items_at(int(node)) if i not in barred]
            ours, theirs = (
                o.children(u, nodes) for o, u in ((asked, users), (plain, np.zeros_like(users)))
            )
            assert ours[0].tolist() == theirs[0].tolist()
