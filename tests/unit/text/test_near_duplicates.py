"""Near-duplicates: what is found, and that it is the same however texts are filed and the search is divided."""

from __future__ import annotations

import random

import numpy as np
import pytest

from megatron_huatuo.text.minhash import NUM_PERMUTATIONS, signature, similarity
from megatron_huatuo.text.near_duplicates import (
    NUM_BANDS,
    Groups,
    SignatureFiles,
    group_near_duplicates,
    write_band_keys,
)
from tests.unit.text.test_text import words


def file_signatures(folder, signatures, sizes):
    """Folders of so many signatures each."""
    folders = []
    for number, size in enumerate(sizes):
        folders.append(folder / str(number))
        folders[-1].mkdir(parents=True)
        signatures[:size].tofile(folders[-1] / "signatures.bin")
        write_band_keys(folders[-1])
        signatures = signatures[size:]
    assert not len(signatures)
    return folders


def find_groups(folder, texts):
    signatures = np.stack([signature(text) for text in texts])
    return group_near_duplicates(SignatureFiles(file_signatures(folder, signatures, [len(texts)])), 0.8).first


def group_plainly(signatures, threshold):
    """The definition, in plain Python: neighbours in a bucket of a band are joined when they are alike."""
    group = list(range(len(signatures)))
    for start in range(0, NUM_PERMUTATIONS, 6):
        last = {}
        for number, row in enumerate(signatures):
            before = last.get(row[start : start + 6].tobytes())
            last[row[start : start + 6].tobytes()] = number
            if before is not None and similarity(signatures[before], row) >= threshold:
                old, new = max(group[before], group[number]), min(group[before], group[number])
                group = [new if name == old else name for name in group]
    return group


def random_signatures(number, seed):
    """Signatures of which many are changed copies of earlier ones, and copies of copies; some bands agree by chance."""
    draw = np.random.default_rng(seed)
    signatures = draw.integers(0, 2**32, (number, NUM_PERMUTATIONS), dtype=np.uint32)
    for index in range(1, number):
        if draw.random() < 0.5:
            signatures[index] = signatures[draw.integers(index)]
            changed = draw.random(NUM_PERMUTATIONS) < draw.choice([0, 0.05, 0.15, 0.3])
            signatures[index, changed] = draw.integers(0, 2**32, changed.sum(), dtype=np.uint32)
    return signatures


def test_groups_keep_the_first_and_are_found_among_thousands(tmp_path):
    choose = random.Random(1)
    texts = [" ".join(words(seed, 60)) for seed in range(1500)]
    copies = {}
    for number in choose.sample(range(1500), 60):
        copy = texts[number].split()
        copy[choose.randrange(60)] = "changed"
        copies[len(texts)] = number
        texts.append(" ".join(copy))
    first = find_groups(tmp_path, texts)
    found = {index: int(number) for index, number in enumerate(first) if index != number}
    assert sum(copies.get(index) == number for index, number in found.items()) >= 58
    assert len(found) <= 60


def test_chains_of_near_duplicates_are_one_group_named_after_the_first(tmp_path):
    before, after = words(7, 100), words(8, 100)
    texts = [" ".join([*after[:cut], *before[cut:]]) for cut in (0, 4, 8, 12, 16, 20)]
    assert similarity(signature(texts[0]), signature(texts[-1])) < 0.8
    assert find_groups(tmp_path, texts).tolist() == [0] * 6


@pytest.mark.parametrize("sizes", [[], [0], [1], [0, 1, 0]])
def test_groups_of_nothing(sizes, tmp_path):
    folders = file_signatures(tmp_path, np.zeros((sum(sizes), NUM_PERMUTATIONS), np.uint32), sizes)
    assert group_near_duplicates(SignatureFiles(folders), 0.8).first.tolist() == list(range(sum(sizes)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sizes", "texts_a_part"), [([300], 1000), ([300], 70), ([0, 100, 1, 0, 199], 1)])
def test_groups_are_those_of_the_definition_however_texts_are_filed(sizes, texts_a_part, seed, tmp_path):
    signatures = random_signatures(300, seed)
    files = SignatureFiles(file_signatures(tmp_path, signatures, sizes), texts_a_part)
    assert files.parts == -(-300 // texts_a_part)
    first = group_near_duplicates(files, 0.8).first.tolist()
    assert first == group_plainly(signatures, 0.8) and len(set(first)) < 250


def test_pairs_found_apart_join_into_the_same_groups_in_any_order(tmp_path):
    signatures = random_signatures(500, 9)
    files = SignatureFiles(file_signatures(tmp_path, signatures, [123, 377]), texts_a_part=200)
    found = [files.find_pairs(band, part, 0.8) for band in range(NUM_BANDS) for part in range(files.parts)]
    random.Random(2).shuffle(found)
    groups = Groups(500)
    for pairs in found:
        assert (pairs[:, 0] < pairs[:, 1]).all()
        groups.join(pairs)
    assert groups.first.tolist() == group_near_duplicates(files, 0.8).first.tolist()


def test_groups_join_along_chains_stars_and_rings():
    numbers = np.arange(1000)
    ring = np.stack([numbers, np.roll(numbers, 1)], axis=1)
    star = np.stack([np.full(999, 999), numbers[:999]], axis=1)
    shuffled = np.random.default_rng(3).permutation(ring)
    for pairs in (ring, ring[::-1], star, shuffled, shuffled[:, ::-1]):
        groups = Groups(1003)
        groups.join(pairs + 2)
        assert groups.first.tolist() == [0, 1, *[2] * 1000, 1002]


def test_texts_whose_keys_differ_in_low_bits_alone_are_no_pair(tmp_path):
    """The sort looks at the high bits of keys first; the rest decides."""
    (folder,) = file_signatures(tmp_path, np.zeros((4, NUM_PERMUTATIONS), np.uint32), [4])
    keys = np.fromfile(folder / "band_keys.bin", np.uint64).reshape(NUM_BANDS, 4)
    keys[:] = [8, 9, 8, 9]
    keys.tofile(folder / "band_keys.bin")
    assert SignatureFiles([folder]).find_pairs(0, 0, 0.8).tolist() == [[0, 2], [1, 3]]
