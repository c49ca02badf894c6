"""Who is who: by likeness, by place, from left to right, or as the user says."""

from __future__ import annotations

import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.faces.assign import NOBODY, ORDER, REGION, SIMILARITY, USER, assign
from likeness.faces.interface import Face, face_similarities, similarities, with_embeddings
from likeness.faces.select import Gates, chosen, ordered, select

ROW = [Face((x, 10.0, x + 20.0, 30.0), 0.9) for x in (70.0, 10.0, 40.0)]  # right, left, middle


def people(found) -> list[int | None]:
    return [one.person for one in found]


def reasons(found) -> list[str]:
    return [one.how for one in found]


def test_left_to_right_where_nothing_else_is_known() -> None:
    found = assign(ROW, 3)
    assert people(found) == [2, 0, 1] and set(reasons(found)) == {ORDER}
    assert people(assign(ROW, 2)) == [None, 0, 1], "more faces than people: the leftmost get one"
    assert people(assign(ROW, 5)) == [2, 0, 1], "more people than faces: the first ones"
    assert assign([], 2) == () and people(assign(ROW, 0)) == [None] * 3


def test_likeness_is_matched_as_a_whole() -> None:
    """The greedy choice (.9 first) would leave .1; the best sum is .8 + .85."""
    similarity = torch.tensor([[0.9, 0.8], [0.85, 0.1]])
    assert people(assign(ROW[:2], 2, similarity=similarity)) == [1, 0]


def test_likeness_then_region_then_order() -> None:
    similarity = torch.tensor([[0.1, 0.2, 0.1], [0.1, 0.0, 0.9], [0.2, 0.1, 0.1]])
    right = torch.zeros(40, 100)
    right[:, 60:] = 1
    found = assign(ROW, 3, similarity=similarity, good_enough=0.4, regions=[None, right, None])
    assert people(found) == [1, 2, 0] and reasons(found) == [REGION, SIMILARITY, ORDER]
    assert found[1].similarity == pytest.approx(0.9) and found[0].similarity == pytest.approx(0.2)
    nan = torch.full((3, 3), float("nan"))
    assert people(assign(ROW, 3, similarity=nan)) == [2, 0, 1], "what is no number does not count"


def test_regions_of_any_size_cover_the_picture() -> None:
    halves = torch.eye(2)[:, None]  # 2 1 2
    found = assign(ROW[:2], 2, regions=list(halves), picture_size=(40, 100))
    assert people(found) == [1, 0] and set(reasons(found)) == {REGION}


def test_the_user_has_the_last_word() -> None:
    numbered = ordered(ROW)
    found = assign(numbered, 2, override="2,0,2", similarity=torch.eye(3, 2))
    assert people(found) == [1, None, 1] and set(reasons(found)) == {USER}
    assert people(assign(numbered, 3, override="?, 1")) == [1, 0, 2]
    assert people(assign(ROW, 3, override="1")) == [0, 1, 2], "faces without a number count as they come"
    for wrong in ("4", "x", "1,two"):
        with pytest.raises(LikenessError, match="1 to 3, such as 2,1"):
            assign(numbered, 3, override=wrong)


def test_nobody_is_said() -> None:
    assert reasons(assign(ROW, 1)) == [NOBODY, ORDER, NOBODY]


def test_order_is_stable_and_numbers_start_at_one() -> None:
    faces = ordered(ROW)
    assert [f.box[0] for f in faces] == [10, 40, 70] and [f.number for f in faces] == [1, 2, 3]
    same = [Face((0.0, y, 10.0, y + 10), 0.5) for y in (30.0, 0.0)]
    assert [f.box[1] for f in ordered(same)] == [0, 30] == [f.box[1] for f in ordered(same[::-1])]


def test_gates() -> None:
    small, large = Face((0, 0, 8, 10), 0.9), Face((50, 50, 90, 99), 0.6)
    faces = [*ROW, small, large]
    assert select(faces, Gates(smallest=30))[0].box == large.box
    assert len(select(faces, Gates(largest=20))) == 4
    assert [f.box for f in select(faces, Gates(count=1))] == [large.box]
    chosen = select(faces, Gates(which="1, 3-4"))
    assert [f.number for f in chosen] == [1, 3, 4], "numbers stay those that are shown"
    region = torch.zeros(2, 1, 100, 100)
    region[1, :, 50:] = 1
    assert select(faces, Gates(region=region)) == ()
    assert [f.box for f in select(faces, Gates(region=region), picture=1)] == [large.box]
    assert select(faces, Gates(which="99")) == ()


def test_which_faces_are_meant() -> None:
    faces = ordered([*ROW, Face((0, 50, 40, 90), 0.5)])

    def numbers(which: str, picture: int = 0) -> list[int]:
        return [face.number for face in chosen(faces, which, picture)]

    assert numbers(" All ") == numbers("") == [1, 2, 3, 4] and numbers("none") == [] and numbers("largest") == [2]
    assert numbers("2 - 3; 9") == [2, 3] and numbers("2:1, 3") == [3] and numbers("2:1, 3", 1) == [1, 3]
    for wrong in ("a", "0", "1..3", "-1", "4-2"):
        with pytest.raises(LikenessError, match="such as 1,3 or 2-4"):
            numbers(wrong)


class Embedder:
    """The mean colours of a crop, as a vector of unit length."""

    size, width, margin, aligned, euclidean = 8, 3, 0.0, False, False

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.nn.functional.normalize(crops.mean(dim=(2, 3)), dim=1)


def test_embeddings_of_different_providers_never_meet() -> None:
    image = torch.rand(3, 40, 100, generator=torch.Generator().manual_seed(0))
    one, other = Embedder("one"), Embedder("other")
    faces = with_embeddings(one, image, ROW)
    assert [face.embedder for face in faces] == ["one"] * 3 and faces[0].box == ROW[0].box
    likeness = face_similarities(one, faces, faces[:2])
    assert likeness.shape == (3, 2) and likeness[0, 0].item() == pytest.approx(1, abs=1e-5)
    assert with_embeddings(one, image, faces) == faces and one.calls == 1, "made once"
    assert face_similarities(one, faces, []).shape == (3, 0)
    for strangers in (with_embeddings(other, image, faces[:1]), ROW):
        with pytest.raises(LikenessError, match=r"embeddings by (other|nobody); expected embeddings by one"):
            face_similarities(one, faces, strangers)


def test_distances_become_similarities() -> None:
    from types import SimpleNamespace

    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.3]])
    assert similarities(SimpleNamespace(euclidean=True), a, b).item() == pytest.approx(0.7, abs=1e-5)
    assert similarities(SimpleNamespace(euclidean=False), a / 5, a / 5).item() == pytest.approx(1)
