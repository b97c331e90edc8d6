"""The page of `sgdm annotate --inspect`: what it holds is what the sets hold, and what is asked of it is shown."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import annotate, console, inspection, prepare
from engine.annotation_config import SegmentsConfig
from engine.config import Config
from engine.config_error import ConfigError
from engine.inspection import MOST_IMAGES, choose_rows, replaced
from engine.sheets import class_colours
from sgdm.annotate.cluster_set import ClusterManifest, ClusterSet, load_clusters
from sgdm.annotate.layout import LayoutManifest, save_layout
from sgdm.annotate.sets import AnnotationError
from sgdm.data.beton import read_manifest
from sgdm.ragged import Boxes, Masks, Views
from sgdm.raster import encode

COUNT, SIDE = 60, 16
NAMES = ["blue", "green", "red"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def prepared(make_config: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """60 images in three labels, clusters of them, boxes, and their truth."""
    folder = tmp_path_factory.mktemp("inspect")
    random = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = random.integers(0, 60, (SIDE, SIDE, 3))
        pixels[..., 2 - number % 3] += 180
        path = folder / "images" / NAMES[number % 3] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    config = make_config(folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder / "images")))
    prepare.run(config)
    annotate.run(with_annotation(config, num_clusters=4))
    save_objects(with_annotation(config, num_clusters=4, layout="boxes").layout_folder, config, "LOST", some_boxes(1))
    save_objects(config.data.folder / "train.truth-boxes", config, "truth", some_boxes(2))
    save_objects(with_segments(config).layout_folder, config, "k-means", some_segments(3))
    save_objects(config.data.folder / "train.truth-segments", config, "truth", some_segments(4))
    return config


def with_annotation(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, **fields))


def with_segments(config: Config) -> Config:
    return with_annotation(config, num_clusters=0, layout="segments", segments=SegmentsConfig(num_segments=3))


def some_boxes(seed: int) -> Boxes:
    """None to two an image, of three classes."""
    random = np.random.default_rng(seed)
    corners = [np.sort(random.random((number % 3, 2, 2)), axis=1).reshape(-1, 4) for number in range(COUNT)]
    return Boxes.of(corners, [random.integers(0, 3, len(each)) for each in corners])


def some_maps(seed: int) -> np.ndarray:
    """uint8 [60, 16, 16], 0 to 2, or 255."""
    maps = np.random.default_rng(seed).integers(0, 4, (COUNT, SIDE, SIDE)).astype(np.uint8)
    maps[maps == 3] = 255
    return maps


def some_segments(seed: int) -> Any:
    masks = np.stack([some_maps(seed) == label for label in range(3)], axis=1)
    views = Views.of(np.full((COUNT, 2), SIDE))
    return encode(Masks.of(masks, [[0, 1, 2]] * COUNT), views, size=(SIDE, SIDE))


def save_objects(folder: Path, config: Config, method: str, objects: Any) -> None:
    manifest = LayoutManifest(
        data_digest=read_manifest(config.data.folder / "train.beton").digest,
        kind="boxes" if isinstance(objects, Boxes) else "segments",
        method=method,
        weights_digest="",
        class_names=["one", "two", "<b>three"],
        seed=0,
        parameters={},
        versions={},
        report={} if method == "truth" else {"agreement": 0.4375},
    )
    save_layout(folder, manifest, objects)


def inspect(config: Config) -> tuple[Path, dict[str, Any]]:
    """The folder of the page and its data."""
    inspection.run(config)
    folder = config.run / "inspect"
    text = (folder / "data.js").read_text(encoding="utf-8")
    return folder, json.loads(text.removeprefix("const DATA = ").removesuffix(";\n"))


def tiles(folder: Path, data: dict[str, Any], name: str) -> np.ndarray:
    """The pictures of all sheets of a name, in the order of the rows."""
    found = []
    for path in sorted(folder.glob(f"{name}-*")):
        sheet = np.asarray(Image.open(path))
        lines, side = len(sheet) // data["side"], data["side"]
        for place in range(data["columns"] * lines):
            y, x = place // data["columns"] * side, place % data["columns"] * side
            found.append(sheet[y : y + side, x : x + side])
        assert lines * data["columns"] <= data["tiles"]
    return np.stack(found[: len(data["rows"])])


def test_what_the_page_holds_is_what_the_sets_hold(prepared: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SHEET_SIDE", 4 * SIDE)
    folder, data = inspect(with_annotation(prepared, num_clusters=4, layout="boxes"))
    assert len(list(folder.glob("images-*.jpg"))) == 4
    digest = read_manifest(prepared.data.folder / "train.beton").digest
    _, clusters, _, nearest = load_clusters(with_annotation(prepared, num_clusters=4).clusters_folder, digest)
    rows = np.array(data["rows"])
    assert sorted(rows) == list(range(COUNT)) and data["count"] == COUNT
    assert data["clusters"]["of"] == clusters[rows].tolist() == sorted(clusters)
    assert data["clusters"]["sizes"] == [int((clusters == cluster).sum()) for cluster in range(4)]
    assert data["clusters"]["galleries"] == [[row for row in gallery if row >= 0] for gallery in nearest.tolist()]
    labels = np.arange(COUNT) // (COUNT // 3)  # by the sorted paths
    assert data["labels"] == {"names": NAMES, "of": labels[rows].tolist()}
    for cluster, (label, share) in enumerate(data["clusters"]["commonest"]):
        counts = np.bincount(labels[clusters == cluster], minlength=3)
        assert counts[label] == counts.max() and share == pytest.approx(counts.max() / counts.sum(), abs=1e-4)
    layers = {layer["key"]: layer for layer in data["layers"]}
    assert {key: layer["truth"] for key, layer in layers.items()} == {
        "boxes": False,
        "true-boxes": True,
        "true-segments": True,
    }
    for key, seed in (("boxes", 1), ("true-boxes", 2)):
        boxes = some_boxes(seed)
        for row, found in zip(rows, layers[key]["boxes"], strict=True):
            objects = slice(*boxes.image_offsets[row : row + 2])
            expected = np.column_stack([boxes.class_ids[objects], boxes.corners[objects]])
            np.testing.assert_allclose(np.reshape(found, (-1, 5)), expected, atol=1e-4)
    np.testing.assert_array_equal(tiles(folder, data, "true-segments"), some_maps(4)[rows])
    means = tiles(folder, data, "images").mean(axis=(1, 2))
    assert (means.argmax(axis=1) == np.array([2, 1, 0])[labels[rows]]).all()  # red, green, blue


def test_images_stand_in_their_tiles(prepared: Config) -> None:
    folder, data = inspect(with_annotation(prepared, num_clusters=4))
    paths = sorted((Path(prepared.data.source)).rglob("*.png"))
    expected = np.stack([np.asarray(Image.open(paths[row])) for row in data["rows"]])
    shown = tiles(folder, data, "images")
    assert np.abs(shown.astype(int) - expected).mean() < 8  # JPEG of noise


def test_segments_without_clusters(prepared: Config) -> None:
    folder, data = inspect(with_segments(prepared))
    assert data["clusters"] is None and data["rows"] == list(range(COUNT))
    assert [layer["key"] for layer in data["layers"]] == ["segments", "true-boxes", "true-segments"]
    np.testing.assert_array_equal(tiles(folder, data, "segments"), some_maps(3))
    picture = Image.open(folder / "segments-000.png").convert("RGBA")
    colours = np.asarray(picture)[:SIDE, :SIDE]
    np.testing.assert_array_equal(colours[..., 3] == 0, some_maps(3)[0] == 255)
    inside = some_maps(3)[0] < 255
    np.testing.assert_array_equal(colours[inside][:, :3], class_colours()[some_maps(3)[0][inside]])
    text = (folder / "index.html").read_text()
    assert "0.4375" in text and "against truth that was not used" in text


def test_large_images_are_reduced(prepared: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LARGEST_TILE", 8)
    folder, data = inspect(with_segments(prepared))
    assert data["side"] == 8
    centres = some_maps(3)[:, 1::2, 1::2]
    np.testing.assert_array_equal(tiles(folder, data, "segments"), centres)


def test_controls_have_no_galleries(prepared: Config) -> None:
    config = with_annotation(prepared, num_clusters=5, clusters="random")
    annotate.run(config)
    folder, data = inspect(config)
    assert data["clusters"]["galleries"] == [] and data["clusters"]["sizes"] == [12] * 5
    text = " ".join((folder / "index.html").read_text().split())
    assert "of the control random" in text and "against labels that were not used" in text
    config = with_annotation(prepared, num_clusters=3, clusters="labels")
    annotate.run(config)
    folder, _ = inspect(config)
    text = (folder / "index.html").read_text()
    assert "against the labels it is made of" in text and "not used" not in text
    assert "never looked at to annotate: truth." in text


def test_the_page_loads_only_what_lies_beside_it(prepared: Config) -> None:
    folder, _ = inspect(with_annotation(prepared, num_clusters=4))
    pages = [(folder / name).read_text() for name in ("index.html", "inspection.js", "data.js")]
    assert not any(re.search(r"https?://|@import|url\(", text) for text in pages)
    assert re.findall(r'(?:src|href)="([^"]*)"', pages[0]) == ["data.js", "inspection.js"]


def cluster_set(count: int, num_clusters: int, depth: int = 8) -> ClusterSet:
    manifest = ClusterManifest("", "k-means", "", "", "", num_clusters, 0, {}, {}, {})
    ids = np.random.default_rng(0).permutation(count) % num_clusters
    members = np.argsort(ids, kind="stable").reshape(num_clusters, -1)
    nearest = np.full((num_clusters, depth), -1)
    nearest[:, : members.shape[1]] = members[:, :depth]
    return ClusterSet(manifest, ids.astype(np.int32), np.zeros((num_clusters, 2), np.float32), nearest)


@pytest.mark.parametrize(("num_clusters", "depth"), [(100, 8), (2_000, 2), (20_000, 1)])
def test_galleries_are_shown_and_the_rest_is_spread_evenly(num_clusters: int, depth: int) -> None:
    count = 60_000
    clusters = cluster_set(count, num_clusters)
    rows = choose_rows(count, clusters)
    assert len(set(rows)) == len(rows) <= max(MOST_IMAGES, num_clusters)
    members = set(rows)
    assert all(row in members for row in clusters.nearest[:, :depth].ravel() if row >= 0)
    assert (np.diff(clusters.clusters[rows]) >= 0).all()
    if num_clusters < MOST_IMAGES // 2:
        assert np.diff(np.sort(rows)).max() <= 2 * count / (MOST_IMAGES - depth * num_clusters)


def test_without_clusters_images_are_spread_evenly() -> None:
    rows = choose_rows(123_456, None)
    assert len(rows) == MOST_IMAGES and rows[0] == 0 and rows[-1] == 123_455
    assert set(np.diff(rows)) <= {12, 13}
    assert choose_rows(7, None).tolist() == list(range(7))


def test_refusals(prepared: Config) -> None:
    with pytest.raises(ValueError, match=r"num_clusters is 0 and annotation\.layout none, so nothing annotates"):
        inspection.run(with_annotation(prepared, num_clusters=0))
    for missing in (with_annotation(prepared, num_clusters=7), with_annotation(prepared, encoder="self-supervised")):
        with pytest.raises(AnnotationError, match="Annotate first"):
            inspection.run(missing)


def test_a_page_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    for number in range(2):
        with replaced(tmp_path / "run" / "page") as folder:
            (folder / f"{number}.html").write_text("page")
    with pytest.raises(OSError, match="disk"), replaced(tmp_path / "run" / "page") as folder:
        (folder / "2.html").write_text("half")
        raise OSError("disk is full")
    assert [str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.html")] == ["page/1.html"]
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_the_action_of_a_program(
    prepared: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(inspection, "run", seen.append)
    arguments = ["--run", "elsewhere", "--inspect", "--seed", "3"]
    console.run_program("annotate", lambda _: pytest.fail("the stage ran"), arguments)
    assert seen == [console.parse("annotate", ["--run", "elsewhere", "--seed", "3"])]
    with pytest.raises(ConfigError, match="--inspect is not for train: give it to annotate"):
        console.split_action("train", arguments)
    monkeypatch.setitem(console.ACTIONS, "--other", console.Action("annotate", "engine.other", ""))
    with pytest.raises(ConfigError, match="--inspect and --other cannot be done at once"):
        console.split_action("annotate", [*arguments, "--other"])
    with pytest.raises(SystemExit):
        console.parse("annotate", ["--help"])
    assert re.search(r"--inspect +what it found, drawn over the images", capsys.readouterr().out)


VISIT = """<script>
async function visit(hash) {
  if (hash !== location.hash) {
    const changed = new Promise(resolve => addEventListener("hashchange", resolve, {once: true}));
    location.hash = hash;
    await changed;
  }
  const shown = selector => [...document.querySelectorAll(selector)];
  return {
    rows: shown("#list .picture").map(each => Number(each.dataset.row)),
    clusters: shown("#list .cluster").map(each => Number(each.dataset.cluster)),
    said: document.getElementById("said").textContent,
    page: document.getElementById("page").value + " " + document.getElementById("pages").textContent,
    large: document.getElementById("large").open && document.getElementById("large").innerText,
  };
}
(async () => {
  const found = [];
  for (const hash of HASHES) found.push(await visit(hash));
  document.body.replaceChildren(JSON.stringify(found));
})();
</script>"""


def visit(folder: Path, profile: Path, hashes: list[str]) -> list[dict[str, Any]]:
    """What the page shows at each address, one after another."""
    page = folder / "visit.html"
    text = (
        (folder / "index.html").read_text().replace("</body>", VISIT.replace("HASHES", json.dumps(hashes)) + "</body>")
    )
    page.write_text(text)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", page.resolve().as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    body = re.search(r"<body>(.*)</body>", shown, flags=re.DOTALL)
    assert body
    return json.loads(body.group(1))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_paging_and_search(prepared: Config, tmp_path: Path) -> None:
    folder, data = inspect(with_annotation(prepared, num_clusters=4, layout="boxes"))
    clusters = dict(zip(data["rows"], data["clusters"]["of"], strict=True))
    sizes = data["clusters"]["sizes"]
    first, second, beyond, sorted_, numbers, image, label, unknown, cards, by_id, one, large = visit(
        folder,
        tmp_path,
        [
            "#view=images&size=48",
            "#view=images&size=48&page=2",
            "#view=images&size=48&page=99",
            "#view=images&sort=cluster",
            "#view=images&find=1%2C+3-2",
            "#view=images&find=%237%2C%23+12-10%2C%239999",
            "#view=images&find=REE",
            "#view=images&find=purple",
            "#view=clusters",
            "#view=clusters&sort=id",
            "#view=clusters&find=%235",
            "#view=images&image=5",
        ],
    )
    assert first["rows"] == list(range(48)) and first["page"] == "1 of 2" and first["said"] == "60 images."
    assert second["rows"] == beyond["rows"] == list(range(48, 60)) and beyond["page"] == "2 of 2"
    assert sorted_["rows"] == data["rows"]
    assert numbers["rows"] == [row for row in range(COUNT) if clusters[row] in (1, 2, 3)]
    assert image["rows"] == [7, 10, 11, 12] and "4 of 60 images match" in image["said"]
    assert label["rows"] == list(range(20, 40))  # green
    assert unknown["rows"] == [] and "Not a cluster, image or label: purple." in unknown["said"]
    assert cards["clusters"] == sorted(range(4), key=lambda cluster: (-sizes[cluster], cluster))
    assert by_id["clusters"] == list(range(4))
    assert by_id["rows"] == [row for gallery in data["clusters"]["galleries"] for row in gallery]
    assert one["clusters"] == [clusters[5]]
    assert (
        "Image #5" in large["large"] and f"cluster {clusters[5]}," in large["large"] and "label blue" in large["large"]
    )
    assert not first["large"]


def test_no_two_classes_share_a_colour() -> None:
    assert len(np.unique(class_colours(), axis=0)) == 256
