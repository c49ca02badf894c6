"""Identity files: written, read back, and what is said of files that are none."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from likeness.core.errors import LikenessError
from likeness.formats.identities import SavedIdentities, SavedPerson, load_identities, save_identities


@pytest.fixture
def saved(tmp_path):
    people = (
        SavedPerson("Ann", torch.randn(4, 8), torch.randn(4, 8), 0.8, 0.1, 0.9),
        SavedPerson("Bob", torch.randn(16, 8), torch.randn(4, 8)),
    )
    return save_identities(SavedIdentities(people, "abc", "a.bin"), tmp_path / "two"), people


def test_people_come_back(saved):
    path, people = saved
    read = load_identities(path)
    assert (read.encoder, read.made_with) == ("abc", "a.bin")
    for one, other in zip(people, read.people, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.nobody, other.nobody)
        assert (one.name, one.scale, one.start, one.end) == (other.name, other.scale, other.start, other.end)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "cannot be read"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "another kind"),
    ],
)
def test_files_that_are_none(saved, spoil, said):
    spoil(saved[0])
    with pytest.raises(LikenessError, match=said):
        load_identities(saved[0])


def test_a_vector_to_know_the_person_by(tmp_path):
    one = SavedPerson("Ann", torch.randn(4, 8), torch.randn(4, 8), vector=torch.randn(6), embedder="test")
    read = load_identities(save_identities(SavedIdentities((one,), "abc", "a.bin"), tmp_path / "a")).people[0]
    assert torch.equal(read.vector, one.vector) and read.embedder == "test"
