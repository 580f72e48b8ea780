import numpy as np
import pytest
import torch
from PIL import Image

from components.data.photos import Photos, cropped


def test_pixels_labels_and_splits_agree_with_the_manifest(folder, photos):
    table = photos.manifest
    assert len(photos) == len(table) == 96
    for row in (0, 41, 95):
        expected = Image.open(folder / table["path"][row]).convert("RGB")
        assert photos[row].shape[2] == table["packed_width"][row]
        # of 255: the packed photo is smaller
        assert abs(photos[row].float().mean().item() - np.asarray(expected).mean()) < 1
        assert photos.classes[photos.labels(np.array([row]))[0]] == table["label"][row] == photos.label(row)
    assert sorted(np.concatenate([photos.rows(s) for s in ("train", "val", "test")])) == list(range(96))
    assert all(table["split"][int(row)] == "test" for row in photos.rows("test"))


@pytest.mark.parametrize("square", ["squash", "crop"])
def test_squares_equal_those_of_the_stock_processor(photos, tiny, tmp_path, square):
    """Same resize, so that the features of `evaluate` are those a user gets from the saved folder."""
    from transformers import AutoImageProcessor

    from components.models.backbone import build

    backbone = build(tiny.model_copy(update={"square": square}))
    backbone.save(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for row in range(7):  # of seven different widths
        image = Image.fromarray(photos[row].permute(1, 2, 0).numpy())
        expected = processor(image, return_tensors="pt")["pixel_values"]
        actual = backbone.normalize(photos.squares(np.array([row]), tiny.image_size, square).float())
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() < 0.03  # one of 255 levels, divided by std


def test_a_cropped_square_is_the_middle_of_the_photo():
    photo = torch.zeros(3, 12, 30, dtype=torch.uint8)
    photo[:, :, 9:21] = 200
    assert (cropped(photo, 12) == 200).all()
    assert (cropped(photo.transpose(1, 2), 6)[:, 1:-1] == 200).all()  # the edge is between two pixels


def test_questions_and_answers_belong_to_the_split(photos):
    questions = photos.questions("test")
    assert set(questions["row"]) <= set(photos.rows("test").tolist())
    assert set(questions["answer"]) == {"red", "green"}


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run the prepare stage first"):
        Photos(tmp_path)


def test_half_a_file_is_refused(prepared, tmp_path):
    (tmp_path / "index.npz").write_bytes((prepared / "index.npz").read_bytes())
    (tmp_path / "pixels.bin").write_bytes((prepared / "pixels.bin").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"pixels.bin has \d+ bytes of \d+; copy it again"):
        Photos(tmp_path)


def test_photos_are_views_of_the_file(photos):
    assert photos[0].dtype == torch.uint8
    assert np.shares_memory(photos[0].numpy(), photos.pixels(np.arange(2)).flat)
