"""The examples and numbers of README and documentation are what the code does and says."""

import doctest
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pyro
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.utils._python_dispatch import TorchDispatchMode

import mmpoe
from mmpoe.distributions import DiagNormal, MixtureOfProducts
from mmpoe.likelihoods import Normal
from mmpoe.nn import MLP

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text()


def test_the_first_example_of_the_documentation_runs():
    names = run_code(ROOT / "docs" / "index.md", {})
    assert names["table"].isfinite().any()
    assert names["table"].shape[1:] == (12,)


@pytest.mark.slow
def test_the_quickstart_prints_what_the_readme_says(capsys):
    with torch.random.fork_rng(devices=[]):
        run_code(ROOT / "README.md", {})
    assert f"It prints `{capsys.readouterr().out.strip()}`" in (ROOT / "README.md").read_text()


def test_the_readme_is_short():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(text.split()) <= 900


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    for target, _, place in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", text):
        path = ROOT / target if target else ROOT / "README.md"
        assert path.is_file(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            names = [re.sub(r"[^\w -]", "", h).strip().lower() for h in headings]
            assert place in [name.replace(" ", "-") for name in names]


def run_code(page, names):
    """Runs all code of a page, and returns the names that it has by then."""
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(code, page.name, "exec"), names)
    return names


def test_estimates_of_the_evidence_page():
    names = run_code(API / "evidence.md", {})
    x, observed = names["x"], names["observed"]
    log_p = names["oracle"].log_prob(x, observed)
    found = mmpoe.evidence.log_marginal(names["model"], x, observed, samples=100)
    torch.testing.assert_close(found, log_p)  # "the evidence itself"
    assert (mmpoe.evidence.effective_sample_size(names["log_w"]) < 100).all()


def test_a_group_of_the_hierarchy_page():
    names = run_code(API / "hierarchy.md", {})
    assert [tuple(z.shape) for z in names["q"].z] == [(5, 4), (5, 8)]


def test_a_rule_of_the_posteriors_page():
    names = run_code(API / "posteriors.md", {})
    rule, nan = names["Trust"](2), torch.full((1, 4), torch.nan)
    one = torch.ones(1, 4)
    q = rule([one, nan], [one, nan], torch.tensor([[True, False]]))
    q.kl.sum().backward()
    assert q.loc.isfinite().all()
    assert rule.log_factors.grad[0] != 0
    assert rule.log_factors.grad[1] == 0
    assert names["output"].kl[0].isfinite().all()


def test_a_program_of_the_pyro_page():
    pyro.clear_param_store()
    names = run_code(API / "pyro.md", {})
    assert math.isfinite(names["loss"])
    pyro.clear_param_store()


def test_the_code_of_the_objectives_page():
    torch.manual_seed(0)
    model = mmpoe.MVAE(
        {m: MLP(3, 8) for m in ("image", "table")},
        {m: Normal(MLP(4, 3)) for m in ("image", "table")},
    )
    observed = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    x = {m: torch.randn(4, 3) for m in model.modalities}
    names = {"torch": torch, "model": model, "x": x, "observed": observed, "step": 3}
    names |= {"given": observed, "output": model(x, observed)}
    names = run_code(API / "objectives.md", names)
    assert names["total"].shape == (4,)
    assert names["total"][3] == 0
    assert names["log_p"][3] == 0
    # the few lines are mixture_elbo, up to the samples
    many = torch.stack([mmpoe.objectives.mixture_elbo(model, x, observed) for _ in range(200)])
    few = []
    for _ in range(200):
        q = model.infer(model.encode(x, observed), names["given"], rows=names["rows"])
        rows = names["rows"]
        bound = model.log_likelihood(q.state, x, observed[rows], rows=rows) - sum(q.kl)
        few.append(torch.zeros(4).index_add(0, rows, names["weight"] * bound))
    few = torch.stack(few)
    error = (many.var(dim=0) / 200 + few.var(dim=0) / 200).sqrt()
    assert ((many.mean(dim=0) - few.mean(dim=0)).abs() <= 5 * error).all()


LOADED = """
import sys
sys.modules["mmpoe"] = sys.modules["pyro"] = None  # as if they were not installed
import numpy, torch
arrays = {name: torch.from_numpy(a) for name, a in numpy.load("batch.npz").items()}
given, expected = arrays.pop("given"), arrays.pop("expected")
found = torch.export.load("predictor.pt2").module()(arrays, given)
torch.testing.assert_close(found["protein"], expected)
"""


