"""Batches that take turns: the same answers, one at work at a time, others while it waits."""

import threading
import time

import pytest
import torch

from llmrec.model import in_flight
from llmrec.model.in_flight import by_turns, fetched
from llmrec.model.loading import adapter_off


class Slow(torch.Tensor):
    """Numbers whose way to the host takes a while, as it does where a GPU is still at work."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            time.sleep(0.05)
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_answers_come_in_order_and_one_thread_works_at_a_time(count):
    working, most, waiting, together = [], [], [], []

    def answer(number):
        working.append(number)
        most.append(len(working))
        working.remove(number)
        waiting.append(number)
        together.append(len(waiting))
        value = fetched(torch.ones(2).as_subclass(Slow) * number)
        waiting.remove(number)
        return value.tolist()

    assert list(by_turns(count, answer, iter(range(6)))) == [[n, n] for n in range(6)]
    assert max(most) == 1
    assert max(together) == count


def test_a_thing_is_taken_when_there_is_room_and_no_sooner():
    taken, done = [], []

    def things():
        for number in range(5):
            taken.append(number)
            yield number

    for number in by_turns(2, lambda n: n, things()):
        done.append(number)
        assert len(taken) <= len(done) + 2


def test_what_fails_is_raised_and_the_rest_is_not_begun():
    begun = []

    def answer(number):
        begun.append(number)
        fetched(torch.ones(1))
        if number == 1:
            raise ValueError("of one")
        return number

    found = by_turns(2, answer, range(50))
    with pytest.raises(ValueError, match="of one"):
        list(found)
    assert len(begun) <= 4
    assert threading.active_count() < 50
    assert not hasattr(in_flight._own, "turn")


def test_threads_hold_what_the_caller_held():
    def seen(_):
        fetched(torch.ones(1))
        kind = torch.get_autocast_dtype("cpu")
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu") and kind

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert set(by_turns(2, seen, range(3))) == {(False, torch.bfloat16)}
    assert set(by_turns(2, seen, range(3))) == {(True, False)}


def test_turns_inside_a_turn_are_one_after_the_other():
    def inner(number):
        return threading.get_ident(), float(fetched(torch.tensor([number]))[0])

    def outer(number):
        found = list(by_turns(2, inner, [number, number + 0.5]))
        assert {who for who, _ in found} == {threading.get_ident()}
        return [value for _, value in found]

    assert list(by_turns(2, outer, [1, 2, 3])) == [[1, 1.5], [2, 2.5], [3, 3.5]]


def test_an_adapter_is_off_until_the_last_batch_that_wants_it_off(trained_adapter):
    model = trained_adapter
    flags = [p.requires_grad for p in model.parameters()]
    first, second = adapter_off(model), adapter_off(model)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        on = model(input_ids=ids).logits
        first.__enter__()
        off = model(input_ids=ids).logits
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.equal(model(input_ids=ids).logits, off)
        second.__exit__(None, None, None)
        assert torch.equal(model(input_ids=ids).logits, on)
    assert not torch.equal(on, off)
    assert [p.requires_grad for p in model.parameters()] == flags
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, on)


@pytest.fixture
def trained_adapter(fresh_llama):
    from llmrec.model.loading import Lora, with_new_lora

    model = with_new_lora(fresh_llama, Lora(4, 8), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return model.eval()
