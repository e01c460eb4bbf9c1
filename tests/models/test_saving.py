"""Models in folders: what is kept, what is refused, and what a damaged folder says."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from example_models import NAMES, OBSERVED, Features, batch, every_model, flat, hierarchical, make
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.imputation import add_matched_experts
from mmpoe.likelihoods import Columns, NegativeBinomial, Normal, Ordinal, StudentT
from mmpoe.models import (
    MultimodalVAE,
    image_mmhvae,
    published_mmhvae,
    sequence_mmhvae,
    vector_mmhvae,
    volume_mmhvae,
)
from mmpoe.nn import MLP, Conditional, ConvDecoder, ConvEncoder, ModalityDict, Recorded

HELPERS = Path(__file__).parents[1] / "helpers"
TRUST = ["example_models", __name__]


def reread(model, folder, **options):
    model.save_pretrained(folder, **options)
    return MultimodalVAE.from_pretrained(folder, trust=TRUST)


def assert_same(model, again):
    assert type(again) is type(model)
    assert again.modalities == model.modalities
    own, found = model.state_dict(), again.state_dict()
    assert list(own) == list(found)
    for name in own:
        assert own[name].dtype == found[name].dtype
        assert torch.equal(own[name], found[name])
    assert repr(again) == repr(model)


@every_model
def test_a_model_comes_back_to_the_bit(build, tmp_path):
    model = make(build).eval()
    again = reread(model, tmp_path)
    assert_same(model, again)
    assert not again.training
    x = batch()
    wanted, found = (m.predict(x, OBSERVED, temperature=0.0) for m in (model, again))
    if model.family == "full":  # mixtures draw a component
        assert all(torch.equal(wanted[m].mean, found[m].mean) for m in NAMES)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}


COLUMNS = {
    ("age", "weight"): partial(Normal, scale=torch.ones(2), learn_scale=True),
    "visits": NegativeBinomial,
    "stage": partial(Ordinal, levels=4),
}
PRESETS = {
    "columns": lambda: mmpoe.MVAE({"a": MLP(4, 4)}, {"a": Columns(MLP(2, 6), COLUMNS)}),
    "covariates": lambda: mmpoe.MVAE(
        {"a": Conditional(MLP(4, 4), ["age"])},
        {"a": Normal(Conditional(MLP(5, 3), {"age": None, "site": 2}))},
    ),
    "vector": lambda: vector_mmhvae({"a": 5, "b.c": 4}, private=2, markov=True),
    "sequence": lambda: sequence_mmhvae(["a", "b"], 16, widths=[8, 4], latents=[3, 2]),
    "image": lambda: image_mmhvae(["a", "b"], 16, widths=[8, 4], latents=[3, 2]),
    "volume": lambda: volume_mmhvae(["a", "b"], 8, widths=[8, 4], latents=[3, 2]),
    "published": lambda: published_mmhvae(["a", "b"], 16, width=4, max_width=8, power=1),
    "inverted": lambda: published_mmhvae(["a", "b"], 16, width=4, max_width=8, cell="inverted"),
    "convolutional": lambda: mmpoe.MVAE(
        {"a": ConvEncoder(1, 4, width=4)}, {"a": Normal(ConvDecoder(2, 1, width=4))}
    ),
    "scale of each element": lambda: mmpoe.MVAE(
        {"a": MLP(3, 4, activation=nn.ReLU)},
        {"a": StudentT(MLP(2, 3), scale=torch.tensor([0.1, 0.2, 0.3]), learn_df=True)},
    ),
    "optimal scale": lambda: mmpoe.MVAE(
        {
            "a": nn.Sequential(
                nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 3, bias=False), nn.Flatten()
            )
        },
        {"a": Normal(nn.Linear(2, 3), scale="optimal")},
    ),
}


@pytest.mark.parametrize("build", PRESETS.values(), ids=PRESETS.keys())
def test_presets_and_likelihoods_come_back(build, tmp_path):
    model = make(build)
    assert_same(model, reread(model, tmp_path))


def test_settings_shapes_and_dtype_are_kept(tmp_path):
    model = make(flat).double()
    assert reread(model, tmp_path / "before").groups[0].shape is None
    model.fix_shapes({"us": torch.zeros(1, 5).double()})
    model.gather, model.validate = False, False
    again = reread(model, tmp_path)
    assert (again.gather, again.validate) == (False, False)
    assert again.groups[0].shape == (4,)
    assert_same(model, again)


@pytest.mark.parametrize("build", [flat, hierarchical])
def test_matched_experts_are_kept(build, tmp_path):
    model = make(build)
    model.fix_shapes(batch())
    add_matched_experts(model)
    for p in model.groups[0].matched.parameters():
        nn.init.normal_(p)
    again = reread(model, tmp_path)
    assert again.is_matched
    assert_same(model, again)


def test_the_state_of_a_calibrated_model_names_the_way():
    model = make(lambda: flat(latent_dim=4))
    add_matched_experts(model)
    with pytest.raises(RuntimeError, match=r"call mmpoe\.imputation\.add_matched_experts"):
        make(lambda: flat(latent_dim=4)).load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="add_matched_experts"):
        nn.ModuleList([make(lambda: flat(latent_dim=4))]).load_state_dict(
            nn.ModuleList([model]).state_dict()
        )
    with pytest.raises(RuntimeError) as error:
        make(lambda: flat(latent_dim=3)).load_state_dict(make(flat).state_dict() | {"a": 0})
    assert "add_matched_experts" not in str(error.value)


def test_modules_that_modalities_share_are_shared_again(tmp_path):
    encoder = MLP(3, 4, hidden=[5])
    model = mmpoe.MVAE(
        {"a": encoder, "a.0": encoder}, {m: Normal(nn.Linear(2, 3)) for m in ("a", "a.0")}
    )
    again = reread(model, tmp_path)
    assert again.encoders["a"] is again.encoders["a.0"]
    assert_same(model, again)


def test_a_model_comes_back_in_a_fresh_interpreter(tmp_path):
    model = make(hierarchical).eval()
    model.save_pretrained(tmp_path)
    script = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import mmpoe, torch
vae = mmpoe.MMHVAE.from_pretrained({str(tmp_path)!r}, trust=["example_models"])
x = {{"us": torch.linspace(0, 1, 5)[None]}}
print(vae.predict(x, temperature=0)["type"].mean.tolist())
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    x = {"us": torch.linspace(0, 1, 5)[None]}
    assert json.loads(out) == model.predict(x, temperature=0)["type"].mean.tolist()


def test_loading_draws_no_random_number(tmp_path):
    make(flat).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    MultimodalVAE.from_pretrained(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


# a function that builds the model


class Silent(nn.Module):
    """Tells nothing of how it was built."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, 4)

    def forward(self, x):
        return self.layer(x)


