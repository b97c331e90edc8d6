"""Folders of the Pascal VOC format: what real ones hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgdm.data.opening import open_source
from sgdm.data.scene_formats import voc_palette
from sgdm.data.sources import MissingSplit, UnreadableImage
from sgdm.data.truth import AnnotatedSource, stored_segments
from sgdm.data.voc import CLASS_NAMES, VocFolder

WIDTH, HEIGHT = 12, 8

PERSON = """
<annotation>
  <filename>wrong.jpg</filename><size><width>0</width><height>0</height><depth>3</depth></size>
  <object>
    <name>person</name><truncated>1</truncated><difficult>0</difficult>
    <part><name>head</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></part>
    <bndbox><ymax>8</ymax><xmax>12</xmax><ymin>1</ymin><xmin>1</xmin></bndbox>
  </object>
  <object>
    <name> dog </name><difficult>1</difficult>
    <bndbox><xmin>2.5</xmin><ymin>3</ymin><xmax>45.70000076293945</xmax><ymax>3</ymax></bndbox>
  </object>
</annotation>
"""


def write_image(year: Path, name: str, suffix: str = ".jpg") -> None:
    (year / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (year / "Annotations").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(year / "JPEGImages" / f"{name}{suffix}")


def write_list(year: Path, *names: str, task: str = "Main", split: str = "train") -> None:
    path = year / "ImageSets" / task / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_mask(year: Path, name: str, labels: np.ndarray) -> Path:
    (year / "SegmentationClass").mkdir(exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8)).convert("P")
    image.putpalette(voc_palette().tobytes())
    image.save(year / "SegmentationClass" / f"{name}.png")
    return year / "SegmentationClass" / f"{name}.png"


@pytest.fixture
def year(tmp_path: Path) -> Path:
    """Two images of the train split; the first with an annotation, none with a mask."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_000027", "2007_000032"):
        write_image(folder, name)
    (folder / "Annotations" / "2007_000027.xml").write_text(PERSON)
    write_list(folder, "2007_000032", "2007_000027")
    return folder


def test_any_of_its_folders_opens_it(year: Path) -> None:
    expected = ["2007_000027.jpg", "2007_000032.jpg"]
    for folder in (year, year.parent, year.parent.parent):
        source = open_source(str(folder), "train")
        assert isinstance(source, VocFolder) and isinstance(source, AnnotatedSource)
        assert [Path(name).name for name in source.identifiers] == expected
        assert source.read(0).image.shape == (HEIGHT, WIDTH, 3) and source.read(0).label == -1


def test_boxes_counted_from_one_become_half_open_and_parts_are_no_objects(year: Path) -> None:
    truth = VocFolder(year, "train").truth()
    assert truth.boxes.image_offsets.tolist() == [0, 2, 2]  # a difficult object too
    np.testing.assert_allclose(truth.boxes.corners, [[0, 0, 12, 8], [1.5, 2, 45.7, 3]], atol=1e-6)
    assert [truth.class_names[i] for i in truth.boxes.class_ids] == ["person", "dog"]
    assert truth.class_names == list(CLASS_NAMES)
    assert truth.sizes.tolist() == [[HEIGHT, WIDTH]] * 2  # of the images, whatever the XML says


def test_segments_are_one_a_class_without_the_ignored_pixels(year: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:4, 3:6] = 12  # dog
    labels[5:7, 3:6] = labels[5:7, 8:9] = 15  # person
    labels[4, 3:6] = 255
    write_mask(year, "2007_000032", labels)
    truth = VocFolder(year, "train").truth()
    segments = stored_segments(truth, np.arange(2), HEIGHT).uncompress()
    assert segments.image_offsets.tolist() == [0, 0, 2]
    assert [truth.class_names[i] for i in segments.class_ids] == ["dog", "person"]
    for label, begin, end in zip((12, 15), segments.offsets[:-1], segments.offsets[1:], strict=True):
        runs = segments.values[begin:end]
        mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(HEIGHT, HEIGHT).T
        np.testing.assert_array_equal(mask, labels[:, 2:10] == label)


def test_palette_of_voc() -> None:
    assert voc_palette()[[0, 1, 2, 15, 20, 255]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192])
    ]


def test_several_years_are_one_set(year: Path) -> None:
    older = year.parent / "VOC2007"
    write_image(older, "000005")
    write_list(older, "000005")
    assert list(open_source(str(year.parent), "train").identifiers) == [
        "VOC2007/JPEGImages/000005.jpg",
        "VOC2012/JPEGImages/2007_000027.jpg",
        "VOC2012/JPEGImages/2007_000032.jpg",
    ]


