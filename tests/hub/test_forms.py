"""Published forms: recognised by their keys, converted with every key matched, with the numbers of their network."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from backend import runtime, weights
from backend.detectors import efficientnet, registry, vit
from backend.detectors.base import LOG_ODDS
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.arcface import ArcFace
from backend.generators.e4e import E4EEncoder
from backend.generators.stylegan2 import StyleGAN2
from backend.hub import fetching, forms
from backend.hub.fetching import fetch_to_cache
from backend.settings import SETTINGS
from tests.published import official_b4

HUB = [name for name, entry in weights.read_entries().items() if entry.profile == "hub"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    """Put the cache into an empty folder."""
    settings = replace(SETTINGS, cache_dir=tmp_path / "cache")
    for module in (weights, registry, fetching):
        monkeypatch.setattr(module, "SETTINGS", settings)
    monkeypatch.setattr(runtime, "_loaded", {})
    return settings.cache_dir


def on_meta(build) -> dict[str, Tensor]:
    """Return the state of a network of which only the shapes exist."""
    with torch.device("meta"):
        return build().state_dict()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of timm's ViT as transformers does."""
    names = {ours: theirs for theirs, ours in vit.ENDS.items()} | {
        f"blocks.{number}.{ours}.{part}": f"vit.encoder.layer.{number}.{theirs}.{part}"
        for number in range(12)
        for theirs, ours in vit.LAYERS.items()
        for part in ("weight", "bias")
    }
    renamed = {names[key]: value for key, value in state.items() if "attn.qkv" not in key}
    for key in (key for key in state if "attn.qkv" in key):
        _, number, *_, part = key.split(".")
        for name, value in zip(("query", "key", "value"), state[key].chunk(3), strict=True):
            renamed[f"vit.encoder.layer.{number}.attention.attention.{name}.{part}"] = value
    return renamed


def layouts() -> dict[str, dict]:
    """Return the content of a file of every form that has a network, in its published layout, without its numbers."""
    deepfakebench = {
        name: on_meta(registry.PUBLISHED[name].published) for name in registry.PUBLISHED if name.endswith("bench")
    }
    b4 = official_b4_meta()
    contents: dict[str, dict] = {
        name: prefixed("model." if name.startswith("recce") else "" if name.startswith("f3net") else "backbone.", state)
        for name, state in deepfakebench.items()
        if not name.startswith("efficientnet")
    }
    contents["efficientnet_b4_deepfakebench"] = b4
    unused = {"backbone.adjust_channel.0.weight": torch.empty(1, device="meta")}  # as published, never run
    contents["xception_deepfakebench"] |= unused
    contents["f3net_deepfakebench"] |= unused
    contents["efficientnet_b0_torchvision"] = on_meta(efficientnet.build_torchvision_b0)
    contents["vit_s_commfor"] = on_meta(vit.CommFor)
    contents["vit_b_transformers"] = to_transformers(on_meta(vit.build_vit_b))
    contents["meso4"] = on_meta(registry.ARCHITECTURES["meso4"].published)
    contents["mesoinception4"] = on_meta(registry.ARCHITECTURES["mesoinception4"].published)
    contents["arcface"] = on_meta(ArcFace)
    contents["facenet"] = on_meta(forms._facenet)
    states = prefixed("encoder.", on_meta(lambda: E4EEncoder(1024))) | prefixed(
        "decoder.", on_meta(lambda: StyleGAN2(1024))
    )
    contents["e4e"] = {"state_dict": states, "latent_avg": torch.zeros(18, 512), "opts": {"device": "cuda:0"}}
    contents["stylegan2"] = {"g_ema": on_meta(lambda: StyleGAN2(1024)), "latent_avg": torch.zeros(512)}
    return contents


def official_b4_meta() -> dict[str, Tensor]:
    with torch.device("meta"):
        named = official_b4(efficientnet.build_deepfakebench_b4())
    renamed = {f"backbone.efficientnet.{key}": value for key, value in named.items() if not key.startswith("_fc.")}
    return renamed | {f"backbone.last_layer.{part}": named[f"_fc.{part}"] for part in ("weight", "bias")}


LAYOUTS = layouts()
KEPT = {"ucf_deepfakebench", "face_parsing"}  # of which no network is here