def build(sizes, latents=2):
    return mmpoe.MVAE(
        {m: Silent(size) for m, size in sizes.items()},
        {m: Normal(nn.Linear(latents, size)) for m, size in sizes.items()},
    )


def not_a_model():
    return nn.Linear(2, 2)


@pytest.fixture
def here(monkeypatch):
    """Makes this module one that can be imported by a name."""
    monkeypatch.setitem(sys.modules, "my_models", sys.modules[__name__])
    for name in ("Silent", "build"):
        monkeypatch.setattr(globals()[name], "__module__", "my_models")
    return {"make": "my_models:build", "arguments": {"sizes": {"a": 3, "b": 5}}}


def test_a_function_builds_what_cannot_tell_how(here, tmp_path):
    model = build({"a": 3, "b": 5})
    with pytest.raises(ValueError, match=r"'encoders\.a' \(a Silent\) does not tell .* 'size'"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, **here)
    with pytest.raises(ValueError, match=r"trust=\['my_models'\]"):
        mmpoe.MVAE.from_pretrained(tmp_path)
    assert_same(model, mmpoe.MVAE.from_pretrained(tmp_path, trust=["my_models"]))
    assert "trust=['my_models']" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            "my_models.build",
            {"sizes": {"a": 3, "b": 5}},
            "be like 'package.module:function'",
        ),
        ("my_models:none", {}, "my_models has no 'none'"),
        ("no_models:build", {}, "no_models cannot be imported"),
        (
            "my_models:build",
            {"sizes": {"a": 3, "b": 4}},
            r"'encoders\.b\.layer' has .*features 5",
        ),
        ("my_models:build", {"sizes": {"b": 5, "a": 3}}, "its modalities are a, b"),
        (None, {"sizes": {}}, "'make' is None"),
    ],
)
def test_a_function_that_builds_another_model_is_refused(here, make, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build({"a": 3, "b": 5}).save_pretrained(tmp_path, make=make, arguments=arguments)
    assert not list(tmp_path.iterdir())


# what cannot be built again


class Lies(Recorded, nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size, self.layer = size, nn.Linear(size, 4)

    def forward(self, x):
        return self.layer(x)


def longer(vae):
    vae.encoders["us"].append(nn.Tanh())


def changed(vae):
    vae.encoders["us"][0].in_features = 7


def extra(vae):
    vae.encoders["us"] = nn.Sequential(vae.encoders["us"], nn.LeakyReLU(0.2))
    vae.encoders["us"][1].extra = 3


def hooked(vae):
    vae.decoders["us"].register_forward_hook(lambda *_: None)


def local(vae):
    class Local(nn.Identity):
        pass

    vae.encoders["us"] = nn.Sequential(vae.encoders["us"], Local())


def tied(vae):
    vae.encoders["us"][-1].weight = vae.encoders["type"][-1].weight


def mixed(vae):
    vae.encoders["type"].double()


def normed(vae):
    nn.utils.parametrizations.spectral_norm(vae.encoders["us"][0])


def called(vae):
    vae.encoders["us"] = nn.Sequential(vae.encoders["us"], Calls(torch.tanh))


class Calls(Recorded, nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (longer, r"'encoders\.us\.3' is missing in a new one"),
        (changed, r"'encoders\.us\.0' has in_features 7, and would be built with 5"),
        (extra, r"'encoders\.us\.1' has extra 3, and would be built with None"),
        (hooked, r"'decoders\.us' has hooks"),
        (local, r"Local, which cannot be imported"),
        (tied, "weights that several of its parts share would be apart"),
        (mixed, r"'encoders\.%type\.0' has tensors .*float64"),
        (normed, r"'encoders\.us\.0\.parametrizations' is missing in a new one"),
        (called, r"'encoders\.us\.1\.function' holds a builtin_function"),
    ],
)
def test_what_would_be_built_otherwise_is_not_saved(change, message, tmp_path):
    model = make(flat)
    change(model)
    with pytest.raises(ValueError, match=message) as error:
        model.save_pretrained(tmp_path)
    assert "save_pretrained(folder, make=" in str(error.value)
    assert not list(tmp_path.iterdir())


# what a folder may ask for, and damaged ones


@pytest.fixture
def saved(tmp_path):
    make(flat).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "code that is imported and run"),
        ("torch.hub.load", "code that is imported and run"),
        ("torch.nnx.Linear", "code that is imported and run"),
        ("torch.nn.functional.relu", "not a class of modules"),
        ("mmpoe.models.image_mmhvae", "not a class of modules"),
        ("mmpoe.training.folder.shutil.rmtree", "cannot be imported"),
        ("torch.nn.Linnear", "torch.nn has no 'Linnear'"),
    ],
)
def test_a_folder_calls_nothing_that_is_not_trusted(saved, name, message):
    rewrite(saved, lambda config: config["model"].update({"class": name}))
    with pytest.raises(ValueError, match=message):
        MultimodalVAE.from_pretrained(saved)


