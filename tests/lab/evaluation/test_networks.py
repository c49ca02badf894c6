"""CLIP, DINO and Inception are read from the user's files: here tiny ones with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)  # fmt: skip

from lab.evaluation.cache import Cache
from lab.evaluation.drawn import prompt_accuracy, told
from lab.evaluation.judge import Referees, evaluate
from lab.evaluation.miniature_networks import MiniatureNetwork, told_in_words
from lab.evaluation.networks import INCEPTION, ClipNetwork, DinoNetwork, InceptionNetwork
from lab.evaluation.protocol import load_protocol
from lab.evaluation.tables import markdown
from lab.people import single_cases
from likeness.core.errors import LikenessError
from likeness.drawing.sheets import to_picture
from likeness.hosts.diffusers.tokenizer import load_tokenizer
from likeness.miniature.world.render import render

SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with a tiny CLIP, ViT and Inception."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(**narrow, vocab_size=49408, projection_dim=8).to_dict(),
        vision_config=CLIPVisionConfig(**narrow, image_size=32, patch_size=16, projection_dim=8).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE).save_pretrained(folder / "clip")
    load_tokenizer().save_pretrained(folder / "clip")
    ViTModel(ViTConfig(**narrow, image_size=32, patch_size=16)).save_pretrained(folder / "dino")
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder / "dino")
    torch.jit.script(Inception()).save(str(folder / INCEPTION))
    return folder


class Layers(nn.Module):
    """Means of 16 patches of each channel, 2048 wide by repetition."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = torch.nn.functional.adaptive_avg_pool2d(x, (4, 4)).flatten(1)  # B 48
        return patches.repeat(1, 43)[:, :2048]


class Inception(nn.Module):
    """The shape of the file that clean-fid reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def pictures(count: int = 3) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, size=(count, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(rows) for rows in noise]


def test_clip_scores_are_those_of_the_model_itself(weights: Path) -> None:
    network = ClipNetwork(weights / "clip")
    prompts = ["a photo of a face in the snow", "a face", "a face"]
    scores = network.match(network.features(pictures()), prompts)
    inputs = network.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = network.processor(images=pictures(), return_tensors="pt")
    logits = network.model(**inputs, **pixels).logits_per_image.diagonal() / network.model.logit_scale.exp()
    assert torch.allclose(scores, logits, atol=1e-5)
    assert scores.std() > 0


def test_long_prompts_are_cut(weights: Path) -> None:
    assert ClipNetwork(weights / "clip").text(["snow " * 200]).shape == (1, 8)


def test_dino_is_the_class_token(weights: Path) -> None:
    network = DinoNetwork(weights / "dino")
    pixels = network.processor(images=pictures(), return_tensors="pt")["pixel_values"]
    assert torch.equal(network.features(pictures()), network.model(pixels).last_hidden_state[:, 0])


def test_inception_sees_pictures_as_clean_fid_resizes_them(weights: Path) -> None:
    pytest.importorskip("cleanfid", reason="the extra 'evaluation' is not installed")
    flat = Image.new("RGB", (64, 48), (0, 128, 255))
    features = InceptionNetwork(weights).features([flat, flat])
    assert features.shape == (2, 2048)
    assert features[0, ::16][:3].tolist() == pytest.approx([-1, 0, 127 / 128])


@pytest.mark.parametrize(("network", "name"), [(ClipNetwork, "clip"), (DinoNetwork, "dino"), (InceptionNetwork, "")])
def test_absent_weights_are_named_with_their_place(tmp_path: Path, network: type, name: str) -> None:
    with pytest.raises(LikenessError, match=rf"no weights; expected {tmp_path.name}/{name or INCEPTION}"):
        network(tmp_path / name)


def test_other_weights_have_another_key(weights: Path, tmp_path: Path) -> None:
    network = DinoNetwork(weights / "dino")
    torch.manual_seed(1)
    ViTModel(network.model.config).save_pretrained(tmp_path / "dino")
    ViTImageProcessorPil(size=SIZE).save_pretrained(tmp_path / "dino")
    assert DinoNetwork(tmp_path / "dino").key != network.key == DinoNetwork(weights / "dino").key


class Counting:
    """A network that counts what it sees."""

    key = "counting"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def features(self, pictures: list[Image.Image]) -> torch.Tensor:
        self.seen.append(len(pictures))
        return torch.tensor([[float(p.getpixel((0, 0))[0]), 1.0] for p in pictures])


def test_features_are_kept_by_content(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(file)
    network, cache = Counting(), Cache(tmp_path / "cache", batch=2)
    first = cache.features(network, files)
    assert first[:, 0].tolist() == [0, 1, 2, 3, 4] and network.seen == [2, 2, 1]
    Image.new("RGB", (4, 4), (9, 0, 0)).save(files[2])
    again = Cache(tmp_path / "cache", batch=2).features(network, files)
    assert again[:, 0].tolist() == [0, 1, 9, 3, 4] and network.seen == [2, 2, 1, 1]


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n no more")
    with pytest.raises(LikenessError, match=r"a\.png, which does not open"):
        Cache(tmp_path / "cache").features(Counting(), [tmp_path / "a.png"])


def test_a_paper_s_table_through_real_networks(weights: Path, tmp_path: Path) -> None:
    """MagicID's Table 1 on pictures of noise: CLIP, DINO and Inception by their own classes, through the cache."""
    pytest.importorskip("cleanfid", reason="the extra 'evaluation' is not installed")
    (tmp_path / "prompts.txt").write_text("a face in the snow")
    for name, part in zip(("anna", "ben"), (pictures(6)[:3], pictures(6)[3:]), strict=True):
        for folder in ("people", "same"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i, picture in enumerate(part):
                picture.save(tmp_path / folder / name / f"1_{i}.png")
    protocol = replace(
        load_protocol(Path("magicid_1")), references=tmp_path / "people", prompts=tmp_path / "prompts.txt",
        methods={"same": tmp_path / "same"}, provider="no such",
    )  # fmt: skip
    results = [evaluate(protocol, Referees(weights, "no such", Cache(tmp_path / "cache"))) for _ in range(2)]
    assert results[0] == results[1], "the second time from the cache"
    row = results[0].table["same"]
    assert row.keys() == {"clip_i", "clip_t", "dino", "fid"} and results[0].absent.keys() == {"face_sim"}
    assert row["fid"].mean == pytest.approx(0, abs=1e-3) and row["clip_t"].count == 2
    network = ClipNetwork(weights / "clip")
    vectors = torch.nn.functional.normalize(network.features(pictures(6)), dim=1)
    expected = [(part @ part.T).mean() for part in vectors.split(3)]
    assert row["clip_i"].mean == pytest.approx(float(sum(expected)) / 2, abs=1e-4)
    assert "MagicID (published)" in markdown(results[0])


# --- the miniature's referees -----------------------------------------------------------------------------------------


def test_what_a_caption_tells_is_read_from_its_words() -> None:
    for case in single_cases(12, 64, shot=None):
        assert told_in_words(case.prompt) == told(case.picture), case.prompt


def test_the_miniature_judges_words_as_it_judges_what_was_asked() -> None:
    cases = single_cases(4, 128)
    images = torch.stack([torch.from_numpy(render(c.picture, 128)).permute(2, 0, 1).float() / 255 for c in cases])
    network = MiniatureNetwork()
    features = network.features([to_picture(image) for image in images])
    assert features.shape == (4, 128)
    expected = prompt_accuracy(images, [c.picture for c in cases])
    assert network.match(features, [c.prompt for c in cases]).tolist() == pytest.approx(expected)
