"""Pages that are made from the code: one per method with its source and its settings, the reference by module."""

import pytest

from scripts.docs_pages import REFERENCE, cost, method_page, methods, pages

METHODS = methods()


def test_every_method_with_a_preset_or_a_contract_has_a_page():
    assert {"reglora", "replay", "hft", "gere", "ewc"} <= set(METHODS)
    assert {f"methods/{name}.md" for name in METHODS} | {f"reference/{m}.md" for m in REFERENCE.values()} == set(
        pages()
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_page_names_source_hooks_and_settings(name):
    text = method_page(name, METHODS[name])
    assert text.startswith(f"# {name}\n") and "``" not in text.replace("```", "")
    for word in ("**Hooks**", "## Cost", "## Settings", "## Measured"):
        assert word in text, word
    assert any(word in text for word in ("**Paper**", "**Source**", "**Papers**", "arXiv")), "no source"


def test_cost_is_read_off_the_hooks():
    assert cost(METHODS["reglora"]).endswith("A penalty over weights, once per step, one unit at a time.")
    assert cost(METHODS["reglora"]).startswith("No pass beside the step's own.")
    assert "stream of its own" in cost(METHODS["replay"])
