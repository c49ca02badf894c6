"""The drawn world: pictures from seeds, ground truth that fits the drawing, held-out splits, readable captions."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from likeness.hosts.diffusers.tokenizer import load_tokenizer, tokenize
from likeness.miniature import models
from likeness.miniature.models import BOS, EOS
from likeness.miniature.world import (
    Picture,
    pair_caption,
    sample_identity,
    sample_item,
    sample_pair,
    sample_picture,
    sample_variants,
)
from likeness.miniature.world import identity as identity_module
from likeness.miniature.world.identity import SKIN, identity_count
from likeness.miniature.world.render import details, ground_truth, item_mask, render
from likeness.miniature.world.spec import (
    ACCESSORIES,
    COLOURS,
    SCENES,
    SHOTS,
    TOLD,
    VARIED,
    held_out_combination,
    sample_figure,
)


def portrait(seed: int, **changes: object) -> Picture:
    """One upright, neutral person in a plain studio, flat colours."""
    rng = random.Random(seed)
    figure = sample_figure(rng, "portrait", sample_identity(rng))
    figure = replace(figure, **{"item": None, "expression": "", "tilt": 0.0, **changes})
    return Picture((figure,), "portrait", "studio", "flat", seed=seed)


def grown(mask: np.ndarray, by: int = 2) -> np.ndarray:
    """The mask and every pixel within ``by`` of it: antialiased borders belong to neither side."""
    padded, (height, width) = np.pad(mask, by), mask.shape
    shifts = [(dy, dx) for dy in range(2 * by + 1) for dx in range(2 * by + 1)]
    return np.logical_or.reduce([padded[dy : dy + height, dx : dx + width] for dy, dx in shifts])


def test_a_seed_fixes_the_picture() -> None:
    first, second = (sample_picture(random.Random(7)) for _ in range(2))
    assert first == second and first.caption == second.caption
    assert np.array_equal(render(first, 128), render(second, 128))
    assert first != sample_picture(random.Random(8))


@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_draws_and_differs_by_its_own_seed_only(scene: str) -> None:
    pictures = [replace(portrait(3), scene=scene, seed=seed) for seed in (1, 1, 2)]
    images = [render(picture, 64) for picture in pictures]
    assert images[0].shape == (64, 64, 3) and images[0].dtype == np.uint8
    assert np.array_equal(images[0], images[1])
    if scene != "studio":  # a studio has only two backdrops
        assert not np.array_equal(images[0], images[2])


def test_more_than_a_million_identities() -> None:
    assert identity_count() > 1_000_000


def test_the_person_mask_is_where_the_person_was_drawn() -> None:
    """Outside the mask a picture equals its empty scene; inside, nearly everywhere it does not."""
    for seed in range(8):
        picture = portrait(seed)
        empty = render(replace(picture, figures=(replace(picture.figures[0], centre=(9.0, 9.0)),)), 128)
        changed = (render(picture, 128) != empty).any(axis=2)
        mask = ground_truth(picture, 128)[0].person
        assert not (changed & ~grown(mask)).any()
        assert (changed & mask).sum() > 0.95 * mask.sum()


def test_skin_is_where_the_face_mask_is() -> None:
    picture = portrait(2)
    bare = replace(picture.figures[0].identity, skin=6, hair="bald", gender="man", facial_hair="none", marks="none")
    picture = replace(picture, figures=(replace(picture.figures[0], identity=bare),))
    skin = np.array([int(SKIN[6][i : i + 2], 16) for i in (1, 3, 5)])
    close = np.abs(render(picture, 128).astype(int) - skin).max(axis=2) < 8
    face = ground_truth(picture, 128)[0].face
    assert (close & face).sum() > 0.55 * face.sum()


def test_landmarks_lie_in_the_face_and_move_with_it() -> None:
    picture = portrait(5)
    truth = ground_truth(picture, 128)[0]
    x0, y0, x1, y1 = truth.box
    for points, count in ((truth.five, 5), (truth.dense, 68)):
        assert points.shape == (count, 2)
        assert (points[:, 0] >= x0 - 1).all() and (points[:, 0] <= x1 + 1).all()
        assert (points[:, 1] >= y0 - 1).all() and (points[:, 1] <= y1 + 1).all()
    assert all(truth.face[int(y), int(x)] for x, y in truth.five)
    assert truth.five[0, 0] < truth.five[1, 0] and truth.five[3, 1] > truth.five[2, 1] > truth.five[0, 1]
    figure = picture.figures[0]
    moved = replace(figure, centre=(figure.centre[0] + 0.125, figure.centre[1]))
    there = ground_truth(replace(picture, figures=(moved,)), 128)[0]
    assert np.allclose(there.five - truth.five, (16, 0))
    assert np.allclose(ground_truth(picture, 256)[0].five, truth.five * 2)


def test_pupils_are_dark_where_the_eyes_are() -> None:
    for seed in range(6):
        picture = portrait(seed)
        image, truth = render(picture, 256), ground_truth(picture, 256)[0]
        for x, y in truth.five[:2]:
            pupil = image[round(y + 2) - 1 : round(y + 2) + 3, round(x) - 1 : round(x) + 3]
            assert pupil.min() < 40


def test_a_figure_in_front_hides_the_one_behind() -> None:
    picture = portrait(4)
    figure = picture.figures[0]
    both = replace(picture, figures=(figure, replace(figure, centre=(figure.centre[0] + 0.3, figure.centre[1]))))
    behind, front = ground_truth(both, 128)
    assert not (behind.person & front.person).any()
    assert behind.person.sum() < ground_truth(picture, 128)[0].person.sum()


@pytest.mark.parametrize("kind", ACCESSORIES)
def test_the_accessory_mask_is_what_the_accessory_changes(kind: str) -> None:
    plain = portrait(1)
    item = sample_item(random.Random(3), kind)
    worn = replace(plain, figures=(replace(plain.figures[0], item=item),))
    mask = ground_truth(worn, 128)[0].accessory
    changed = (render(worn, 128) != render(plain, 128)).any(axis=2)
    assert mask.any() and not ground_truth(plain, 128)[0].accessory.any()
    assert (changed & mask).sum() > 0.8 * mask.sum()
    assert not (changed & ~grown(mask)).any()
    alone = Picture((), "object", "studio", "flat", item=item, seed=1)
    assert 0.02 < item_mask(alone, 128).mean() < 0.6


@pytest.mark.parametrize("kind", ACCESSORIES)
def test_details_are_accessory_eyes_and_mouth(kind: str) -> None:
    picture = portrait(11, item=sample_item(random.Random(1), kind), expression="surprised")
    truth = ground_truth(picture, 128)[0]
    found = details(picture, render(picture, 128))
    visible = truth.accessory & truth.person
    assert (found & visible).sum() > 0.6 * visible.sum()
    assert not (found & ~grown(truth.face | truth.accessory)).any()
    for x, y in truth.five[[0, 1, 3, 4]]:
        assert kind == "sunglasses" or grown(found, 4)[int(y), int(x)]


def test_a_picture_without_people_has_no_details() -> None:
    picture = sample_picture(random.Random(5), people=0)
    assert not details(picture, render(picture, 64)).any()


def test_held_out_people_and_combinations_never_train() -> None:
    """Everything training draws (pictures, pairs, variants) against everything evaluation draws."""
    rng = random.Random(0)
    drawn = [sample_picture(rng) for _ in range(400)] + [p for _ in range(150) for p in sample_pair(rng, group=0.3)]
    drawn += [p for _ in range(50) for p in sample_variants(rng)]
    assert not any(f.identity.held_out for p in drawn for f in p.figures)
    worn = [(f.item.kind, p.scene) for p in drawn for f in p.figures if f.item]
    assert worn and not any(held_out_combination(*combination) for combination in worn)
    asked = [sample_picture(rng, held_out=True) for _ in range(300)]
    assert all(f.identity.held_out for p in asked for f in p.figures)
    assert any(held_out_combination(f.item.kind, p.scene) for p in asked for f in p.figures if f.item)


def test_one_identity_in_sixteen_is_held_out() -> None:
    """2,000 draws: 1/16 give or take four standard deviations."""
    rng = random.Random(1)
    share = sum(identity_module._draw(rng).held_out for _ in range(2000)) / 2000
    assert abs(share - 1 / 16) < 4 * (15 / 256 / 2000) ** 0.5
    pairs = sum(held_out_combination(kind, scene) for kind in ACCESSORIES for scene in SCENES)
    assert 3 <= pairs <= 20


@pytest.mark.parametrize("what", VARIED)
def test_variants_differ_in_one_told_thing(what: str) -> None:
    rng = random.Random(3)
    held = {"accessory": "item", "expression": "expression", "garment": "garment"}.get(what)
    trait = {"hair": "hair_colour", "skin": "skin", "beard": "facial_hair"}.get(what)
    for _ in range(20):
        pictures = sample_variants(rng, what)
        figures = [p.figures[0] for p in pictures]
        values = {getattr(f, held) if held else getattr(f.identity, trait) for f in figures}
        assert len(values) == len(pictures) == 4
        assert len({p.caption for p in pictures}) == (3 if what == "beard" else 4)  # two kinds are called a beard
        same = {held: None} if held else {"identity": replace(figures[0].identity, **{trait: 0})}
        for f in figures[1:]:
            assert held or replace(f.identity, **{trait: 0}) == same["identity"]
        assert len({replace(p, figures=(replace(p.figures[0], **same),)) for p in pictures}) == 1


def test_variants_of_accessories_include_none_and_share_a_look() -> None:
    items = [p.figures[0].item for p in sample_variants(random.Random(4), "accessory")]
    assert items[0] is None and len({(i.colour, i.pattern) for i in items[1:]}) == 1


def test_pairs_show_one_person_twice() -> None:
    rng = random.Random(2)
    for _ in range(60):
        left, right = sample_pair(rng)
        if right.figures:
            assert left.figures[0].identity == right.figures[0].identity
        else:
            assert right.item == left.figures[0].item
        assert pair_caption(left, right) == f"{left.caption} next to {right.caption}"


def test_pairs_may_show_a_person_alone_and_beside_someone() -> None:
    rng, places = random.Random(5), set()
    for _ in range(60):
        left, right = sample_pair(rng, group=1.0)
        who = [figure.identity for figure in right.figures]
        assert len(left.figures) == 1 and len(who) == 2 and left.figures[0].identity in who
        place = who.index(left.figures[0].identity)
        assert right.figures[place].word == left.figures[0].word
        places.add(place)
    assert places == {0, 1}


def test_captions_tell_a_part_of_who_someone_is() -> None:
    """Every trait of TOLD reaches captions, none where nothing is told or the person lacks it."""
    rng, seen = random.Random(6), set()
    for _ in range(300):
        picture = sample_picture(rng, people=1)
        figure = picture.figures[0]
        words = figure.identity.words(figure.told)
        assert (f" with {words} wearing" in picture.caption) == bool(words)
        seen |= {figure.told} if words else set()
    assert seen == set(TOLD) - {""}
    bald = replace(sample_identity(rng), hair="bald", facial_hair="none")
    assert bald.words("hair") == bald.words("beard") == bald.words("") == ""


def test_captions_become_single_known_tokens() -> None:
    """Every word of a caption is one token that stands in the trained vocabulary, and the caption fits the window."""
    rng = random.Random(3)
    tokenizer = load_tokenizer()
    captions = [sample_picture(rng, held_out=True).caption for _ in range(200)]
    captions += [pair_caption(*sample_pair(rng, group=0.4)) for _ in range(200)]
    for caption in captions:
        words = caption.replace(",", " ,").split()
        ids = tokenize([caption])[0].tolist()
        assert ids[0] == BOS and ids[-1] == EOS and ids.index(EOS) == len(words) + 1, caption
    vocabulary = [*COLOURS, *ACCESSORIES, *SHOTS, "woman", "man", "person"]
    assert all(len(tokenizer(w, add_special_tokens=False).input_ids) == len(w.split()) for w in vocabulary)


def test_every_caption_word_has_a_trained_row() -> None:
    """The shipped text encoder stores the rows it trained; no caption word may fall outside them."""
    from safetensors import safe_open

    with safe_open(models.weights_file("text_encoder"), "pt") as file:
        trained = set(file.get_tensor("rows").tolist())
    rng = random.Random(4)
    captions = [sample_picture(rng, held_out=True).caption for _ in range(300)]
    used = set(tokenize(captions).flatten().tolist())
    assert used <= trained