def test_a_function_is_called_only_if_it_is_trusted(saved):
    rewrite(saved, lambda config: config.update(make="os:system", arguments={"command": "true"}))
    with pytest.raises(ValueError, match=r"os\.system, code that is imported and run"):
        MultimodalVAE.from_pretrained(saved, trust=["example_models"])
    with pytest.raises(ValueError, match="'trust' should be a list"):
        MultimodalVAE.from_pretrained(saved, trust="os")


def drop(key):
    return lambda config: config.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.update(format=2, mmpoe="9.0"),
            "but is of format 2, of mmpoe 9.0",
        ),
        (drop("settings"), "'settings' is missing"),
        (drop("sha256"), "'sha256' is missing"),
        (lambda config: config["model"]["arguments"].update(depth=3), "no argument 'depth'"),
        (lambda config: config["model"]["arguments"].pop("encoders"), "encoders"),
        (lambda config: config.update(modalities=["us"]), "its modalities are us"),
        (lambda config: config["settings"].update(shapes=[]), "zip"),
    ],
)
def test_a_damaged_description_is_an_error(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message) as error:
        MultimodalVAE.from_pretrained(saved)
    assert str(saved) in str(error.value)
    assert mmpoe.__version__ in str(error.value)


def test_damaged_files_are_errors(saved, tmp_path):
    with pytest.raises(ValueError, match=r"'folder' should be one that save_pretrained wrote"):
        MultimodalVAE.from_pretrained(tmp_path / "none")
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:-4])
    with pytest.raises(ValueError, match="its weights are incomplete or were altered"):
        MultimodalVAE.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        MultimodalVAE.from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        MultimodalVAE.from_pretrained(saved)


