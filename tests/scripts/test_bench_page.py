"""Size and opening times of pages."""

import pytest

from mcit.report.page.html import write_page
from scripts.bench import page
from tests.fakes.score_run import FakeRun

pytestmark = pytest.mark.browser


def test_a_page_has_a_size_and_as_many_times_as_asked_for(tmp_path, capsys):
    write_page([FakeRun(tmp_path / "run", [["a"]]).shares(1, "a", 5).root], tmp_path / "page.html")
    (size, seconds, said) = page.opened([tmp_path / "page.html"], 2)[0]
    assert 0.3 < size < 3 and len(seconds) == 2 and min(seconds) > 0 and said == []
    (tmp_path / "broken.html").write_text(
        '<p id="chart-accuracy"><svg width="5" height="5"></svg></p><script>nothing()</script>'
    )
    assert page.main([str(tmp_path / "broken.html"), "--times", "1"]) == 0
    out = capsys.readouterr().out
    assert "MB" in out and "nothing is not defined" in out
