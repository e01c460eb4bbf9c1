"""The report in a browser: its controls do what they say, and something is seen."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from examples.medical_mri_us.report import make_page, read_evaluation
from examples.medical_mri_us.report.sprites import make_sprites

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="there is no Chromium: `make setup-browser` installs it"
    ),
]
MODALITIES = ["us", "t2", "cet1", "flair"]

CLICKS = """<script>
addEventListener("load", () => {
  const viewer = document.getElementById("viewer");
  const now = () => Object.fromEntries(new URLSearchParams(viewer.dataset.state));
  const log = [now()];
  const act = (id, change, event = "change") => {
    const control = document.getElementById(id);
    change(control);
    control.dispatchEvent(new Event(event, { bubbles: true }));
    log.push(now());
  };
  act("target-flair", (c) => c.click());
  act("given-cet1", (c) => c.click());
  act("given-us", (c) => c.click());
  act("given-cet1", (c) => c.click());
  act("slice", (c) => (c.value = 0), "input");
  act("case", (c) => (c.value = "b"));
  document.querySelector("input[name=overlay][value=error]").click();
  act("opacity", (c) => (c.value = 30), "input");
  document.querySelector('#sheet button[data-place="us+t2>cet1"]').click();
  log.push(now());
  history.replaceState(null, "", "#case=a&given=t2&target=us");
  dispatchEvent(new HashChangeEvent("hashchange"));
  log.push(now());
  const tables = [...document.querySelectorAll(".metric")].filter((t) => t.offsetParent).length;
  document.querySelector("input[value=ssim]").click();
  const shown = [...document.querySelectorAll(".metric")].filter((t) => t.offsetParent);
  const result = { log, tables, metrics: shown.map((t) => t.dataset.metric) };
  const place = document.body.appendChild(document.createElement("pre"));
  place.id = "result";
  place.textContent = JSON.stringify(result);
});
</script>"""


LAYOUT = """<script>
addEventListener("load", () => {
  const wide = (element) => Math.round(element.getBoundingClientRect().width);
  const frame = document.querySelector("#viewer .frame");
  const turn = (deltaY) => frame.dispatchEvent(
    new WheelEvent("wheel", { deltaY, cancelable: true })); // false: the page does not scroll
  const result = {
    page: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
    frames: [...document.querySelectorAll("#viewer .frame")].map(wide),
    viewer: wide(document.getElementById("viewer")),
    outside: [...document.querySelectorAll("main *")]
      .filter((e) => !e.closest(".scroll, svg, .bar"))
      .filter((e) => {
        const { right, width } = e.getBoundingClientRect();
        return width && right > document.querySelector("main").getBoundingClientRect().right + 1;
      })
      .map((e) => e.outerHTML.slice(0, 80)),
    wheel: [turn(-1), turn(-1), turn(1), turn(1)],
  };
  const place = document.body.appendChild(document.createElement("pre"));
  place.id = "result";
  place.textContent = JSON.stringify(result);
});
</script>"""


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(make_page(read_evaluation(evaluated / "eval")))
    return path


def chromium(folder, url, *options):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--disable-dev-shm-usage", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dom(folder, page, fragment):
    return chromium(folder, f"file://{page}#{fragment}", "--dump-dom")


def sums(text):
    """What is painted in each frame, as sums of the colours of all pixels."""
    tags = re.findall(r"<canvas [^>]*>", text)
    found = {re.search(r'id="([^"]+)"', t): re.search(r'data-sum="(\d+)"', t) for t in tags}
    return {name[1]: int(value[1]) for name, value in found.items() if name and value}


def state(text):
    return re.search(r'data-state="([^"]*)"', text)[1].replace("&amp;", "&")


def tiles(evaluated, case):
    """The tiles of a case by target and column, as the page gets them."""
    import base64
    import io

    sprites = make_sprites(read_evaluation(evaluated / "eval").views[case], MODALITIES)

    def tile(target, column, row):
        picture = base64.b64decode(sprites["targets"][target]["picture"])
        image = np.asarray(Image.open(io.BytesIO(picture)))
        h, w = sprites["height"], sprites["width"]
        return image[row * h : (row + 1) * h, column * w : (column + 1) * w].astype(int)

    return sprites, tile


def test_the_address_chooses_what_is_painted(evaluated, page, tmp_path):
    fragment = "case=b&given=us+flair&target=t2&slice=1&overlay=none&opacity=60"
    text = dom(tmp_path, page, fragment)
    assert state(text) == fragment
    sprites, tile = tiles(evaluated, "b")
    row, column = sprites["slices"].index(1), 2 + sprites["subsets"].index("us+flair")
    painted = sums(text)
    assert painted["truth"] == 3 * tile("t2", 0, row).sum()
    assert painted["synthesis"] == 3 * tile("t2", column, row).sum()
    for m in MODALITIES:
        assert painted[f"input-{m}"] == 3 * tile(m, 0, row).sum()
    assert painted["error"] != painted["spread"]
    assert "T2 from iUS + FLAIR, synthesised: it was not given." in text
    assert re.search(r"This case, protocol strict: PSNR [\d.]+ dB, SSIM", text)


def test_overlays_colour_the_synthesis_as_much_as_asked(page, tmp_path):
    found = {}
    for overlay, opacity in (("none", 60), ("error", 60), ("uncertainty", 60), ("error", 100)):
        fragment = f"case=a&given=us&target=cet1&slice=0&overlay={overlay}&opacity={opacity}"
        found[overlay, opacity] = sums(dom(tmp_path, page, fragment))
    assert len({painted["synthesis"] for painted in found.values()}) == 4
    assert len({painted["truth"] for painted in found.values()}) == 1
    opaque = found["error", 100]
    assert opaque["synthesis"] == pytest.approx(opaque["error"], rel=1e-6)


def planes_of(evaluated, case):
    """The volumes that the page shows of a case, from the files of the evaluation."""
    view = read_evaluation(evaluated / "eval").views[case]
    return {name: v for name, v in view.items() if name.startswith("volume_")}


def test_three_planes_cross_where_the_address_says(evaluated, page, tmp_path):
    """Axial from above the feet with the front on top, the others upright; R is on the left."""
    volumes = planes_of(evaluated, "b")
    k, j, i = 1, 5, 9
    text = dom(tmp_path, page, f"case=b&given=us&target=t2&layer=truth&at={k}+{j}+{i}")
    assert f"&layer=truth&at={k}+{j}+{i}" in state(text)
    truth = volumes["volume_truth_t2"].astype(int)
    painted = sums(text)
    assert painted["plane-axial"] == 3 * truth[k].sum()
    assert painted["plane-coronal"] == 3 * truth[:, j].sum()
    assert painted["plane-sagittal"] == 3 * truth[:, :, i].sum()
    viewer = text.split('<section id="viewer"')[1].split("</section>")[0]
    marked = re.findall(r'<span class="side (\w+)">(\w)</span>', viewer.split('id="planes"')[1])
    letters = ["".join(letter for _, letter in marked[n : n + 4]) for n in range(0, 12, 4)]
    assert letters == ["RLAP", "RLSI", "APSI"]
    value = volumes["volume_mean_t2"][k, j, i] / 255
    assert f"synthesis {value:.3f}" in text
    assert len(re.findall(r">(?:\d+) mm<", viewer)) == 7
    assert "T2 from iUS + ceT1 + FLAIR" in viewer.split('id="planes-what"')[1]
    layers = {
        layer: sums(dom(tmp_path, page, f"case=b&target=t2&layer={layer}"))["plane-axial"]
        for layer in ("synthesis", "error", "uncertainty")
    }
    assert layers["synthesis"] == 3 * volumes["volume_mean_t2"].astype(int)[len(truth) // 2].sum()
    assert len(set(layers.values())) == 3


def test_window_level_and_swipe_change_what_is_painted(evaluated, page, tmp_path):
    base = "case=b&given=us+flair&target=t2&slice=1"
    sprites, tile = tiles(evaluated, "b")
    row, column = sprites["slices"].index(1), 2 + sprites["subsets"].index("us+flair")
    truth, mean = tile("t2", 0, row), tile("t2", column, row)
    half = sprites["width"] // 2
    swiped = sums(dom(tmp_path, page, f"{base}&compare=swipe&swipe=50"))
    assert swiped["synthesis"] == 3 * (truth[:, :half].sum() + mean[:, half:].sum())
    narrow = sums(dom(tmp_path, page, f"{base}&window=20&level=40"))
    shades = np.clip(((truth / 2.55 - 40) / 20 + 0.5) * 255, 0, 255)
    assert narrow["truth"] == pytest.approx(3 * shades.sum(), rel=1e-3)
    text = dom(tmp_path, page, f"{base}&zoom=4&smooth=1")
    assert 'style="transform: scale(4)' in text or "transform: scale(4)" in text
    assert "&zoom=4&smooth=1" in state(text)
    assert "zoom" not in state(dom(tmp_path, page, base))


def test_an_address_that_makes_no_sense_is_put_right(page, tmp_path):
    text = dom(tmp_path, page, "case=nobody&given=&target=xray&slice=77&overlay=blue&opacity=900")
    assert state(text) == "case=a&given=us&target=t2&slice=1&overlay=none&opacity=60"


def test_controls_change_what_is_shown(page, tmp_path):
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", CLICKS + "</body>"))
    text = dom(tmp_path, clicked, "case=a&given=us&target=t2&slice=1")
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', text, re.DOTALL)[1])
    log = result["log"]
    assert [entry["target"] for entry in log[:2]] == ["t2", "flair"]
    assert [entry["given"] for entry in log[1:5]] == ["us", "us cet1", "cet1", "cet1"]
    assert [entry["slice"] for entry in log[4:6]] == ["1", "0"]
    assert log[6]["case"] == "b"
    assert (log[7]["overlay"], log[7]["opacity"]) == ("error", "30")
    assert (log[8]["given"], log[8]["target"]) == ("us t2", "cet1")
    assert (log[9]["case"], log[9]["given"], log[9]["target"]) == ("a", "t2", "us")
    assert result["tables"] == 4  # one per kind and protocol
    assert result["metrics"] == ["ssim", "psnr", "psnr", "psnr"]


def test_every_control_can_be_reached_and_has_a_name(page, tmp_path):
    text = dom(tmp_path, page, "case=a")
    viewer = text.split('<section id="viewer"')[1].split("</section>")[0]
    for tag in re.findall(r"<(?:input|select)[^>]*>", viewer):
        assert "tabindex" not in tag
        before = viewer[: viewer.index(tag)]
        assert before.count("<label") > before.count("</label>")  # inside its label
    for tag in re.findall(r"<canvas id[^>]*>", viewer):
        assert 'role="img"' in tag
        assert "aria-label=" in tag


@pytest.mark.parametrize("width", [500, 760, 1400])
def test_the_page_fits_any_window(page, tmp_path, width):
    """Nothing sticks out, and what is compared is of one size; the wheel is free at the ends."""
    measured = tmp_path / "measured.html"
    measured.write_text(page.read_text().replace("</body>", LAYOUT + "</body>"))
    url = f"file://{measured}#case=a&slice=1"  # the last of two
    text = chromium(tmp_path, url, "--dump-dom", f"--window-size={width},900")
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', text, re.DOTALL)[1])
    whole, window = result["page"]
    assert whole == window <= width
    assert result["outside"] == []
    assert len(set(result["frames"])) == 1
    assert 2 * result["frames"][0] > 0.7 * result["viewer"]
    assert result["wheel"] == [False, True, False, True]


def test_a_case_opens_at_its_middle_slice(page, tmp_path):
    assert "&slice=1&" in state(dom(tmp_path, page, "case=b&given=us&target=t2"))


@pytest.mark.parametrize("dark", [False, True])
def test_a_picture_of_the_page_shows_images(page, tmp_path, dark):
    shot = tmp_path / "shot.png"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    options = [f"--screenshot={shot}", "--window-size=1200,1400", "--hide-scrollbars", *theme]
    chromium(tmp_path, f"file://{page}#case=a&given=us&target=t2&overlay=error", *options)
    image = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert image.shape == (1400, 1200, 3)
    assert (image[5, 5].mean() < 60) == dark  # the page is dark or light
    colourful = (image.max(axis=2) - image.min(axis=2)) > 60
    assert colourful.mean() > 0.02  # maps of error and standard deviation
    assert image.std() > 20