@pytest.mark.slow
def test_the_programs_of_the_deployment_page(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names = run_code(ROOT / "docs" / "deployment.md", {})
    assert names["protein"].shape == (4, 6)

    # other batch sizes and patterns, and NaN where nothing is given
    for rows in (7, 1):
        given = torch.rand(rows, 2) < 0.5
        x = {"rna": torch.randn(rows, 20), "protein": torch.randn(rows, 6)}
        for column, value in enumerate(x.values()):
            value[~given[:, column]] = torch.nan
        with torch.no_grad():
            want = names["model"].eval().predict(x, given, targets=["protein"], temperature=0)
        arrays = {m: v.numpy() for m, v in x.items()} | {"given": given.numpy()}
        inputs = {f"x_{m}": arrays[m] for m in x} | {"given": arrays["given"]}
        (found,) = names["session"].run(["protein"], inputs)
        torch.testing.assert_close(torch.from_numpy(found), want["protein"].mean)
        if rows > 1:
            numpy.savez("batch.npz", expected=want["protein"].mean.numpy(), **arrays)
    subprocess.run([sys.executable, "-c", LOADED], check=True)

    session = names["onnxruntime"].InferenceSession("of_age.onnx")
    rna, given, context = names["rna"], names["given"][:, :1], names["context"]
    inputs = {"x_rna": rna["rna"], "given": given, "context_age": context["age"]}
    (found,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
    with torch.no_grad():
        expected = names["of_age"](rna, given, context)["rna"]
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_pictures_exist():
    for target in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file()


def test_doctests_of_the_concepts():
    (code,) = re.findall(r"```python\n(.*?)```", CONCEPTS, flags=re.DOTALL)
    test = doctest.DocTestParser().get_doctest(
        code, {"torch": torch, "mmpoe": mmpoe}, "concepts.md", "docs/concepts.md", 0
    )
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0
    assert result.failed == 0


def row(text):
    """The cells of the row of a table that starts with some text."""
    (line,) = [line for line in CONCEPTS.splitlines() if line.startswith(f"| {text} |")]
    return [cell.strip().replace("\u2212", "-") for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("power", "name"), [(2, "`power=2`, exact product"), (1, "`power=1`, published code")]
)
def test_numbers_of_the_two_powers(power, name):
    loc = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    mean, log_scale = mmpoe.gaussian.product_of_experts(loc, scale.log(), power=power)
    assert row(name) == [f"{mean:.4f}", f"{log_scale.exp():.4f}"]


def test_numbers_of_over_counting():
    steps = [(0.9, 0.5), (-1.1, 0.8)]  # a_l, q_l

    def precisions(j):
        upwards = [j]
        for a, q in steps:
            upwards.append(a**2 * upwards[-1] / (1 + q * upwards[-1]))
        return upwards

    rows = zip(precisions(1.0), precisions(8.0), precisions(9.0), strict=True)
    for level, (first, second, both) in enumerate(rows, start=1):
        cells = row(f"$z_{level}$")
        found = [float(cell.rstrip(" %")) for cell in cells]
        excess = 100 * ((first + second) / both - 1)
        assert found[:4] == pytest.approx([first, second, first + second, both], abs=5e-4)
        assert found[4] == pytest.approx(excess, abs=0.5)


# what the pages name


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(API.glob("*.md"))]
ROLE = re.compile(r"\{(?:func|meth|class|mod|data|attr)\}`(?:[^`<]*<)?~?(mmpoe[\w.]*)>?`")


def is_public(name):
    """Whether a dotted name is a module of mmpoe, a name it exports, or an attribute of one."""
    _, module, *rest = name.split(".") if "." in name else (name, None)
    if module is None:
        return True
    if not rest:
        return module in vars(mmpoe)
    found = importlib.import_module(f"mmpoe.{module}")
    if rest[0] not in found.__all__:
        return False
    for part in rest:
        if not hasattr(found, part):
            return part in getattr(found, "__annotations__", {})
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_holds_a_placeholder(page):
    assert re.findall(r"@@\w*@@|TODO|FIXME|XXX", page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_names_are_public(page):
    assert [name for name in ROLE.findall(page.read_text()) if not is_public(name)] == []


GONE = re.compile(
    r"\b(cyclical|quotient\(|mixture_of_products|convex_kl|jensen_shannon|judged|judged_targets"
    r"|powers=|groups=\[\[|residual=|proposals=|special=|matched=|gp_weight|r1_weight"
    r"|posteriors_at|log_importance|objectives\.log_(?:weights|conditional|predictive)"
    r"|metrics\.log_\w+)"
)
FILES = [
    *PAGES,
    *(p for folder in ("examples", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))),
]


def test_names_that_are_gone_are_not_mentioned():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in FILES
        if path.name != "changelog.md"
        for match in GONE.finditer(path.read_text())
    ]
    assert found == []


# what the README and the page on installing say


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def extras():
    """The packages of each extra of the project, and the extras that each contains."""
    packages, contained = {}, {}
    for extra, needed in settings()["project"]["optional-dependencies"].items():
        names = [re.match(r"[\w-]+(?:\[.*\])?", line)[0] for line in needed]
        packages[extra] = [name for name in names if "[" not in name]
        inside = [name for name in names if "[" in name]
        contained[extra] = [part for name in inside for part in name[6:-1].split(",")]
    return packages, contained


def groups():
    """The packages of each dependency group, and the groups that each contains."""
    packages, contained = {}, {}
    for group, needed in settings()["dependency-groups"].items():
        lines = [line for line in needed if isinstance(line, str)]
        packages[group] = [re.match(r"[\w-]+", line)[0] for line in lines]
        contained[group] = [line["include-group"] for line in needed if isinstance(line, dict)]
    return packages, contained


