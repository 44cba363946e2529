import itertools

import pytest

from datasets import Draw, EpochBatchSampler


def epoch(sampler: EpochBatchSampler, number: int = 0, start: int = 0) -> list[list[Draw]]:
    sampler.set_epoch(number, start)
    return list(sampler)


def test_every_sample_comes_once_and_the_rest_is_dropped():
    sampler = EpochBatchSampler(23, 5, seed=1)
    batches = epoch(sampler)
    assert len(sampler) == len(batches) == 4
    assert {len(batch) for batch in batches} == {5}
    indices = [draw.index for draw in itertools.chain(*batches)]
    assert len(set(indices)) == 20 and set(indices) <= set(range(23))
    assert len({draw.seed for draw in itertools.chain(*batches)}) == 20


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_what_one_process_sees(world):
    whole = epoch(EpochBatchSampler(50, 4 * world, seed=7), 3)
    parts = [
        epoch(EpochBatchSampler(50, 4, seed=7, rank=rank, world_size=world), 3)
        for rank in range(world)
    ]
    assert [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)] == whole


def test_a_start_batch_goes_on_exactly_there():
    sampler = EpochBatchSampler(30, 4, seed=5)
    assert epoch(sampler, 2, 3) == epoch(sampler, 2)[3:]
    assert epoch(sampler, 2, len(sampler)) == []


def test_epochs_and_seeds_differ_and_repeat():
    first = epoch(EpochBatchSampler(30, 4, seed=5), 0)
    assert first == epoch(EpochBatchSampler(30, 4, seed=5), 0)
    assert first != epoch(EpochBatchSampler(30, 4, seed=5), 1)
    assert first != epoch(EpochBatchSampler(30, 4, seed=6), 0)


def test_without_shuffling_the_order_stays_and_the_seeds_change():
    sampler = EpochBatchSampler(6, 2, seed=0, shuffle=False)
    one, two = (list(itertools.chain(*epoch(sampler, n))) for n in (0, 1))
    assert [draw.index for draw in one] == [draw.index for draw in two] == [*range(6)]
    assert not {draw.seed for draw in one} & {draw.seed for draw in two}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is outside 0..1"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 6, "world_size": 2}, r"10 samples do not fill one batch of 12 \(6 per"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    arguments = {"length": 10, "batch_size": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=words):
        EpochBatchSampler(**arguments)


def test_a_batch_beyond_the_epoch_is_refused():
    with pytest.raises(ValueError, match=r"batch 6: accepted are 0 and above, 0\.\.5"):
        EpochBatchSampler(10, 2, seed=0).set_epoch(0, 6)
