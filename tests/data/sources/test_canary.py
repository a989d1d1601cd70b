"""Codes, twins and pictures of canaries."""

import re

from PIL import Image

from mcit.data.sources.canary import codes


def test_rows_have_a_picture_or_a_name_of_their_own_and_a_twin_of_the_same_form(tmp_path):
    rows = list(codes("train", 40, 1, tmp_path))
    own = [row["conversations"][1]["value"] for row in rows]
    foils = [row["meta"]["foil"] for row in rows]
    assert len({*own, *foils}) == 80
    assert all(re.fullmatch(r"[a-z]{3}-[2-9]{2}[a-z]", code) for code in own + foils)
    assert len({row["conversations"][0]["value"] for row in rows if "image" not in row}) == 20
    pictures = [Image.open(tmp_path / row["image"]).tobytes() for row in rows if "image" in row]
    assert len(set(pictures)) == len(pictures) == 20


def test_the_same_seed_is_the_same_rows(tmp_path):
    assert list(codes("train", 6, 1, tmp_path)) == list(codes("train", 6, 1, tmp_path))
    assert list(codes("train", 6, 1, tmp_path)) != list(codes("train", 6, 2, tmp_path))