def test_every_form_is_tried_here():
    assert LAYOUTS.keys() | KEPT == forms.FORMS.keys()
    assert {weights.find_entry(name).form for name in HUB} <= forms.FORMS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_form_is_recognised_and_no_other(name):
    assert [other for other, form in forms.FORMS.items() if form.fits(LAYOUTS[name])] == [name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_key_is_matched(name):
    content = LAYOUTS[name]
    converted = forms.FORMS[name].convert(content)
    table = {**registry.ARCHITECTURES, **registry.PUBLISHED}
    if name in table:
        assert converted.keys() == on_meta(table[name].published).keys()
    # One key too many, one too few and one of another shape are refused.
    level = next((value for value in content.values() if isinstance(value, dict)), content)
    keys = [key for key in level if "adjust_channel" not in key and not key.endswith("num_batches_tracked")]
    key = next(key for key in reversed(keys) if key.endswith("weight"))
    start = key.rpartition(".")[0]
    for wrong in (
        {**level, f"{start}.extra": torch.zeros(1)},
        {other: value for other, value in level.items() if other != key},
        {**level, key: torch.zeros(1, 2, 3, 4, 5)},
    ):
        changed = wrong if level is content else {**content, **_replaced(content, level, wrong)}
        with pytest.raises(UserError):
            forms.FORMS[name].convert(changed)


def _replaced(content: dict, level: dict, wrong: dict) -> dict:
    return {key: wrong for key, value in content.items() if value is level}


@pytest.mark.parametrize("name", HUB)
def test_every_entry_describes_itself(name):
    entry = weights.find_entry(name)
    assert entry.licence and entry.source and entry.form in forms.FORMS
    assert bool(entry.sha256) == bool(entry.bytes), "a pinned file has a known size"
    assert entry.sha256 or entry.note
    places = fetching.hub_files(entry)
    assert places or "local file" in entry.note
    if "architecture" in entry.options:
        card = registry.card(name)
        assert card.errors == () and card.trained_on and card.known_failures
        assert card.outputs in LOG_ODDS
        network = {**registry.ARCHITECTURES, **registry.PUBLISHED}
        with torch.device("meta"):
            built = registry.build_embedded(name, entry.options)
            assert built.state_dict().keys() == network[entry.options["architecture"]].published().state_dict().keys()
            if card.cam_layer:
                built.get_submodule(card.cam_layer)


def test_the_detectors_of_the_hub_have_their_names():
    assert {name for name in HUB if "architecture" in weights.find_entry(name).options} >= {
        "xception_ffpp",
        "efficientnet_b0_ffpp",
        "efficientnet_b4_ffpp",
        "f3net_ffpp",
        "commfor",
        "vit_b",
        "meso4_df",
        "mesoinception4_df",
        "meso4_ffpp",
        "mesoinception4_ffpp",
    }


def test_a_local_file_replaces_a_download(cache, tmp_path):
    network = registry.build_embedded("meso4_ffpp", weights.find_entry("meso4_ffpp").options)
    file = tmp_path / "meso4_best.pth"
    torch.save(prefixed("backbone.", network.state_dict()), file)
    with pytest.raises(UserError, match=r"is not on the Hub.*--from PATH"):
        fetch_to_cache("meso4_ffpp")
    assert load_file(fetch_to_cache("meso4_ffpp", local=file)).keys() == network.state_dict().keys()
    assert file.exists() and registry.loadable()[-1] == "meso4_ffpp"
    faces = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        raw = network.eval()(faces * 2 - 1)
        torch.testing.assert_close(registry.load("meso4_ffpp").logit_fake(faces), raw[:, 1] - raw[:, 0])


def test_a_wrong_file_is_told_what_it_is_and_what_was_expected(cache, tmp_path):
    file = tmp_path / "wrong.pth"
    torch.save(prefixed("backbone.", registry.PUBLISHED["meso4_deepfakebench"].published().state_dict()), file)
    with pytest.raises(
        UserError, match=r"is not DeepfakeBench's F3-Net\. It looks like DeepfakeBench's Meso4"
    ) as caught:
        fetch_to_cache("f3net_ffpp", local=file)
    assert "FAD_head.*" in caught.value.hint
    other = tmp_path / "other.safetensors"
    save_file({"something.weight": torch.ones(1)}, other)
    with pytest.raises(UserError, match=r"It has something\.weight"):
        fetch_to_cache("xception_ffpp", local=other)
    with pytest.raises(UserError, match="no file named"):
        fetch_to_cache("xception_ffpp", local=tmp_path / "absent.pth")
    assert not weights.find_entry("f3net_ffpp").path.exists() and registry.loadable() == registry.loadable("embedded")


def test_a_file_that_ships_with_the_app_is_replaced_only_by_itself(cache, tmp_path):
    file = tmp_path / "xception.safetensors"
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(UserError, match="is not the file of xception"):
        fetch_to_cache("xception", local=file)


@pytest.mark.parametrize(
    ("name", "file"),
    [("meso4_df", "Meso4_DF.h5"), ("mesoinception4_f2f", "MesoInception_F2F.h5")],
)
def test_the_authors_files_are_the_pinned_ones(cache, shared_folder, name, file):
    done = fetch_to_cache(name, local=shared_folder / "mesonet" / file)
    assert weights.find_entry(name).receipt()["source_sha256"] == weights.find_entry(name).sha256
    assert load_file(done)["head.fc2.weight"].shape == (1, 16)
    with torch.no_grad():
        assert registry.load(name).p_fake(torch.rand(1, 3, 128, 128)).shape == (1,)


@torch.no_grad()
def test_commfor_looks_at_the_middle():
    torch.manual_seed(0)
    network = vit.CommFor().eval()
    pictures = torch.randn(1, 3, 440, 440)
    expected = network.vit(pictures[:, :, 28:412, 28:412])
    pictures[:, :, :28] = 0
    torch.testing.assert_close(network(pictures), expected)


@torch.no_grad()
def test_the_vit_of_transformers_gives_its_numbers(monkeypatch):
    """The network of the checkpoint, with two of its twelve blocks, written down once more from its own keys."""
    monkeypatch.setattr(vit, "_create", partial(vit._create, depth=2))
    torch.manual_seed(0)
    layout = to_transformers(on_meta(vit.build_vit_b))
    state = {key: torch.randn(value.shape) * 0.03 for key, value in layout.items()}
    pictures = torch.randn(1, 3, 224, 224)

    def linear(name: str, inputs: Tensor) -> Tensor:
        return F.linear(inputs, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, inputs: Tensor) -> Tensor:
        return F.layer_norm(inputs, (768,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    patches = "vit.embeddings.patch_embeddings.projection"
    tokens = F.conv2d(pictures, state[f"{patches}.weight"], state[f"{patches}.bias"], stride=16).flatten(2).mT
    tokens = torch.cat([state["vit.embeddings.cls_token"], tokens], dim=1) + state["vit.embeddings.position_embeddings"]
    for number in range(2):
        layer = f"vit.encoder.layer.{number}"
        inputs = norm(f"{layer}.layernorm_before", tokens)
        parts = [linear(f"{layer}.attention.attention.{name}", inputs) for name in ("query", "key", "value")]
        query, key, value = (part.view(1, 197, 12, 64).transpose(1, 2) for part in parts)
        mixed = (query @ key.mT / math.sqrt(64)).softmax(-1) @ value
        tokens = tokens + linear(f"{layer}.attention.output.dense", mixed.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", tokens)))
        tokens = tokens + linear(f"{layer}.output.dense", inner)
    expected = linear("classifier", norm("vit.layernorm", tokens)[:, 0])
    network = vit.build_vit_b().eval()
    network.load_state_dict(vit.from_transformers(state))
    torch.testing.assert_close(network(pictures), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_e4e_checkpoint_becomes_an_inverter(cache, tmp_path, monkeypatch):
    """At 16 pixels: the layout is the same at every size, and the largest one needs gigabytes."""
    monkeypatch.setattr(inversion, "FFHQ_SIZE", 16)
    monkeypatch.setattr(inversion, "E4EEncoder", partial(E4EEncoder, width=0.0625))
    torch.manual_seed(0)
    generator, encoder = StyleGAN2(16), E4EEncoder(16, width=0.0625)
    average = torch.randn(generator.rows, 512)
    states = prefixed("decoder.", generator.state_dict()) | prefixed("encoder.", encoder.state_dict())
    file = tmp_path / "e4e.pt"
    torch.save({"state_dict": states, "latent_avg": average, "opts": {"stylegan_size": 16}}, file)
    fetch_to_cache("ffhq_1024", local=file)
    inverter = inversion.load_fetched_inverter("ffhq_1024")
    assert (inverter.size, inverter.rows, inverter.template) == (16, 6, "ffhq")
    codes = torch.randn(1, 6, 512)
    expected = (generator.eval().synthesize(codes) + 1) / 2
    torch.testing.assert_close(inverter.synthesize(codes, clamp=False), expected)
    faces = torch.rand(1, 3, 256, 256)
    torch.testing.assert_close(inverter.invert(faces), encoder.eval()(faces * 2 - 1) + average, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(runtime, "_loaded", {})
    weights.find_entry("ffhq_1024").path.write_bytes(b"half")
    with pytest.raises(UserError, match="damaged"):
        inversion.load_fetched_inverter("ffhq_1024")


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    base = torch.arange(6.0)
    apart = fetching._separate({"a": base[:3], "b": base[3:], "c": base, "d": base.view(2, 3).T})
    save_file(apart, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["b"], torch.tensor([3.0, 4, 5])) and torch.equal(tensors["d"], base.view(2, 3).T)
