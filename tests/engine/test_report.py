from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import charts, exports, sweep_results
from engine.annotation_config import AnnotationConfig
from engine.batches import Batches
from engine.config import Config, DataConfig, TrainingConfig, save_config
from engine.evidence import EvidenceError
from engine.report import write_report
from sgdm.annotate.cluster_set import ClusterManifest, save_clusters

IMAGES, CLUSTERS, SIDE = 200, 5, 8
NETWORK = "efficientnet-lite0"
DIGEST = "ab" * 32
SECTIONS = ("samples", "gallery", "metrics", "training", "stages", "clusters", "configuration")
SHARES = {"precision": 0.6, "recall": 0.5, "density": 0.8, "coverage": 0.7}


class Folders:
    def __init__(self, root: Path, name: str) -> None:
        self.run = root / "runs" / name
        self.data = root / "data"
        self.annotation = self.data / "annotations" / "pixels-5"

    def real_images(self, indices: np.ndarray) -> np.ndarray:
        """Grey level = index, so that a sheet tells which images are in it."""
        assert (np.diff(indices) > 0).all()
        return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), SIDE, SIDE, 3)).copy()

    def write(self, versions: dict[str, str] | None = None) -> str:
        path = write_report(self.run, self.data, self.annotation, versions or {"torch": "2.11.0"}, self.real_images)
        assert path == self.run / "report.html"
        return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Everything that a browser would load, every tag, and the visible text of every section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.sections: dict[str, str] = {}
        self._section = "head"
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attributes)
        if tag == "section":
            self._section = str(found["id"])
        self.loaded += [value or "" for name, value in attributes if name in ("src", "srcset", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a whole run."""
    return make_run(tmp_path_factory.mktemp("whole")).write({"some-package": "9.8.7"})


@pytest.fixture
def whole(tmp_path: Path) -> Folders:
    """A run in which every stage has finished."""
    return make_run(tmp_path)


def make_run(root: Path, name: str = "tiny", source: str = "fashion-mnist") -> Folders:
    folders = Folders(root, name)
    run, annotation = folders.run, folders.annotation
    folders.data.mkdir()
    (run / "samples").mkdir(parents=True)
    config = Config(
        run=run,
        data=DataConfig(source=source, folder=folders.data, image_size=SIDE),
        annotation=AnnotationConfig(num_clusters=CLUSTERS, encoder="pixels"),
        training=TrainingConfig(images=1000),
    )
    save_config(config, run / "config.yaml")
    put(folders.data / "train.json", {"count": IMAGES, "digest": DIGEST, "label_names": ["a", "b"]})
    manifest = ClusterManifest(
        data_digest=DIGEST,
        method="k-means",
        encoder="pixels",
        weights_digest="",
        features_digest="",
        num_clusters=CLUSTERS,
        seed=0,
        parameters={"note": "fell back"},
        versions={},
        report={"purity": 0.6125, "nmi": 0.5125},
    )
    ids = np.arange(IMAGES, dtype=np.int32) % CLUSTERS
    save_clusters(annotation, manifest, ids, np.zeros((CLUSTERS, 4)), np.zeros((CLUSTERS, 8)))
    rows = [{"images": 100 * n, "loss": 1 / n, "images_per_second": 50.0 + n} for n in range(1, 11)]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = ("prepare", "annotate", "train", "sample", "evaluate")
    put(run / "stages.json", {stage: {"seconds": 90.0, "peak_memory_gb": 1.5, "images": 900} for stage in stages})
    cluster = np.arange(60) % CLUSTERS
    image = np.broadcast_to((40 * cluster).astype(np.uint8)[:, None, None, None], (60, SIDE, SIDE, 3))
    for scale in (0.0, 1.0, 2.0, 3.0):
        np.savez(run / "samples" / f"guidance-{scale:g}.npz", image=image, cluster=cluster)
    results = [
        {"guidance_scale": float(w), "frechet_distance": distance, "kernel_distance": distance / 1000} | SHARES
        for w, distance in enumerate((40.5, 30.5, 20.25, 25.5))
    ]
    reference = {"split": "val", "images": 1234}
    real = {"frechet_distance": 2.5, "kernel_distance": 0.0005} | SHARES
    metrics = {"network": NETWORK, "reference": reference, "samples": 4321, "results": results, "real": real}
    put(run / "metrics.json", metrics)
    return folders


def rewrite_samples(folders: Folders, format: str) -> None:
    """The same samples in another format."""
    text = (folders.run / "config.yaml").read_text().replace("format: npz", f"format: {format}", 1)
    (folders.run / "config.yaml").write_text(text)
    for path in (folders.run / "samples").glob("*.npz"):
        with np.load(path) as file:
            images = {name: file[name] for name in ("image", "cluster")}
        batches = Batches(folders.run / "batches", len(images["cluster"]), "key")
        batches.begin()
        batches.write(np.arange(batches.count), images)
        path.unlink()
        exports.export(format, path.with_suffix(""), batches, "key")
        batches.remove()


def _corners(address: str, count: int) -> list[int]:
    """Grey level of the first pixel of every image in a sheet of one row."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
    return pixels[0, :: SIDE + 1, 0].tolist()[:count]


def put(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def test_whole_run_has_every_section_and_loads_nothing(text: str) -> None:
    page = Page(text)
    assert set(page.sections) >= set(SECTIONS)
    assert not any(" yet" in page.sections[name] for name in SECTIONS)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loaded)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert len(text) < 3_000_000


def test_shows_every_guidance_scale_beside_real_images_and_says_what_it_means(text: str) -> None:
    samples = Page(text).sections["samples"]
    for scale in (0, 1, 2, 3):
        assert f"w = {scale}" in samples
    assert "Real images" in samples
    assert samples.count("eps = eps_null + w (eps_cond − eps_null)") == 1


def test_gallery_pairs_real_members_with_samples_of_the_best_scale(whole: Folders) -> None:
    text = whole.write()
    assert "Generated, w = 2" in Page(text).sections["gallery"]
    rows = re.findall(r'identity"><b>(\d+)</b><span>40 images.*?src="([^"]*)".*?src="([^"]*)"', text, flags=re.DOTALL)
    assert sorted(int(cluster) for cluster, _, _ in rows) == list(range(CLUSTERS))
    for cluster, real, made in rows:
        indices, levels = (_corners(address, count=7) for address in (real, made))
        assert len(set(indices)) == 7 and all(index % CLUSTERS == int(cluster) for index in indices)
        assert levels == [40 * int(cluster)] * 7


@pytest.mark.parametrize("format", exports.FORMATS)
def test_samples_of_every_format_give_the_same_page_and_no_more_is_read_than_it_shows(
    whole: Folders, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures_of(text: str) -> list[str]:
        return re.findall(r'src="([^"]*)"', text)

    expected = pictures_of(whole.write())
    rewrite_samples(whole, format)
    read: list[int] = []
    images_of = exports.images_of

    def recorded(format: str, path: Path, numbers: np.ndarray) -> np.ndarray:
        read.append(len(numbers))
        return images_of(format, path, numbers)

    monkeypatch.setattr(exports, "images_of", recorded)
    text = whole.write()
    assert pictures_of(text) == expected
    assert len(expected) == 5 + 2 * CLUSTERS
    assert " yet" not in Page(text).sections["samples"] + Page(text).sections["gallery"]
    assert sorted(read) == [7] * CLUSTERS + [24] * 4


@pytest.mark.parametrize(
    ("format", "damaged"),
    [
        ("png", "guidance-2/clusters.csv"),
        ("png", "guidance-2/samples.json"),
        ("png", "guidance-2/000003.png"),
        ("webdataset", "guidance-2/offsets.npy"),
        ("webdataset", "guidance-2/000000.tar"),
        ("beton", "guidance-2.beton"),
    ],
)
def test_damaged_samples_of_every_format_are_named(whole: Folders, format: str, damaged: str) -> None:
    rewrite_samples(whole, format)
    (whole.run / "samples" / damaged).write_bytes(b"\x89PNG cut short")
    with pytest.raises(EvidenceError, match=r"guidance-2\S* is damaged .*run sample again"):
        whole.write()


def test_samples_of_a_format_that_the_run_no_longer_has_are_not_shown(whole: Folders) -> None:
    rewrite_samples(whole, "png")
    text = (whole.run / "config.yaml").read_text().replace("format: png", "format: webdataset", 1)
    (whole.run / "config.yaml").write_text(text)
    assert "No samples yet" in Page(whole.write()).sections["samples"]


def test_every_metric_stands_with_its_network_counts_and_reference(text: str) -> None:
    page = Page(text)
    provenance = f"{NETWORK} features, 4,321 samples against 1,234 val images"
    assert "20.25" in page.sections["head"] and provenance in page.sections["head"]
    assert "40.5 unguided (−50 %)" in page.sections["head"]
    figures = re.findall(r'<figure class="chart">.*?</figure>', text[text.index('id="metrics"') :], flags=re.DOTALL)
    charts_of_metrics = [figure for figure in figures if "guidance scale w" in figure]
    assert len(charts_of_metrics) == 3
    assert all(provenance in figure and f"({NETWORK})" in figure for figure in charts_of_metrics)
    table = re.search(r"<table>.*?</table>", text[text.index('id="metrics"') :], flags=re.DOTALL)
    assert table and provenance in table.group() and "real images" in table.group()
    assert not re.search(r"\bFID\b", text)


def test_best_value_of_a_metric_is_marked_among_samples_only(text: str) -> None:
    marked = re.findall(r'<td class="best">([^<]*)</td>', text)
    assert "20.25" in marked and "2.50" not in marked


def test_labels_notes_and_versions_are_told(text: str) -> None:
    page = Page(text)
    assert all(told in page.sections["clusters"] for told in ("0.6125", "0.5125", "fell back", "pixels"))
    assert "some-package" in page.sections["configuration"] and "9.8.7" in page.sections["configuration"]
    assert "condition_dropout: 0.1" in page.sections["configuration"]


def test_without_a_frechet_distance_the_kernel_distance_stands_in_and_the_reason_is_shown(whole: Folders) -> None:
    metrics = json.loads((whole.run / "metrics.json").read_text())
    for row in (*metrics["results"], metrics["real"]):
        row |= {"frechet_distance": None, "spatial_frechet_distance": None}
    put(whole.run / "metrics.json", metrics)
    text = whole.write()
    page = Page(text)
    assert "Kernel distance at w = 2, against 0.0405 unguided (−50 %)" in page.sections["head"]
    for section in ("head", "metrics"):
        assert "No Fréchet distance: 1,234 real images do not span" in page.sections[section]
    assert "best kernel distance" in page.sections["samples"]
    assert "Generated, w = 2" in page.sections["gallery"]
    table = re.findall(r"<thead>.*?</thead>", text[text.index('id="metrics"') :], flags=re.DOTALL)[0]
    assert "Kernel distance" in table and "Fréchet" not in table


def test_a_kernel_distance_below_zero_has_no_percent(whole: Folders) -> None:
    metrics = json.loads((whole.run / "metrics.json").read_text())
    for row in metrics["results"]:
        row |= {"frechet_distance": None, "kernel_distance": -0.001 * (1 + row["guidance_scale"])}
    put(whole.run / "metrics.json", metrics)
    head = Page(whole.write()).sections["head"]
    assert "w = 3, against -0.001 unguided" in head and "unguided (" not in head


def test_distances_by_a_backbone_and_replicas_carry_its_name(whole: Folders) -> None:
    metrics = json.loads((whole.run / "metrics.json").read_text())
    for row in (*metrics["results"], metrics["real"]):
        row |= {"spatial_frechet_distance": 9.0, "backbone_frechet_distance": 700.0, "replica_share": 0.25}
    put(whole.run / "metrics.json", metrics | {"backbone": "dino-s (224x224 px)"})
    text = whole.write()
    for title in ("Fréchet distance (dino-s (224x224 px))", "Replica share (dino-s (224x224 px))"):
        assert f'aria-label="{title}"' in text
    assert "dino-s (224x224 px) features, 4,321 samples against 1,234 val images" in text
    assert f'aria-label="Spatial Fréchet distance ({NETWORK})"' in text
    assert "Fréchet distance, dino-s (224x224 px)" in Page(text).sections["metrics"]


def test_a_fid_is_called_so_by_inception_only(whole: Folders) -> None:
    metrics = json.loads((whole.run / "metrics.json").read_text())
    put(whole.run / "metrics.json", metrics | {"network": "Inception-v3 (clean-fid)"})
    assert "FID at w = 2" in Page(whole.write()).sections["head"]


def sweep_row(scale: float, seed: int) -> dict[str, object]:
    return {
        **dict.fromkeys(sweep_results.COLUMNS),
        "key": f"{scale:g}-{seed}",
        "guidance_scale": scale,
        "steps": 18,
        "sampler": "ddim",
        "ema": 0.9999,
        "eta": 0.0,
        "seed": seed,
        "trained_images": 1000,
        "checkpoint": "0a1b2c3d",
        "guidance": "classifier-free",
        "subjects": "clusters by frequency",
        "protocol": "custom",
        "images": 500,
        "reference": "val",
        "reference_images": 2000,
        "network": NETWORK,
        "frechet_distance": 10 + abs(scale - 2) + seed,
        "kernel_distance": 0.5,
        "precision": 0.5,
    }


def test_a_sweep_has_its_section(whole: Folders) -> None:
    assert "sweep" not in Page(whole.write()).sections
    (whole.run / "sweep" / "grids").mkdir(parents=True)
    for scale in (1.0, 2.0, 3.0):
        for seed in (0, 2):
            sweep_results.add(whole.run / "sweep.csv", sweep_row(scale, seed))
            np.savez(whole.run / "sweep/grids" / f"{scale:g}-{seed}.npz", image=np.zeros((64, SIDE, SIDE, 3), np.uint8))
    text = whole.write()
    page = Page(text)
    sweep = page.sections["sweep"]
    assert f"{NETWORK} features, 500 samples against 2,000 val images, protocol custom" in sweep
    assert re.search(r"11\s+± 1\.4\s+Fréchet distance at w = 2, 18 steps, ddim", sweep)
    assert all(name in sweep for name in ("Best", "Least guidance", "Most guidance"))
    assert '<td class="best">11.00 ± 1.41</td>' in text
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loaded)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    np.savez(whole.run / "sweep/grids/2-0.npz", image=np.zeros((64, 3, SIDE, SIDE), np.float32))
    with pytest.raises(ValueError, match=r"2-0\.npz is damaged \(image is float32"):
        whole.write()


def test_a_sweep_without_a_kernel_distance_is_refused(whole: Folders) -> None:
    sweep_results.add(whole.run / "sweep.csv", sweep_row(1.0, 0) | {"kernel_distance": None})
    with pytest.raises(ValueError, match=r"sweep\.csv, line 2, has no kernel_distance"):
        whole.write()


def test_layouts_are_shown_with_what_was_drawn_for_them(whole: Folders) -> None:
    text = (whole.run / "config.yaml").read_text().replace("layout: none", "layout: boxes", 1)
    (whole.run / "config.yaml").write_text(text)
    assert "No layouts yet" in Page(whole.write()).sections["layouts"]
    layout, image = np.zeros((4, SIDE, SIDE), np.uint8), np.zeros((4, SIDE, SIDE, 3), np.uint8)
    np.savez(whole.run / "samples/guidance-2-examples.npz", layout=layout, image=image, row=np.array([3, 3, 7, 7]))
    assert "images drawn for the same" in Page(whole.write()).sections["layouts"]


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    folders = make_run(tmp_path, name="a<script>alert(1)<b>&", source="<img src=x onerror=alert(1)>")
    metrics = json.loads((folders.run / "metrics.json").read_text())
    put(folders.run / "metrics.json", metrics | {"network": '"><script>$x_1$'})
    manifest = json.loads((folders.annotation / "manifest.json").read_text())
    put(folders.annotation / "manifest.json", manifest | {"encoder": "<script>", "parameters": {"<i>": "</dl>"}})
    page = Page(folders.write({"<script>": "<script>"}))
    assert "script" not in page.tags
    assert "x" not in page.loaded
    assert "a<script>alert(1)<b>&" in page.sections["head"]


@pytest.mark.parametrize(
    ("missing", "section"),
    [
        ("run/metrics.json", "metrics"),
        ("run/log.jsonl", "training"),
        ("run/stages.json", "stages"),
        ("run/samples", "samples"),
        ("annotation/manifest.json", "clusters"),
        ("annotation/manifest.json", "gallery"),
    ],
)
def test_a_missing_part_is_a_sentence(whole: Folders, missing: str, section: str) -> None:
    folder, name = missing.split("/")
    (getattr(whole, folder) / name).rename(whole.run / "away")
    page = Page(whole.write())
    assert " yet" in page.sections[section]
    assert set(page.sections) >= set(SECTIONS)


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    whole = make_run(tmp_path)
    begun = Folders(tmp_path / "elsewhere", "begun")
    begun.run.mkdir(parents=True)
    (begun.run / "config.yaml").write_bytes((whole.run / "config.yaml").read_bytes())
    page = Page(begun.write())
    assert set(page.sections) >= set(SECTIONS) and "begun" in page.sections["head"]


def test_an_unconditional_run_has_no_gallery_and_promises_none(whole: Folders) -> None:
    text = (whole.run / "config.yaml").read_text().replace(f"num_clusters: {CLUSTERS}\n", "num_clusters: 0\n", 1)
    (whole.run / "config.yaml").write_text(text)
    for scale in (1, 2, 3):
        (whole.run / "samples" / f"guidance-{scale}.npz").unlink()
    image = np.zeros((9, SIDE, SIDE, 3), np.uint8)
    np.savez(whole.run / "samples" / "guidance-0.npz", image=image, cluster=np.full(9, -1))
    (whole.run / "metrics.json").unlink()
    page = Page(whole.write())
    assert "unconditional" in page.sections["gallery"] and " yet" not in page.sections["gallery"]
    assert "same cluster" not in page.sections["samples"]


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        ("run/metrics.json", b'{"network": '),
        ("run/metrics.json", b'{"network": "x", "samples": 3, "results": [], "reference": {}}'),
        ("run/metrics.json", b"[1]"),
        (
            "run/metrics.json",
            b'{"network": "x", "samples": 3, "reference": {"images": 4, "split": "val"},'
            b' "results": [{"guidance_scale": 0, "frechet_distance": null}]}',
        ),
        ("run/sweep.csv", b"key,seed\n1,2\n"),
        ("run/stages.json", b"\xff\xfe"),
        ("run/stages.json", b'{"train": {"seconds": "long"}}'),
        ("run/log.jsonl", b'{"images": 1, "loss"\n{}\n'),
        ("run/log.jsonl", b'{"images": 1, "loss": null, "images_per_second": 2}\n'),
        ("run/log.jsonl", b'{"images": 1, "loss": 1, "images_per_second": 2, "loss_by_level": [1, "2"]}\n'),
        ("run/config.yaml", b"run: [\n"),
        ("run/samples/guidance-2.npz", b"PK\x03\x04 cut short"),
        ("data/train.json", b"{"),
        ("annotation/manifest.json", b"{}}"),
        ("annotation/clusters.npy", b"\x93NUMPY"),
    ],
)
def test_a_damaged_file_is_named_and_the_old_report_stays(whole: Folders, damaged: str, content: bytes) -> None:
    (whole.run / "report.html").write_text("old")
    folder, name = damaged.split("/", 1)
    path = getattr(whole, folder) / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        whole.write()
    assert (whole.run / "report.html").read_text() == "old"
    assert not list(whole.run.glob(".report*"))