def test_weights_of_another_model_are_an_error(saved, tmp_path):
    make(lambda: vector_mmhvae({"a": 3})).save_pretrained(tmp_path / "deep")
    with pytest.raises(ValueError, match="class MVAE, but holds one of MMHVAE"):
        mmpoe.MVAE.from_pretrained(tmp_path / "deep")
    other = json.loads((tmp_path / "deep" / "config.json").read_text())
    (saved / "model.safetensors").write_bytes((tmp_path / "deep/model.safetensors").read_bytes())
    rewrite(saved, lambda config: config.update(sha256=other["sha256"], aliases={}))
    with pytest.raises(ValueError, match=r"the model has 'encoders\.us\.0\.weight' with shape"):
        MultimodalVAE.from_pretrained(saved)


def test_a_card_that_somebody_wrote_is_kept(saved):
    card = saved / "README.md"
    assert "MVAE of us, t2.space, type" in card.read_text()
    card.write_text("more")
    make(flat).save_pretrained(saved)
    assert card.read_text() == "more"


def test_the_hub_is_asked_only_for_its_own_addresses(saved, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(saved)

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert MultimodalVAE.from_pretrained("hf://owner/name@v2").modalities == NAMES
    files = ["config.json", "model.safetensors"]
    assert asked == [("owner/name", {"revision": "v2", "allow_patterns": files})]
    with pytest.raises(ValueError, match="'folder' should be one"):
        MultimodalVAE.from_pretrained("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"mmpoe\[hub\]"):
        MultimodalVAE.from_pretrained("hf://owner/name")


def test_arguments_are_recorded_without_modules():
    group = LatentGroup((2,), nn.Linear(3, 4))
    likelihood = Normal(nn.Linear(2, 3), scale=0.5)
    assert likelihood._made_with == (("holds modules",), {"scale": 0.5})
    assert Features(3)._made_with == ((3,), {})
    assert not hasattr(group, "_made_with")
    assert isinstance(ModalityDict({"a": group})["a"], LatentGroup)
