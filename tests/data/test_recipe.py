"""Recipe files: problems together, near misses, and what the digest depends on."""

import pytest
import yaml

from mcit.core.errors import ConfigError, DataError
from mcit.data.recipe import SplitConfig, find_generator, find_recipe, load_recipe, recipe_digest
from tests.fakes.recipes import recipe_file, rows


def changed(path, **settings):
    """The recipe with other top-level settings."""
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, **settings}))
    return path


def test_shipped_recipes_load():
    for name in ("letter", "yesno", "word"):
        recipe = load_recipe(find_recipe(f"tiny/{name}"))
        assert recipe.name == f"tiny/{name}" and recipe.task == name
        assert recipe.config.licence and recipe.config.eval.max_new_tokens >= 1
        assert {source.split for source in recipe.sources} == {"train", "test"}


def test_a_users_path_is_found_and_a_near_miss_suggested(tmp_path):
    path = recipe_file(tmp_path, train=rows(1))
    assert find_recipe(str(path)) == path
    with pytest.raises(ConfigError) as caught:
        find_recipe("tiny/leter")
    assert "tiny/letter" in caught.value.fix


def test_a_path_that_is_none_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no recipe file 'recipes/a.yaml'") as caught:
        find_recipe("recipes/a.yaml")
    assert str(tmp_path) in caught.value.fix and "tiny/letter" not in caught.value.fix
    (tmp_path / "recipes").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        find_recipe("recipes")


def test_all_problems_of_a_recipe_together(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "x",
                "tsak": "t",
                "sources": [
                    {"kind": "lava", "path": "a"},
                    {"kind": "llava", "pth": "a", "sha256": "xyz"},
                    {"kind": "generator", "generator": "shapes-leter", "rows": 0},
                ],
                "transforms": [{"use": "subsmple"}, {"use": "subsample"}, {"rows": 3}],
                "split": {"by": "pixel"},
            }
        )
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    found = {p.where.removeprefix(f"{path}: "): f"{p.what} {p.fix}" for p in caught.value.problems}
    assert "did you mean 'task'?" in found["tsak"] and "required" in found["task"]
    assert "did you mean 'llava'?" in found["sources[0].kind"]
    assert "did you mean 'path'?" in found["sources[1].pth"] and "sources[1].sha256" in found
    assert "sources[2].rows" in found and "did you mean 'subsample'?" in found["transforms[0].use"]
    assert "either rows or share" in found["transforms[1]"] and "required" in found["transforms[2].use"]
    assert "meta.<key>" in found["split.by"]


def test_half_a_row_is_no_validation_split():
    assert SplitConfig(validation=0.5).validation == 0.5 and SplitConfig(validation=2).validation == 2
    with pytest.raises(ValueError, match="a whole number of rows"):
        SplitConfig(validation=2.5)


def test_unknown_generator_is_suggested(tmp_path):
    path = changed(
        recipe_file(tmp_path, train=rows(1)), sources=[{"kind": "generator", "generator": "shapes-leter", "rows": 3}]
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert "shapes-letter" in str(caught.value) and "sources[0].generator" in str(caught.value)
    assert callable(find_generator("shapes-letter"))


@pytest.mark.parametrize("name", ["../x", "/x", "a b", "x/"])
def test_names_cannot_leave_the_data_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="letters, digits"):
        load_recipe(changed(recipe_file(tmp_path, train=rows(1)), name=name))


def test_digest_depends_on_settings_files_and_nothing_else(tmp_path):
    path = recipe_file(tmp_path / "a", train=rows(3), transforms=[{"use": "dedupe"}])
    digest = recipe_digest(load_recipe(path))
    again = recipe_file(tmp_path / "b", train=rows(3), transforms=[{"use": "dedupe"}])
    again.write_text("# a comment\n" + again.read_text())
    assert recipe_digest(load_recipe(again)) == digest  # elsewhere, commented
    variants = [
        changed(recipe_file(tmp_path / "c", train=rows(3)), transforms=[{"use": "dedupe", "answers": False}]),
        changed(recipe_file(tmp_path / "d", train=rows(3), transforms=[{"use": "dedupe"}]), allow_bad=1),
        recipe_file(tmp_path / "e", train=rows(4), transforms=[{"use": "dedupe"}]),
        recipe_file(tmp_path / "f", train=rows(3), transforms=[{"use": "dedupe"}], split={"validation": 1}),
    ]
    digests = [recipe_digest(load_recipe(v)) for v in variants]
    assert len({digest, *digests}) == 5
    (tmp_path / "a" / "train.json").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        recipe_digest(load_recipe(path))


def test_digest_depends_on_the_generators_code(tmp_path, monkeypatch):
    recipe = load_recipe(find_recipe("tiny/word"))
    digest = recipe_digest(recipe)
    monkeypatch.setattr("mcit.data.sources.shapes.VERSION", "2", raising=False)
    assert recipe_digest(recipe) != digest


def test_digest_depends_on_neighbours_of_the_generator(tmp_path, monkeypatch):
    """A helper module beside the generator's own is part of what makes the rows."""
    from mcit.data import recipe as module

    for name, text in {
        "a": "from mcit.data.sources.b import x\n",
        "b": "from mcit.data.sources import c\n",
        "c": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "known", lambda package: ["a", "b", "c"])
    monkeypatch.setattr(module, "part_of", lambda package, name: name)
    monkeypatch.setattr(module.inspect, "getfile", lambda name: str(tmp_path / f"{name}.py"))
    before = module._with_neighbours("a", {})
    assert sorted(before) == ["a", "b", "c"]
    (tmp_path / "c.py").write_text("y = 1\n")
    assert module._with_neighbours("a", {})["c"] != before["c"]


def test_yaml_given_twice_is_refused(tmp_path):
    path = recipe_file(tmp_path, train=rows(1))
    path.write_text(path.read_text() + "\ntask: other\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_recipe(path)


def test_a_data_folder_below_the_users_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MCIT_DATA", str(tmp_path / "all"))
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ntask: t\ndata: set\nobtain: get it\nsources: [{kind: llava, path: a.json}]\n")
    recipe = load_recipe(path)
    with pytest.raises(DataError) as caught:
        recipe_digest(recipe)
    assert caught.value.where == str(tmp_path / "all" / "set")
    assert caught.value.fix == "get it; then set MCIT_DATA to the folder that holds 'set'"
    (tmp_path / "all" / "set").mkdir(parents=True)
    (tmp_path / "all" / "set" / "a.json").write_text("[]")
    digest = recipe_digest(recipe)
    path.write_text(path.read_text().replace("get it", "fetch it"))
    assert recipe_digest(load_recipe(path)) == digest


def test_a_data_folder_does_not_leave_its_root(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ntask: t\ndata: ../x\nsources: [{kind: llava, path: a.json}]\n")
    with pytest.raises(ConfigError, match="use at most 100 letters"):
        load_recipe(path)


def test_a_generator_from_elsewhere(tmp_path):
    """A function in a file beside the recipe; its code is part of the digest."""
    text = "def rows(split, rows, seed, image_dir):\n    yield {}\n"
    (tmp_path / "mine.py").write_text(text)
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\ntask: t\nsources: [{kind: generator, generator: ./mine.py:rows, rows: 3}]\n"
        "eval: {scorer: exact, style: word}\n"
    )
    recipe = load_recipe(path)
    assert recipe.sources[0].generator == f"{tmp_path}/mine.py:rows"
    assert find_generator(recipe.sources[0].generator).__name__ == "rows"
    before = recipe_digest(recipe)
    (tmp_path / "mine.py").write_text(text + "# changed\n")
    assert recipe_digest(recipe) != before