@pytest.mark.parametrize("find", [extras, groups])
def test_extras_and_groups_are_described_with_what_they_bring(find):
    text = (ROOT / "docs" / "install.md").read_text()
    table = text.partition(f"| {find.__name__[:-1]} |")[2].partition("\n\n")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    described = {row[0].strip("`"): row[1] for row in rows}
    packages, contained = find()
    assert set(described) == set(packages)
    for name, text in described.items():
        plain = re.sub(r"[^a-z]", "", text.lower())
        assert re.findall(r"`(\w+)`", text) == contained[name], name
        if name == "dev":  # "tools for tests, types and style"
            continue
        missing = [p for p in packages[name] if re.sub(r"[^a-z]", "", p.lower()) not in plain]
        short = {"scikit-learn": "scikitlearn", "scikit-image": "scikitimage"}
        assert [p for p in missing if short.get(p, p) not in plain] == [], name


LOCKED = re.compile(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def test_the_lock_holds_what_set_up_installs():
    """Each package once, with a version that is allowed, and no build for CPUs alone."""
    _, platform, *lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert platform == "# linux-x86_64, glibc, cpython-311"
    found = [LOCKED.fullmatch(line) for line in lines]
    assert all(found), "unlike any line of the lock"
    versions = {match[1]: match[2] for match in found}
    assert len(versions) == len(lines)
    assert not [name for name, version in versions.items() if "+" in version]
    makefile = (ROOT / "Makefile").read_text()
    parts = re.search(r"^EXTRAS := (.+)$", makefile, re.M)[1].split(",")
    optional = settings()["project"]["optional-dependencies"]
    for part in parts:
        inside = re.findall(r"mmpoe\[(.*)\]", " ".join(optional[part]))
        parts += [name for names in inside for name in names.split(",")]
    assert set(parts) == set(optional) - {"hub"}
    needed = [*settings()["project"]["dependencies"], *settings()["dependency-groups"]["docs"]]
    needed += [line for line in settings()["dependency-groups"]["dev"] if isinstance(line, str)]
    needed += [line for part in parts for line in optional[part]]
    environment = {"python_version": "3.11"}
    for requirement in map(Requirement, needed):
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        if name != "mmpoe" and (marker is None or marker.evaluate(environment)):
            assert requirement.specifier.contains(versions[name]), requirement


NETWORK = re.compile(
    r"urlopen|urlretrieve|requests\.get|snapshot_download|\"download\"|\bfetch_\w+\("
)


def test_what_the_page_on_installing_says_is_downloaded_is_all():
    folders = ("mmpoe", "examples", "benchmarks")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    found = [p.relative_to(ROOT).as_posix() for p in files if NETWORK.search(p.read_text())]
    assert found == ["mmpoe/models/_saving.py", "examples/downloads.py"]
    makefile = (ROOT / "Makefile").read_text()
    targets = re.split(r"^(?=[\w.$()/-]+:)", makefile, flags=re.MULTILINE)
    online = [
        t.split(":")[0] for t in targets if re.search(r"^\t.*(pip install|apt-get)", t, re.M)
    ]
    page = (ROOT / "docs" / "install.md").read_text()
    assert "`hf://`" in page
    assert {t for t in online if "bench" in t or "browser" in t} == {
        "setup-browser",
        "bench-multivae",
        "bench-omics",
        "bench-tables",
    }
    assert len(online) == 5  # and set-up
    downloads = ("make bench-omics", "make bench-tables", "make bench-fusion")
    installs = ("make lock", "make setup-browser", "make bench-multivae")
    for name in ("examples.digit_views", "examples.omics", *downloads, *installs):
        assert f"`{name}`" in page


@pytest.mark.parametrize("kind", ["DiagNormal", "MixtureOfProducts"])
def test_what_the_readme_says_works_in_pyro_does(kind):
    """Likelihoods are tested one by one in `tests/likelihoods/test_contract.py`."""
    assert f"`{kind}`" in (ROOT / "README.md").read_text()
    q = DiagNormal(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2))
    even = torch.full((4, 3), 0.25)
    p = (
        DiagNormal(q.loc[0], q.log_scale[0])
        if kind == "DiagNormal"
        else MixtureOfProducts(q, even)
    )
    with pyro.plate("batch", 3):
        drawn = pyro.sample("x", p)
    assert drawn.shape == (3, 2)
    assert p.log_prob(drawn).shape == (3,)


def test_in_pytorch_the_product_is_some_three_hundred_operators():
    """Forward and backward, with four experts and a prior, or with a standard normal."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Count.number += 1
            return function(*args, **(kwargs or {}))

    assert "some three hundred small operators" in (
        ROOT / "docs" / "kernels.md"
    ).read_text().replace("\n", " ")
    parts = [torch.randn(8, 4, requires_grad=True) for _ in range(10)]
    given = torch.rand(8, 4) > 0.3
    for prior in (None, (parts[8], parts[9])):
        Count.number = 0
        with Count():
            q = mmpoe.kernels.gaussian_poe(parts[:4], parts[4:8], given, prior, backend="eager")
            (q.z.sum() + q.kl.sum()).backward()
        assert 250 <= Count.number <= 350
