"""What `mcit init` writes can be used at once."""

import pytest

from mcit.core.errors import DataError
from mcit.data.build import check
from mcit.data.recipe import load_recipe
from mcit.data.start import write_start
from mcit.plan.plan import read_config
from tests.data.test_guess import save
from tests.fakes.rows import llava, picture


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "my data"
    (home / "images").mkdir(parents=True)
    names = [picture(home / "images", f"{k}.png", colour=(k, 0, 0)) for k in range(6)]
    save(home / "colours_train.json", [llava(n, "<image>\nColour?", "red", image=n) for n in names[:4]])
    save(
        home / "colours_test.json",
        [{"question_id": n, "image": n, "text": "Colour?", "answer": "red"} for n in names[4:]],
    )
    save(
        home / "talk" / "train.jsonl",
        [{"question": f"q{k}", "answer": "A longer answer than five words."} for k in range(3)],
        lines=True,
    )
    return home


def test_recipes_and_a_config_that_hold(folder, tmp_path):
    written, lines = write_start(folder, tmp_path, model="/models/llava")
    assert written == [tmp_path / name for name in ("colours.yaml", "talk.yaml", "run.yaml")]
    for name, counts in (("colours", (4, 2)), ("talk", (3, 0))):
        report = check(load_recipe(tmp_path / f"{name}.yaml"))
        assert report.ok and (report.counts["train"], report.counts["test"]) == counts, report
    config, _ = read_config(str(tmp_path / "run.yaml"))
    assert [s.recipe for s in config.stages] == [str(tmp_path / f"{t}.yaml") for t in ("colours", "talk")]
    assert config.base.model == "/models/llava" and config.name == "my-data"
    text = "\n".join(lines)
    assert "task colours: colours_train.json -> train; 4 of 4 rows can be read" in text
    assert "task talk: no file for the test" in text and "question and answer under 'question' and 'answer'" in text


@pytest.mark.parametrize("name", ["2024", "1e3", "yes", "null", "_data", ".hidden", "größe", "数据", "run", "n" * 200])
def test_any_name_of_folder_and_file_makes_a_config_that_holds(name, tmp_path):
    for k, stem in enumerate((name.lstrip("."), "train")):
        folder = tmp_path / str(k) / name
        save(folder / f"{stem}.json", [llava("1", "q", "red")])
        written, _ = write_start(folder, folder)
        config, _ = read_config(str(written[-1]))
        assert [stage.recipe for stage in config.stages] == [str(path) for path in written[:-1]]
        assert len(written) == 2 and check(load_recipe(written[0])).ok


def test_nothing_is_overwritten(folder):
    written, _ = write_start(folder, folder)
    before = {path: path.read_bytes() for path in written}
    with pytest.raises(DataError, match="is there already") as caught:
        write_start(folder, folder)
    assert "--out" in caught.value.fix and {path: path.read_bytes() for path in written} == before


def test_recipes_lie_above_their_files(folder, tmp_path):
    with pytest.raises(DataError, match="do not lie below it"):
        write_start(folder, tmp_path / "elsewhere")