def test_samples_of_another_shape_are_refused(whole: Folders) -> None:
    path = whole.run / "samples" / "guidance-2.npz"
    np.savez(path, image=np.zeros((4, 3, SIDE, SIDE), np.float32), cluster=np.zeros(4, np.int64))
    with pytest.raises(ValueError, match=r"guidance-2\.npz is damaged \(image is float32"):
        whole.write()


def test_pickles_are_not_loaded(whole: Folders) -> None:
    np.save(whole.annotation / "clusters.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"clusters\.npy"):
        whole.write()


def test_a_last_log_line_cut_by_a_kill_is_left_out(whole: Folders) -> None:
    with (whole.run / "log.jsonl").open("a") as file:
        file.write('{"images": 1100, "lo')
    assert "1,000 images seen" in Page(whole.write()).sections["training"]


def test_the_loss_by_noise_level_is_that_of_the_last_tenth(whole: Folders) -> None:
    before = whole.write()
    rows = [{"images": n, "loss": 1.0, "images_per_second": 50.0, "loss_by_level": [None] * 10} for n in range(1, 21)]
    rows[18]["loss_by_level"] = [8.0, None] + [0.5] * 8
    rows[19]["loss_by_level"] = [2.0, None] + [0.5] * 8
    (whole.run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Loss by noise level" in whole.write() and "Loss by noise level" not in before
    figure = charts.level_chart("Levels", np.array([5.0, np.nan, 0.5]))
    assert 'aria-label="Levels"' in figure and "quantile" in figure


def test_a_failure_while_writing_leaves_no_half_page(whole: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole.run / "report.html").write_text("old")

    def full_disk(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[:100].encode())
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(whole.run, whole.data, whole.annotation, {}, whole.real_images)
    assert (whole.run / "report.html").read_text() == "old"
    assert not list(whole.run.glob(".report*"))


def test_the_same_files_give_the_same_page(whole: Folders) -> None:
    assert whole.write() == whole.write()


def test_a_sheet_places_images_row_by_row() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8) * 40
    sheet = charts.sheet(images, columns=3)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.address.split(",")[1]))))
    assert pixels.shape == (65, 98, 4) and sheet.width == 196  # 32-pixel images at twice their size, a pixel between
    for number in range(5):
        corner = pixels[number // 3 * 33, number % 3 * 33]
        assert corner.tolist() == [40 * number] * 3 + [255]
    assert pixels[33, 66 + 1, 3] == 0  # the place of a sixth image is empty


def test_large_images_are_reduced() -> None:
    sheet = charts.sheet(np.zeros((2, 256, 256, 3), np.uint8), columns=2)
    assert sheet.width == 2 * 64 + 2


def test_a_moving_average_keeps_a_constant_and_follows_a_line() -> None:
    images = np.arange(1, 101, dtype=float)
    assert "var(--accent)" in charts.curve_chart("Loss", images, np.full(100, 0.5), log_scale=True)
    smooth = charts._moving_average(images, width=5)
    np.testing.assert_allclose(smooth[10:-10], images[10:-10])
    np.testing.assert_allclose(charts._moving_average(np.ones(7), width=3), 1)