def test_splits_and_their_lists(year: Path) -> None:
    with pytest.raises(MissingSplit, match=r"has no val split: looked for .*ImageSets.Main.val\.txt"):
        open_source(str(year), "val")
    write_list(year, "2007_000032", split="val", task="Segmentation")
    assert list(VocFolder(year, "val").identifiers) == ["JPEGImages/2007_000032.jpg"]
    write_list(year, "2007_000027  1", "", "2007_000027  1", split="val")
    assert list(VocFolder(year, "val").identifiers) == ["JPEGImages/2007_000027.jpg"]
    (year / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"val\.txt is no list of names"):
        VocFolder(year, "val")


def test_images_that_are_missing_or_png(year: Path) -> None:
    write_image(year, "b", ".PNG")
    write_list(year, "a", "b")
    (year / "SegmentationClass").mkdir()
    source = VocFolder(year, "train")
    source.fingerprint()
    assert list(source.identifiers) == ["JPEGImages/a.jpg", "JPEGImages/b.PNG"]
    with pytest.raises(UnreadableImage, match=r"a\.jpg cannot be read"):
        source.read(0)
    assert source.read(1).image.shape == (HEIGHT, WIDTH, 3)
    assert source.truth().boxes.num_images == 2


def test_an_image_that_is_shown_turned_has_the_size_that_is_read(year: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(year / "JPEGImages" / "2007_000032.jpg", exif=exif)
    source = VocFolder(year, "train")
    assert tuple(source.truth().sizes[1]) == source.read(1).image.shape[:2] == (WIDTH, HEIGHT)


def test_other_classes_come_from_the_lists_or_else_from_the_annotations(year: Path) -> None:
    xml = year / "Annotations" / "2007_000027.xml"
    xml.write_text(PERSON.replace("person", "zebra"))
    assert VocFolder(year, "train").truth().class_names == ["dog", "zebra"]
    for name in ("zebra_train", "road vehicle_trainval", "dog_val"):
        (year / "ImageSets" / "Main" / f"{name}.txt").write_text("2007_000027  1\n")
    assert VocFolder(year, "train").truth().class_names == ["dog", "road vehicle", "zebra"]
    xml.write_text(PERSON)
    with pytest.raises(ValueError, match=r"2007_000027\.xml has the class 'person', which ImageSets/Main does not"):
        VocFolder(year, "train").truth()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid XML"),
        ("<annotation>", "is not valid XML"),
        ("<annotation><object><name>dog</name></object></annotation>", "object 0 needs a name and a bndbox"),
        (PERSON.replace(" dog ", ""), "object 1 needs a name and a bndbox"),
        (PERSON.replace("2.5", "two"), r"object 1 needs .* has \['two', '3'"),
        (PERSON.replace("2.5", "nan"), r"object 1 needs .* has \['nan', '3'"),
        (PERSON.replace("2.5", "77"), r"object 1 needs .* has \['77', '3'"),
    ],
)
def test_damaged_annotations_are_named(year: Path, text: str, message: str) -> None:
    (year / "Annotations" / "2007_000027.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"2007_000027\.xml:? {message}"):
        VocFolder(year, "train").truth()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_annotation_is_refused_or_understood(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_voc"
    if not folder.exists():
        write_image(folder, "a")
        write_list(folder, "a")
    begin = data.draw(st.integers(0, len(PERSON)))
    end = data.draw(st.integers(begin, min(begin + 40, len(PERSON))))
    text = PERSON[:begin] + data.draw(st.text(max_size=8)) + PERSON[end:]
    (folder / "Annotations" / "a.xml").write_text(text, encoding="utf-8", errors="surrogateescape")
    try:
        boxes = VocFolder(folder, "train").truth().boxes
    except ValueError:
        return
    assert len(boxes.class_ids) <= 2 and np.isfinite(boxes.corners).all()


def test_damaged_masks_are_named(year: Path) -> None:
    path = write_mask(year, "2007_000032", np.full((HEIGHT, WIDTH), 21))
    source = VocFolder(year, "train")
    with pytest.raises(ValueError, match=r"2007_000032\.png has the class 21, but there are 20"):
        source.truth()
    write_mask(year, "2007_000032", np.zeros((WIDTH, HEIGHT)))
    with pytest.raises(ValueError, match=r"2007_000032\.png is P of \(12, 8\)"):
        source.truth()
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(ValueError, match=r"2007_000032\.png is RGB of \(8, 12\)"):
        source.truth()
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"2007_000032\.png cannot be read"):
        source.truth()


def test_the_fingerprint_follows_annotations_and_masks(year: Path) -> None:
    source = VocFolder(year, "train")
    found = [source.fingerprint()]
    (year / "Annotations" / "2007_000032.xml").write_text(PERSON)
    found.append(source.fingerprint())
    write_mask(year, "2007_000032", np.zeros((HEIGHT, WIDTH)))
    found.append(source.fingerprint())
    assert len(set(found)) == 3


def test_a_devkit_without_a_year_is_named(tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    with pytest.raises(ValueError, match="holds no VOC<year> folder with JPEGImages"):
        open_source(str(tmp_path), "train")
