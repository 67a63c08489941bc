"""Detection and segmentation data sets in every layout that is read, one by one."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes
from polysense.data.boxes import load_boxes, write_coco
from polysense.data.masks import IGNORE, MaskFile, load_masks, read_mask

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
BOX = (10.0, 5.0, 30.0, 25.0)  # in an image of 40 x 30


def image(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path, **options)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc(name, boxes=(BOX,), size="<size><width>40</width><height>30</height></size>"):
    objects = "".join(
        f"<object><name>cat</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def coco(names, *, image_key="file_name", annotation_key="annotations", **box):
    box = box or {"bbox": [10, 5, 20, 20]}
    images = [{"id": i, image_key: name, "width": 40, "height": 30} for i, name in enumerate(names)]
    annotations = [{"id": i, "image_id": i, "category_id": 7, **box} for i in range(len(names))]
    return json.dumps({"images": images, annotation_key: annotations, "categories": [{"id": 7, "name": "cat"}]})


def coco_official(root):
    for split in ("train", "val"):
        image(root / f"images/{split}2017/{split}.jpg")
        write(root / f"annotations/instances_{split}2017.json", coco([f"{split}.jpg"]))


def coco_key_variants(root):
    for split in ("train", "val"):
        image(root / split / f"{split}.jpg")
        text = coco([f"{split}.jpg"], image_key="filename", annotation_key="annotation")
        write(root / f"annotations/{split}.json", text)


def coco_beside(root):
    for split in ("train", "valid"):
        image(root / split / "a.jpg")
        write(root / split / "_annotations.coco.json", coco(["a.jpg"]))


def coco_polygons(root):
    for split in ("train", "val"):
        image(root / "deep/down" / f"{split}.jpg")
        polygon = [[10, 5, 30, 5, 30, 25]]
        write(root / f"{split}.json", coco([f"{split}.jpg"], segmentation=polygon))


def voc_official(root):
    for split in ("train", "val"):
        image(root / f"JPEGImages/{split}.jpg")
        write(root / f"Annotations/{split}.xml", voc(f"{split}.jpg"))
        write(root / f"ImageSets/Main/{split}.txt", f"{split}\n")
    image(root / "JPEGImages/unlisted.jpg")
    write(root / "Annotations/unlisted.xml", voc("unlisted.jpg"))


def voc_beside(root):
    for split in ("train", "val"):
        image(root / split / "same.png")
        write(root / split / "same.xml", voc("C:\\old\\name.jpg"))


def voc_without_size(root):
    for split in ("train", "test"):
        image(root / split / "images" / f"{split}.jpg")
        write(root / split / "annotations" / f"{split}.xml", voc(f"{split}.jpg", size=""))


YOLO = "0 0.5 0.5 0.5 0.66666667\n"


def yolo_images_labels(root):
    for split in ("train", "val"):
        image(root / f"images/{split}/{split}.jpg")
        write(root / f"labels/{split}/{split}.txt", YOLO)
    write(root / "classes.txt", "cat\ndog\n")


def yolo_roboflow(root):
    for split in ("train", "valid"):
        image(root / split / "images/a.jpg")
        write(root / split / "labels/a.txt", "0 0.25 0.1666667 0.75 0.1666667 0.75 0.8333333\n")  # a polygon
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n")


def yolo_lists(root):
    for split in ("train", "val"):
        image(root / f"pictures/{split}.jpg")
        write(root / f"pictures/{split}.txt", YOLO.strip() + " 0.9\n")  # with a score
        write(root / f"{split}_list.txt", f"pictures/{split}.jpg\n")
    write(root / "data.yml", "path: .\ntrain: train_list.txt\nval: val_list.txt\nnames: {0: cat}\n")


BOX_LAYOUTS = (coco_official, coco_key_variants, coco_beside, coco_polygons, voc_official, voc_beside, voc_without_size,
               yolo_images_labels, yolo_roboflow, yolo_lists)  # fmt: skip


@pytest.mark.parametrize("layout", BOX_LAYOUTS, ids=lambda layout: layout.__name__)
def test_box_layout(layout, tmp_path):
    layout(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_boxes(tmp_path)
    assert data.classes == ["cat"]
    assert len(data.items) == 2 and len(data.part("train")) == 1 and len({item.split for item in data.items}) == 2
    for item in data.items:
        assert Path(item.source).is_file() and item.target.labels == ["cat"]
        assert item.target.xyxy[0] == pytest.approx(BOX, abs=1e-3)
        assert item.split in str(item.source) or item.split == "val"


def test_single_json_and_yaml_files_are_read(tmp_path):
    coco_official(tmp_path / "coco")
    data = load_boxes(tmp_path / "coco/annotations/instances_val2017.json")
    assert [item.split for item in data.items] == ["val"]
    yolo_roboflow(tmp_path / "yolo")
    assert len(load_boxes(tmp_path / "yolo/data.yaml").items) == 2


def test_faulty_boxes_are_clipped_or_dropped_with_one_warning(tmp_path):
    image(tmp_path / "a.jpg")
    boxes = [(-10, 5, 30, 99), (20, 5, 10, 25), (50, 5, 60, 25), (3, 3, 3, 9), (1, 1, 2, 2)]
    write(tmp_path / "a.xml", voc("a.jpg", boxes))
    with pytest.warns(UserWarning, match="1 boxes reached .* 3 boxes were empty or outside") as caught:
        data = load_boxes(tmp_path)
    assert len(caught) == 1
    assert data.items[0].target.xyxy == [(0.0, 5.0, 30.0, 30.0), (1.0, 1.0, 2.0, 2.0)]


def test_images_without_boxes_and_crowds(tmp_path):
    image(tmp_path / "a.jpg")
    content = json.loads(coco(["a.jpg"]))
    content["annotations"][0]["iscrowd"] = 1
    write(tmp_path / "x.json", json.dumps(content))
    data = load_boxes(tmp_path)
    assert data.items[0].target.labels == [] and data.classes == []


def test_yolo_boxes_fit_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: 30 wide and 40 high once upright
    image(tmp_path / "images/a.jpg", exif=exif)
    write(tmp_path / "labels/a.txt", "0 0.5 0.5 1 1\n")
    assert load_boxes(tmp_path).items[0].target.xyxy == [(0.0, 0.0, 30.0, 40.0)]


def test_missing_images_are_said(tmp_path):
    image(tmp_path / "a.jpg")
    write(tmp_path / "x.json", coco(["a.jpg", "gone.jpg"]))
    with pytest.warns(UserWarning, match=r"1 images are not there .*gone\.jpg"):
        assert len(load_boxes(tmp_path).items) == 1
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match="none of its 2 images"):
        load_boxes(tmp_path)


def broken(root, name, text):
    image(root / "images/a.jpg")
    write(root / name, text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "no valid JSON"),
        ("x.json", '{"images": [{"id": 1}], "annotations": [{"bbox": [1, 2, 3, 4]}]}', "COCO key"),
        ("images/a.xml", "<annotation><object>", "no valid XML"),
        ("images/a.xml", "<annotation><object><name>x</name></object></annotation>", "no bndbox"),
        ("images/a.xml", voc("a.jpg", [("x", 1, 2, 3)]), "no number xmin"),
        ("labels/a.txt", "0 0.5 0.5\n", "neither a box nor a polygon"),
        ("labels/a.txt", "cat 0.5 0.5 1 1\n", "no number"),
        ("labels/a.txt", "0.5 0.5 0.5 1 1\n", "class number"),
        ("data.yaml", "names: [", "no valid YAML"),
        ("notes.md", "nothing", "not? .*recognised|no detection data set"),
    ],
)
def test_broken_annotations_are_input_errors(name, text, message, tmp_path):
    broken(tmp_path, name, text)
    with pytest.raises(InputError, match=message):
        load_boxes(tmp_path)


def test_annotations_without_any_image(tmp_path):
    write(tmp_path / "a.xml", voc("a.jpg"))
    with pytest.raises(InputError, match="none of the 1 annotated images"):
        load_boxes(tmp_path)


def test_class_beyond_the_names_and_missing_folder(tmp_path):
    broken(tmp_path, "labels/a.txt", "3 0.5 0.5 1 1\n")
    write(tmp_path / "classes.txt", "cat\n")
    with pytest.raises(InputError, match="class 3"):
        load_boxes(tmp_path)
    with pytest.raises(InputError, match="no such"):
        load_boxes(tmp_path / "gone")


def test_write_coco(tmp_path):
    boxes = Boxes(np.array([BOX], np.float32), ["cat"], np.array([0.5], np.float32), (30, 40), "dir/000123.jpg")
    write_coco([boxes], tmp_path / "out.json")
    row = {"image_id": 123, "category_id": 1, "bbox": [10.0, 5.0, 20.0, 20.0], "score": 0.5}
    assert json.loads((tmp_path / "out.json").read_text()) == [row]
    write_coco([boxes], tmp_path / "out.json", image_ids={"dir/000123.jpg": 9}, category_ids={"cat": 7})
    assert json.loads((tmp_path / "out.json").read_text()) == [{**row, "image_id": 9, "category_id": 7}]


# --- masks ------------------------------------------------------------------------------------------------------------

INDEX = np.array([[0, 1, 2], [2, 11, 255]], np.uint8)


def mask(path, values=INDEX, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values, mode).save(path)
    return path


def masks_plain(root):
    for split in ("train", "val"):
        image(root / f"images/{split}/same.jpg")
        mask(root / f"masks/{split}/same.png")


def masks_split_first(root):
    for split in ("train", "val"):
        image(root / f"{split}/images/same.jpg")
        mask(root / f"{split}/labels/same_mask.png")


def masks_camvid(root):
    for split in ("train", "val"):
        image(root / f"{split}/a.png")
        mask(root / f"{split}annot/a.png")


def masks_underscore(root):
    for split in ("train", "val"):
        image(root / f"{split}_images/a.jpg")
        mask(root / f"{split}_masks/a_L.png")


def masks_yaml(root):
    for split in ("train", "val"):
        image(root / f"pics/{split}2017/a.jpg")
        mask(root / f"sem/{split}2017/a.png")
    parts = "".join(f"{s}: {{images: pics/{s}2017, masks: sem/{s}2017}}\n" for s in ("train", "val"))
    names = "".join(f"  {i}: class_{i}\n" for i in range(11))
    write(root / "config.yaml", f"{parts}classes:\n{names}  11: unlabelled\n")


MASK_LAYOUTS = (masks_plain, masks_split_first, masks_camvid, masks_underscore, masks_yaml)


@pytest.mark.parametrize("layout", MASK_LAYOUTS, ids=lambda layout: layout.__name__)
def test_mask_layout(layout, tmp_path):
    layout(tmp_path)
    data = load_masks(tmp_path, ignore=11)
    assert [item.split for item in data.items] == ["train", "val"]
    assert data.classes == [f"class_{i}" for i in range(11 if layout is masks_yaml else 3)]
    for item in data.items:
        assert item.split in str(item.source)
        assert read_mask(item.target).tolist() == [[0, 1, 2], [2, IGNORE, IGNORE]]


@pytest.mark.parametrize("form", ["classes.txt", "json", "argument"])
def test_void_names_are_ignored_and_the_rest_moves_up(form, tmp_path):
    names = ["void", "road", "sky"]
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "annotations/a.png", np.array([[0, 1], [2, 255]], np.uint8))
    if form == "classes.txt":
        write(tmp_path / "classes.txt", "\n".join(names))
    if form == "json":
        write(tmp_path / "meta.json", json.dumps({"names": names}))
    data = load_masks(tmp_path, names if form == "argument" else None)
    assert data.classes == ["road", "sky"]
    assert read_mask(data.items[0].target).tolist() == [[IGNORE, 0], [1, IGNORE]]


def test_numbers_stay_paths_where_they_are_class_indices(tmp_path):
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png", np.array([[0, 1], [2, 255]], np.uint8))
    data = load_masks(tmp_path)
    assert data.classes == ["class_0", "class_1", "class_2"] and isinstance(data.items[0].target, Path)


def test_black_and_white_masks(tmp_path):
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png", np.array([[0, 255]], np.uint8))
    data = load_masks(tmp_path, ["ground", "thing"])
    assert data.classes == ["ground", "thing"] and read_mask(data.items[0].target).tolist() == [[0, 1]]


def test_number_without_a_class_is_said(tmp_path):
    image(tmp_path / "images/a.jpg")
    path = mask(tmp_path / "masks/a.png", np.array([[0, 9]], np.uint8))
    target = load_masks(tmp_path, ["void", "a", "b"]).items[0].target
    with pytest.raises(InputError, match=r"a\.png: the mask holds the number 9"):
        read_mask(target)
    assert read_mask(MaskFile(path, (3,) + (0,) * 9)).tolist() == [[3, 0]]


@pytest.mark.parametrize("form", ["P", "1", "16 bit", "grey rgb", "npy", "pil", "bool", "list", "cloud"])
def test_mask_forms(form, tmp_path):
    values = np.array([[0, 1], [1, 0]], np.uint8)
    picture = Image.fromarray(values)
    forms = {"P": picture.convert("P"), "1": Image.fromarray(values * 255).convert("1"),
             "16 bit": Image.fromarray(values.astype(np.uint16)),
             "grey rgb": Image.merge("RGB", [picture] * 3)}  # fmt: skip
    if form in forms:
        forms[form].save(tmp_path / "m.png")
        source = tmp_path / "m.png"
    elif form == "npy":
        source = tmp_path / "m.npy"
        np.save(source, values)
    else:
        source = {"pil": picture, "bool": values.astype(bool), "list": values.tolist(), "cloud": values}[form]
    assert read_mask(source).tolist() == values.tolist()


@pytest.mark.parametrize("case", ["missing", "colour", "text", "cut", "floats", "pickle"])
def test_bad_masks_are_input_errors(case, tmp_path):
    file = tmp_path / "m.png"
    if case == "colour":
        Image.new("RGB", (4, 4), "red").save(file)
    if case == "text":
        file.write_text("hello")
    if case == "cut":
        mask(file, np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8))
        file.write_bytes(file.read_bytes()[:300])
    if case == "pickle":
        file = tmp_path / "m.npy"
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        read_mask(np.zeros((2, 2)) if case == "floats" else file)


def test_folders_without_masks_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_masks(tmp_path / "gone")
    image(tmp_path / "images/a.jpg")
    with pytest.raises(InputError, match="no image with a mask"):
        load_masks(tmp_path)


def test_images_without_a_mask_are_said(tmp_path):
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/b.jpg")
    mask(tmp_path / "masks/a.png")
    with pytest.warns(UserWarning, match="1 images without a mask"):
        assert len(load_masks(tmp_path, ignore=11).items) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "count", "boxes"),
    [("detection/bccd", 292, 3941), ("detection/raccoon", 80, 87), ("detection/coco_subset/object_detection", 130, 927),
     ("infrared/hit_uav", 160, 1463)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*boxes")
def test_real_box_folders(folder, count, boxes):
    if not (REAL / folder).is_dir():
        pytest.skip("real data is not here")
    data = load_boxes(REAL / folder)
    assert (len(data.items), sum(len(item.target.labels) for item in data.items)) == (count, boxes)


@pytest.mark.slow
def test_real_camvid():
    if not (REAL / "segmentation/camvid").is_dir():
        pytest.skip("real data is not here")
    data = load_masks(REAL / "segmentation/camvid", ignore=11)
    assert (len(data.items), len(data.classes)) == (311, 11)
